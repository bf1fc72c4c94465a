# SPDX-License-Identifier: Apache-2.0
"""Evaluation of models and baselines on rows: one vision pass per image, resumable, sharded over processes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...processing.images import read_image
from ..predictions.log import PredictionLog, make_record
from .protocols import Protocol, get_protocol
from .result import AUTO, EvaluationResult, score_run
from .segmenter import Segmenter


@dataclass
class Question:
    """One instruction about one row: `place` is [row index, level index, text index], `text` what the system reads."""

    place: tuple[int, int, int]
    level: str
    text: str
    heard: str


def evaluate_model(
    model: Any,
    processor: Any,
    dataset: Any,
    protocol: str | Protocol = "default",
    *,
    level: str | None = None,
    batch_size: int = 8,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    output_dir: str | Path | None = None,
    resume: bool = False,
    name: str = "sam3-i",
    progress: bool = True,
) -> EvaluationResult:
    """Evaluates a model on rows of the schema.

    All instructions of an image share one vision pass. With several processes (torchrun, accelerate) each answers its
    share of the images and every one of them returns the whole result.

    Args:
        model, processor: a `Sam3IForInstructionSegmentation` and its `Sam3IProcessor`.
        dataset: rows, a `datasets.Dataset` or any sequence of them.
        protocol: name, see `trainer.protocols`.
        level: "concept", "simple" or "complex" asks the instructions of that level; None those of all levels, each
            down its own path; "auto" those of all levels, the model choosing the path. Where a row has instructions,
            its concept only names the kind of thing and need not denote the target: None and "auto" ask it in rows
            that have nothing else, "concept" asks it always.
        batch_size: instructions per forward pass.
        threshold, mask_threshold: in [0, 1].
        output_dir: where predictions are kept; needed to resume and with several processes.
        resume: continue the predictions in `output_dir`.

    Raises:
        ValueError: for an unknown protocol or level, or data without an instruction at the level.
        PredictionLogError: when `output_dir` holds predictions of other settings, or any without `resume`.
    """
    from ..baselines.sam3i import Sam3ISegmenter

    was_training = model.training
    segmenter = Sam3ISegmenter(
        model, processor, threshold=threshold, mask_threshold=mask_threshold, batch_size=batch_size
    )
    segmenter.name = name
    try:
        return evaluate_segmenter(
            segmenter,
            dataset,
            protocol,
            level=level,
            batch_size=batch_size,
            output_dir=output_dir,
            resume=resume,
            settings={"threshold": threshold, "mask_threshold": mask_threshold},
            progress=progress,
        )
    finally:
        model.train(was_training)


def evaluate_segmenter(
    segmenter: Segmenter,
    dataset: Any,
    protocol: str | Protocol = "default",
    *,
    level: str | None = None,
    batch_size: int = 8,
    output_dir: str | Path | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Evaluates any system; see `evaluate_model` for the arguments.

    Args:
        batch_size: images are handed over together until they bring this many instructions.
        settings: further settings that decide the predictions; resuming under others is refused.
    """
    from ..processes import process_state

    protocol = get_protocol(protocol)
    state = process_state()
    if output_dir is None:
        if state.num_processes > 1:
            raise ValueError(
                "Several processes need output_dir, a folder they share, to bring their answers together."
            )
        if resume:
            raise ValueError("resume needs output_dir, the folder of the run to continue.")
        with tempfile.TemporaryDirectory() as folder:
            result = _evaluate(
                segmenter, dataset, protocol, level, batch_size, folder, False, settings, progress, state
            )
        result.predictions = None
        return result
    return _evaluate(segmenter, dataset, protocol, level, batch_size, output_dir, resume, settings, progress, state)


def _evaluate(segmenter, dataset, protocol, level, batch_size, output_dir, resume, settings, progress, state):
    from accelerate.utils import broadcast_object_list

    images = group_questions(dataset, protocol, level, segmenter.text_source)
    questions = [question for group in images for question in group]
    log = PredictionLog(
        output_dir,
        _settings(segmenter, level, questions) | dict(settings or {}),
        process_index=state.process_index,
        num_processes=state.num_processes,
        resume=resume,
    )
    state.wait_for_everyone()  # nobody writes before everybody has read what is there
    mine = images[state.process_index :: state.num_processes]
    left = [[question for question in group if question.place not in log.done] for group in mine]
    bar = tqdm(
        total=sum(map(len, mine)),
        initial=sum(map(len, mine)) - sum(map(len, left)),
        desc=f"{segmenter.name} ({protocol.name})",
        unit="instruction",
        disable=not (progress and state.is_main_process),
    )
    with bar:
        for batch in _batches([group for group in left if group], batch_size):
            log.append(_answer(segmenter, dataset, batch, level))
            bar.update(sum(map(len, batch)))
    log.close()
    state.wait_for_everyone()
    shared = [None]
    if state.is_main_process:
        merged = log.merge(len(questions))
        shared = [score_run(merged, protocol, parameters=segmenter.num_parameters)]
    if state.num_processes > 1:
        broadcast_object_list(shared)
    return shared[0]


def group_questions(
    dataset: Any, protocol: Protocol, level: str | None = None, text_source: str = "instruction"
) -> list[list[Question]]:
    """The instructions to ask, image by image in order of first appearance; images are not opened.

    Raises:
        ValueError: for an unknown level, without any instruction, or when a system that reads the concept meets a row
            without one.
    """
    names = [each.value for each in InstructionLevel]
    asked = None if level in (None, AUTO) else InstructionLevel.from_any(level).value
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"Evaluation needs a dataset of known length (datasets.Dataset or a list of rows), found "
            f"{type(dataset).__name__}; collect the rows you want first."
        )
    images: dict[tuple[str, str], list[Question]] = {}
    for row_index, row in enumerate(_rows_without_images(dataset)):
        wanted = [asked] if asked else [name for name in names[1:] if row[name]] or names[:1]
        for level_index, name in enumerate(names):
            texts = row[name] if name in wanted else []
            for text_index, text in enumerate(texts[:1] if protocol.texts == "first" else texts):
                heard = text
                if text_source == "concept":
                    if not row["concept"]:
                        raise ValueError(
                            f"Row {row['row_id']!r} has no concept, which a system with text_source 'concept' reads; "
                            "add the noun phrase to the rows or leave the system out."
                        )
                    heard = row["concept"][0]
                question = Question((row_index, level_index, text_index), name, text, heard)
                images.setdefault((row["dataset"], row["image_id"]), []).append(question)
    if not images:
        raise ValueError(f"The data has no instruction at level {level or 'any'!r} to evaluate.")
    return list(images.values())


def _answer(
    segmenter: Segmenter, dataset: Any, batch: list[list[Question]], level: str | None
) -> list[dict[str, Any]]:
    light = _rows_without_images(dataset)
    # the rows of a group show one picture: it is decoded once
    images = [read_image(dataset[group[0].place[0]]["image"]) for group in batch]
    levels = [[_path(segmenter, question, level) for question in group] for group in batch]
    answers = segmenter.segment_images(images, [[q.heard for q in group] for group in batch], levels)
    records = []
    for group, results in zip(batch, answers, strict=True):
        for question, result in zip(group, results, strict=True):
            row = light[question.place[0]]
            size = (row["height"], row["width"])
            if result.masks.shape[1:] != size:
                raise ValueError(
                    f"{segmenter.name} answered row {row['row_id']!r} with masks of {result.masks.shape[1:]} pixels, "
                    f"expected {size}: the row's height and width differ from its image."
                )
            records.append(make_record(row, list(question.place), question.level, question.text, result))
    return records


def _path(segmenter: Segmenter, question: Question, level: str | None) -> str | None:
    if segmenter.text_source == "concept":
        return InstructionLevel.CONCEPT.value
    return None if level == AUTO else question.level


def _settings(segmenter: Segmenter, level: str | None, questions: list[Question]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr((question.place, question.heard)).encode())
    return {
        "system": segmenter.name,
        "parameters": segmenter.num_parameters,
        "level": level,
        "instructions": len(questions),
        "instructions_digest": digest.hexdigest()[:16],
    }


def _batches(groups: list[list[Question]], batch_size: int) -> Iterator[list[list[Question]]]:
    batch: list[list[Question]] = []
    for group in groups:
        batch.append(group)
        if sum(map(len, batch)) >= batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _rows_without_images(dataset: Any) -> Any:
    if hasattr(dataset, "remove_columns") and "image" in dataset.column_names:
        return dataset.remove_columns(["image"])
    return dataset
