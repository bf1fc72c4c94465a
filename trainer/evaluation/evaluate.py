# SPDX-License-Identifier: Apache-2.0
"""Evaluation of models and baselines on rows: one vision pass per image, resumable, sharded over processes."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...processing.atomic import folder_lock
from ...processing.fingerprint import fingerprint_image, fingerprint_json
from ...processing.images import read_image
from ..baselines.segmenters import Segmenter
from ..predictions.log import PredictionLog, make_record
from ..processes import process_state
from .protocols import Protocol, get_protocol
from .result import AUTO, LOWEST_SCORE, EvaluationResult, NoAnswerError, score_run


@dataclass(frozen=True)
class EvaluationOptions:
    """How an evaluation is run.

    Attributes:
        level: "concept", "simple" or "complex" asks the instructions of that level; None those of all levels, each
            down its own path; "auto" those of all levels, the model choosing the path. Where a row has instructions,
            its concept only names the kind of thing and need not denote the target: None and "auto" ask it in rows
            that have nothing else, "concept" asks it always.
        batch_size: instructions per forward pass; images are handed over together until they bring this many.
        threshold: score in [0, 1] that an instance must exceed, for systems that return scored candidates.
        output_dir: where predictions are kept; needed to resume and with several processes.
        resume: continue the predictions in `output_dir`; what ended in an error is asked again.
        allow_changed: settings (weights, data, images, processor, threshold, ...) that may differ then.
        fingerprint: keep what decides the predictions (weights, data, images, processor) by content, for `resume`.
        left_out: rows that the caller left out of the data, by reason; told with the result.
    """

    protocol: str | Protocol = "default"
    level: str | None = None
    batch_size: int = 8
    threshold: float = 0.5
    output_dir: str | Path | None = None
    resume: bool = False
    allow_changed: Sequence[str] = ()
    fingerprint: bool = True
    left_out: Mapping[str, int] = field(default_factory=dict)
    progress: bool = True


@dataclass(frozen=True)
class Question:
    """One instruction about one row: `place` is [row, level, text] by index, `prompt` what the system reads."""

    place: tuple[int, int, int]
    level: str
    text: str
    prompt: str


def evaluate_model(
    model: Any,
    processor: Any,
    dataset: Any,
    protocol: str | Protocol = "default",
    *,
    mask_threshold: float = 0.5,
    max_overlap: float | None = None,
    name: str = "sam3-i",
    **options: Any,
) -> EvaluationResult:
    """Evaluates a model on rows of the schema.

    All instructions of an image share one vision pass. With several processes (torchrun, accelerate) each answers its
    share of the images and every one of them returns the whole result. Instances above a score of .05 are kept, so
    that the result also tells the best threshold of each level.

    Args:
        model, processor: a `Sam3IForInstructionSegmentation` and its `Sam3IProcessor`.
        dataset: rows, a `datasets.Dataset` or any sequence of them.
        mask_threshold: probability from which a pixel belongs to a mask.
        max_overlap: of instances with masks of a larger IoU the best one is kept; all are kept when absent.
        name: how tables call the model.
        options: fields of `EvaluationOptions`: level, batch_size, threshold, output_dir, resume, ...

    Raises:
        ValueError: for an unknown protocol or level, or data without an instruction at the level.
        PredictionLogError: when `output_dir` holds predictions of other settings, or any without `resume`.
    """
    from ..baselines.segmenters import Sam3ISegmenter

    chosen = EvaluationOptions(protocol=protocol, **options)
    was_training = model.training
    segmenter = Sam3ISegmenter(
        model,
        processor,
        name=name,
        threshold=min(LOWEST_SCORE, chosen.threshold),
        mask_threshold=mask_threshold,
        max_overlap=max_overlap,
        batch_size=chosen.batch_size,
    )
    try:
        return _evaluate(segmenter, dataset, chosen)
    finally:
        model.train(was_training)


def evaluate_segmenter(
    segmenter: Segmenter, dataset: Any, protocol: str | Protocol = "default", **options: Any
) -> EvaluationResult:
    """Evaluates any system; `options` are fields of `EvaluationOptions`, see also `evaluate_model`.

    Raises:
        NoAnswerError: when every single answer was an error.
    """
    return _evaluate(segmenter, dataset, EvaluationOptions(protocol=protocol, **options))


def _evaluate(segmenter: Segmenter, dataset: Any, options: EvaluationOptions) -> EvaluationResult:
    state = process_state()
    if options.output_dir is not None:
        with folder_lock(options.output_dir) if state.is_main_process else nullcontext():
            return _run(segmenter, dataset, options)
    if state.num_processes > 1:
        raise ValueError("Several processes need output_dir, a folder they share, to bring their answers together.")
    if options.resume:
        raise ValueError("resume needs output_dir, the folder of the run to continue.")
    with tempfile.TemporaryDirectory() as folder:
        result = _run(segmenter, dataset, replace(options, output_dir=folder, fingerprint=False))
    return replace(result, predictions=None)


def _run(segmenter: Segmenter, dataset: Any, options: EvaluationOptions) -> EvaluationResult:
    state = process_state()
    protocol = get_protocol(options.protocol)
    left_out = Counter(options.left_out)
    images = group_questions(dataset, protocol, options.level, segmenter.text_source, left_out)
    options = replace(options, left_out=left_out)
    expected = sum(map(len, images))
    log = PredictionLog(
        str(options.output_dir),
        _on_main_process(lambda: _settings(segmenter, dataset, images, options)),
        process_index=state.process_index,
        num_processes=state.num_processes,
        resume=options.resume,
        allow_changed=options.allow_changed,
    )
    state.wait_for_everyone()  # nobody writes before everybody has read what is there
    mine = images[state.process_index :: state.num_processes]
    left = [[question for question in group if question.place not in log.done] for group in mine]
    bar = tqdm(
        total=sum(map(len, mine)),
        initial=sum(map(len, mine)) - sum(map(len, left)),
        desc=f"{segmenter.name} ({protocol.name})",
        unit="instruction",
        disable=not (options.progress and state.is_main_process),
    )
    with bar:
        for batch in _batches([group for group in left if group], options.batch_size):
            log.append(_answer(segmenter, dataset, batch, options.level))
            bar.update(sum(map(len, batch)))
    log.close()
    state.wait_for_everyone()
    result = _on_main_process(lambda: score_run(log.merge(expected), protocol, parameters=segmenter.num_parameters))
    if result.errors == result.instructions:
        raise NoAnswerError(result)
    return result


def _on_main_process(compute: Callable[[], Any]) -> Any:
    """What the main process computes, on every process."""
    from accelerate.utils import broadcast_object_list

    state = process_state()
    shared = [compute() if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(shared)
    return shared[0]


def group_questions(
    dataset: Any,
    protocol: Protocol,
    level: str | None = None,
    text_source: str = "instruction",
    left_out: Counter[str] | None = None,
) -> list[list[Question]]:
    """The instructions to ask, image by image in order of first appearance, unopened; `left_out` counts other rows.

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
    left_out = Counter() if left_out is None else left_out
    for row_index, row in enumerate(_rows_without_images(dataset)):
        wanted = [asked] if asked else [name for name in names[1:] if row[name]] or names[:1]
        if any(mask is None for mask in row["masks"]):  # else silence would be correct
            left_out["rows with an instance that has a box and no mask"] += 1
            continue
        if not any(row[name] for name in wanted):
            left_out[f"rows without an instruction of the level {level or 'concept'}"] += 1
        for level_index, name in enumerate(names):
            texts = row[name] if name in wanted else []
            for text_index, text in enumerate(texts[:1] if protocol.texts == "first" else texts):
                prompt = text
                if text_source == "concept":
                    if not row["concept"]:
                        raise ValueError(
                            f"Row {row['row_id']!r} has no concept, which a system with text_source 'concept' reads; "
                            "add the noun phrase to the rows or leave the system out."
                        )
                    prompt = row["concept"][0]
                question = Question((row_index, level_index, text_index), name, text, prompt)
                images.setdefault((row["dataset"], row["image_id"]), []).append(question)
    if not images:
        reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items()) or "it has no rows"
        raise ValueError(f"The data has no instruction at level {level or 'any'!r} to evaluate: {reasons}.")
    return list(images.values())


def row_image(row: Mapping[str, Any]) -> Any:
    """The image (PIL, RGB, as it is shown) of a row; an error where it has none, or one that cannot be read."""
    if row["image"] is None:
        raise ValueError(f"Row {row['row_id']!r} has no image; read the data with its image folder (--image-root).")
    return read_image(row["image"])


def _answer(
    segmenter: Segmenter, dataset: Any, batch: list[list[Question]], level: str | None
) -> list[dict[str, Any]]:
    light = _rows_without_images(dataset)
    # the rows of a group show one image: it is decoded once
    images = [row_image(dataset[group[0].place[0]]) for group in batch]
    levels = [[_path(segmenter, question, level) for question in group] for group in batch]
    answers = segmenter.segment_images(images, [[q.prompt for q in group] for group in batch], levels)
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


def _settings(
    segmenter: Segmenter, dataset: Any, images: list[list[Question]], options: EvaluationOptions
) -> dict[str, Any]:
    """What decides the predictions and their scores; see `PredictionLog`."""
    settings: dict[str, Any] = {
        "system": segmenter.name,
        "parameters": segmenter.num_parameters,
        "level": options.level,
        "instructions": sum(map(len, images)),
        "threshold": options.threshold,
        "lowest_score": segmenter.lowest_score,
    }
    if options.left_out:
        settings["left_out"] = dict(options.left_out)
    light = _rows_without_images(dataset)
    digest = hashlib.sha256()
    for group in images:
        for question in group:
            row = light[question.place[0]]
            target = [row[name] for name in ("row_id", "height", "width", "masks", "is_crowd", "ignore_masks")]
            digest.update(fingerprint_json([question.place, question.prompt, target]).encode())
    settings["data"] = digest.hexdigest()
    if options.fingerprint:
        settings |= {"images": _images_fingerprint(dataset, [group[0].place[0] for group in images])}
        settings |= segmenter.identity()
    return settings


def _images_fingerprint(dataset: Any, rows: Sequence[int]) -> str:
    """Of the images of some rows, undecoded where that can be."""
    if hasattr(dataset, "cast_column") and "image" in dataset.column_names:
        from datasets import Image

        dataset = dataset.cast_column("image", Image(decode=False))
    images = (dataset[index]["image"] for index in rows)  # one at a time in memory
    return fingerprint_json([None if image is None else fingerprint_image(image) for image in images])


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
