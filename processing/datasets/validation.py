# SPDX-License-Identifier: Apache-2.0
"""Every fault of a data file, one after the other: file, record, field, what was found, what was expected, the fix."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .faults import DatasetFormatError, RecordFault
from .image_roots import ImageRoot, picture_size
from .loading import READERS, detect_format, load_instruction_dataset, read_items
from .schema import InstructionRow, validate_row


@dataclass
class ValidationCount:
    """What a validation has seen so far: usable rows and faults."""

    rows: int = 0
    faults: int = 0


def validate_dataset(
    path: str | Path,
    format: str = "auto",
    image_root: ImageRoot = None,
    split: str | None = None,
    check_pictures: bool = True,
    count: ValidationCount | None = None,
    progress: bool = False,
) -> Iterator[RecordFault]:
    """Faults of a file, folder or table; goes on after each and never raises for content.

    Args:
        check_pictures: decode every picture once and compare its size with the row's.
        count: filled while the generator is read.
    """
    count = ValidationCount() if count is None else count
    pictures = _Pictures()
    try:
        name = detect_format(path) if format == "auto" else format
        items = (
            read_items(name, path, image_root, split, progress) if name in READERS else _table_items(path, name, split)
        )
        for item in items:
            faults = [item] if isinstance(item, RecordFault) else []
            if not faults and check_pictures:
                fault = pictures.fault(str(path), item)
                faults = [fault] if fault else []
            count.faults += len(faults)
            count.rows += not faults
            yield from faults
    except (DatasetFormatError, OSError, KeyError) as error:
        count.faults += 1
        reason = str(error.args[0]) if isinstance(error, KeyError) else str(error)
        yield RecordFault(str(path), "(file)", "(format)", reason, "a data file that can be read", "see the message")


def _table_items(path: str | Path, name: str, split: str | None) -> Iterator[InstructionRow | RecordFault]:
    from datasets import Image as ImageFeature

    data = load_instruction_dataset(path, format=name, split=split).cast_column("image", ImageFeature(decode=False))
    for number, row in enumerate(data):
        faults = list(validate_row(row))
        for one in faults:
            yield RecordFault(str(path), f"row {number}", one.field, one.found, one.expected, one.fix)
        if not faults:
            yield row


class _Pictures:
    """Opens every picture once and remembers what was found."""

    def __init__(self) -> None:
        self.sizes: dict[str, tuple[int, int] | str] = {}

    def fault(self, file: str, row: InstructionRow) -> RecordFault | None:
        record, picture = f"row {row['row_id']}", row["image"]
        if picture is None:
            if row["file_name"] is None:
                return None
            fix = "pass image_root= (--image-root), or put the pictures beside the file"
            return RecordFault(file, record, "file_name", repr(row["file_name"]), "a picture that can be found", fix)
        if isinstance(picture, dict):
            found = self._open(picture)
        else:
            if picture not in self.sizes:
                self.sizes[picture] = self._open({"path": picture, "bytes": None})
            found = self.sizes[picture]
        if isinstance(found, str):
            fix = "restore the picture or mend the name"
            return RecordFault(file, record, "image", found, "a readable picture", fix)
        if found != (row["width"], row["height"]):
            expected = f"{row['width']} x {row['height']} pixels as the row says"
            return RecordFault(file, record, "image", f"{found[0]} x {found[1]} pixels", expected, "mend the size")
        return None

    def _open(self, picture: dict) -> tuple[int, int] | str:
        try:
            source = io.BytesIO(picture["bytes"]) if picture["bytes"] else picture["path"]
            with Image.open(source) as image:
                image.load()
                return picture_size(image)
        except Exception as error:  # decoders raise what they like on broken data
            return f"{type(error).__name__}: {error}"
