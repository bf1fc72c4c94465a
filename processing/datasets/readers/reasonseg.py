# SPDX-License-Identifier: Apache-2.0
"""ReasonSeg: a folder of pictures, each with a JSON file of instructions and polygons.

Source: the section "Dataset" of the README and `utils/data_processing.py` of github.com/dvlab-research/LISA:
`train/x.jpg` + `train/x.json` with `text` (instructions), `is_sentence` (long ones) and `shapes` [{label, points}].
Shapes whose label contains "ignore" are regions that scoring leaves out, shapes labeled "flag" are obsolete, all
others are targets. Shapes are painted from large to small, so a smaller one hides what lies under it; files that are
not UTF-8 are cp1252. Both short phrases and sentences need reasoning here, so all are complex instructions.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ...images import ImageError, image_size
from ...limits import MAX_PIXELS
from ...masks import box_of_rle, check_points, encode_mask
from ..faults import RecordFault, RecordReader
from ..image_roots import ImageRoots, Picture, ReadOptions, find_image
from ..schema import EMPTY_MASK, InstructionRow, shown
from .instances import Instances, finish_row

SPLITS = ("train", "val", "test")
SHAPE_FIX = "mend or remove the shape"


def matches(path: Path) -> bool:
    """Whether a path is a folder of pictures with a JSON file each, or the folder of its splits."""
    return path.is_dir() and any(True for folder in _folders(path) for _ in _pairs(folder))


def files(path: Path) -> list[Path]:
    """The data files that a reading depends on: sizes come from the images."""
    return [file for folder in _folders(path) for json in sorted(folder.glob("*.json")) for file in _pair(json)]


def _pair(file: Path) -> list[Path]:
    return [one for one in (file, file.with_suffix(".jpg")) if one.is_file()]


def read(path: str | Path, options: ReadOptions) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of a folder, sorted by file name; `image_root` replaces the folder of the images."""
    for folder in _folders(Path(path)):
        roots = options.roots(folder)
        files = sorted(folder.glob("*.json"))
        for file in tqdm(files, desc=folder.name, disable=not options.progress, leave=False):
            if not options.wants(folder.name):
                continue
            record = _open(file)
            row = None if record.faults else _row(record, roots, options, folder.name, file)
            yield from record.faults
            if row is not None:
                yield row


def _folders(path: Path) -> list[Path]:
    splits = [path / name for name in SPLITS if (path / name).is_dir()]
    return splits or [path]


def _pairs(folder: Path) -> Iterator[Path]:
    return (file for file in folder.glob("*.json") if file.with_suffix(".jpg").is_file())


def _open(file: Path) -> RecordReader:
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", "replace")
    try:
        return RecordReader(str(file), "(file)", json.loads(text))
    except (ValueError, RecursionError) as error:
        record = RecordReader(str(file), "(file)", {})
        record.fault("(syntax)", str(error), "JSON", "mend the syntax")
        return record


def _row(
    record: RecordReader, roots: ImageRoots, options: ReadOptions, split: str, file: Path
) -> InstructionRow | None:
    texts = record.texts("text", optional=False)
    listed = record.items("shapes")
    shapes = [shape for shape in listed if _is_shape(record, shape)]
    image = find_image(record, roots, f"{file.stem}.jpg", "reasonseg")
    height, width = (0, 0) if record.faults else _size(record, image)
    for shape in shapes if height else ():
        _check_shape(record, shape, height, width)
    masks = [] if record.faults else [fill_polygon(shape["points"], height, width) for shape in shapes]
    for shape, mask in zip(shapes, masks, strict=False):
        if not mask.any():
            record.fault("shapes.points", f"{shown(shape['points'])} {EMPTY_MASK}", "pixels of it", SHAPE_FIX)
    if record.faults:
        return None
    if flags := len(listed) - len(shapes):
        options.account.notes["shape labeled 'flag', which counts for nothing"] += flags
    painted = _paint(shapes, masks, height, width)
    if hidden := len(shapes) - sum(map(len, painted.values())):
        options.account.notes["shape wholly under smaller ones, which counts for nothing"] += hidden
    instances = Instances(options)
    for mask in painted["target"]:
        rle = encode_mask(mask)
        instances.masks.append(rle)
        instances.boxes.append(box_of_rle(rle))
        instances.is_crowd.append(False)
    return finish_row(
        record,
        instances,
        Picture(f"{file.stem}.jpg", image, width, height),
        complex=texts,
        ignore_masks=[encode_mask(mask) for mask in painted["ignore"]],
        target_kind=None if instances else "none",
        row_id=file.stem,
        image_id=file.stem,
        dataset="reasonseg",
        split=split if split in SPLITS else None,
    )


def _is_shape(record: RecordReader, shape: Any) -> bool:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        record.fault("shapes", shown(shape), "an object with 'label' and 'points'", SHAPE_FIX)
        return False
    if shape["label"].lower() == "flag":
        return False
    points = shape.get("points")
    good = isinstance(points, list) and points and all(isinstance(p, list) and len(p) == 2 for p in points)
    if not good:
        record.fault("shapes.points", shown(points), "a list of [x, y] in pixels", SHAPE_FIX)
    return bool(good)


def _check_shape(record: RecordReader, shape: dict[str, Any], height: int, width: int) -> None:
    try:
        check_points([x for x, _ in shape["points"]], [y for _, y in shape["points"]], height, width)
    except ValueError as error:
        expected = f"[x, y] in pixels of the image of {width} x {height}"
        record.fault("shapes.points", str(error), expected, SHAPE_FIX)


def _size(record: RecordReader, image: str | None) -> tuple[int, int]:
    try:
        height, width = image_size(Path(image or record.file.removesuffix(".json") + ".jpg"))
        if height * width > MAX_PIXELS:
            raise ImageError(f"it has {width} x {height} pixels, more than {MAX_PIXELS}")
        return height, width
    except ImageError as error:
        record.fault("(image)", str(error), "a readable image beside the JSON file", "add it or pass image_root")
        return 0, 0


def _paint(
    shapes: list[dict[str, Any]], masks: list[np.ndarray], height: int, width: int
) -> dict[str, list[np.ndarray]]:
    """Visible masks of the shapes: union of "target" = the label 1 of the source, union of "ignore" = its 255."""
    # The reverse of an ascending sort, as the source has it: among equal areas the later shape is painted first.
    order = np.argsort([mask.sum() for mask in masks])[::-1]
    labels = np.zeros((height, width), dtype=np.uint8)
    for position in order:
        labels[masks[position]] = 2 if "ignore" in shapes[position]["label"].lower() else 1
    painted: dict[str, list[np.ndarray]] = {"target": [], "ignore": []}
    for shape, mask in zip(shapes, masks, strict=True):
        ignored = "ignore" in shape["label"].lower()
        visible = mask & (labels == (2 if ignored else 1))
        if visible.any():
            painted["ignore" if ignored else "target"].append(visible)
    return painted


def fill_polygon(points: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Bool mask [height, width] of a polygon [[x, y], ...] in pixels; the outline belongs to it.

    As OpenCV draws it (`fillPoly` and a one-pixel outline), without OpenCV.

    Coordinates are cut to whole numbers as an integer cast does. Inside is decided even-odd, at pixel centers.
    Pixel-equal to OpenCV inside the picture; a side that leaves the picture may differ by a pixel along its edge.
    """
    corners = [(int(x), int(y)) for x, y in points]
    mask = np.zeros((height, width), dtype=bool)
    array = np.asarray(corners, dtype=np.float64)
    x0, y0 = array.T
    x1, y1 = np.roll(array, -1, axis=0).T
    for row in range(max(0, int(y0.min())), min(height - 1, int(y0.max())) + 1):
        crossed = ((y0 <= row) & (y1 > row)) | ((y1 <= row) & (y0 > row))
        slope = (x1[crossed] - x0[crossed]) / (y1[crossed] - y0[crossed])
        crossings = np.sort(x0[crossed] + (row - y0[crossed]) * slope)
        for left, right in zip(crossings[::2], crossings[1::2], strict=True):
            mask[row, max(0, math.ceil(left)) : max(0, math.floor(right) + 1)] = True
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        _draw_line(mask, start, end)
    return mask


def _draw_line(mask: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Bresenham's line from left to right: the direction decides how ties are broken."""
    if start[0] > end[0]:
        start, end = end, start
    (x, y), (x_end, y_end) = start, end
    dx, dy, step = x_end - x, abs(y_end - y), 1 if y_end >= y else -1
    steep = dy > dx
    major, minor = (dy, dx) if steep else (dx, dy)
    error = major - 2 * minor
    for _ in range(major + 1):
        if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
            mask[y, x] = True
        aside = error < 0
        error += (2 * major if aside else 0) - 2 * minor
        if steep:
            x, y = x + aside, y + step
        else:
            x, y = x + 1, y + step * aside
