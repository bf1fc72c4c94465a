# SPDX-License-Identifier: Apache-2.0
"""Masks as COCO run-length encodings: every encoding in use is read, one (the compressed one) is kept.

A compressed RLE is `{"size": [height, width], "counts": str}`; pixels are counted column by column, background first.
The byte format of `counts` is that of pycocotools (`common/maskApi.c`): five bits per character, a continuation bit,
and from the third value on the difference to the value two places before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

MAX_DIGITS = 8  # characters of one run length: 2 ** 39 pixels


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Compress a mask [height, width] of zeros and non-zeros."""
    array = np.asfortranarray(np.asarray(mask) != 0, dtype=np.uint8)
    if array.ndim != 2:
        raise ValueError(f"a mask has two axes (height, width), found the shape {array.shape}")
    rle = coco_mask.encode(array)
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any]) -> np.ndarray:
    """Expand a compressed RLE to a bool array [height, width]; empty `counts` stand for an empty mask."""
    height, width = rle["size"]
    counts = rle["counts"]
    if not counts:
        return np.zeros((height, width), dtype=bool)
    return coco_mask.decode({"size": [height, width], "counts": _as_bytes(counts)}).astype(bool)


def decode_masks(rles: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Expand N compressed RLEs to a bool array [N, height, width] (N may be 0)."""
    masks = np.zeros((len(rles), height, width), dtype=bool)
    for index, rle in enumerate(rles):
        masks[index] = decode_mask(rle)
    return masks


def union_mask(rles: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """The pixels covered by any of the masks, as a bool array [height, width]."""
    union = np.zeros((height, width), dtype=bool)
    for rle in rles:
        union |= decode_mask(rle)
    return union


def box_of_rle(rle: dict[str, Any]) -> list[float]:
    """Tight box [x, y, width, height] in pixels of a compressed RLE."""
    if not rle["counts"]:
        return [0.0, 0.0, 0.0, 0.0]
    return [float(v) for v in coco_mask.toBbox({"size": list(rle["size"]), "counts": _as_bytes(rle["counts"])})]


def rle_area(rle: dict[str, Any]) -> int:
    """Number of pixels covered by a compressed RLE."""
    if not rle["counts"]:
        return 0
    return int(coco_mask.area({"size": list(rle["size"]), "counts": _as_bytes(rle["counts"])}))


def run_lengths(counts: str) -> np.ndarray:
    """Run lengths of a compressed RLE string, read without the C library (which trusts its input).

    Raises:
        ValueError: a character outside the alphabet, a value cut off at the end, or a negative run.
    """
    if not counts.isascii():
        raise ValueError("the counts hold characters that are not ASCII")
    bits = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if not len(bits):
        return bits
    strange = np.flatnonzero((bits < 0) | (bits > 63))
    if len(strange):
        raise ValueError(f"character {counts[strange[0]]!r} at place {strange[0]} does not occur in RLE counts")
    ends = np.flatnonzero((bits & 0x20) == 0)
    if not len(ends) or ends[-1] != len(bits) - 1:
        raise ValueError("the counts end in the middle of a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_DIGITS:
        raise ValueError(f"a number of {lengths.max()} characters is no run length")
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 0x1F) << shifts, starts)
    runs -= np.where(bits[ends] & 0x10, 1 << (5 * lengths), 0)
    # From the third place on a number is the difference to the one two places before.
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    negative = np.flatnonzero(runs < 0)
    if len(negative):
        raise ValueError(f"run {negative[0]} has the negative length {runs[negative[0]]}")
    return runs


def rle_fault(rle: Any, height: int, width: int) -> str | None:
    """What is wrong with a compressed RLE of a [height, width] image, or None."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        return "not an object with the keys 'size' and 'counts'"
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, (list, tuple)) or [s for s in size if isinstance(s, int)] != [height, width]:
        return f"size {size!r} is not [height, width] = [{height}, {width}]"
    if not isinstance(counts, str):
        return f"counts are {type(counts).__name__}, not a compressed string"
    return _counts_fault(counts, height * width) if counts else None


@lru_cache(maxsize=1024)  # a mask is checked when it is read and again when its row is
def _counts_fault(counts: str, pixels: int) -> str | None:
    try:
        total = int(run_lengths(counts).sum())
    except ValueError as error:
        return str(error)
    return None if total == pixels else f"the runs cover {total} pixels, the image has {pixels}"


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """Any COCO segmentation as one compressed RLE; None where there is no segmentation (`None`, `[]`).

    Accepts a list of polygons [x0, y0, x1, y1, ...] in pixels (merged), an uncompressed RLE (`counts` list) and a
    compressed RLE (`counts` str or bytes).

    Raises:
        ValueError: any other content, or an RLE that does not fit the image.
    """
    if segmentation is None or (isinstance(segmentation, list) and not segmentation):
        return None
    if isinstance(segmentation, dict):
        return _rle_from_dict(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError(f"a segmentation is a list of polygons or an RLE object, found {type(segmentation).__name__}")
    polygons = [_checked_polygon(polygon) for polygon in segmentation]
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": merged["counts"].decode("ascii")}


def _rle_from_dict(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise ValueError(f"an RLE needs size [height, width], found {size!r}")
    size = [int(side) for side in size]
    if isinstance(counts, list):
        if any(isinstance(run, bool) or not isinstance(run, int) or run < 0 for run in counts):
            raise ValueError("uncompressed counts hold whole numbers >= 0 only")
        if size != [height, width] or sum(counts) != height * width:
            raise ValueError(
                f"an uncompressed RLE of size {size} with {sum(counts)} pixels does not fit an image of "
                f"[height, width] = [{height}, {width}]"
            )
        rle = coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)
        return {"size": size, "counts": rle["counts"].decode("ascii")}
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    rle = {"size": size, "counts": counts}
    fault = rle_fault(rle, height, width)
    if fault:
        raise ValueError(fault)
    return rle


def _checked_polygon(polygon: Any) -> list[float]:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        found = f"{len(polygon)} numbers" if isinstance(polygon, list) else type(polygon).__name__
        raise ValueError(f"a polygon is a flat list x0, y0, x1, y1, ... of at least 6 numbers, found {found}")
    values = np.asarray(polygon, dtype=object)
    if any(isinstance(v, (bool, str)) or not np.isfinite(float(v)) for v in values):
        raise ValueError("a polygon holds finite numbers only")
    return [float(v) for v in values]


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode("ascii") if isinstance(counts, str) else counts
