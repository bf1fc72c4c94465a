# SPDX-License-Identifier: Apache-2.0
"""Calibrated scores: the scale and biases of a level's logits with which 0.5 is its best threshold.

Trained scores order instances well, but the best threshold is rarely 0.5, and differs by level. After a stage its
levels are asked once on validation rows. As the three numbers keep the order of a row's queries, what a row scores
depends only on how many of its best queries exceed 0.5, so all can be tried on what was computed once. The bias is
that of the highest mean IoU (gIoU), scale and bias of presence, among those that reach it, those of the most honest
scores.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import Trainer
from transformers.utils import logging

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ..collator import InstructionCollator, image_key, named_parts, usable_rows
from ..transforms import keyed_random

if TYPE_CHECKING:
    from ..arguments import Sam3ITrainingArguments
    from ..trainer_sam3i import Sam3ITrainer

logger = logging.get_logger(__name__)

LOWEST_SCORE = 0.01  # of queries that are looked at
LEAST_ROWS = 20  # fewer tell nothing about a threshold
MOST_ROWS = 2000
SCALES = (1.0, 0.5, 0.7, 1.4, 2.0)
BIASES = torch.linspace(-6, 6, 241)
PRESENCE_BIASES = (0.0, 1.0, 2.0, 4.0)  # a model that believes too much is corrected by the bias of its queries
TOLERANCE = 1e-3  # of mean IoU: what a more honest scale may cost


@dataclass
class Candidates:
    """The candidates of one row, best first."""

    logits: torch.Tensor  # (K,)
    presence: float  # logit of "the target is in the image"
    correct: torch.Tensor  # (K,), bool: those that hold an instance (IoU of at least 0.5) that none before them holds
    iou: torch.Tensor  # (K + 1,), of the union of the best k with the target; of nothing with nothing it is 1


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


def choose_calibration(rows: list[Candidates]) -> tuple[tuple[float, float, float], float, float]:
    """Scale, bias and bias of presence for rows of one level, and the mean IoU at 0.5 without and with them."""
    counts = torch.tensor([len(row.logits) for row in rows])
    logits = torch.cat([row.logits for row in rows])
    presence = torch.tensor([row.presence for row in rows]).repeat_interleave(counts)
    correct = torch.cat([row.correct for row in rows]).float()
    owner = torch.arange(len(rows)).repeat_interleave(counts)
    width = int(counts.max()) + 1
    iou = torch.stack([F.pad(row.iou, (0, width - len(row.iou))) for row in rows])

    def scores(scale: float, bias: float, presence_bias: float) -> torch.Tensor:
        return (logits * scale + bias).sigmoid() * (presence + presence_bias).sigmoid()

    def mean_iou(*numbers: float) -> float:
        above = (scores(*numbers) > 0.5).float()
        kept = torch.zeros(len(rows)).index_add_(0, owner, above).long()
        return iou.gather(1, kept[:, None]).mean().item()

    def dishonesty(numbers: tuple[float, float, float]) -> float:
        return F.binary_cross_entropy(scores(*numbers).clamp(1e-6, 1 - 1e-6), correct).item()

    found = []
    for scale, presence_bias in itertools.product(SCALES, PRESENCE_BIASES):
        values = torch.tensor([mean_iou(scale, bias, presence_bias) for bias in BIASES.tolist()])
        highest = BIASES[values >= values.max() - 1e-6]
        bias = highest[(highest - highest.median()).abs().argmin()].item()  # the middle is safest
        found.append((values.max().item(), (scale, bias, presence_bias)))
    best = max(value for value, _ in found)
    chosen = min((numbers for value, numbers in found if value >= best - TOLERANCE), key=dishonesty)
    return chosen, mean_iou(1.0, 0.0, 0.0), mean_iou(*chosen)


def set_calibration(model: Any, level: InstructionLevel, numbers: tuple[float, float, float] | None) -> None:
    """Set scale and biases of one level, or none; those of other levels stay."""
    values = {name: each for name, each in (model.config.score_calibration or {}).items() if name != level.value}
    if numbers is not None:
        values[level.value] = list(numbers)
    model.calibrate_scores(values or None)


@torch.no_grad()
def calibrate_level(model: Any, level: InstructionLevel, batches: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Fit and set scale and biases of one level on labeled batches of it (see `InstructionCollator`).

    Returns them, and gIoU in percent at 0.5 before and after; nothing, and sets nothing, with fewer than `LEAST_ROWS`
    rows or without any candidate.
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
            rows.append(read_candidates(logits.float().cpu(), presence.item(), masks.cpu() > 0, targets.bool()))
    model.train(training)
    if len(rows) < LEAST_ROWS or not any(len(row.logits) for row in rows):
        logger.warning(
            f"Scores of {level.value} instructions are not calibrated: {len(rows)} validation rows with "
            f"{sum(len(row.logits) for row in rows)} candidates tell nothing."
        )
        return {}
    chosen, before, after = choose_calibration(rows)
    set_calibration(model, level, chosen)
    numbers = dict(zip(("scale", "bias", "presence_bias"), chosen, strict=True))
    return numbers | {"gIoU_before": before * 100, "gIoU_after": after * 100}


def split_validation(dataset: Any, args: "Sam3ITrainingArguments") -> tuple[Any, Any]:
    """Validation rows that choose checkpoints, and those that calibrate scores; None where nothing is calibrated.

    What chose the checkpoint would flatter it. So where both are asked for, each has half of the images; with
    one of the two alone, it has all.
    """
    if dataset is None or not args.calibrate:
        return dataset, None
    if not args.load_best_model_at_end:
        return dataset, dataset
    if isinstance(dataset, dict):
        halves = {name: split_by_image(rows) for name, rows in dataset.items()}
        return {name: half[0] for name, half in halves.items()}, {name: half[1] for name, half in halves.items()}
    return split_by_image(dataset)


def split_by_image(dataset: Any) -> tuple[Any, Any]:
    """The rows of one half of the images and of the other, whatever the order of the rows."""
    keys = [image_key(row) for row in dataset.select_columns(["dataset", "split", "image_id"])]
    images = sorted(set(keys), key=lambda key: keyed_random(key).random())
    first = set(images[: math.ceil(len(images) / 2)])
    halves = ([place for place, key in enumerate(keys) if (key in first) is chosen] for chosen in (True, False))
    one, other = (dataset.select(half) for half in halves)
    return one, other


def calibrate_stage(trainer: "Sam3ITrainer") -> dict[str, float]:
    """Calibrate the scores of the stage's levels, so that 0.5 is the best threshold of each; returns what was found.

    Rows that chose the checkpoint are used only where the others are too few, which is said and recorded.
    """
    trainer.calibration = {}
    figures: dict[str, float] = {}
    for level in trainer.stage.levels if trainer.calibrating_rows is not None else ():
        rows = _rows_of_level(trainer.calibrating_rows, level)
        shared = len(rows) < LEAST_ROWS and bool(trainer.args.load_best_model_at_end)
        rows = _rows_of_level(trainer.eval_dataset, level) if shared else rows
        count = min(len(rows), MOST_ROWS)
        rows = [rows[place * len(rows) // count] for place in range(count)]  # evenly spread
        collator = InstructionCollator(trainer.processing_class, level.value, seed=trainer.args.seed)
        size = trainer.args.per_device_eval_batch_size
        batches = (rows[start : start + size] for start in range(0, len(rows), size))
        inputs = (Trainer._prepare_inputs(trainer, collator([part[i] for part, i in some])) for some in batches)
        found = calibrate_level(trainer.instruction_model, level, inputs)
        figures |= {f"calibration_{level.value}_{name}": value for name, value in found.items()}
        if found:
            trainer.calibration[level.value] = {"rows": len(rows), "chose_checkpoints": shared}
            trainer.say(
                f"Scores of {level.value} instructions are calibrated on {len(rows)} rows"
                f"{' that chose the checkpoint, too, as there are no more' if shared else ''}: gIoU at 0.5 "
                f"{found['gIoU_before']:.1f} -> {found['gIoU_after']:.1f}"
            )
    return figures


def _rows_of_level(dataset: Any, level: InstructionLevel) -> list[tuple[Any, int]]:
    return [
        (part, index) for part in named_parts(dataset).values() for index in usable_rows(part, level.value).indices
    ]
