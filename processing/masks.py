# SPDX-License-Identifier: Apache-2.0
"""Masks as COCO run-length encodings: every encoding in use is read, one (the compressed one) is kept.

A compressed RLE is `{"size": [height, width], "counts": str}`; pixels are counted column by column, background first.
The byte format of `counts` is that of pycocotools (`common/maskApi.c`): five bits per character, a continuation bit,
and from the third value on the difference to the value two places before.
"""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, TypedDict

import numpy as np
from pycocotools import mask as coco_mask

# One number of `counts`: continued characters ("P" to "o") and a last one ("0" to "O"), at most 8: 2 ** 39 pixels.
NUMBER = re.compile(r"[P-o]{0,7}[0-O]")
MAX_CHARACTERS = 8
ALPHABET = bytes(range(ord("0"), ord("o") + 1))
LAST = "O"
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


def decode_box(rle: CompressedRLE) -> tuple[int, int, np.ndarray]:
    """(top, left) of the tight box of a compressed RLE and the bool array [height, width] of the pixels in it.

    Raises:
        ValueError: run lengths that do not fill the size.
    """
    left, top, wide, tall = map(int, box_of_rle(rle))
    if not wide * tall:
        return 0, 0, np.zeros((0, 0), dtype=bool)
    height, width = rle["size"]
    ends = np.cumsum(run_lengths(rle["counts"]))
    if ends[-1] != height * width:
        raise ValueError(f"the runs cover {ends[-1]} pixels, the image has {height * width}")
    runs = np.diff(np.clip(ends, left * height, (left + wide) * height), prepend=left * height)
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(wide, height)
    return top, left, columns[:, top : top + tall].T


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
    counts, (height, width) = rle["counts"], rle["size"]
    if not counts:
        return [0.0, 0.0, 0.0, 0.0]
    known = _boxes.get((counts, height, width))
    if known is not None:
        return known.copy()
    return coco_mask.toBbox({"size": [height, width], "counts": _as_bytes(counts)}).tolist()


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


_boxes: dict[tuple[str, int, int], list[float]] = {}


def learn_rles(rles: Iterable[Any]) -> None:
    """Check many masks in one go; what is valid is remembered, until the next call, by `rle_fault` and `box_of_rle`.

    Anything may be among them: what is no compressed RLE is passed over here, and told by `rle_fault`.
    """
    spelled: dict[tuple[str, int, int], Any] = {}
    for rle in rles:
        counts, size = (rle.get("counts"), rle.get("size")) if isinstance(rle, dict) else (None, None)
        if type(counts) is str and counts and counts.isascii() and type(size) is list and len(size) == 2:
            text = counts.encode("ascii")
            if type(size[0]) is type(size[1]) is int and counts[-1] <= LAST and not text.translate(None, ALPHABET):
                spelled[counts, size[0], size[1]] = {"size": size, "counts": text}
    _boxes.clear()
    if spelled:
        totals, lowest = _sum_runs([rle["counts"] for rle in spelled.values()])
        valid = (lowest >= 0) & (totals == [height * width for _, height, width in spelled])
        known = {key: rle for (key, rle), is_valid in zip(spelled.items(), valid.tolist(), strict=True) if is_valid}
        _boxes.update(zip(known, coco_mask.toBbox(list(known.values())).tolist() if known else (), strict=True))


def _sum_runs(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The sums of the runs of N texts in the alphabet, and bounds under them [N]; see `run_lengths`.

    A bound is negative where a run is, or a number is too long.
    """
    codes = np.frombuffer(b"".join(texts), dtype=np.uint8) - 48
    stops = np.flatnonzero(codes < 32)
    lengths = np.diff(stops, prepend=-1)
    # Of one character; its fifth bit is the sign.
    values = (codes[stops] & 31).astype(np.int64) - 2 * (codes[stops] & 16)
    longer = np.flatnonzero(lengths > 1)
    places = 5 * np.minimum(lengths[longer] - 1, MAX_CHARACTERS)
    values[longer] <<= places
    for back in range(1, MAX_CHARACTERS):
        longer, places = longer[lengths[longer] > back], places[lengths[longer] > back] - 5
        values[longer] += (codes[stops[longer] - back] & 31).astype(np.int64) << np.maximum(places, 0)
    ends = np.searchsorted(stops, np.cumsum([len(text) for text in texts]))
    sizes = np.diff(ends, prepend=0)
    first = ends - sizes
    sums, lowest = values[first], values[first].copy()
    values[first] = 0
    # From the third place on a number is the difference to the one two places before: sums down two columns, whose
    # first row is (nothing, the first number) and whose last may be half empty.
    rows = sizes // 2 + 1
    tops = np.cumsum(rows) - rows
    runs = np.zeros((rows.sum(), 2), dtype=np.int64)
    runs.reshape(-1)[np.arange(len(values)) + np.repeat(2 * tops + 1 - first, sizes)] = values
    np.cumsum(runs, axis=0, out=runs)
    runs -= np.repeat(runs[tops], rows, axis=0)
    runs[(tops + rows - 1)[sizes % 2 == 0], 1] = 0
    sums += np.add.reduceat(runs[:, 0] + runs[:, 1], tops)
    lowest = np.minimum(lowest, np.minimum.reduceat(np.minimum(runs[:, 0], runs[:, 1]), tops))
    long = np.searchsorted(ends, np.flatnonzero(lengths > MAX_CHARACTERS), side="right")
    lowest[long] = -1
    return sums, lowest


def rle_fault(rle: Any, height: int, width: int) -> str | None:
    """What is wrong with a compressed RLE of a [height, width] image, or None."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        return "not an object with the keys 'size' and 'counts'"
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, (list, tuple)) or list(size) != [height, width] or not set(map(type, size)) <= {int}:
        return f"size {_cut(size)} is not [height, width] = [{height}, {width}]"
    if not isinstance(counts, str):
        return f"counts are {type(counts).__name__}, not a compressed string"
    if not counts or (counts, height, width) in _boxes:
        return None
    try:
        total = sum(run_lengths(counts))
    except ValueError as error:
        return str(error)
    return None if total == height * width else f"the runs cover {total} pixels, the image has {height * width}"


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> CompressedRLE | None:
    """Any COCO segmentation as one compressed RLE; None where there is no segmentation (`None`, `[]`).

    Accepts a list of polygons [x0, y0, x1, y1, ...] in pixels (merged; empty ones among others count for nothing, as
    in pycocotools), an uncompressed RLE (`counts` list) and a compressed RLE (`counts` str or bytes). Raises
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
    if isinstance(counts, str) and rle_fault(segmentation, height, width) is None:
        return {"size": [height, width], "counts": counts}
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not set(map(type, size)) <= {int, float, str}:
        raise ValueError(f"an RLE needs size [height, width], found {_cut(size)}")
    size = [int(side) if math.isfinite(float(side)) else 0 for side in size]
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
