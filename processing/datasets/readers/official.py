# SPDX-License-Identifier: Apache-2.0
"""The SAM3-I authors' JSON (`sam3i_train.json`, `sam3i_val.json`; HMPL-Instruct).

Source: the loader of the authors' repository (`train/data/coco_json_loaders.py`, class `COCO_FROM_JSON`).
`images[]` carry `text_inst_input` = {concept, simple_query, complex_query}, texts of the whole record; `annotations[]`
are COCO instances. One record becomes one row with all its annotations. The authors' loader makes one query per
category of the file and repeats the text in each, so a file is meant to have one category. An optional `sam3i` object
in `images[]`, ignored by the authors' loader, keeps what their layout has no place for (see `conversion.py`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..coco_index import INCOMPLETE, CocoIndex, Labeled
from ..faults import RecordFault, RecordReader
from ..image_roots import ImageRoots, ReadOptions, name_and_size
from ..json_stream import sample
from ..schema import InstructionRow, shown
from .instances import Instances, finish_row

TEXT_KEYS = {"concept": "concept", "simple": "simple_query", "complex": "complex_query"}
TEXT_FIELDS = tuple(TEXT_KEYS.values())
EXTRA_FIELDS = ("row_id", "image_id", "annotation_ids", "target_kind", "ignore_masks", "dataset", "split")


def matches(path: Path) -> bool:
    """Whether a path looks like this format."""
    if path.suffix != ".json" or not path.is_file():
        return False
    return b'"text_inst_input"' in sample(path)


def read(path: str | Path, options: ReadOptions) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of a file, by ascending record id; the split is that of the `sam3i` object."""
    path = Path(path)
    index = CocoIndex(path, options.progress)
    yield from index.faults
    yield from index.orphans()
    if "categories" not in index.keys:
        fix = 'add "categories": [{"id": 1, "name": "object"}]'
        yield RecordFault(str(path), "(file)", "categories", "missing", "a list (the authors' loader needs it)", fix)
    roots = options.roots(path.parent, path.parent / "images")
    for label, data, members in index.images_with_annotations():
        if index.may_miss(data["id"], len(members)):
            options.account.left_out[INCOMPLETE] += 1  # it would show less than there is
            continue
        record = RecordReader(str(path), label, data)
        row = _row(record, members, index, roots, options)
        yield from record.faults
        if row is not None and options.wants(row["split"]):
            yield row


def _row(
    record: RecordReader, members: Labeled, index: CocoIndex, roots: ImageRoots, options: ReadOptions
) -> InstructionRow | None:
    extra = _extra(record)
    picture = name_and_size(record, roots, str(extra.get("dataset", "")))
    texts = _texts(record)
    if not picture.width or not picture.height:
        return None
    instances = Instances(options, crowd="skip")
    for label, annotation in members:
        index.category(record, annotation, label)
        if "iscrowd" not in annotation:
            record.fault("iscrowd", "missing", "0 or 1 (the authors' loader needs it)", "write 0", label)
        if annotation.get("bbox") in (None, []):
            record.fault("bbox", "missing", "[x, y, w, h] in pixels", "write the box of the mask", label)
            continue
        instances.add(record, label, annotation, picture.height, picture.width)
    ids = extra.get("annotation_ids", instances.annotation_ids)
    if not record.faults and "annotation_ids" in extra and len(ids) not in (0, len(instances)):
        expected = f"{len(instances)}, one per annotation"
        record.fault("sam3i.annotation_ids", f"{len(ids)} entries", expected, "write [], or all of them")
    if record.faults:
        return None
    instances.annotation_ids = ids
    kind = extra.get("target_kind")
    kind = "none" if kind is None and not instances else kind
    row = finish_row(
        record,
        instances,
        picture,
        ignore_masks=extra.get("ignore_masks"),
        target_kind=kind,
        row_id=extra.get("row_id", record.data["id"]),
        image_id=extra.get("image_id", record.data["id"]),
        dataset=extra.get("dataset", index.path.stem),
        split=extra.get("split"),
        **texts,
    )
    return options.once(record, row)


def _extra(record: RecordReader) -> dict[str, Any]:
    if "sam3i" not in record.data:
        return {}
    inner = RecordReader(record.file, record.record, record.data["sam3i"])
    inner.check_names(EXTRA_FIELDS)
    lists = {name: inner.items(name, optional=True) for name in ("annotation_ids", "ignore_masks")}
    _name_inner(record, "sam3i", inner)
    return {**inner.data, **{name: lists[name] for name in lists.keys() & inner.data.keys()}}


def _texts(record: RecordReader) -> dict[str, Any]:
    source = record.data.get("text_inst_input")
    if not isinstance(source, dict):
        found = shown(source) if "text_inst_input" in record.data else "missing"
        record.fault("text_inst_input", found, f"an object with {', '.join(TEXT_FIELDS)}", "write the texts")
        return {}
    inner = RecordReader(record.file, record.record, source)
    inner.check_names(TEXT_FIELDS, only_misspelled=True)
    texts = {level: inner.texts(key) for level, key in TEXT_KEYS.items()}
    _name_inner(record, "text_inst_input", inner)
    return texts


def _name_inner(record: RecordReader, field: str, inner: RecordReader) -> None:
    """Note the faults of an object inside a record under the object's name."""
    for fault in inner.faults:
        name = field if fault.field == "(record)" else f"{field}.{fault.field}"
        record.fault(name, fault.found, fault.expected, fault.fix)
