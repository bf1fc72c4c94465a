# SPDX-License-Identifier: Apache-2.0
"""Plain COCO instances plus a file of instructions: the shortest way to instruction data for one's own pictures.

Source of the COCO part: cocodataset.org, "Data format", object detection. The instruction file is ours: a folder
holds `instances.json` (or one `instances*.json`) and `instructions.jsonl`, one object per line and target:
{"image_id": 17, "annotation_ids": [4, 9], "concept": ["cup"], "simple": [...], "complex": [...]}, optionally with
"target_kind", "row_id" and "split". `"annotation_ids": []` means that the instruction denotes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..coco_index import CocoIndex
from ..faults import DatasetFormatError, RecordFault, RecordReader
from ..image_roots import ImageRoot, ImageRoots
from ..schema import LEVEL_FIELDS, InstructionRow, shown
from .instances import Instances, finish_row
from .jsonl import iterate_lines


def matches(path: Path) -> bool:
    """Whether a path is a folder of this format, or the instruction file in one."""
    folder = path if path.is_dir() else path.parent
    named = path.is_dir() or path.name == "instructions.jsonl"
    return named and (folder / "instructions.jsonl").is_file() and any(folder.glob("instances*.json"))


def read(
    path: str | Path, image_root: ImageRoot = None, split: str | None = None, progress: bool = False
) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults in the order of the instruction file."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    found = sorted(folder.glob("instances*.json"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DatasetFormatError(f"{folder}: expected one instances*.json beside instructions.jsonl, found {names}")
    index = CocoIndex(found[0], progress)
    yield from index.faults
    yield from index.orphans()
    roots = ImageRoots(image_root, (folder, folder / "images"))
    for record in iterate_lines(folder / "instructions.jsonl", progress):
        row = None if record.faults else _row(record, index, roots, folder.name)
        yield from record.faults
        if row is not None and split in (None, row["split"]):
            yield row


def _row(record: RecordReader, index: CocoIndex, roots: ImageRoots, dataset: str) -> InstructionRow | None:
    image_id, numbers = record.whole("image_id"), record.items("annotation_ids")
    texts = {level: record.texts(level) for level in LEVEL_FIELDS}
    image = None if image_id is None else index.image(image_id)
    if image_id is not None and image is None:
        record.fault("image_id", str(image_id), "the id of an image", "add the image to the instances file")
    if record.faults:
        return None
    picture = RecordReader(str(index.path), f"image {image_id}", image)
    width, height, file_name = picture.side("width"), picture.side("height"), picture.text("file_name")
    record.faults.extend(picture.faults)
    if record.faults:
        return None
    instances, names = Instances(), {}
    for number in numbers:
        annotation = index.annotation(number) if isinstance(number, int) else None
        if annotation is None or annotation["image_id"] != image_id:
            expected = f"ids of annotations of image {image_id}"
            record.fault("annotation_ids", shown(number), expected, "add the annotation or mend the id")
            continue
        instances.add(record, f"{record.record}: annotation {number}", annotation, height, width)
        if annotation.get("category_id") in index.categories:
            names[index.categories[annotation["category_id"]]] = None
    texts["concept"] = texts["concept"] or list(names)
    return finish_row(
        record,
        instances,
        image=roots.path(file_name, dataset),
        file_name=file_name,
        width=width,
        height=height,
        target_kind=record.data.get("target_kind", None if numbers else "none"),
        row_id=record.data.get("row_id", record.record.removeprefix("line ")),
        image_id=image_id,
        dataset=dataset,
        split=record.data.get("split"),
        **texts,
    )
