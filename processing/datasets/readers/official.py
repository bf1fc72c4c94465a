# SPDX-License-Identifier: Apache-2.0
"""The SAM3-I authors' JSON (`sam3i_train.json`, `sam3i_val.json`; HMPL-Instruct).

Source: the loader of the authors' repository (`train/data/coco_json_loaders.py`, class `COCO_FROM_JSON`).
`images[]` carry `text_inst_input` = {concept, simple_query, complex_query}, texts of the whole record; `annotations[]`
are COCO instances. One record becomes one row with all its annotations. The authors' loader makes one query per
category of the file and repeats the text in each, so a file is meant to have one category. An optional `sam3i` object
in `images[]`, ignored by the authors' loader, keeps what their layout has no place for (see `conversion.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..coco_index import CocoIndex
from ..faults import RecordFault, RecordReader
from ..image_roots import ImageRoot, ImageRoots
from ..json_stream import sample
from ..schema import InstructionRow, shown
from .instances import Instances, finish_row

TEXT_KEYS = {"concept": "concept", "simple": "simple_query", "complex": "complex_query"}


def matches(path: Path) -> bool:
    """Whether a path looks like this format."""
    if path.suffix != ".json" or not path.is_file():
        return False
    return b'"text_inst_input"' in sample(path)


def read(
    path: str | Path, image_root: ImageRoot = None, split: str | None = None, progress: bool = False
) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of a file, by ascending record id; `split` filters on the split in the `sam3i` object."""
    path = Path(path)
    index = CocoIndex(path, progress)
    yield from index.faults
    if index.category_ids is None:
        fix = 'add "categories": [{"id": 1, "name": "object"}]'
        yield RecordFault(str(path), "(file)", "categories", "missing", "a list (the authors' loader needs it)", fix)
    if "images" not in index.keys and not index.faults:
        yield RecordFault(str(path), "(file)", "images", "missing", "a list of records", "see the format description")
    yield from index.orphans()
    roots = ImageRoots(image_root, (path.parent, path.parent / "images"))
    for label, data in index.images():
        record = RecordReader(str(path), label, data)
        row = _row(record, index, roots, path)
        yield from record.faults
        if row is not None and split in (None, row["split"]):
            yield row


def _row(record: RecordReader, index: CocoIndex, roots: ImageRoots, path: Path) -> InstructionRow | None:
    width, height, file_name = record.side("width"), record.side("height"), record.text("file_name")
    texts = _texts(record)
    if width is None or height is None:
        return None
    instances = Instances()
    for label, annotation in index.annotations_of(record.data["id"]):
        category = annotation.get("category_id")
        if index.category_ids and category not in index.category_ids:
            found = shown(category) if "category_id" in annotation else "missing"
            record.fault("category_id", found, "the id of a category", "add the category or mend the id", label)
        if "iscrowd" not in annotation:
            record.fault("iscrowd", "missing", "0 or 1 (the authors' loader needs it)", "write 0", label)
        if annotation.get("bbox") is None:
            record.fault("bbox", "missing", "[x, y, w, h] in pixels", "write the box of the mask", label)
            continue
        instances.add(record, label, annotation, height, width)
    if record.faults:
        return None
    extra = _extra(record)
    instances.annotation_ids = extra.get("annotation_ids", instances.annotation_ids)
    return finish_row(
        record,
        instances,
        image=roots.path(file_name, extra.get("dataset", "")),
        file_name=file_name,
        width=width,
        height=height,
        ignore_masks=extra.get("ignore_masks"),
        target_kind=extra.get("target_kind") if instances else "none",
        row_id=extra.get("row_id", record.data["id"]),
        image_id=extra.get("image_id", record.data["id"]),
        dataset=extra.get("dataset", path.stem),
        split=extra.get("split"),
        **texts,
    )


def _extra(record: RecordReader) -> dict[str, Any]:
    extra = record.data.get("sam3i", {})
    if isinstance(extra, dict):
        return extra
    record.fault("sam3i", shown(extra), "an object", "remove it, or write it with `sam3i data convert`")
    return {}


def _texts(record: RecordReader) -> dict[str, Any]:
    source = record.data.get("text_inst_input")
    if not isinstance(source, dict):
        found = shown(source) if "text_inst_input" in record.data else "missing"
        record.fault("text_inst_input", found, f"an object with {', '.join(TEXT_KEYS.values())}", "write the texts")
        return {}
    inner = RecordReader(record.file, record.record, source)
    texts = {level: inner.texts(key) for level, key in TEXT_KEYS.items()}
    for fault in inner.faults:
        record.fault(f"text_inst_input.{fault.field}", fault.found, fault.expected, fault.fix)
    return texts
