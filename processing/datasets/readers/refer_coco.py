# SPDX-License-Identifier: Apache-2.0
"""Referring expressions as COCO-style JSON: one `images[]` entry per expression, as prepared for MDETR.

Source: `scripts/fine-tuning/refexp_coco_format.py` of github.com/ashkamath/mdetr and its gRefCOCO variant
`mdetr/scripts/fine-tuning/grefexp_coco_format.py` of github.com/henghuiding/gRefCOCO: files
`finetune_refcoco_train.json`, `finetune_grefcoco_val.json`, ... with images {file_name, height, width, id,
original_id, caption, dataset_name} and annotations {bbox, segmentation, iscrowd, category_id, image_id, id,
original_id}; `empty: true` marks an expression without target.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..coco_index import CocoIndex
from ..faults import RecordFault, RecordReader
from ..image_roots import ImageRoot, ImageRoots
from ..json_stream import sample
from ..schema import InstructionRow
from .instances import Instances, count_kind, finish_row

SPLITS = ("train", "val", "testA", "testB", "test")


def matches(path: Path) -> bool:
    """Whether a path looks like this format."""
    if path.suffix != ".json" or not path.is_file():
        return False
    content = sample(path)
    return b'"caption"' in content and b'"original_id"' in content


def read(
    path: str | Path, image_root: ImageRoot = None, split: str | None = None, progress: bool = False
) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of a file; the split is the end of the file's name."""
    path = Path(path)
    name = path.stem.rsplit("_", 1)[-1]
    file_split = name if name in SPLITS else None
    if split is not None and split != file_split:
        return
    index = CocoIndex(path, progress)
    yield from index.faults
    yield from index.orphans()
    roots = ImageRoots(image_root, (path.parent, path.parent / "train2014", path.parent.parent / "train2014"))
    for label, data in index.images():
        record = RecordReader(str(path), label, data)
        row = _row(record, index, roots, file_split)
        yield from record.faults
        if row is not None:
            yield row


def _row(record: RecordReader, index: CocoIndex, roots: ImageRoots, split: str | None) -> InstructionRow | None:
    width, height, file_name = record.side("width"), record.side("height"), record.text("file_name")
    caption, original = record.text("caption"), record.whole("original_id")
    dataset = record.data.get("dataset_name") or Path(record.file).stem
    if record.faults:
        return None
    instances, concepts = Instances(), {}
    for label, annotation in index.annotations_of(record.data["id"]):
        if annotation.get("empty"):
            continue
        source_id = annotation.get("original_id", annotation["id"])
        instances.add(record, label, {**annotation, "id": source_id}, height, width)
        if annotation.get("category_id") in index.categories:
            concepts[index.categories[annotation["category_id"]]] = None
    return finish_row(
        record,
        instances,
        image=roots.path(file_name, dataset),
        file_name=file_name,
        width=width,
        height=height,
        concept=list(concepts),
        simple=[caption],
        target_kind=count_kind(len(instances)),
        row_id=record.data["id"],
        image_id=original,
        dataset=dataset,
        split=split,
    )
