# SPDX-License-Identifier: Apache-2.0
"""Over 200 hostile data files through the command: a line each, nothing opened elsewhere, little memory."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from test_row_accounts import HEIGHT, HOSTILE, TEXTS, WIDTH, annotation, coco, line

PATHS = [
    "/proc/self/environ", "/etc/passwd", "//etc/passwd", "/dev/zero", "/dev/stdin", "file:///etc/passwd",
    "../not-yours/a.png", "x/../../not-yours/a.png", "..\\not-yours\\a.png", "./../not-yours/a.png",
    "a.png/../../not-yours/a.png",
    "link.png", "linked/a.png", "loop.png", "pipe.png", "folder.png", "http://127.0.0.1:9/a2.png", "ftp://h/a2.png",
    "https://user:key@h/a2.png", "data:image/png;base64,AAAA", "\\\\host\\share\\a2.png", "C:\\Windows\\win.ini",
    "a\0.png", "~/a2.png", "$HOME/a2.png", "%2e%2e/not-yours/a.png", ".", "./..", "/", "a2.png\n", "x" * 5000,
    "\u202egnp.a", "a.png:stream", "-rf", "*.png", "|ls", "\ud800.png",
]  # fmt: skip
VALUES = [
    None,
    True,
    10**30,
    -1,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x" * 10_000,
    [[[]]],
    {"a": {}},
    [None],
    ["\ud800"],
]
FIELDS = [
    "width",
    "height",
    "masks",
    "boxes",
    "is_crowd",
    "annotation_ids",
    "target_kind",
    "simple",
    "row_id",
    "split",
]
HARMLESS = {  # what a field may be: null where it has a default, a text, a flag, a whole number
    "width": (None,), "height": (None,), "masks": (None, [None]), "boxes": (None,), "is_crowd": (),
    "annotation_ids": (-1,), "target_kind": (None,), "simple": ("x" * 10_000,), "row_id": (True, 10**30, -1, 0.5),
    "split": (None, "", "x" * 10_000),
}  # fmt: skip


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, body=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def images():
    """Bytes of files that are no whole images, by name."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        stream = io.BytesIO()
        picture.save(stream, kind)
        whole = stream.getvalue()
        for share in (0.02, 0.3, 0.6):
            yield f"{kind}-{share}", whole[: int(len(whole) * share)]
    yield "empty", b""
    yield "zeros", bytes(4096)
    yield "text", b"hello"
    yield "zip", b"PK\x03\x04" + bytes(100)
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 24\n(/etc/passwd) run\n"
    yield "pdf", b"%PDF-1.4\n"
    yield "bomb", png(60_000, 60_000)
    yield "wide", png(2**31 - 1, 1)
    yield "no pixels", png(0, 0)
    yield "short", png(WIDTH, HEIGHT, b"\0" * 10)
    yield "other size", png(3, 3, (b"\0" + b"\0" * 9) * 3)


def hostile_files(folder):
    """Writes the files; yields the path of each data file. Every one holds at least one fault."""
    number = 0

    def write(data, ending):
        nonlocal number
        number += 1
        path = folder / f"{number:03d}{ending}"
        if isinstance(data, str):
            path.write_text(data)
        else:
            path.write_text(json.dumps(data) + "\n")
        return path

    for name in PATHS:
        yield write(line(file_name=name), ".jsonl")
    for change in HOSTILE.values():
        yield write(coco(annotations=[annotation(**change)]), ".json")
        if "segmentation" in change:
            yield write(line(masks=[change["segmentation"]]), ".jsonl")
    for text in TEXTS.values():
        yield write(text, ".json")
    for field, harmless in HARMLESS.items():
        for value in VALUES:
            if not any(value is known or (value == known and type(value) is type(known)) for known in harmless):
                yield write(line(**{field: value}), ".jsonl")
    for name, content in images():
        (folder / f"{name}.png").write_bytes(content)
        yield write(line(file_name=f"{name}.png"), ".jsonl")


WATCHED = """
import atexit, re, sys
# The peak of this program alone: that of `resource` begins with its parent's.
atexit.register(lambda: print("PEAK", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))
def watch(event, arguments):
    name = str(arguments[0]) if event == "open" else ""
    if event.startswith("socket.connect") or "not-yours" in name or name in ("/etc/passwd", "/proc/self/environ"):
        print("OPENED", event, name, flush=True)
sys.addaudithook(watch)
from sam3i.cli import main
main()
"""


@pytest.mark.slow
def test_hostile_files_are_a_line_each(tmp_path):
    folder, elsewhere = tmp_path / "data", tmp_path / "not-yours"
    folder.mkdir()
    elsewhere.mkdir()
    for place in (folder, elsewhere):
        Image.new("RGB", (WIDTH, HEIGHT), "red").save(place / "a.png")
    (folder / "link.png").symlink_to(elsewhere / "a.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    paths = [str(path) for path in hostile_files(folder)]
    assert len(paths) >= 200
    command = [sys.executable, "-c", WATCHED, "data", "validate", "--limit", "3", *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "OPENED" not in done.stdout
    faults = [text for text in done.stdout.splitlines() if ": found " in text]
    missed = [path for path in paths if not any(text.startswith(f"{path}: ") for text in faults)]
    assert not missed, [(path, open(path).read()[:200]) for path in missed]
    longest = max(faults, key=len)
    assert len(longest) < 1000, longest[:300] + longest[-300:]
    peak = next(text for text in done.stdout.splitlines() if text.startswith("PEAK "))
    assert int(peak.removeprefix("PEAK ")) < 1_000_000  # kilobytes
