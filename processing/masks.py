# SPDX-License-Identifier: Apache-2.0
"""Masks as COCO run-length encodings: every encoding in use is read, one (the compressed one) is kept.

A compressed RLE is `{"size": [height, width], "counts": str}`; pixels are counted column by column, background first.
The byte format of `counts` is that of pycocotools (`common/maskApi.c`): five bits per character, a continuation bit,
and from the third value on the difference to the value two places before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypedDict

import numpy as np
from pycocotools import mask as coco_mask

# One number of `counts`: continued characters ("P" to "o") and a last one ("0" to "O"), at most 8: 2 ** 39 pixels.
NUMBER = re.compile(r"[P-o]{0,7}[0-O]")
MAX_KNOWN_NUMBERS = 100_000
POLYGON_MARGIN = 0.25  # of a side: how far a polygon may leave the image; the C code takes memory by its extent
MAX_OUTLINE = 2_000_000  # pixels of one polygon's outline: the C code takes about 100 bytes for each


class CompressedRLE(TypedDict):
    """Compressed COCO run lengths; `size` is [height, width]."""

    size: list[int]
    counts: str


def encode_mask(mask: np.ndarray) -> CompressedRLE:
    """Compress a mask [height, width] of zeros and non-zeros."""
    array = np.asfortranarray(np.asarray(mask) != 0, dtype=np.uint8)
    if array.ndim != 2:
        raise ValueError(f"a mask has two axes (height, width), found the shape {array.shape}")
    rle = coco_mask.encode(array)
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: CompressedRLE) -> np.ndarray:
    """Expand a compressed RLE to a bool array [height, width]; empty `counts` stand for an empty mask."""
    height, width = rle["size"]
    counts = rle["counts"]
    if not counts:
        return np.zeros((height, width), dtype=bool)
    return coco_mask.decode({"size": [height, width], "counts": _as_bytes(counts)}).astype(bool)


def decode_masks(rles: Sequence[CompressedRLE], height: int, width: int) -> np.ndarray:
    """Expand N compressed RLEs to a bool array [N, height, width] (N may be 0)."""
    masks = np.zeros((len(rles), height, width), dtype=bool)
    for index, rle in enumerate(rles):
        masks[index] = decode_mask(rle)
    return masks


def union_mask(rles: Sequence[CompressedRLE], height: int, width: int) -> np.ndarray:
    """The pixels covered by any of the masks, as a bool array [height, width]."""
    union = np.zeros((height, width), dtype=bool)
    for rle in rles:
        union |= decode_mask(rle)
    return union


def box_of_rle(rle: CompressedRLE) -> list[float]:
    """Tight box [x, y, width, height] in pixels of a compressed RLE."""
    if not rle["counts"]:
        return [0.0, 0.0, 0.0, 0.0]
    return coco_mask.toBbox({"size": list(rle["size"]), "counts": _as_bytes(rle["counts"])}).tolist()


def rle_area(rle: CompressedRLE) -> int:
    """Number of pixels covered by a compressed RLE."""
    if not rle["counts"]:
        return 0
    return int(coco_mask.area({"size": list(rle["size"]), "counts": _as_bytes(rle["counts"])}))


class _Numbers(dict[str, int]):
    """Numbers by their characters; most of a mask's are small and come again and again."""

    def __missing__(self, characters: str) -> int:
        value = 0
        for place, code in enumerate(characters.encode("ascii")):
            value |= (code - 48 & 31) << 5 * place
        value -= (code - 48 >> 4 & 1) << 5 * (place + 1)  # the sign
        if len(self) < MAX_KNOWN_NUMBERS:
            self[characters] = value
        return value


_numbers = _Numbers()


def run_lengths(counts: str) -> list[int]:
    """Run lengths of a compressed RLE string, read without the C library (which trusts its input).

    Raises:
        ValueError: a character outside the alphabet, a value cut off at the end or too long, or a negative run.
    """
    parts = NUMBER.findall(counts)
    if len("".join(parts)) != len(counts):
        raise ValueError(f"counts are no run lengths: {counts[:40]!r} has other characters, or ends in a number")
    runs = list(map(_numbers.__getitem__, parts))
    # From the third place on a number is the difference to the one two places before.
    runs[1::2], runs[2::2] = accumulate(runs[1::2]), accumulate(runs[2::2])
    if runs and min(runs) < 0:
        raise ValueError(f"run {runs.index(min(runs))} has the negative length {min(runs)}")
    return runs


def rle_fault(rle: Any, height: int, width: int) -> str | None:
    """What is wrong with a compressed RLE of a [height, width] image, or None."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        return "not an object with the keys 'size' and 'counts'"
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, (list, tuple)) or [s for s in size if isinstance(s, int)] != [height, width]:
        return f"size {_cut(size)} is not [height, width] = [{height}, {width}]"
    if not isinstance(counts, str):
        return f"counts are {type(counts).__name__}, not a compressed string"
    return _counts_fault(counts, height * width) if counts else None


@lru_cache(maxsize=1024)  # a mask is checked when it is read and again when its row is
def _counts_fault(counts: str, pixels: int) -> str | None:
    try:
        total = sum(run_lengths(counts))
    except ValueError as error:
        return str(error)
    return None if total == pixels else f"the runs cover {total} pixels, the image has {pixels}"


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> CompressedRLE | None:
    """Any COCO segmentation as one compressed RLE; None where there is no segmentation (`None`, `[]`).

    Accepts a list of polygons [x0, y0, x1, y1, ...] in pixels (merged; empty ones among others count for nothing, as
    in pycocotools), an uncompressed RLE (`counts` list) and a compressed RLE (`counts` str or bytes).

    Raises:
        ValueError: any other content, geometry far outside the image, or an RLE that does not fit it.
    """
    if segmentation is None or (isinstance(segmentation, list) and not segmentation):
        return None
    if isinstance(segmentation, dict):
        return _rle_from_dict(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError(f"a segmentation is a list of polygons or an RLE object, found {type(segmentation).__name__}")
    polygons = [polygon for polygon in segmentation if polygon != []]
    if not polygons:
        raise ValueError("every polygon is empty")
    for polygon in polygons:
        _check_polygon(polygon, height, width)
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": merged["counts"].decode("ascii")}


def _rle_from_dict(segmentation: dict[str, Any], height: int, width: int) -> CompressedRLE:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not set(map(type, size)) <= {int, float, str}:
        raise ValueError(f"an RLE needs size [height, width], found {_cut(size)}")
    size = [int(side) for side in size]
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int} or min(counts, default=0) < 0:
            raise ValueError("uncompressed counts hold whole numbers >= 0 only")
        if size != [height, width] or sum(counts) != height * width:
            raise ValueError(
                f"an uncompressed RLE of size {size} with {_cut(sum(counts))} pixels does not fit an image of "
                f"[height, width] = [{height}, {width}]"
            )
        rle = coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)
        return {"size": size, "counts": rle["counts"].decode("ascii")}
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    fault = rle_fault({"size": size, "counts": counts}, height, width)
    if fault:
        raise ValueError(fault)
    return {"size": size, "counts": str(counts)}


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    if isinstance(polygon, dict):
        raise ValueError("a list of RLEs: merge them into one RLE object")
    if not isinstance(polygon, list):
        raise ValueError(f"a polygon is a list of numbers in a list of polygons, found {type(polygon).__name__}")
    if polygon and isinstance(polygon[0], list):
        raise ValueError("a polygon is one flat list x0, y0, x1, y1, ..., found a list of lists")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon is a flat list of at least 6 numbers (3 points), found {len(polygon)} numbers")
    check_points(polygon[::2], polygon[1::2], height, width)


def check_points(xs: Sequence[Any], ys: Sequence[Any], height: int, width: int) -> None:
    """Refuse polygon coordinates that are no numbers, lie far outside the image, or trace an endless outline.

    Raises:
        ValueError: says which coordinate, and the range it should be in.
    """
    for name, values, side in (("x", xs, width), ("y", ys, height)):
        if not set(map(type, values)) <= {int, float}:
            raise ValueError("a polygon holds numbers only")
        low, high = -POLYGON_MARGIN * side - 1, (1 + POLYGON_MARGIN) * side + 1
        for value in values:
            if not low <= value <= high:
                problem = "is no finite number" if value != value else f"lies far outside the image (0 to {side})"
                raise ValueError(f"a polygon's {name} = {_cut(value)} {problem}")
    array = np.array([xs, ys], dtype=np.float64)
    if len(xs) * (height + width) > MAX_OUTLINE and np.abs(np.diff(array)).max(axis=0).sum() > MAX_OUTLINE:
        raise ValueError(f"a polygon's outline is longer than {MAX_OUTLINE} pixels")


def _cut(value: Any) -> str:
    return repr(value)[:40] if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode("ascii") if isinstance(counts, str) else counts
