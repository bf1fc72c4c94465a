# SPDX-License-Identifier: Apache-2.0
"""Referring expressions in the REFER layout: RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO and Ref-ZOM.

Sources: `refer.py` of github.com/lichengunc/refer (folder `refcoco/` with `refs(unc).p` and `instances.json`);
`grefer.py` as in github.com/dvlab-research/LISA and github.com/henghuiding/ReLA (`grefs(unc).p` or `.json`; `ann_id`
is a list, [-1] where there is no target); `refer/refer.py` and the README of github.com/toggle1995/RIS-DMMI
(`Ref-ZOM(final).p` or `refs(final).p`; `source` is "zero" where there is no target).
A ref = {ref_id, ann_id, category_id, image_id, split, file_name, sentences: [{sent_id, sent, raw, tokens}]};
pictures and polygons come from `instances.json` (COCO 2014). One ref becomes one row: its sentences are the simple
instructions, the category names its concepts. Pickles are read through `restricted_pickle`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..coco_index import CocoIndex
from ..faults import DatasetFormatError, RecordFault, RecordReader
from ..image_roots import ImageRoots, ReadOptions, name_and_size
from ..schema import InstructionRow, is_text, shown
from .instances import Instances, count_kind, finish_row
from .restricted_pickle import load_plain_pickle

REFS_NAME = re.compile(r"^(g?refs|Ref-ZOM)(\(.+\))?\.(p|json)$")
KIND_OF_SOURCE = {"zero": "none", "one": "1-to-1", "many": "1-to-N"}


def matches(path: Path) -> bool:
    """Whether a path is a folder of the REFER layout, or a refs file in one."""
    if path.is_dir():
        return (path / "instances.json").is_file() and any(REFS_NAME.match(file.name) for file in path.iterdir())
    return path.is_file() and bool(REFS_NAME.match(path.name))


def files(path: Path) -> list[Path]:
    """The data files that a reading depends on."""
    refs_path = refs_file(path)
    return [refs_path, refs_path.parent / "instances.json"]


def read(path: str | Path, options: ReadOptions) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of a refs file in file order; the split as in the file ("train", "val", "testA", ...)."""
    refs_path = refs_file(Path(path))
    instances_path = refs_path.parent / "instances.json"
    if not instances_path.is_file():
        raise DatasetFormatError(f"{instances_path} is missing: the REFER layout keeps it beside {refs_path.name}")
    refs = load_refs(refs_path)
    index = CocoIndex(instances_path, options.progress)
    yield from index.faults
    root = refs_path.parent.parent
    folders = (
        "images/mscoco/images/train2014",
        "images/train2014",
        "images/trainval2014",
        "train2014",
        "trainval2014",
    )
    roots = options.roots(refs_path.parent, refs_path.parent / "images", *(root / folder for folder in folders))
    for position, data in enumerate(refs):
        record = RecordReader(str(refs_path), f"refs[{position}]", data)
        if isinstance(data, dict) and "ref_id" in data:
            record.record += f" (ref_id {data['ref_id']})"
        if not options.wants(record.data.get("split")):
            continue
        row = _row(record, index, roots, options, refs_path.parent.name)
        yield from record.faults
        if row is not None:
            yield row


def refs_file(path: Path) -> Path:
    """The refs file of a folder.

    Raises:
        DatasetFormatError: none, or several (RefCOCOg comes split by Google and by UMD).
    """
    if path.is_file():
        return path
    found = sorted(file for file in path.iterdir() if REFS_NAME.match(file.name))
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    raise DatasetFormatError(
        f"{path}: expected one refs file (refs(*).p, grefs(*).json, ...), found {names}; name one"
    )


def load_refs(path: Path) -> list[Any]:
    """The list of refs of a pickle or JSON file.

    Raises:
        DatasetFormatError: the file is no list, or a pickle that holds more than plain data.
    """
    if path.suffix == ".p":
        refs = load_plain_pickle(path)
    else:
        try:
            refs = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DatasetFormatError(f"{path}: no JSON ({error})") from error
    if not isinstance(refs, list):
        raise DatasetFormatError(f"{path}: expected a list of refs, found {type(refs).__name__}")
    return refs


def _row(
    record: RecordReader, index: CocoIndex, roots: ImageRoots, options: ReadOptions, dataset: str
) -> InstructionRow | None:
    ref_id, image_id = record.whole("ref_id"), record.whole("image_id")
    split = record.text("split")
    sentences = _sentences(record)
    numbers = _annotation_ids(record)
    image = index.image(image_id)
    if image is None and not record.faults:
        record.fault("image_id", str(image_id), "the id of an image in instances.json", "add the image")
    if record.faults:
        return None
    source = RecordReader(record.file, f"{record.record}: image {image_id} in instances.json", image)
    picture = name_and_size(source, roots, dataset)
    record.faults.extend(source.faults)
    if record.faults:
        return None
    instances = Instances(options)
    if record.data.get("source") == "zero" and record.data.get("ann_id") not in (None, -1, [], [-1]):
        options.account.notes["instance of a ref whose source is 'zero', which says that there is no target"] += 1
    for number in numbers:
        annotation = index.annotation(number)
        label = f"{record.record}: annotation {number} in instances.json"
        if annotation is None:
            record.fault("ann_id", str(number), "the id of an annotation in instances.json", "add the annotation")
            continue
        if index.number(annotation["image_id"]) != image_id:
            found = f"{number}, an annotation of image {shown(annotation['image_id'])}"
            record.fault("ann_id", found, f"the image to be {image_id}", "mend the id or the image's")
            continue
        index.category(record, annotation, label)
        instances.add(record, label, annotation, picture.height, picture.width)
    return finish_row(
        record,
        instances,
        picture,
        concept=_concepts(record, index),
        simple=sentences,
        target_kind=KIND_OF_SOURCE.get(str(record.data.get("source")), count_kind(len(instances))),
        row_id=ref_id,
        image_id=image_id,
        dataset=dataset,
        split=split,
    )


def _annotation_ids(record: RecordReader) -> list[int]:
    value = record.data.get("ann_id")
    numbers: list[Any] = value if isinstance(value, list) else [value]
    if record.data.get("source") == "zero" or numbers == [-1]:
        return []
    if not numbers or any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        found = shown(value) if "ann_id" in record.data else "missing"
        record.fault("ann_id", found, "an annotation id or a list of them ([-1]: no target)", "write the ids")
        return []
    return [int(number) for number in numbers]


def _sentences(record: RecordReader) -> list[str]:
    texts = []
    for position, sentence in enumerate(record.items("sentences")):
        text = (sentence.get("sent") or sentence.get("raw")) if isinstance(sentence, dict) else None
        if isinstance(text, str) and is_text(text):
            texts.append(text)
        else:
            fix = "write the expression or remove the entry"
            record.fault(f"sentences[{position}]", shown(sentence), "an object with a text in 'sent'", fix)
    return texts


def _concepts(record: RecordReader, index: CocoIndex) -> list[str]:
    value = record.data.get("category_id")
    concepts: dict[str, None] = {}
    for one in value if isinstance(value, list) else [value]:
        number = index.number(one)
        if number in index.categories:
            concepts[index.categories[number]] = None
        elif one not in (None, -1) and index.categories:
            record.fault("category_id", shown(one), "the id of a category in instances.json", "mend the id")
    return list(concepts)
