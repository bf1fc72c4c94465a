# SPDX-License-Identifier: Apache-2.0
"""What a system scored, made from the predictions it left: figures, the best thresholds, calibration, cost."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..predictions.log import read_records, read_settings, record_samples
from .mask_scores import MaskScores, match_instances, sweep_masks
from .protocols import Protocol, get_protocol

AUTO = "auto"
COST_FIELDS = ("seconds", "passes", "vision_passes", "calls", "tokens", "failures")
THRESHOLDS = tuple(round(step / 20, 2) for step in range(1, 20))
LOWEST_SCORE = THRESHOLDS[0]  # instances above it are kept, so that every threshold can be tried
CALIBRATION_BINS = 10


@dataclass
class EvaluationResult:
    """What one system scored under one protocol."""

    system: str
    protocol: str
    protocol_statement: str
    # the level that was evaluated, "auto" when the system chose the path itself, None for all levels
    level: str | None
    # the protocol's figures, see `Protocol.compute`; `breakdown` has them per level, kind and size
    figures: dict[str, Any]
    breakdown: dict[str, dict[str, dict[str, Any]]]
    cost: dict[str, float]  # means per instruction, see `SegmentationCost`
    parameters: int | None  # of everything that runs, None where unknown
    instructions: int  # asked
    images: int  # seen
    datasets: list[str] = field(default_factory=list)
    # with level "auto", percent of instructions sent down the path of their own level
    level_accuracy: float | None = None
    errors: int = 0  # instructions without a usable answer; `first_error` says why the first of them has none
    first_error: str | None = None
    predictions: str | None = None  # the merged predictions file, None where it was not kept
    threshold: float | None = None  # score that was asked for; None for files, which do not tell
    # per level the figures at its best threshold, see `sweep_levels`; empty where answers were final
    thresholds: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)  # rows of the data that were not evaluated, by reason
    # settings that were not the same for all predictions (taken knowingly)
    changed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types, ready for JSON."""
        return asdict(self)


class NoAnswerError(ValueError):
    """A system answered nothing of what it was asked; `result` holds what is known of it."""

    def __init__(self, result: EvaluationResult):
        super().__init__(
            f"{result.system} answered none of {result.instructions} instructions, there is nothing to score. The "
            f"first error: {result.first_error}"
        )
        self.result = result


def score_run(
    predictions: str | Path,
    protocol: str | Protocol | None = None,
    *,
    parameters: int | None = None,
    threshold: float | None = None,
) -> EvaluationResult:
    """Scores a merged predictions file again, under any protocol that asks the same instructions.

    The threshold is that of the run if not given. Raises ValueError when the run kept only instances above a higher
    threshold.
    """
    settings = read_settings(predictions) or {}
    protocol = get_protocol(protocol or "default")
    records = run_records(predictions, protocol)
    lowest = settings.get("lowest_score")
    threshold = settings.get("threshold") if threshold is None else threshold
    if lowest is not None and threshold is not None and threshold < lowest:
        raise ValueError(f"{predictions} holds instances above a score of {lowest} only, found threshold {threshold}.")
    kept = None if lowest is None else threshold
    scores, _ = score_records(records, protocol, kept)
    costs = {name: float(np.mean([record["cost"][name] for record in records])) for name in COST_FIELDS}
    level, accuracy = settings.get("level"), None
    if level == AUTO:
        answered = [record["answered_level"] == record["level"] for record in records if record["answered_level"]]
        accuracy = float(np.mean(answered) * 100) if answered else None
    errors = [record["error"] for record in records if record["error"] is not None]
    swept: dict[str, dict[str, Any]] = {}
    if kept is not None and lowest is not None and lowest < kept:
        swept = sweep_levels(records, protocol, lowest)
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
        errors=len(errors),
        first_error=errors[0] if errors else None,
        predictions=str(predictions),
        threshold=threshold,
        thresholds=swept,
        left_out=settings.get("left_out") or {},
        changed=settings.get("changed") or [],
    )


def run_records(predictions: str | Path, protocol: Protocol) -> list[dict[str, Any]]:
    """The records of a run that a protocol scores: those of the first text of each level, or all.

    Raises:
        ValueError: when there are none.
    """
    records = list(read_records(predictions))
    if protocol.texts == "first":
        records = [record for record in records if record["place"][2] == 0]
    if not records:
        raise ValueError(f"{predictions} holds no prediction to score.")
    return records


def run_samples(predictions: str | Path, protocol: Protocol) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predictions and references of a run, sample by sample in the order of its rows, as `sweep_masks` takes them."""
    return _samples(run_records(predictions, protocol), protocol)[:2]


def score_records(
    records: Sequence[Mapping[str, Any]], protocol: Protocol, threshold: float | None = None
) -> tuple[MaskScores, list[int]]:
    """The scores of prediction records above a threshold (None keeps all), and the record's place for each sample."""
    predictions, references, origins = _samples(records, protocol)
    return sweep_masks(predictions, references, (threshold,))[0], origins


def sweep_levels(
    records: Sequence[Mapping[str, Any]], protocol: Protocol, lowest: float = LOWEST_SCORE
) -> dict[str, dict[str, Any]]:
    """What every level would score at other thresholds, from records that hold all instances above `lowest`.

    Returns:
        By level: "best" (the threshold of highest gIoU), "figures" there, "curve" (gIoU in percent by threshold) and
        "calibration_error" (see `calibration_error`).
    """
    predictions, references, _ = _samples(records, protocol)
    thresholds = [threshold for threshold in THRESHOLDS if threshold >= lowest]
    swept = dict(zip(thresholds, sweep_masks(predictions, references, thresholds, check=False), strict=True))
    levels = next(iter(swept.values())).levels
    found = {}
    for level in dict.fromkeys(levels):
        chosen = levels == level
        parts = {threshold: scores.take(chosen) for threshold, scores in swept.items()}
        curve = {threshold: protocol.mean_iou(scores) for threshold, scores in parts.items()}
        best = choose_threshold(curve)
        pairs = [(p, r) for p, r in zip(predictions, references, strict=True) if r["level"] == level]
        found[str(level)] = {
            "best": best,
            "figures": protocol.compute(parts[best]),
            "curve": curve,
            "calibration_error": calibration_error(pairs),
        }
    return found


def choose_threshold(values: Mapping[float, float | None]) -> float:
    """The threshold with the highest value; of equal ones that nearest to .5. The one choice for everybody."""
    known = {threshold: value for threshold, value in values.items() if value is not None}
    if not known:
        raise ValueError("Expected a value for at least one threshold, found none.")
    return max(known, key=lambda threshold: (known[threshold], -abs(threshold - 0.5)))


def calibration_error(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> float | None:
    """Expected calibration error in percent: how far scores are from the share of instances that are true ones.

    The mean over ten bins of |mean score - share of true instances (IoU at least .5, one to one)|, weighted by the
    instances in them (Guo et al., ICML 2017); None without an instance.
    """
    matches = [match_instances(*pair) for pair in pairs]
    counted = [match.counted for match in matches]
    scores = np.concatenate([m.scores[c] for m, c in zip(matches, counted, strict=True)] or [np.zeros(0)])
    correct = np.concatenate([m.correct[c] for m, c in zip(matches, counted, strict=True)] or [np.zeros(0)])
    if not len(scores):
        return None
    bins = np.clip((scores * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, scores, CALIBRATION_BINS) - np.bincount(bins, correct, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(scores) * 100)


def _samples(
    records: Sequence[Mapping[str, Any]], protocol: Protocol
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[int]]:
    predictions, references, origins = [], [], []
    for index, record in enumerate(records):
        for prediction, reference in record_samples(protocol, record):
            predictions.append(prediction)
            references.append(reference)
            origins.append(index)
    return predictions, references, origins
