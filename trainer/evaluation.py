# SPDX-License-Identifier: Apache-2.0
"""Evaluation of models and baselines on rows: one vision pass per image, resumable, sharded over processes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..modeling_sam3i.configuration_sam3i import InstructionLevel
from .mask_scores import MaskScores, score_masks
from .prediction_log import PredictionLog, make_record, read_records, read_settings, record_samples
from .protocols import Protocol, get_protocol
from .segmenter import SegmentationCost, Segmenter

AUTO = "auto"
COST_FIELDS = tuple(SegmentationCost().to_dict())


@dataclass
class Question:
    """One instruction about one row: `place` is [row index, level index, text index], `text` what the system reads."""

    place: tuple[int, int, int]
    level: str
    text: str
    heard: str


@dataclass
class EvaluationResult:
    """What one system scored under one protocol.

    Attributes:
        system, protocol: their names; `protocol_statement` says what the protocol does.
        level: the level that was evaluated, "auto" when the system chose the path itself, None for all levels.
        figures: the protocol's figures in percent, and "n".
        breakdown: the figures per level, kind and size.
        cost: mean per instruction of seconds, passes, vision_passes, calls, tokens and failures.
        parameters: of everything that runs, None where unknown.
        instructions, images: how many were asked and seen.
        datasets: names in the rows.
        level_accuracy: with level "auto", percent of instructions sent down the path of their own level.
        errors: instructions without a usable answer.
        predictions: the merged predictions file, None where it was not kept.
    """

    system: str
    protocol: str
    protocol_statement: str
    level: str | None
    figures: dict[str, Any]
    breakdown: dict[str, dict[str, dict[str, Any]]]
    cost: dict[str, float]
    parameters: int | None
    instructions: int
    images: int
    datasets: list[str] = field(default_factory=list)
    level_accuracy: float | None = None
    errors: int = 0
    predictions: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types, ready for JSON."""
        return asdict(self)


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
    from .baselines.sam3i import Sam3ISegmenter

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
    from accelerate import PartialState

    protocol = get_protocol(protocol)
    state = PartialState()
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


def score_run(
    predictions: str | Path, protocol: str | Protocol | None = None, *, parameters: int | None = None
) -> EvaluationResult:
    """Scores a merged predictions file again, under any protocol that asks the same instructions.

    Raises:
        ValueError: when the protocol asks all instructions of a level and the run asked the first ones only.
    """
    settings = read_settings(predictions) or {}
    protocol = get_protocol(protocol or "default")
    records = list(read_records(predictions))
    if protocol.texts == "first":
        records = [record for record in records if record["place"][2] == 0]
    scores, _ = score_records(records, protocol)
    costs = {name: float(np.mean([record["cost"][name] for record in records])) for name in COST_FIELDS}
    level, accuracy = settings.get("level"), None
    if level == AUTO:
        answered = [record["answered_level"] == record["level"] for record in records if record["answered_level"]]
        accuracy = float(np.mean(answered) * 100) if answered else None
    return EvaluationResult(
        system=settings.get("system", Path(predictions).parent.name),
        protocol=protocol.name,
        protocol_statement=str(protocol),
        level=level,
        figures=protocol.compute(scores),
        breakdown=protocol.compute_breakdown(scores),
        cost=costs,
        parameters=settings.get("parameters") if parameters is None else parameters,
        instructions=len(records),
        images=len({(record["dataset"], record["image_id"]) for record in records}),
        datasets=sorted({record["dataset"] for record in records}),
        level_accuracy=accuracy,
        errors=sum(record["error"] is not None for record in records),
        predictions=str(predictions),
    )


def score_records(records: Sequence[Mapping[str, Any]], protocol: Protocol) -> tuple[MaskScores, list[int]]:
    """The samples of prediction records, and for each sample the index of its record."""
    predictions, references, origins = [], [], []
    for index, record in enumerate(records):
        for prediction, reference in record_samples(protocol, record):
            predictions.append(prediction)
            references.append(reference)
            origins.append(index)
    return score_masks(predictions, references), origins


def open_image(image: Any) -> Any:
    """The PIL image (RGB) of a row's `image`: a PIL image, a path, or {"path", "bytes"}.

    Raises:
        ValueError: when the row has none.
    """
    from PIL import Image

    if isinstance(image, Mapping):
        image = BytesIO(image["bytes"]) if image.get("bytes") else image.get("path")
    if image is None:
        raise ValueError("The row has no image; read the data with its image folder.")
    if isinstance(image, (str, Path, BytesIO)):
        image = Image.open(image)
    return image.convert("RGB")


def _answer(
    segmenter: Segmenter, dataset: Any, batch: list[list[Question]], level: str | None
) -> list[dict[str, Any]]:
    light = _rows_without_images(dataset)
    # the rows of a group show one picture: it is decoded once
    images = [open_image(dataset[group[0].place[0]]["image"]) for group in batch]
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
