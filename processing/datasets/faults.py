# SPDX-License-Identifier: Apache-2.0
"""Faults of data files: what a reader reports instead of a row, precise enough to be mended by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .schema import MAX_INTEGER, MAX_SIDE, MIN_INTEGER, FieldFault, is_text, shown


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


class RecordReader:
    """Reads the fields of one record and collects every fault on the way instead of stopping at the first.

    Args:
        file: the file, as the user knows it.
        record: where in the file, e.g. "images[3] (id 17)" or "line 4".
        data: the parsed record.
    """

    def __init__(self, file: str, record: str, data: Any):
        self.file = str(file)
        self.record = record
        self.faults: list[RecordFault] = []
        self.data = data if isinstance(data, dict) else {}
        if not isinstance(data, dict):
            self.fault("(record)", shown(data), "an object", "write one object per record")

    def fault(self, field: str, found: str, expected: str, fix: str, record: str | None = None) -> None:
        """Note a fault of this record (or of a named part of it)."""
        self.faults.append(RecordFault(self.file, record or self.record, field, found, expected, fix))

    def take(self, faults: Iterable[FieldFault]) -> None:
        """Note the faults of the row made from this record."""
        for one in faults:
            self.fault(one.field, one.found, one.expected, one.fix)

    def whole(self, field: str, minimum: int = MIN_INTEGER, maximum: int = MAX_INTEGER) -> int | None:
        """A whole number, or None (and a fault)."""
        value = self.data.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
            return value
        expected = f"a whole number from {minimum} to {maximum}"
        self.fault(field, self._found(field), expected, f"write {field!r} as a number")
        return None

    def side(self, field: str) -> int | None:
        """A width or a height in pixels, or None (and a fault)."""
        return self.whole(field, 1, MAX_SIDE)

    def text(self, field: str) -> str | None:
        """A non-empty string, or None (and a fault)."""
        value = self.data.get(field)
        if is_text(value):
            return value
        self.fault(field, self._found(field), "a non-empty string in UTF-8", f"write {field!r} as a string")
        return None

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
        texts = []
        for index, value in enumerate(self.items(field, optional)):
            if is_text(value):
                texts.append(value)
            else:
                fix = "write the instruction or remove the entry"
                self.fault(f"{field}[{index}]", shown(value), "a non-empty string in UTF-8", fix)
        return texts

    def _found(self, field: str) -> str:
        return shown(self.data[field]) if field in self.data else "missing"
