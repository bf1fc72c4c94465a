# SPDX-License-Identifier: Apache-2.0
"""Scores on the shapes world as the examples print them: those of `sam3i evaluate`, a line for each system."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from shapes_common import WORLDS
from torch import nn

from sam3i import InstructionLevel, Sam3IProcessor, ShapesInstructionDataset, evaluate_model
from sam3i.processing.datasets import TARGET_KINDS
from sam3i.trainer.evaluation import EvaluationResult

FIGURES = {"P@.5": "P@0.5", "N-acc": "N-acc", "AP50": "AP50", "inst/true": "count_ratio", "exact": "exact"}
COLUMNS = ("all", *TARGET_KINDS, *FIGURES)


@lru_cache(maxsize=8)
def splits(
    level: InstructionLevel, cases: int, seed: int = 0, world: str = "shapes"
) -> tuple[ShapesInstructionDataset, ShapesInstructionDataset]:
    """Validation cases, to choose on, and test cases, `cases` per kind of target, of a world of some seed."""
    of_world = WORLDS[world].evaluation
    return of_world("validation", max(30, cases // 2), seed, [level]), of_world("test", cases, seed, [level])


def evaluate_cases(
    model: nn.Module,
    processor: Sam3IProcessor,
    dataset: ShapesInstructionDataset,
    threshold: float = 0.5,
    asked_at: InstructionLevel | None = None,
    **options: Any,
) -> EvaluationResult:
    """What the package's evaluation says of a system on the cases of a dataset.

    Args:
        asked_at: the level at which all are asked, if not their own.
        options: those of `evaluate_model`.
    """
    rows = dataset.rows(asked_at)
    return evaluate_model(model, processor, rows, threshold=threshold, batch_size=64, progress=False, **options)


def best_threshold(result: EvaluationResult) -> float:
    """The threshold of the highest gIoU, of a result for cases of one level."""
    (entry,) = result.thresholds.values()
    return entry["best"]


def score_level(
    model: nn.Module,
    processor: Sam3IProcessor,
    level: InstructionLevel,
    cases: int,
    seed: int = 0,
    asked_at: InstructionLevel | None = None,
    world: str = "shapes",
    threshold: float | None = None,
) -> EvaluationResult:
    """Score a system on the test cases of a level.

    Args:
        asked_at: the level at which it is asked, if not the cases' own.
        threshold: chosen on validation cases if not given.
    """
    validation, test = splits(level, cases, seed, world)
    if threshold is None:
        threshold = best_threshold(evaluate_cases(model, processor, validation, asked_at=asked_at))
    return evaluate_cases(model, processor, test, threshold, asked_at)


def giou_by_kind(result: EvaluationResult, name: str = "gIoU") -> dict[str, float]:
    """A figure in percent, of all cases and by kind of target."""
    return {"all": result.figures[name]} | {kind: of[name] for kind, of in result.breakdown["kind"].items()}


def header(title: str) -> str:
    """The first line of a table; gIoU of all cases and by kind of target, then other figures of all cases."""
    return f"{title:<38}" + "".join(f"{name:>10}" for name in COLUMNS)


def line(name: str, figures: Mapping[str, float | None]) -> str:
    """A line of the table: figures by the names of its columns, a dash where there is none."""
    found = {column: figures.get(column) for column in COLUMNS}
    digits = {column: ".2f" if column == "inst/true" else ".1f" for column in COLUMNS}  # a ratio; all others percent
    cells = ["-" if value is None else format(value, digits[column]) for column, value in found.items()]
    return f"{name:<38}" + "".join(f"{cell:>10}" for cell in cells)


def system_line(name: str, result: EvaluationResult) -> str:
    """The line of a system at its threshold."""
    figures = giou_by_kind(result) | {column: result.figures[key] for column, key in FIGURES.items()}
    return line(f"{name} (threshold {result.threshold})", figures)


def nothing_line(result: EvaluationResult) -> str:
    """The line of answering nothing, which no model is needed for."""
    return line("answering nothing", giou_by_kind(result, "gIoU-nothing"))


def pick_any(dataset: ShapesInstructionDataset) -> dict[str, float]:
    """Expected gIoU of cutting out one object of the noun, picked by chance (of all, without a noun)."""
    ious: dict[str, list[float]] = {"all": []}
    for case in dataset.cases:
        scene, noun = dataset.scene(case.scene_index), case.target.meaning.noun
        masks = torch.from_numpy(scene.masks)
        truth = masks[list(case.target.targets)].any(0)
        picks = [mask for mask, item in zip(masks, scene.objects, strict=True) if noun in (None, item.noun)]
        found = [float((pick & truth).sum() / (pick | truth).sum()) for pick in picks] or [float(not truth.any())]
        for group in ("all", case.target.kind):
            ious.setdefault(group, []).append(100 * sum(found) / len(found))
    return {group: sum(of_group) / len(of_group) for group, of_group in ious.items()}
