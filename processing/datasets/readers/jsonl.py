# SPDX-License-Identifier: Apache-2.0
"""Rows of the schema as JSON Lines: one row per line, the format to write by hand or from a script.

Fields as in `schema.InstructionRow`. Only `file_name` (or `image`, a path), `width`, `height` and one instruction are
required; masks may come in any COCO encoding (polygons, uncompressed or compressed RLE); boxes default to those of the
masks, ids to the line number. A row that gives all fields comes back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...masks import box_of_rle, segmentation_to_rle
from ..faults import RecordFault, RecordReader
from ..image_roots import ImageRoot, ImageRoots
from ..schema import LEVEL_FIELDS, ROW_FIELDS, InstructionRow, make_row, shown, validate_row


def matches(path: Path) -> bool:
    """Whether a path looks like this format."""
    return path.is_file() and path.suffix == ".jsonl"


def read(
    path: str | Path, image_root: ImageRoot = None, split: str | None = None, progress: bool = False
) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults in file order; `split` filters on the field of that name."""
    path = Path(path)
    roots = ImageRoots(image_root, (path.parent, path.parent / "images"))
    seen: dict[tuple[Any, str], int] = {}
    for number, record in enumerate(iterate_lines(path, progress), start=1):
        row = None if record.faults else _row(record, roots, path)
        if row is not None:
            first = seen.setdefault((row["split"], row["row_id"]), number)
            if first != number:
                record.fault(
                    "row_id", shown(row["row_id"]), "an id used once per split", "give the row an id of its own"
                )
        yield from record.faults
        if row is not None and not record.faults and split in (None, row["split"]):
            yield row


def iterate_lines(path: Path, progress: bool = False) -> Iterator[RecordReader]:
    """One reader per non-empty line; a line that is no JSON comes with that fault."""
    with (
        open(path, "rb") as file,
        tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=not progress, leave=False
        ) as bar,
    ):
        for number, raw in enumerate(file, start=1):
            bar.update(len(raw))
            if not raw.strip():
                continue
            try:
                record = RecordReader(str(path), f"line {number}", json.loads(raw.decode("utf-8-sig")))
            except (ValueError, RecursionError) as error:
                record = RecordReader(str(path), f"line {number}", {})
                record.fault("(syntax)", str(error), "one JSON object per line", "mend the syntax")
            yield record


def _row(record: RecordReader, roots: ImageRoots, path: Path) -> InstructionRow | None:
    data = record.data
    for name in data.keys() - set(ROW_FIELDS):
        record.fault(name, "unknown field", f"one of {', '.join(ROW_FIELDS)}", "rename or remove it")
    width, height = record.side("width"), record.side("height")
    named = data.get("file_name") if data.get("file_name") is not None else data.get("image")
    if named is not None and not isinstance(named, str):
        record.fault("file_name", shown(named), "a path", "write the path of the picture")
    texts = {level: record.texts(level) for level in LEVEL_FIELDS}
    if record.faults:
        return None
    masks = _masks(record, "masks", height, width)
    ignore = [mask for mask in _masks(record, "ignore_masks", height, width) if mask is not None]
    boxes = data.get("boxes")
    if boxes is None and None in masks:
        record.fault("boxes", "missing", "a box where a mask is null", "write [x, y, w, h] in pixels")
    if record.faults:
        return None
    number = record.record.removeprefix("line ")
    if boxes is None:
        boxes = [box_of_rle(mask) for mask in masks]
    row = make_row(
        image=None if named is None else roots.path(named, str(data.get("dataset", ""))),
        file_name=named,
        width=width,
        height=height,
        row_id=data.get("row_id", number),
        image_id=data.get("image_id", named or number),
        masks=masks,
        boxes=[],
        ignore_masks=ignore,
        dataset=data.get("dataset", path.stem),
        split=data.get("split"),
        target_kind=data.get("target_kind", None if masks else "none"),
        **texts,
    )
    row.update(
        boxes=boxes, is_crowd=data.get("is_crowd", row["is_crowd"]), annotation_ids=data.get("annotation_ids", [])
    )
    record.take(validate_row(row))
    if record.faults:
        return None
    row["boxes"] = [[float(value) for value in box] for box in boxes]
    return row


def _masks(record: RecordReader, field: str, height: int, width: int) -> list[dict[str, Any] | None]:
    masks = []
    for index, value in enumerate(record.items(field, optional=True)):
        try:
            masks.append(segmentation_to_rle(value, height, width))
        except ValueError as error:
            fix = "write polygons or an RLE of the image's size"
            record.fault(f"{field}[{index}]", str(error), f"a mask of {width} x {height} pixels", fix)
    return masks
