# SPDX-License-Identifier: Apache-2.0
"""What a system scored: the result of an evaluation, made from the predictions it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..predictions.log import read_records, read_settings, record_samples
from .mask_scores import MaskScores, score_masks
from .protocols import Protocol, get_protocol
from .segmenter import SegmentationCost

AUTO = "auto"
COST_FIELDS = tuple(SegmentationCost().to_dict())


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
