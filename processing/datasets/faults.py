# SPDX-License-Identifier: Apache-2.0
"""Faults of data files, precise enough to be mended by hand, and the account of what a reading kept and left out."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .schema import MAX_INTEGER, MAX_PIXELS, MAX_SIDE, MIN_INTEGER, FieldFault, is_text, shown

if TYPE_CHECKING:
    from datasets import Dataset

MAX_KEPT_FAULTS = 100  # all are counted


@dataclass(frozen=True)
class RecordFault:
    """One fault: the file, the record in it, the field, what was found, what was expected and how to mend it."""

    file: str
    record: str
    field: str
    found: str
    expected: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: {self.record}: {self.field}: found {self.found}, expected {self.expected}; {self.fix}"


class DatasetFormatError(ValueError):
    """A data file that cannot be read as asked; the message names file, record and field, and the way out."""


@dataclass
class RowAccount:
    """What a reading of a data set kept, what it left out and why; nothing vanishes without being counted here."""

    kept: int = 0  # rows that were handed out
    left_out: Counter[str] = field(default_factory=Counter)  # records that were not, by reason
    # what was read in a way worth knowing (boxes without masks, images found elsewhere, ...), by kind
    notes: Counter[str] = field(default_factory=Counter)
    num_faults: int = 0  # how many faults there were
    faults: list[RecordFault] = field(default_factory=list)  # the first `MAX_KEPT_FAULTS` of them

    def add_fault(self, fault: RecordFault) -> None:
        """Count a fault, and remember it if it is among the first."""
        self.num_faults += 1
        if len(self.faults) < MAX_KEPT_FAULTS:
            self.faults.append(fault)

    def lines(self) -> list[str]:
        """The account for people: one line for the sums, one per reason."""
        found = [f"{self.kept} rows kept, {self.left_out.total()} records left out, {self.num_faults} faults"]
        found += [f"  left out: {count} x {reason}" for reason, count in self.left_out.most_common()]
        return found + [f"  note: {count} x {reason}" for reason, count in self.notes.most_common()]

    def __str__(self) -> str:
        return "; ".join(line.strip() for line in self.lines())

    def to_json(self) -> str:
        """As text, for a file or the description of a `datasets` object."""
        plain = {**vars(self), "faults": [vars(fault) for fault in self.faults]}
        return json.dumps({"row_account": plain}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> RowAccount | None:
        """The account in a text of `to_json`, or None where there is none."""
        try:
            data = json.loads(text)["row_account"]
        except (ValueError, KeyError, TypeError):
            return None
        counters = {name: Counter(data[name]) for name in ("left_out", "notes")}
        faults = [RecordFault(**fault) for fault in data["faults"]]
        return cls(data["kept"], num_faults=data["num_faults"], faults=faults, **counters)

    @classmethod
    def of(cls, dataset: Dataset) -> RowAccount | None:
        """The account that `load_instruction_dataset` left in a dataset's description (kept by select, map, ...)."""
        return cls.from_json(getattr(getattr(dataset, "info", None), "description", None) or "")


class RecordReader:
    """Reads the fields of one record and collects every fault on the way instead of stopping at the first.

    Args:
        record: where in the file, e.g. "images[3] (id 17)" or "line 4".
    """

    def __init__(self, file: str, record: str, data: Any):
        self.file = str(file)
        self.record = record
        self.faults: list[RecordFault] = []
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        if not isinstance(data, dict):
            self.fault("(record)", shown(data), "an object", "write one object per record")

    def fault(self, field: str, found: str, expected: str, fix: str, record: str | None = None) -> None:
        """Note a fault of this record (or of a named part of it)."""
        self.faults.append(RecordFault(self.file, record or self.record, field, found, expected, fix))

    def take(self, faults: Iterable[FieldFault]) -> None:
        """Note the faults of the row made from this record."""
        for one in faults:
            self.fault(one.field, one.found, one.expected, one.fix)

    def check_names(self, known: tuple[str, ...], only_misspelled: bool = False) -> None:
        """Fault the fields that are not `known`; in foreign formats only those that look like one misspelled."""
        if self.data.keys() <= _as_set(known):
            return
        for name in self.data.keys() - _as_set(known):
            meant = closest(str(name), known)
            if only_misspelled and (meant is None or meant in self.data):
                continue
            expected = f"did you mean {meant!r}?" if meant else f"one of {', '.join(known)}"
            self.fault(shown(name).strip("'"), "an unknown field", expected, "rename or remove it")

    def whole(self, field: str, minimum: int = MIN_INTEGER, maximum: int = MAX_INTEGER) -> int:
        """A whole number (5, 5.0 or "5"), or a fault and 0."""
        value = as_whole(self.data.get(field))
        if value is not None and minimum <= value <= maximum:
            return value
        expected = f"a whole number from {minimum} to {maximum}"
        self.fault(field, self._found(field), expected, f"write {field!r} as a number")
        return 0

    def size(self) -> tuple[int, int]:
        """(width, height) in pixels; a fault for each that cannot be, or for too many pixels together."""
        width, height = self.whole("width", 1, MAX_SIDE), self.whole("height", 1, MAX_SIDE)
        if width * height > MAX_PIXELS:
            expected = f"at most {MAX_PIXELS} pixels"
            self.fault("width", f"{width} x {height} pixels", expected, "cut or shrink the image")
        return width, height

    def text(self, field: str) -> str:
        """A non-empty string, or a fault and ""."""
        value = self.data.get(field)
        if isinstance(value, str) and is_text(value):
            return value
        self.fault(field, self._found(field), "a non-empty string in UTF-8", f"write {field!r} as a string")
        return ""

    def items(self, field: str, optional: bool = False) -> list[Any]:
        """A list, or [] (and a fault; none when an optional field is absent)."""
        value = self.data.get(field)
        if isinstance(value, list):
            return value
        if not (optional and value is None):
            self.fault(field, self._found(field), "a list", f"write {field!r} as a list")
        return []

    def texts(self, field: str, optional: bool = True) -> list[str]:
        """A list of non-empty strings; entries that are none become faults."""
        texts = self.data.get(field)
        if type(texts) is list and all(map(is_text, texts)):
            return texts
        texts = self.items(field, optional)
        for index, value in enumerate(texts):
            if not is_text(value):
                fix = "write the instruction or remove the entry"
                self.fault(f"{field}[{index}]", shown(value), "a non-empty string in UTF-8", fix)
        return texts

    def _found(self, field: str) -> str:
        return shown(self.data[field]) if field in self.data else "missing"


@lru_cache
def _as_set(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names)


def as_whole(value: Any) -> int | None:
    """A whole number of 64 bits from 5, 5.0 or "5", as tools write ids and sizes; None for anything else."""
    if type(value) is int:
        return value if MIN_INTEGER <= value <= MAX_INTEGER else None
    if type(value) is float and value.is_integer():
        value = int(value)
    elif isinstance(value, str) and len(value) < 20 and value.removeprefix("-").isdecimal():
        value = int(value)
    return value if type(value) is int and MIN_INTEGER <= value <= MAX_INTEGER else None


@lru_cache(maxsize=1024)
def closest(name: str, known: tuple[str, ...]) -> str | None:
    """The known name that `name` is a misspelling of, or None."""
    plain = {word.replace("_", "").lower(): word for word in known}
    found = difflib.get_close_matches(name.replace("_", "").lower(), plain, n=1, cutoff=0.8)
    return plain[found[0]] if found else None
