# SPDX-License-Identifier: Apache-2.0
"""COCO-style files by id without holding them: where each image and annotation lies, read when asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .faults import RecordFault
from .json_stream import JsonSyntaxError, iterate_elements, line_of, read_element
from .schema import MAX_INTEGER, MIN_INTEGER, shown


class CocoIndex:
    """Byte index of a file with `images`, `annotations` and `categories` (about 100 bytes of memory per record).

    Attributes:
        categories: names by id.
        category_ids: the ids of `categories`, or None where the file has no such key.
        faults: records that could not be indexed (no id, an id twice, a syntax error); the others are usable.
    """

    def __init__(self, path: str | Path, progress: bool = False):
        self.path = Path(path)
        self.categories: dict[int, str] = {}
        self.category_ids: set[int] | None = None
        self.faults: list[RecordFault] = []
        self.keys: set[str] = set()
        self._tables = {"images": _Table(), "annotations": _Table()}
        self._scan(progress)
        self._file = None

    def __len__(self) -> int:
        return len(self._tables["images"].order)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def image(self, image_id: int) -> dict[str, Any] | None:
        """The image record with this id, or None."""
        return self._first("images", image_id)

    def annotation(self, annotation_id: int) -> dict[str, Any] | None:
        """The annotation with this id, or None."""
        return self._first("annotations", annotation_id)

    def images(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every image record with its place in the file, by ascending id."""
        table = self._tables["images"]
        for row in table.order:
            yield table.label("images", row), self._read("images", row)

    def annotations_of(self, image_id: int) -> list[tuple[str, dict[str, Any]]]:
        """The annotations of an image with their places, in file order."""
        table = self._tables["annotations"]
        low, high = np.searchsorted(table.owner_keys, [image_id, image_id + 1])
        return [(table.label("annotations", r), self._read("annotations", r)) for r in table.owner_order[low:high]]

    def orphans(self) -> Iterator[RecordFault]:
        """A fault for every annotation of an image the file does not have."""
        table = self._tables["annotations"]
        known = np.isin(np.asarray(table.owners), np.asarray(self._tables["images"].ids))
        for row in np.flatnonzero(~known):
            label, fix = table.label("annotations", row), "add the image or remove the annotation"
            yield RecordFault(str(self.path), label, "image_id", str(table.owners[row]), "the id of an image", fix)

    def _scan(self, progress: bool) -> None:
        try:
            for element in iterate_elements(self.path, progress):
                self.keys.add(element.key)
                if element.key == "categories":
                    self._add_category(element)
                elif element.key in self._tables:
                    self._add(element)
        except JsonSyntaxError as error:
            where = f"line {line_of(self.path, error.offset)}, byte {error.offset}"
            self.faults.append(RecordFault(str(self.path), where, "(syntax)", error.reason, "JSON", "mend the syntax"))
        for key, table in self._tables.items():
            for row in table.close():
                expected = f"an id used once in {key!r}"
                self._fault(table.label(key, row), "id", str(table.ids[row]), expected, "give it an id of its own")

    def _add(self, element: Any) -> None:
        table, value = self._tables[element.key], element.value
        label = f"{element.key}[{element.position}]"
        wanted = ("id",) if element.key == "images" else ("id", "image_id")
        if element.position < 0 or not isinstance(value, dict):
            self._fault(label, "(record)", shown(value), "an object", "write one object per record")
            return
        for name in wanted:
            found = value.get(name)
            if isinstance(found, bool) or not isinstance(found, int) or not MIN_INTEGER <= found <= MAX_INTEGER:
                shape = shown(found) if name in value else "missing"
                self._fault(label, name, shape, "a whole number of 64 bits", f"write {name!r} as a number")
                return
        table.add(element, value["id"], value.get("image_id", 0) if len(wanted) > 1 else 0)

    def _add_category(self, element: Any) -> None:
        self.category_ids = self.category_ids if self.category_ids is not None else set()
        value = element.value
        if isinstance(value, dict) and isinstance(value.get("id"), int) and isinstance(value.get("name"), str):
            self.category_ids.add(value["id"])
            self.categories[value["id"]] = value["name"].encode("latin-1").decode("utf-8", "replace")
        elif element.position >= 0:
            label = f"categories[{element.position}]"
            self._fault(label, "id/name", shown(value), "an object with a number and a string", "write both")

    def _fault(self, label: str, field: str, found: str, expected: str, fix: str) -> None:
        self.faults.append(RecordFault(str(self.path), label, field, found, expected, fix))

    def _first(self, key: str, wanted: int) -> dict[str, Any] | None:
        table = self._tables[key]
        place = int(np.searchsorted(table.keys, wanted))
        if place == len(table.keys) or table.keys[place] != wanted:
            return None
        return self._read(key, table.order[place])

    def _read(self, key: str, row: int) -> dict[str, Any]:
        if self._file is None:
            self._file = open(self.path, "rb")
        table = self._tables[key]
        return read_element(self._file, table.starts[row], table.ends[row])


class _Table:
    def __init__(self) -> None:
        self.ids, self.owners = array("q"), array("q")
        self.starts, self.ends, self.positions = array("q"), array("q"), array("q")

    def add(self, element: Any, number: int, owner: int) -> None:
        self.ids.append(number)
        self.owners.append(owner)
        self.starts.append(element.start)
        self.ends.append(element.end)
        self.positions.append(element.position)

    def close(self) -> np.ndarray:
        """Sort by id and by owner; returns the rows whose id an earlier row has, which are left out of both orders."""
        ids, owners = np.asarray(self.ids, dtype=np.int64), np.asarray(self.owners, dtype=np.int64)
        order = np.argsort(ids, kind="stable")
        repeated = np.zeros(len(ids), dtype=bool)
        repeated[order[1:]] = ids[order[1:]] == ids[order[:-1]]
        self.order = order[~repeated[order]]
        by_owner = np.argsort(owners, kind="stable")
        self.owner_order = by_owner[~repeated[by_owner]]
        self.keys, self.owner_keys = ids[self.order], owners[self.owner_order]
        return np.flatnonzero(repeated)

    def label(self, key: str, row: int) -> str:
        return f"{key}[{self.positions[row]}] (id {self.ids[row]})"
