# SPDX-License-Identifier: Apache-2.0
"""JSON files larger than memory: elements of the top-level arrays one by one, with the bytes they came from.

The file is decoded as latin-1 while it is scanned, so that a character offset is a byte offset (the structure of JSON
is ASCII, and no byte of a multi-byte UTF-8 character is); text is decoded as UTF-8 when an element is handed out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from tqdm.auto import tqdm

CHUNK = 1 << 22
MAX_ELEMENT = 1 << 28
# A parser error this close to the end of what was read may only mean that the rest is still to come.
TAIL = 16
DELIMITERS = " \t\r\n,:]}"
BATCH = 128  # records that are read ahead, so that their masks are checked in one go

Item = TypeVar("Item")


class JsonSyntaxError(ValueError):
    """A file that is no JSON; carries the place.

    Attributes:
        reason: what the parser says.
        where: line and byte.
    """

    def __init__(self, path: Path, reason: str, offset: int):
        self.reason, self.where = reason, f"line {line_of(path, offset)}, byte {offset}"
        super().__init__(f"{path}: {self.where}: {reason}")


class Element(NamedTuple):
    """One element of a top-level array: the array's key ("" for a file that is an array), position and bytes."""

    key: str
    position: int
    start: int
    end: int
    value: Any


def line_of(path: str | Path, offset: int) -> int:
    """Line (from 1) of a byte offset."""
    line, left = 1, offset
    with open(path, "rb") as file:
        while left > 0:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                break
            line += chunk.count(b"\n")
            left -= len(chunk)
    return line


def iterate_elements(path: str | Path, progress: bool = False, keys: set[str] | None = None) -> Iterator[Element]:
    """Every element of every top-level array of a JSON file, in file order, in memory bounded by one element.

    Values of top-level keys that are no arrays come as one element with position -1. `Element.value` is decoded as
    UTF-8 only where it is plain ASCII; use `read_elements` for text. Every key is added to `keys` ("" for an array).
    Raises JsonSyntaxError with the byte and line of the fault; the elements before it have been handed out.
    """
    with _Scanner(Path(path), progress) as scanner:
        first = scanner.peek()
        keys = set() if keys is None else keys
        if first == "[":
            keys.add("")
            yield from scanner.array("")
        elif first == "{":
            scanner.skip(1)
            while scanner.peek() != "}":
                key, _, _ = scanner.value()
                if not isinstance(key, str):
                    scanner.fail(f"a key must be a string, found {key!r}")
                keys.add(key)
                scanner.expect(":")
                if scanner.peek() == "[":
                    yield from scanner.array(key)
                else:
                    value, start, end = scanner.value()
                    yield Element(key, -1, start, end, value)
                if not scanner.separator("}"):
                    break
            scanner.expect("}")
        else:
            scanner.fail(f"the file starts with {first!r}, expected an object or an array")
        if scanner.peek(allow_end=True):
            scanner.fail("more data after the end of the document")


def sample(path: str | Path, size: int = 1 << 20) -> bytes:
    """The beginning and the end of a file, by which formats are told apart."""
    with open(path, "rb") as file:
        head = file.read(size)
        file.seek(max(size, file.seek(0, 2) - size))
        return head + file.read(size)


def read_elements(file: Any, places: Iterable[tuple[int, int]]) -> list[Any]:
    """Parse the bytes [start, end) of elements of an open binary file; bytes that are no UTF-8 become U+FFFD."""
    parts = []
    for start, end in places:
        file.seek(start)
        parts.append(file.read(end - start))
    return json.loads((b"[" + b",".join(parts) + b"]").decode("utf-8", "replace"))


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last one is shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class _Scanner:
    def __init__(self, path: Path, progress: bool):
        self.path = path
        self.decoder = json.JSONDecoder()
        self.buffer, self.place, self.base, self.ended = "", 0, 0, False
        self.bar = tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=not progress, leave=False
        )

    def __enter__(self) -> _Scanner:
        self.file = open(self.path, "rb")
        start = self.file.read(3)
        self.base = 3 if start == b"\xef\xbb\xbf" else 0
        self.file.seek(self.base)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start[:2]:
            self.fail("the file is UTF-16, expected UTF-8; save it as UTF-8")
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()
        self.bar.close()

    def more(self, size: int = CHUNK) -> None:
        chunk = self.file.read(size)
        self.bar.update(len(chunk))
        self.ended = not chunk
        self.base += self.place
        self.buffer = self.buffer[self.place :] + chunk.decode("latin-1")
        self.place = 0

    def fail(self, reason: str, place: int | None = None) -> NoReturn:
        raise JsonSyntaxError(self.path, reason, self.base + (self.place if place is None else place))

    def peek(self, allow_end: bool = False) -> str:
        while True:
            while self.place < len(self.buffer):
                character = self.buffer[self.place]
                if character not in " \t\r\n":
                    return character
                self.place += 1
            if self.ended:
                if allow_end:
                    return ""
                self.fail("the file ends too early")
            self.more()

    def skip(self, count: int) -> None:
        self.place += count

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            self.fail(f"expected {character!r}, found {found!r}")
        self.skip(1)

    def separator(self, closing: str) -> bool:
        """Step over a comma; False at the closing bracket."""
        found = self.peek()
        if found == closing:
            return False
        if found != ",":
            self.fail(f"expected ',' or {closing!r}, found {found!r}")
        self.place += 1
        if self.peek() == closing:
            self.fail(f"a comma before {closing!r}")
        return True

    def array(self, key: str) -> Iterator[Element]:
        self.expect("[")
        position = 0
        if self.peek() != "]":
            while True:
                value, start, end = self.value()
                yield Element(key, position, start, end, value)
                position += 1
                if not self.separator("]"):
                    break
        self.expect("]")

    def value(self) -> tuple[Any, int, int]:
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.place)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - TAIL
                if self.ended or not cut:
                    self.fail(error.msg, error.pos)
            except RecursionError:
                self.fail("nested too deeply")
            except ValueError as error:  # a number of thousands of digits
                self.fail(str(error))
            else:
                # "1" may be the beginning of "1.5": what follows decides.
                follows = self.buffer[end : end + 1]
                if self.ended or (follows and (follows in DELIMITERS or end + TAIL <= len(self.buffer))):
                    start = self.base + self.place
                    self.place = end
                    return value, start, self.base + end
            if len(self.buffer) - self.place > MAX_ELEMENT:
                self.fail(f"one element is longer than {MAX_ELEMENT >> 20} MiB")
            self.more(size)
            size *= 2
