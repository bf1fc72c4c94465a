# SPDX-License-Identifier: Apache-2.0
"""COCO-style files by id without holding them: where each image and annotation lies, read when asked for."""

from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..masks import learn_rles
from .faults import RecordFault, RecordReader, as_whole
from .json_stream import BATCH, Element, JsonSyntaxError, in_batches, iterate_elements, read_elements
from .schema import MIN_INTEGER, is_text, shown

BACKGROUND = ("_background_", "background")  # labelme's category 0
INCOMPLETE = "image of whose annotations one cannot be read"
Labeled = list[tuple[str, dict[str, Any]]]  # records with their places in the file


class CocoIndex:
    """Byte index of a file with `images`, `annotations` and `categories` (about 100 bytes of memory per record).

    Ids may be whole numbers, their text ("17"), or any other text used consistently.

    Attributes:
        categories: names by id.
        nouns: `categories` without those that name no thing: "_background_", and a category that is only the
            supercategory of others (Roboflow's category 0).
        category_ids: the ids of `categories`, or None where the file has no such key.
        faults: what could not be indexed (a missing key, no id, an id twice, a syntax error); the rest is usable.
    """

    def __init__(self, path: str | Path, progress: bool = False):
        self.path = Path(path)
        self.categories: dict[int, str] = {}
        self.category_ids: set[int] | None = None
        self.faults: list[RecordFault] = []
        self.keys: set[str] = set()
        self._interned: dict[str, int] = {}
        self._texts: dict[int, str] = {}
        self._tables = {"images": _Table(self._texts), "annotations": _Table(self._texts)}
        self._above: dict[str, set[int]] = {}
        self._lost: set[int | None] = set()  # images of annotations that cannot be read; None: of some image or other
        used = self._scan(progress)
        empty = {n for n, name in self.categories.items() if n not in used and self._above.get(name, set()) - {n}}
        self.nouns = {n: s for n, s in self.categories.items() if n not in empty and s.lower() not in BACKGROUND}
        self._files: dict[str, BinaryIO] = {}

    def __len__(self) -> int:
        return len(self._tables["images"].order)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def number(self, value: Any) -> int | None:
        """The number an id of the file goes by (itself, where it is one); None for what is no id of this file."""
        number = as_whole(value)
        return self._interned.get(value) if number is None and isinstance(value, str) else number

    def image(self, image_id: Any) -> dict[str, Any] | None:
        """The image record with this id, or None."""
        return self._first("images", image_id)

    def annotation(self, annotation_id: Any) -> dict[str, Any] | None:
        """The annotation with this id, or None."""
        return self._first("annotations", annotation_id)

    def images(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every image record with its place in the file, by ascending id."""
        for rows in in_batches(self._tables["images"].order.tolist(), BATCH):
            yield from self._labeled("images", np.array(rows))

    def images_with_annotations(self) -> Iterator[tuple[str, dict[str, Any], Labeled]]:
        """Every image record with its place and its annotations with theirs, by ascending id, masks checked."""
        images, annotations = self._tables["images"], self._tables["annotations"]
        first = np.searchsorted(annotations.owner_keys, images.keys)
        end = np.searchsorted(annotations.owner_keys, images.keys, "right")
        batches = np.cumsum(end - first + 1) // (2 * BATCH)  # records in turn, so that memory is bounded
        for batch in np.split(np.arange(len(images.keys)), np.flatnonzero(np.diff(batches)) + 1)[: len(images.keys)]:
            spans = list(zip(first[batch].tolist(), end[batch].tolist(), strict=True))
            rows = np.concatenate([annotations.owner_order[low:high] for low, high in spans])
            several = self._labeled("annotations", rows)
            learn_rles(annotation.get("segmentation") for _, annotation in several)
            rest = iter(several)
            for (label, image), (low, high) in zip(self._labeled("images", images.order[batch]), spans, strict=True):
                yield label, image, list(islice(rest, high - low))

    def annotations_of(self, image_id: Any) -> Labeled:
        """The annotations of an image with their places, in file order."""
        table, number = self._tables["annotations"], self.number(image_id)
        if number is None:
            return []
        low, high = np.searchsorted(table.owner_keys, number), np.searchsorted(table.owner_keys, number, "right")
        return self._labeled("annotations", table.owner_order[low:high])

    def orphans(self) -> Iterator[RecordFault]:
        """A fault for every annotation of an image the file does not have."""
        table, orphans = self._tables["annotations"], self._orphans()
        for label, number in zip(table.labels("annotations", orphans), table.owners[orphans].tolist(), strict=True):
            found, fix = str(self._texts.get(number, number)), "add the image or remove the annotation"
            yield RecordFault(str(self.path), label, "image_id", found, "the id of an image", fix)

    def may_miss(self, image_id: Any, count: int) -> bool:
        """Whether an image with `count` annotations may have had others, among those that cannot be read."""
        return bool(self._lost) and (self.number(image_id) in self._lost or (not count and None in self._lost))

    def category(self, record: RecordReader, annotation: dict[str, Any], label: str) -> int | None:
        """The number of an annotation's category; a fault of `record` where the file has categories, but not this."""
        number = self.number(annotation.get("category_id"))
        if self.category_ids and number not in self.category_ids:
            found = shown(annotation["category_id"]) if "category_id" in annotation else "missing"
            record.fault("category_id", found, "the id of a category", "add the category or mend the id", label)
        return number

    def _scan(self, progress: bool) -> set[int | None]:
        """Index the file; returns the categories that annotations have."""
        used: set[Any] = set()
        try:
            for element in iterate_elements(self.path, progress, self.keys):
                if element.key == "categories":
                    self._add_category(element)
                elif element.key in self._tables:
                    self._add(element)
                    if element.key == "annotations" and isinstance(element.value, dict):
                        category = element.value.get("category_id")
                        used.add(category if isinstance(category, (int, str, float)) else None)
            for key in ("images", "annotations"):
                if key not in self.keys:
                    fix = "write [] if there are none" if "" not in self.keys else "take the object out of the list"
                    self._fault("(file)", key, "missing", "an object with a list of that name", fix)
        except JsonSyntaxError as error:
            self._fault(error.where, "(syntax)", error.reason, "JSON", "mend the syntax")
            self._lost.add(None)
        for key, table in self._tables.items():
            repeated = table.close()
            self._lost.update(table.owners[repeated].tolist())
            for label, number in zip(table.labels(key, repeated), table.ids[repeated].tolist(), strict=True):
                found, expected = str(self._texts.get(number, number)), f"an id used once in {key!r}"
                self._fault(label, "id", found, expected, "give it an id of its own")
        if "annotations" not in self.keys or len(self._orphans()):
            self._lost.add(None)
        return {self.number(value) for value in used}

    def _orphans(self) -> np.ndarray:
        return np.flatnonzero(~np.isin(self._tables["annotations"].owners, self._tables["images"].ids))

    def _add(self, element: Element) -> None:
        key, position, start, end, value = element
        if position < 0 or not isinstance(value, dict):
            found = shown(value)
            self._fault(f"{key}[{position}]", "(record)", found, "an object", "write one object per record")
            self._lost.add(None)
            return
        number = self._intern(value.get("id"))
        owner = self._intern(value.get("image_id")) if key == "annotations" else number
        if number is None or owner is None:
            name = "id" if number is None else "image_id"
            found, fix = shown(value[name]) if name in value else "missing", f"write {name!r} as a number"
            self._fault(f"{key}[{position}]", name, found, "a whole number of 64 bits or a text", fix)
            self._lost.add(owner)
            return
        self._tables[key].places.extend((number, owner, start, end, position))

    def _intern(self, value: Any) -> int | None:
        number = as_whole(value)
        if number is None and is_text(value):
            number = self._interned.setdefault(value, MIN_INTEGER + len(self._interned))
            self._texts[number] = value
        return number

    def _add_category(self, element: Element) -> None:
        self.category_ids = self.category_ids if self.category_ids is not None else set()
        value = element.value if isinstance(element.value, dict) else {}
        number, name = self._intern(value.get("id")), _utf8(value.get("name"))
        if number is not None:
            self.category_ids.add(number)
        if number is not None and is_text(name):
            self.categories[number] = " ".join(name.split())
            above = _utf8(value.get("supercategory"))
            if isinstance(above, str):
                self._above.setdefault(above, set()).add(number)
        else:
            label, field = f"categories[{element.position}]", "id" if number is None else "name"
            found = shown(value[field]) if field in value else shown(element.value)
            self._fault(label, f"{field}" if value else "(record)", found, EXPECTED_CATEGORY, "write both")

    def _fault(self, label: str, field: str, found: str, expected: str, fix: str) -> None:
        self.faults.append(RecordFault(str(self.path), label, field, found, expected, fix))

    def _first(self, key: str, wanted: Any) -> dict[str, Any] | None:
        table, number = self._tables[key], self.number(wanted)
        if number is None:
            return None
        place = int(np.searchsorted(table.keys, number))
        if place == len(table.keys) or table.keys[place] != number:
            return None
        return self._read(key, table.order[place : place + 1])[0]

    def _labeled(self, key: str, rows: np.ndarray) -> Labeled:
        return list(zip(self._tables[key].labels(key, rows), self._read(key, rows), strict=True))

    def _read(self, key: str, rows: np.ndarray) -> list[dict[str, Any]]:
        if key not in self._files:  # one for each table: both are read in the order they are written, mostly
            self._files[key] = open(self.path, "rb", buffering=1 << 18)
        table = self._tables[key]
        places = zip(table.starts[rows].tolist(), table.ends[rows].tolist(), strict=True)
        return read_elements(self._files[key], places)


EXPECTED_CATEGORY = "an object with an id and a name in UTF-8 that is not empty"


def _utf8(value: Any) -> Any:
    """A text of the scanner, which decodes bytes as latin-1 (and `\\u` escapes as what they are)."""
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return value


class _Table:
    def __init__(self, texts: dict[int, str]) -> None:
        self.texts = texts
        self.places = array("q")  # of each record: id, owner, start and end in the file, position in its list

    def close(self) -> np.ndarray:
        """Sort by id and by owner; returns the rows whose id an earlier row has.

        They are left out; the earlier ones are not found by their id, since nobody knows which of them is meant.
        """
        columns = np.array(self.places, dtype=np.int64).reshape(-1, 5).T.copy()
        self.ids, self.owners, self.starts, self.ends, self.positions = ids, owners, *_ = columns
        del self.places
        order = np.argsort(ids, kind="stable")
        repeated, ambiguous = np.zeros((2, len(ids)), dtype=bool)
        same = ids[order[1:]] == ids[order[:-1]]
        repeated[order[1:][same]] = True
        ambiguous[order[:-1][same]] = True
        self.order = order[~(repeated | ambiguous)[order]]
        by_owner = np.argsort(owners, kind="stable")
        self.owner_order = by_owner[~repeated[by_owner]]
        self.keys, self.owner_keys = ids[self.order], owners[self.owner_order]
        return np.flatnonzero(repeated)

    def labels(self, key: str, rows: np.ndarray) -> list[str]:
        """What messages call the records: position in the file and id."""
        names = self.texts
        found = zip(self.positions[rows].tolist(), self.ids[rows].tolist(), strict=True)
        return [f"{key}[{position}] (id {names.get(number, number)})" for position, number in found]
