# SPDX-License-Identifier: Apache-2.0
"""COCO instances, plain or with a file of instructions: the shortest way to instruction data for one's own images.

Source of the COCO part: cocodataset.org, "Data format", object detection; also as LVIS, Roboflow, CVAT, labelme2coco,
Label Studio, coco-annotator and datumaro write it. The instruction file is ours: a folder holds `instances.json` (or
one `instances*.json`) and `instructions.jsonl`, one object per line and target:
{"image_id": 17, "annotation_ids": [4, 9], "concept": ["cup"], "simple": [...], "complex": [...]}, optionally with
"target_kind", "row_id" and "split". `"annotation_ids": []` means that the instruction denotes nothing.
Without instructions each category of an image becomes a row of the concept level with all its instances.
"""

from collections.abc import Iterator
from pathlib import Path

from ..coco_index import INCOMPLETE, CocoIndex
from ..faults import DatasetFormatError, RecordFault, RecordReader
from ..image_roots import ImageRoots, ReadOptions, name_and_size
from ..json_stream import sample
from ..schema import LEVEL_FIELDS, InstructionRow, shown
from .instances import Instances, finish_row
from .jsonl import iterate_lines

INSTRUCTIONS = "instructions.jsonl"
LINE_FIELDS = ("image_id", "annotation_ids", *LEVEL_FIELDS, "target_kind", "row_id", "split")
KEYS = (b'"images"', b'"annotations"', b'"categories"', b'"file_name"', b'"segmentation"', b'"bbox"')


def matches(path: Path) -> bool:
    """Whether a path is a folder with instructions, the instruction file in one, or a COCO file."""
    if path.is_dir() or path.name == INSTRUCTIONS:
        return _with_instructions(path)
    return path.suffix == ".json" and path.is_file() and sum(key in sample(path) for key in KEYS) >= 2


def files(path: Path) -> list[Path]:
    """The data files that a reading depends on."""
    if _with_instructions(path):
        folder = path if path.is_dir() else path.parent
        return [*sorted(folder.glob("instances*.json")), folder / INSTRUCTIONS]
    return [path]


def _with_instructions(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    named = path.is_dir() or path.name == INSTRUCTIONS
    return named and (folder / INSTRUCTIONS).is_file() and any(folder.glob("instances*.json"))


def read(path: str | Path, options: ReadOptions) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults in the order of the instruction file; of a plain COCO file by ascending image id."""
    path, found = Path(path), files(Path(path))
    if len(found) != (2 if _with_instructions(path) else 1):
        names = ", ".join(file.name for file in found if file.name != INSTRUCTIONS) or "none"
        raise DatasetFormatError(f"{path}: expected one file of COCO instances, found {names}; name one")
    index, folder = CocoIndex(found[0], options.progress), found[0].parent
    yield from index.faults
    yield from index.orphans()
    roots = options.roots(folder, folder / "images")
    if not _with_instructions(path):
        yield from _plain_rows(index, roots, options)
        return
    if not index.categories:
        options.account.notes["no categories: concepts are known only from the instructions"] += 1
    for record in iterate_lines(found[1], options.progress):
        row = None if record.faults else _row(record, index, roots, options, folder.name)
        yield from record.faults
        if row is not None and options.wants(row["split"]):
            yield row


def _row(
    record: RecordReader, index: CocoIndex, roots: ImageRoots, options: ReadOptions, dataset: str
) -> InstructionRow | None:
    record.check_names(LINE_FIELDS)
    image_id, numbers = record.data.get("image_id"), record.items("annotation_ids")
    texts = {level: record.texts(level) for level in LEVEL_FIELDS}
    image = index.image(image_id)
    if image is None:
        found = shown(image_id) if "image_id" in record.data else "missing"
        record.fault("image_id", found, "the id of an image", "add the image to the instances file")
    if record.faults:
        return None
    source = RecordReader(str(index.path), f"image {image_id}", image)
    picture = name_and_size(source, roots, dataset)
    record.faults.extend(source.faults)
    if record.faults:
        return None
    instances, categories = Instances(options), set()
    for number in numbers:
        annotation = index.annotation(number)
        label = f"{record.record}: annotation {shown(number)}"
        if annotation is None or index.number(annotation["image_id"]) != index.number(image_id):
            expected = f"ids of annotations of image {image_id}, used once each"
            record.fault("annotation_ids", shown(number), expected, "add the annotation or mend the id")
            continue
        instances.add(record, label, annotation, picture.height, picture.width)
        categories.add(index.category(record, annotation, label))
    if not texts["concept"] and numbers and record.data.get("target_kind") in (None, "1-to-all"):
        texts["concept"] = _concept_of_all(index, image_id, numbers, categories)
    row = finish_row(
        record,
        instances,
        picture,
        target_kind=record.data.get("target_kind", None if numbers else "none"),
        row_id=record.data.get("row_id", record.record.removeprefix("line ")),
        image_id=image_id,
        dataset=dataset,
        split=record.data.get("split"),
        **texts,
    )
    return options.once(record, row)


def _concept_of_all(index: CocoIndex, image_id: object, numbers: list, categories: set) -> list[str]:
    """The category's name where the target is every instance of it; the name alone would denote more than a part."""
    annotations = index.annotations_of(image_id)
    if len(categories) != 1 or not categories <= index.nouns.keys() or index.may_miss(image_id, len(annotations)):
        return []
    # An annotation that names no category may be of this one.
    owners = {index.number(one["id"]): index.number(one.get("category_id")) for _, one in annotations}
    others = {number for number, category in owners.items() if category is None or category in categories}
    return [index.nouns[next(iter(categories))]] if others == {index.number(n) for n in numbers} else []


def _plain_rows(index: CocoIndex, roots: ImageRoots, options: ReadOptions) -> Iterator[InstructionRow | RecordFault]:
    account, dataset = options.account, index.path.stem
    if index.keys and not index.nouns:
        fix = 'add "categories" with names, or instructions (instructions.jsonl) beside the file'
        yield RecordFault(str(index.path), "(file)", "categories", "no name", "names for the concepts", fix)
        return
    for label, data, members in index.images_with_annotations():
        record = RecordReader(str(index.path), label, data)
        picture = name_and_size(record, roots, dataset)
        yield from record.faults
        if record.faults:
            account.left_out["image with a fault"] += 1
            continue
        if index.may_miss(data["id"], len(members)):
            account.left_out[INCOMPLETE] += 1  # any of its rows might show less than there is
            continue
        found: dict[int | None, Instances] = {}
        incomplete: set[int | None] = set()  # categories with an annotation that cannot be used; None: any of them
        not_exhaustive = {index.number(number) for number in data.get("not_exhaustive_category_ids") or ()}
        for place, annotation in members:
            part = RecordReader(record.file, place, annotation)
            category = index.category(part, annotation, place)
            if not part.faults and category not in index.nouns:
                account.left_out["annotation whose category is no noun"] += 1
                continue
            added = Instances(options) if category not in found else found[category]
            added.add(part, place, annotation, picture.height, picture.width)
            if part.faults:
                yield from part.faults
                incomplete.add(category)
                account.left_out["annotation with a fault"] += 1
            else:
                found[category] = added
        if not found:
            account.left_out["image without a usable annotation"] += 1
        for category, instances in found.items():
            assert category is not None
            if not incomplete.isdisjoint((category, None)):
                account.left_out["category of an image with an annotation that has a fault"] += 1
                continue
            row_record = RecordReader(record.file, f"{label}: category {index.nouns[category]!r}", {})
            row = finish_row(
                row_record,
                instances,
                picture,
                concept=[index.nouns[category].replace("_", " ")],
                target_kind=None if category in not_exhaustive or any(instances.is_crowd) else "1-to-all",
                row_id=f"{data['id']}-{category}",
                image_id=data["id"],
                dataset=dataset,
            )
            yield from row_record.faults
            if row is not None and options.wants(None):
                yield row
