# SPDX-License-Identifier: Apache-2.0
"""ReasonSeg: a folder of pictures, each with a JSON file of instructions and polygons.

Source: the section "Dataset" of the README and `utils/data_processing.py` of github.com/dvlab-research/LISA:
`train/x.jpg` + `train/x.json` with `text` (instructions), `is_sentence` (long ones) and `shapes` [{label, points}].
Shapes whose label contains "ignore" are regions that scoring leaves out, shapes labelled "flag" are obsolete, all
others are targets. Shapes are painted from large to small, so a smaller one hides what lies under it; files that are
not UTF-8 are cp1252. Both short phrases and sentences need reasoning here, so all are complex instructions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from ...masks import box_of_rle, encode_mask
from ..faults import DatasetFormatError, RecordFault, RecordReader
from ..image_roots import ImageRoot, ImageRoots, picture_size
from ..schema import InstructionRow, shown
from .instances import Instances, finish_row
from .polygon_raster import fill_polygon

SPLITS = ("train", "val", "test")


def matches(path: Path) -> bool:
    """Whether a path is a folder of pictures with a JSON file each, or the folder of its splits."""
    return path.is_dir() and any(True for folder in _folders(path) for _ in _pairs(folder))


def read(
    path: str | Path, image_root: ImageRoot = None, split: str | None = None, progress: bool = False
) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of a folder, sorted by file name; `image_root` replaces the folder of the pictures."""
    folders = [folder for folder in _folders(Path(path)) if split in (None, folder.name)]
    if not folders:
        raise DatasetFormatError(
            f"{path}: no folder for split {split!r}, found {[f.name for f in _folders(Path(path))]}"
        )
    for folder in folders:
        roots = ImageRoots(image_root, (folder,))
        files = sorted(folder.glob("*.json"))
        for file in tqdm(files, desc=folder.name, disable=not progress, leave=False):
            record = _open(file)
            row = None if record.faults else _row(record, roots, folder.name, file)
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
    except ValueError as error:
        record = RecordReader(str(file), "(file)", {})
        record.fault("(syntax)", str(error), "JSON", "mend the syntax")
        return record


def _row(record: RecordReader, roots: ImageRoots, split: str, file: Path) -> InstructionRow | None:
    texts = record.texts("text", optional=False)
    shapes = [shape for shape in record.items("shapes") if _is_shape(record, shape)]
    image = roots.path(f"{file.stem}.jpg", "reasonseg")
    size = _size(record, image)
    if record.faults:
        return None
    width, height = size
    painted = _paint(shapes, height, width)
    instances = Instances()
    for mask in painted["target"]:
        rle = encode_mask(mask)
        instances.masks.append(rle)
        instances.boxes.append(box_of_rle(rle))
        instances.is_crowd.append(False)
    return finish_row(
        record,
        instances,
        image=image,
        file_name=f"{file.stem}.jpg",
        width=width,
        height=height,
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
        record.fault("shapes", shown(shape), "an object with 'label' and 'points'", "mend or remove the shape")
        return False
    if shape["label"].lower() == "flag":
        return False
    points = shape.get("points")
    good = isinstance(points, list) and points and all(_is_point(point) for point in points)
    if not good:
        record.fault("shapes.points", shown(points), "a list of [x, y] in pixels", "mend or remove the shape")
    return bool(good)


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in point)
    )


def _size(record: RecordReader, image: str | None) -> tuple[int, int] | None:
    try:
        with Image.open(image or record.file.removesuffix(".json") + ".jpg") as picture:
            return picture_size(picture)
    except (OSError, UnidentifiedImageError) as error:
        record.fault("(picture)", str(error), "a readable picture beside the JSON file", "add it or pass image_root")
        return None


def _paint(shapes: list[dict[str, Any]], height: int, width: int) -> dict[str, list[np.ndarray]]:
    """Visible masks of the shapes: union of "target" = the label 1 of the source, union of "ignore" = its 255."""
    masks = [fill_polygon(shape["points"], height, width) for shape in shapes]
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
