# SPDX-License-Identifier: Apache-2.0
"""Referring expressions as COCO-style JSON: one `images[]` entry per expression, as prepared for MDETR.

Source: `scripts/fine-tuning/refexp_coco_format.py` of github.com/ashkamath/mdetr and its gRefCOCO variant
`mdetr/scripts/fine-tuning/grefexp_coco_format.py` of github.com/henghuiding/gRefCOCO: files
`finetune_refcoco_train.json`, `finetune_grefcoco_val.json`, ... with images {file_name, height, width, id,
original_id, caption, dataset_name} and annotations {bbox, segmentation, iscrowd, category_id, image_id, id,
original_id}; `empty: true` marks an expression without target.
"""

from collections.abc import Iterator
from pathlib import Path

from ..coco_index import INCOMPLETE, CocoIndex, Labeled
from ..faults import RecordFault, RecordReader
from ..image_roots import ImageRoots, ReadOptions, name_and_size
from ..json_stream import sample
from ..schema import InstructionRow, shown
from .instances import Instances, count_kind, finish_row, flag_value

SPLITS = ("train", "val", "testA", "testB", "test")


def matches(path: Path) -> bool:
    """Whether a path looks like this format."""
    if path.suffix != ".json" or not path.is_file():
        return False
    content = sample(path)
    return b'"caption"' in content and b'"original_id"' in content


def read(path: str | Path, options: ReadOptions) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of a file; the split is the end of the file's name."""
    path = Path(path)
    name = path.stem.rsplit("_", 1)[-1]
    file_split = name if name in SPLITS else None
    index = CocoIndex(path, options.progress)
    yield from index.faults
    yield from index.orphans()
    roots = options.roots(
        path.parent, path.parent / "train2014", path.parent / "images", path.parent.parent / "train2014"
    )
    for label, data, members in index.images_with_annotations():
        if index.may_miss(data["id"], len(members)):
            options.account.left_out[INCOMPLETE] += 1  # it would show less than there is
            continue
        record = RecordReader(str(path), label, data)
        row = _row(record, members, index, roots, options, file_split)
        yield from record.faults
        if row is not None and options.wants(file_split):
            yield row


def _row(
    record: RecordReader,
    members: Labeled,
    index: CocoIndex,
    roots: ImageRoots,
    options: ReadOptions,
    split: str | None,
) -> InstructionRow | None:
    dataset = str(record.data.get("dataset_name") or Path(record.file).stem)
    picture = name_and_size(record, roots, dataset)
    caption, original = record.text("caption"), record.whole("original_id")
    if record.faults:
        return None
    instances = Instances(options)
    concepts: dict[str, None] = {}
    if not members:
        expected = 'an annotation of this image; one with "empty": true where there is no target'
        record.fault("annotations", "none", expected, "add it")
    for label, annotation in members:
        empty = flag_value(annotation.get("empty"))
        if empty is None or (empty and annotation.get("segmentation")):
            found = f"{shown(annotation['empty'])} {'with a segmentation' if empty else ''}".strip()
            record.fault("empty", found, "true without a segmentation, or false", "mend either", label)
        if empty:
            continue
        source_id = annotation.get("original_id", annotation["id"])
        instances.add(record, label, {**annotation, "id": source_id}, picture.height, picture.width)
        category = index.category(record, annotation, label)
        if category in index.nouns:
            concepts[index.nouns[category]] = None
    return finish_row(
        record,
        instances,
        picture,
        concept=list(concepts),
        simple=[caption],
        target_kind=count_kind(len(instances)),
        row_id=record.data["id"],
        image_id=original,
        dataset=dataset,
        split=split,
    )
