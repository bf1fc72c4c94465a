# SPDX-License-Identifier: Apache-2.0
"""Rows of the schema as JSON Lines: one row per line, the format to write by hand or from a script.

Fields as in `schema.InstructionRow`. `file_name` (or `image`, a path), one instruction and `masks` ([] for no target)
are required; sizes default to those of the image; masks may come in any COCO encoding (polygons, uncompressed or
compressed RLE); boxes default to those of the masks, ids to the line number. A row that gives all fields comes back
unchanged.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...masks import box_of_rle, learn_rles, segmentation_to_rle
from ..faults import RecordFault, RecordReader
from ..image_roots import ImageRoots, ReadOptions, name_and_size
from ..json_stream import BATCH, in_batches
from ..schema import (
    LEVEL_FIELDS,
    ROW_FIELDS,
    CompressedRLE,
    InstructionRow,
    fit_box,
    make_row,
    shown,
    text_faults,
    validate_row,
)

ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
MAX_LINE = 1 << 28  # bytes


def matches(path: Path) -> bool:
    """Whether a path looks like this format."""
    return path.is_file() and path.name.lower().endswith(ENDINGS)


def read(path: str | Path, options: ReadOptions) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults in file order."""
    path = Path(path)
    roots = options.roots(path.parent, path.parent / "images")
    name = path.name.removesuffix(".gz").rpartition(".")[0]
    yield from rows_of_records(iterate_lines(path, options.progress), roots, options, name)


def rows_of_records(
    records: Iterator[RecordReader], roots: ImageRoots, options: ReadOptions, dataset: str
) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of records with the fields of the schema; row ids are used once per split."""
    for batch in in_batches(records, BATCH):
        masks = (record.data.get("masks") for record in batch)
        learn_rles(mask for several in masks if isinstance(several, list) for mask in several)
        for record in batch:
            row = None if record.faults else options.once(record, _row(record, roots, options, dataset))
            yield from record.faults
            if row is not None and options.wants(row["split"]):
                yield row


def iterate_lines(path: Path, progress: bool = False) -> Iterator[RecordReader]:
    """One reader per non-empty line; a line that is no JSON comes with that fault."""
    name, total = str(path), path.stat().st_size if path.suffix != ".gz" else None
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=path.name, disable=not progress, leave=False)
    with open(path, "rb") as source, bar:
        lines = gzip.open(source) if path.suffix == ".gz" else source
        number = 0
        while True:
            number += 1
            label = f"line {number}"
            try:
                raw = lines.readline(MAX_LINE)
            except (OSError, EOFError) as error:
                yield _faulty(name, label, "(file)", str(error), "a whole gzip file", "compress it again")
                return
            bar.update(len(raw))
            if not raw:
                return
            if len(raw) == MAX_LINE:
                found = f"a line of {MAX_LINE} bytes or more"
                yield _faulty(name, label, "(syntax)", found, "one row per line", "split the file")
                return
            if raw.isspace():
                continue
            try:
                yield RecordReader(name, label, json.loads(raw.decode("utf-8").removeprefix("\ufeff")))
            except (ValueError, RecursionError) as error:
                yield _faulty(name, label, "(syntax)", str(error), "one JSON object per line", "mend the syntax")


def _faulty(file: str, label: str, *fault: str) -> RecordReader:
    record = RecordReader(file, label, {})
    record.fault(*fault)
    return record


def _row(record: RecordReader, roots: ImageRoots, options: ReadOptions, name: str) -> InstructionRow | None:
    data = record.data
    record.check_names(ROW_FIELDS)
    dataset = data.get("dataset", name)
    image: Any = data.get("image")
    if isinstance(image, dict) and not image.get("bytes"):
        image = image.get("path")
    embedded = image if isinstance(image, dict) else None
    if image is not None and embedded is None and not isinstance(image, str):
        record.fault("image", shown(image), "a path", "write the path of the image")
    if embedded is None and data.get("file_name") is None and isinstance(image, str):
        data["file_name"] = image
    if embedded is None and data.get("file_name") is not None:
        _, image, width, height = name_and_size(record, roots, str(dataset))
    else:
        width, height = record.size()
    texts: dict[str, Any] = {level: [] if data.get(level) is None else data[level] for level in LEVEL_FIELDS}
    if record.faults:
        record.take(text_faults(texts))
        return None
    masks, ignore = (_masks(record, field, height, width) for field in ("masks", "ignore_masks"))
    boxes = data.get("boxes")
    if data.get("masks") is None and data.get("target_kind") != "none":
        fix = 'write the masks, or "masks": [] where the instruction denotes nothing'
        record.fault("masks", "missing", "one mask (or null, with a box) per instance", fix)
    if boxes is None and None in masks:
        record.fault("boxes", "missing", "a box where a mask is null", "write [x, y, w, h] in pixels")
    if record.faults:
        return None
    number, named = record.record.rpartition(" ")[2], data.get("file_name")
    row = make_row(
        image=image,
        file_name=named,
        width=width,
        height=height,
        row_id=data.get("row_id", number),
        image_id=data.get("image_id", named or number),
        masks=masks,
        boxes=[box_of_rle(mask) for mask in masks if mask is not None] if boxes is None else [],
        ignore_masks=[mask for mask in ignore if mask is not None],
        dataset=dataset,
        split=data.get("split"),
        target_kind=data.get("target_kind", None if masks else "none"),
    )
    row.update(texts)  # type: ignore[typeddict-item]
    row["is_crowd"] = data.get("is_crowd", row["is_crowd"])
    row["annotation_ids"] = data.get("annotation_ids", [])
    row["boxes"] = row["boxes"] if boxes is None else boxes
    record.take(validate_row(row))
    if record.faults:
        return None
    row["boxes"] = [fit_box(box, height, width) for box in row["boxes"]]
    row["is_crowd"] = [bool(flag) for flag in row["is_crowd"]]
    notes = options.account.notes
    for mask, box, fitted in zip(masks, boxes or row["boxes"], row["boxes"], strict=True):
        if fitted != box:
            notes["box cut to its image"] += 1
        if mask is None:
            notes["box without a mask"] += 1
    return row


def _masks(record: RecordReader, field: str, height: int, width: int) -> list[CompressedRLE | None]:
    masks: list[CompressedRLE | None] = []
    for index, value in enumerate(record.items(field, optional=True)):
        try:
            mask = segmentation_to_rle(value, height, width)
            if mask is None and field == "ignore_masks":
                raise ValueError(f"{shown(value)} is no mask")
            masks.append(mask)
        except ValueError as error:
            fix = "write polygons or an RLE of the image's size"
            record.fault(f"{field}[{index}]", str(error), f"a mask of {width} x {height} pixels", fix)
    return masks
