# SPDX-License-Identifier: Apache-2.0
"""The one row schema of instruction data: what every reader yields and everything downstream reads.

A row is one target (none, one or several instances of one image) with every instruction that denotes it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ..language.meaning import TARGET_KINDS
from ..limits import MAX_PIXELS
from ..masks import CompressedRLE, box_of_rle, rle_fault

if TYPE_CHECKING:
    from datasets import Features


LevelField = Literal["concept", "simple", "complex"]
LEVEL_FIELDS: tuple[LevelField, ...] = ("concept", "simple", "complex")
MIN_INTEGER, MAX_INTEGER = -(1 << 63), (1 << 63) - 1  # what a 64-bit column holds
MAX_SIDE = 1 << 20  # pixels
MAX_NUMBER = 1e9  # no coordinate is larger
BOX_MARGIN = 0.05  # of a side (at least a pixel): how far a box may leave the image; it is cut to it
# Box against mask: over 6,500 correct boxes of real exports the lowest IoU with the mask's tight box was .39.
MIN_BOX_IOU = 0.3
EDGE_TOLERANCE = 2.0  # pixels by which every edge may differ: tools round differently
LISTS = ("masks", "boxes", "is_crowd", "ignore_masks", "annotation_ids")
EMPTY_MASK = "covers no pixel of the image"
BOX_FIX = "write [x, y, w, h] of the mask in absolute pixels"


class InstructionRow(TypedDict):
    """One target with its instructions.

    Attributes:
        image: PIL image when read through `datasets` (decoded on access); a path, `{"path", "bytes"}` or None before.
        file_name: the path the source file gives, relative to the image folder; None where there is none.
        width, height: pixels of the image, and of every mask.
        concept, simple, complex: the instructions per level; a list may be empty, not all three.
        masks: N compressed RLEs, one per instance. An entry is None where the source has a box and no mask.
        boxes: N boxes [x, y, width, height] in absolute pixels.
        is_crowd: N booleans: the mask covers a group that counts as no instance of its own.
        ignore_masks: M compressed RLEs of pixels that scoring leaves out (ReasonSeg).
        target_kind: "1-to-1", "1-to-N" (some of the instances), "1-to-all", "none" (no target), None where unknown.
        row_id: unique within a dataset and split.
        image_id: equal for the rows of one picture.
        annotation_ids: N ids of the instances in the source file, or [] where the source has none.
        dataset, split: where the row comes from.
    """

    image: Any
    file_name: str | None
    width: int
    height: int
    concept: list[str]
    simple: list[str]
    complex: list[str]
    masks: list[CompressedRLE | None]
    boxes: list[list[float]]
    is_crowd: list[bool]
    ignore_masks: list[CompressedRLE]
    target_kind: str | None
    row_id: str
    image_id: str
    annotation_ids: list[int]
    dataset: str
    split: str | None


ROW_FIELDS = tuple(InstructionRow.__annotations__)


@dataclass(frozen=True)
class FieldFault:
    """One fault of one row: the field, what was found, what was expected and how to mend it."""

    field: str
    found: str
    expected: str
    fix: str


def row_features() -> Features:
    """The schema as `datasets.Features`; images are decoded when a row is read, not before."""
    from datasets import Features, Image, List, Value

    text = List(Value("string"))
    rle = {"size": List(Value("int32"), length=2), "counts": Value("string")}
    return Features(
        {
            "image": Image(),
            "file_name": Value("string"),
            "width": Value("int32"),
            "height": Value("int32"),
            "concept": text,
            "simple": text,
            "complex": text,
            "masks": List(rle),
            "boxes": List(List(Value("float64"), length=4)),
            "is_crowd": List(Value("bool")),
            "ignore_masks": List(rle),
            "target_kind": Value("string"),
            "row_id": Value("string"),
            "image_id": Value("string"),
            "annotation_ids": List(Value("int64")),
            "dataset": Value("string"),
            "split": Value("string"),
        }
    )


def make_row(
    *,
    image: Any,
    width: int,
    height: int,
    row_id: Any,
    image_id: Any,
    masks: list[CompressedRLE | None],
    boxes: list[list[float]],
    concept: list[str] | None = None,
    simple: list[str] | None = None,
    complex: list[str] | None = None,  # noqa: A002 - the name of the level
    is_crowd: list[bool] | None = None,
    ignore_masks: list[CompressedRLE] | None = None,
    target_kind: str | None = None,
    annotation_ids: list[int] | None = None,
    file_name: str | None = None,
    dataset: str = "",
    split: str | None = None,
) -> InstructionRow:
    """A row with every field present; ids become strings, lists default to empty."""
    return InstructionRow(
        image=image,
        file_name=file_name,
        width=int(width),
        height=int(height),
        concept=list(concept or []),
        simple=list(simple or []),
        complex=list(complex or []),
        masks=list(masks),
        boxes=[list(map(float, box)) for box in boxes],
        is_crowd=[False] * len(masks) if is_crowd is None else list(map(bool, is_crowd)),
        ignore_masks=list(ignore_masks or []),
        target_kind=target_kind,
        row_id=str(row_id),
        image_id=str(image_id),
        annotation_ids=list(map(int, annotation_ids or [])),
        dataset=dataset,
        split=split,
    )


def validate_row(row: Any) -> Iterator[FieldFault]:
    """Every fault of a row, field by field; nothing is yielded for a good row and nothing is raised for a bad one.

    Masks are checked run by run (size, alphabet, number of pixels), not decoded to pixels; images are not opened.
    """
    if not isinstance(row, dict):
        yield FieldFault("(row)", shown(row), "an object", "write one object per row")
        return
    for name in ROW_FIELDS if InstructionRow.__required_keys__ - row.keys() else ():
        if name not in row:
            yield FieldFault(name, "missing", "present", f"add {name!r} (see InstructionRow)")
    width: Any = row.get("width")
    height: Any = row.get("height")
    is_sized = _is_whole(width, 1, MAX_SIDE) and _is_whole(height, 1, MAX_SIDE) and width * height <= MAX_PIXELS
    if not is_sized:
        yield from _size_faults(row)
    yield from text_faults(row)
    lists = {}
    for name in LISTS:
        if isinstance(row.get(name), (list, tuple)):
            lists[name] = row[name]
        elif name in row:
            yield FieldFault(name, shown(row[name]), "a list", "write [] where there is none")
    if is_sized:
        yield from geometry_faults(lists, row["height"], row["width"])
    count = len(lists.get("masks", ()))
    for name in ("boxes", "is_crowd", "annotation_ids") if "masks" in lists else ():
        found = len(lists.get(name, ()))
        if name in lists and found != count and not (name == "annotation_ids" and found == 0):
            yield FieldFault(name, f"{found} entries", f"{count}, one per mask", "write one entry per instance")
    for index, flag in enumerate(lists.get("is_crowd", ())):
        if flag not in (False, True):
            yield FieldFault(f"is_crowd[{index}]", shown(flag), "true or false", "write false for a single instance")
    yield from row_faults(row)


def row_faults(row: Any) -> Iterator[FieldFault]:
    """What is wrong with a row whose sizes, texts, masks and boxes are each checked."""
    if not any(row.get(level, True) for level in LEVEL_FIELDS):
        fix = "give the row an instruction or remove it"
        yield FieldFault("/".join(LEVEL_FIELDS), "no instruction at any level", "at least one", fix)
    masks, numbers = row.get("masks"), row.get("annotation_ids")
    if isinstance(masks, (list, tuple)):
        yield from _kind_faults(row.get("target_kind"), len(masks))
    for index, number in enumerate(numbers) if isinstance(numbers, (list, tuple)) else ():
        if not _is_whole(number):
            yield FieldFault(f"annotation_ids[{index}]", shown(number), "a whole number", "write the source's id")
    for name in ("row_id", "image_id"):
        if name in row and (not isinstance(row[name], str) or not row[name]):
            yield FieldFault(name, shown(row[name]), "a non-empty string", "write the id as a string")
    for name, optional in (("dataset", False), ("split", True), ("file_name", True)):
        value = row.get(name, "")
        if not isinstance(value, str) and not (optional and value is None):
            yield FieldFault(name, shown(value), "a string", "write a string")


def _size_faults(row: dict[str, Any]) -> Iterator[FieldFault]:
    faults = []
    for name in ("width", "height"):
        if name in row and not _is_whole(row[name], 1, MAX_SIDE):
            expected = f"a whole number of pixels from 1 to {MAX_SIDE}"
            faults.append(FieldFault(name, shown(row[name]), expected, "write the size of the image"))
    yield from faults
    if not faults and "width" in row and "height" in row:
        found = f"{row['width']} x {row['height']} pixels"
        yield FieldFault("width", found, f"at most {MAX_PIXELS} pixels", "cut or shrink the image")


def text_faults(row: dict[str, Any]) -> Iterator[FieldFault]:
    """Faults of the texts of a row that has them; none for a level that is absent."""
    for level in LEVEL_FIELDS:
        texts = row.get(level, [])
        if not isinstance(texts, (list, tuple)):
            yield FieldFault(level, shown(texts), "a list of strings", "put the instruction in a list")
            continue
        for index, text in enumerate(texts):
            if not is_text(text):
                expected = "a non-empty string in UTF-8"
                yield FieldFault(f"{level}[{index}]", shown(text), expected, "write the instruction or remove it")


def geometry_faults(lists: dict[str, Any], height: int, width: int) -> Iterator[FieldFault]:
    """Faults of masks, boxes and masks to ignore, each against the image and boxes against masks."""
    tight = {}
    for name in ("masks", "ignore_masks"):
        for index, rle in enumerate(lists.get(name, [])):
            if rle is None and name == "masks":
                continue
            fault, fix = rle_fault(rle, height, width), "encode the mask at the size of the image"
            if fault is None and name == "masks":
                tight[index] = box_of_rle(rle)
                if not any(tight[index]):
                    fault, fix = EMPTY_MASK, "write the mask, or remove the instance"
            if fault:
                yield FieldFault(f"{name}[{index}]", fault, f"compressed RLE of [{height}, {width}]", fix)
    for index, box in enumerate(lists.get("boxes", [])):
        fault = box_fault(box, height, width, tight.get(index))
        if fault:
            yield FieldFault(f"boxes[{index}]", fault, f"[x, y, w, h] inside {width} x {height}", BOX_FIX)


def _kind_faults(kind: Any, count: int) -> Iterator[FieldFault]:
    if kind is None:
        return
    if kind not in TARGET_KINDS:
        yield FieldFault("target_kind", shown(kind), f"one of {', '.join(TARGET_KINDS)} or null", "use a known kind")
    elif (kind == "none") != (count == 0):
        yield FieldFault("target_kind", f"{kind!r} with {count} masks", "'none' exactly without masks", "mend either")
    elif kind == "1-to-1" and count > 1:
        yield FieldFault("target_kind", f"'1-to-1' with {count} masks", "one mask", "use '1-to-N' or '1-to-all'")


def box_fault(box: Any, height: int, width: int, tight: Sequence[float] | None = None) -> str | None:
    """What is wrong with a box [x, y, w, h] in pixels of a [height, width] image, or None.

    Where there is a mask its `tight` box decides: a box that reads better as corners, center, [y, x, h, w], fractions
    or percent, or whose IoU with the tight box is below `MIN_BOX_IOU`, is a contradiction.
    """
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        return f"{shown(box)} is not four numbers"
    if not all(map(is_number, box)):
        return f"{shown(box)} holds something that is not a finite number of pixels"
    x, y, w, h = box
    if w < 0 or h < 0:
        return f"{shown(box)} has a negative side"
    if tight is not None and tight[2] > 0:
        fault = _contradiction(box, tight, height, width)
        if fault:
            return fault
    elif max(box) <= 1 and min(height, width) > 2:
        return f"{shown(box)} looks like fractions of the image"
    over_x, over_y = max(1.0, BOX_MARGIN * width), max(1.0, BOX_MARGIN * height)
    if x < -over_x or y < -over_y or x + w > width + over_x or y + h > height + over_y:
        return f"{shown(box)} reaches outside the image"
    return None


def _contradiction(box: Sequence[float], tight: Sequence[float], height: int, width: int) -> str | None:
    if _edges_differ(box, tight) <= EDGE_TOLERANCE:
        return None
    a, b, c, d = box
    wide, high = width / 100, height / 100
    readings = {
        "corners [x1, y1, x2, y2]": (a, b, c - a, d - b),
        "[center x, center y, w, h]": (a - c / 2, b - d / 2, c, d),
        "[y, x, h, w]": (b, a, d, c),
        "fractions of the image": (a * width, b * height, c * width, d * height),
        "percent of the image": (a * wide, b * high, c * wide, d * high),
        "fractions [center x, center y, w, h]": ((a - c / 2) * width, (b - d / 2) * height, c * width, d * height),
    }
    shown_box = f"{shown(box)}, where the mask's box is {[round(value, 1) for value in tight]}"
    for name, reading in readings.items():
        if _edges_differ(reading, tight) <= EDGE_TOLERANCE / 2:
            return f"{shown_box}: it looks like {name}"
    overlap = _overlap(box, tight)
    return f"{shown_box}: their IoU is {overlap:.2f}" if overlap < MIN_BOX_IOU else None


def _edges_differ(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest distance in pixels between the same edges of two boxes [x, y, w, h]."""
    (a, b, c, d), (e, f, g, h) = one, other
    return max(abs(a - e), abs(b - f), abs(a + c - e - g), abs(b + d - f - h))


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    (a, b, c, d), (e, f, g, h) = one, other
    shared = max(0.0, min(a + c, e + g) - max(a, e)) * max(0.0, min(b + d, f + h) - max(b, f))
    return shared / (c * d + g * h - shared)


def fit_box(box: Sequence[float], height: int, width: int) -> list[float]:
    """A box [x, y, w, h] cut to its image."""
    x, y, w, h = map(float, box)
    left, top = min(max(x, 0.0), width), min(max(y, 0.0), height)
    if left == x and top == y and x + w <= width and y + h <= height:
        return [x, y, w, h]
    return [left, top, min(x + w, float(width)) - left, min(y + h, float(height)) - top]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that can be a coordinate."""
    return type(value) in (int, float) and -MAX_NUMBER <= value <= MAX_NUMBER


def _is_whole(value: Any, minimum: int = MIN_INTEGER, maximum: int = MAX_INTEGER) -> bool:
    return type(value) is int and minimum <= value <= maximum


def is_text(value: Any) -> bool:
    """Whether a value is a string with content that UTF-8 can hold; U+FFFD stands where a file's bytes were none."""
    if not isinstance(value, str) or not value.strip():
        return False
    return value.isascii() or ("\ufffd" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value))


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 3, 8, 8, 4
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 78


def shown(value: Any) -> str:
    """A value as it appears in a message, cut to 80 characters and to one line."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
