# SPDX-License-Identifier: Apache-2.0
"""Calibrated scores: the scale and bias of a level's logits with which 0.5 is its best threshold.

Trained scores order instances well, but the best threshold is rarely 0.5, and differs by level. After a stage its
levels are asked once on validation rows. As scale and bias keep the order of a row's queries, what a row scores
depends only on how many of its best queries exceed 0.5, so every pair can be tried on what was computed once. The bias
is that of the highest mean IoU (gIoU), the scale, among those that reach it, that of the most honest scores.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils import logging

from ...modeling_sam3i.configuration_sam3i import InstructionLevel

logger = logging.get_logger(__name__)

LOWEST_SCORE = 0.01  # of queries that are looked at
LEAST_ROWS = 20  # fewer tell nothing about a threshold
MOST_ROWS = 500
SCALES = (1.0, 0.5, 0.7, 1.4, 2.0)
BIASES = torch.linspace(-6, 6, 241)
TOLERANCE = 1e-3  # of mean IoU: what a more honest scale may cost


@dataclass
class Candidates:
    """The candidates of one row, best first.

    Args:
        logits (`torch.Tensor` of shape `(K,)`): Classification logits.
        presence (`float`): Probability that the target is in the image.
        correct (`torch.BoolTensor` of shape `(K,)`): Which of them hold an instance (IoU of at least 0.5) that none
            before them holds.
        iou (`torch.Tensor` of shape `(K + 1,)`): IoU of the union of the best k with the target; where nothing is
            denoted 1 for k = 0, else 0.
    """

    logits: torch.Tensor
    presence: float
    correct: torch.Tensor
    iou: torch.Tensor


def read_candidates(logits: torch.Tensor, presence: float, masks: torch.Tensor, targets: torch.Tensor) -> Candidates:
    """The candidates of a row from its masks `(K, h, w)` and those of its targets `(N, h, w)`, both bool."""
    logits, order = logits.sort(descending=True)
    masks, targets = masks[order].flatten(1).float(), targets.flatten(1).float()
    target = targets.amax(0) if len(targets) else masks.new_zeros(masks.shape[1])
    union = torch.cat([masks.new_zeros(1, masks.shape[1]), masks.cummax(0).values]) if len(masks) else target[None] * 0
    inner, outer = torch.minimum(union, target).sum(-1), torch.maximum(union, target).sum(-1)
    iou = torch.where(outer > 0, inner / outer.clamp(min=1), 1.0)
    correct = torch.zeros(len(logits), dtype=torch.bool)
    if len(masks) and len(targets):
        inner = masks @ targets.T
        pairs = inner / (masks.sum(-1)[:, None] + targets.sum(-1) - inner).clamp(min=1)
        best, held = pairs.max(-1)
        holds = F.one_hot(held, len(targets)).bool() & (best >= 0.5)[:, None]
        correct = (holds & (holds.cumsum(0) == 1)).any(-1)
    return Candidates(logits, presence, correct, iou)


def choose_calibration(rows: list[Candidates]) -> tuple[float, float, float, float]:
    """Scale and bias for rows of one level, and the mean IoU at 0.5 without and with them."""
    counts = torch.tensor([len(row.logits) for row in rows])
    logits = torch.cat([row.logits for row in rows])
    presence = torch.tensor([row.presence for row in rows]).repeat_interleave(counts)
    correct = torch.cat([row.correct for row in rows]).float()
    owner = torch.arange(len(rows)).repeat_interleave(counts)
    width = int(counts.max()) + 1
    iou = torch.stack([F.pad(row.iou, (0, width - len(row.iou))) for row in rows])

    def mean_iou(scale: float, bias: float) -> float:
        above = ((logits * scale + bias).sigmoid() * presence > 0.5).float()
        kept = torch.zeros(len(rows)).index_add_(0, owner, above).long()
        return iou.gather(1, kept[:, None]).mean().item()

    def dishonesty(scale: float, bias: float) -> float:
        scores = ((logits * scale + bias).sigmoid() * presence).clamp(1e-6, 1 - 1e-6)
        return F.binary_cross_entropy(scores, correct).item()

    found = []
    for scale in SCALES:
        values = torch.tensor([mean_iou(scale, bias) for bias in BIASES.tolist()])
        highest = BIASES[values >= values.max() - 1e-6]
        bias = highest[(highest - highest.median()).abs().argmin()].item()  # the middle is safest
        found.append((values.max().item(), scale, bias))
    best = max(value for value, _, _ in found)
    near = [(scale, bias) for value, scale, bias in found if value >= best - TOLERANCE]
    scale, bias = min(near, key=lambda pair: dishonesty(*pair))
    return scale, bias, mean_iou(1.0, 0.0), mean_iou(scale, bias)


def set_calibration(model: Any, level: InstructionLevel, pair: tuple[float, float] | None) -> None:
    """Set scale and bias of one level, or none; those of other levels stay."""
    values = {name: each for name, each in (model.config.score_calibration or {}).items() if name != level.value}
    if pair is not None:
        values[level.value] = list(pair)
    model.calibrate_scores(values or None)


@torch.no_grad()
def calibrate_level(model: Any, level: InstructionLevel, batches: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Fit and set scale and bias of one level on labeled batches of it (see `InstructionCollator`).

    Returns:
        `dict[str, float]`: Scale, bias, and gIoU in percent at 0.5 before and after; empty, and nothing set, with
        fewer than `LEAST_ROWS` rows or without any candidate.
    """
    set_calibration(model, level, None)
    training, rows = model.training, []
    model.eval()
    for batch in batches:
        names = ("pixel_values", "input_ids", "attention_mask", "instruction_levels", "image_ids")
        found = model.segment(threshold=LOWEST_SCORE, **{name: batch[name] for name in names})
        parts = zip(found.pred_logits, found.presence_logits, found.pred_masks, batch["labels"], strict=True)
        for logits, presence, masks, label in parts:
            size, targets = masks.shape[-2:], label["masks"].float().cpu()
            targets = (
                F.adaptive_avg_pool2d(targets[None], size)[0] > 0.5 if len(targets) else targets.new_zeros(0, *size)
            )
            chance = presence.float().sigmoid().item()
            rows.append(read_candidates(logits.float().cpu(), chance, masks.cpu() > 0, targets.bool()))
    model.train(training)
    if len(rows) < LEAST_ROWS or not any(len(row.logits) for row in rows):
        logger.warning(
            f"Scores of {level.value} instructions are not calibrated: {len(rows)} validation rows with "
            f"{sum(len(row.logits) for row in rows)} candidates tell nothing."
        )
        return {}
    scale, bias, before, after = choose_calibration(rows)
    set_calibration(model, level, (scale, bias))
    return {"scale": scale, "bias": bias, "gIoU_before": before * 100, "gIoU_after": after * 100}


__all__ = ["Candidates", "calibrate_level", "choose_calibration", "read_candidates", "set_calibration"]
