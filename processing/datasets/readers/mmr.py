# SPDX-License-Identifier: Apache-2.0
"""MMR, multi-target and multi-granularity reasoning segmentation (`MMR_train.json`, `MMR_test_part_only.json`, ...).

Source: the section "Json Format" of the README of github.com/jdg900/MMR and `utils/multi_part_reason_seg_dataset.py`
there: a list of pictures {file_name, height, width, image_id, questions, answers, annotations, ...}; `answers[k]` is
the list of annotations {bbox, segmentation: compressed RLE, category_name, ...} that answer `questions[k]`. Questions
never name their target, so they are complex instructions; one question becomes one row.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..faults import RecordFault, RecordReader
from ..image_roots import ImageRoots, ReadOptions, name_and_size
from ..json_stream import JsonSyntaxError, iterate_elements, read_elements, sample
from ..schema import InstructionRow, is_text, shown
from .instances import Instances, count_kind, finish_row


def matches(path: Path) -> bool:
    """Whether a path looks like this format."""
    if path.suffix != ".json" or not path.is_file():
        return False
    content = sample(path)
    return content.lstrip()[:1] == b"[" and b'"questions"' in content and b'"answers"' in content


def read(path: str | Path, options: ReadOptions) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of a file; the split is what the file's name says after "MMR_"."""
    path = Path(path)
    file_split = path.stem.partition("_")[2] or None
    roots = options.roots(path.parent, path.parent / "images", path.parent.parent / "coco")
    with open(path, "rb") as file:
        try:
            for element in iterate_elements(path, options.progress):
                (data,) = read_elements(file, [(element.start, element.end)])
                record = RecordReader(str(path), f"[{element.position}]", data)
                for item in _rows(record, roots, file_split, options):
                    if isinstance(item, RecordFault) or options.wants(item["split"]):
                        yield item
        except JsonSyntaxError as error:
            yield RecordFault(str(path), error.where, "(syntax)", error.reason, "JSON", "mend the syntax")


def _rows(
    record: RecordReader, roots: ImageRoots, split: str | None, options: ReadOptions
) -> Iterator[InstructionRow | RecordFault]:
    picture = name_and_size(record, roots, "MMR")
    image_id = record.whole("image_id")
    questions, answers = record.items("questions"), record.items("answers")
    if not record.faults and len(questions) != len(answers):
        found = f"{len(questions)} questions, {len(answers)} answers"
        record.fault("answers", found, "one list of annotations per question", "add or remove the odd one")
    if record.faults:
        yield from record.faults
        return
    for position, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        part = RecordReader(record.file, f"{record.record} (image_id {image_id})", record.data)
        if not is_text(question):
            part.fault(f"questions[{position}]", shown(question), "a non-empty string", "write the question")
        if not isinstance(answer, list):
            part.fault(f"answers[{position}]", shown(answer), "a list of annotations", "write [] for no target")
            answer = []
        instances = Instances(options)
        names: dict[str, None] = {}
        for place, annotation in enumerate(answer):
            label = f"{part.record}: answers[{position}][{place}]"
            instances.add(part, label, annotation, picture.height, picture.width)
            names.update(_concept(annotation))
        row = finish_row(
            part,
            instances,
            picture,
            concept=list(names) if len(names) == 1 else [],
            complex=[question],
            target_kind=count_kind(len(instances)),
            row_id=f"{image_id}-{position}",
            image_id=image_id,
            dataset="MMR",
            split=split,
        )
        yield from part.faults
        if row is not None:
            yield row


def _concept(annotation: Any) -> dict[str, None]:
    """The category as words: PACO writes "trash_can" and, for a part of it, "trash_can:rim"."""
    name = annotation.get("category_name") if isinstance(annotation, dict) else None
    return {name.replace(":", " ").replace("_", " "): None} if isinstance(name, str) and is_text(name) else {}
