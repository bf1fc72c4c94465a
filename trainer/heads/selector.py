# SPDX-License-Identifier: Apache-2.0
"""The instance selector by itself: it learns to choose before its stage learns to find, and again after the last one.

To choose among objects ("the leftmost", "the blue one") takes very many examples, and a step on the whole model shows
only a few. But SAM3 finds the objects already, and all that the selector reads of a row (its best queries and the
words) is a few kilobytes. So the decoder runs once per row, what the selector would read is kept in memory, and the
selector alone learns from that in large batches: some fifty times as many rows a second. 2,000 steps keep at most
16,000 rows; with the 48 queries of 256 numbers of real SAM3 that is 0.4 GB.

It is a part of a stage: [`begin_stage`] before its first step and checkpoint, so a run that ends within starts the
stage anew; [`end_joint_stage`] after the last step of the joint one, whose last checkpoint such a run goes on from.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup
from transformers.utils import logging

from ...compat import box_cxcywh_to_xyxy
from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...modeling_sam3i.losses.matcher import box_overlap
from ..processes import process_state
from ..stage.module import encode_vision

if TYPE_CHECKING:
    from ..trainer_sam3i import Sam3ITrainer

logger = logging.get_logger(__name__)

BATCH_SIZE = 128
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
LEAST_IOU = 0.5  # of a query's box with a target's, to hold it
HEAD_STEPS_PER_STAGE_STEP = 5  # at most: few rows are soon known by heart
VIEWS = 16  # of each row, at least: more rows than the steps can show so often are not collected


@dataclass
class KeptQueries:
    """What the selector reads of R rows and should answer; the order of the rows is that of the dataset."""

    logits: torch.Tensor  # (R, Q), scores of the queries before selection
    queries: torch.Tensor  # (R, Q, width), decoder output of the last layer, in half precision
    boxes: torch.Tensor  # (R, Q, 4), (cx, cy, w, h) in [0, 1]
    input_ids: torch.Tensor  # (R, tokens), the instruction
    attention_mask: torch.Tensor  # (R, tokens), bool
    correct: torch.Tensor  # (R, Q), bool: which queries to choose

    def __len__(self) -> int:
        return len(self.logits)

    def chosen(self, rows: torch.Tensor) -> "KeptQueries":
        """Some of the rows, by number or by a mask."""
        return KeptQueries(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def joined(cls, parts: list["KeptQueries"]) -> "KeptQueries":
        """One after another; shorter instructions are padded."""
        tokens = max(part.input_ids.shape[1] for part in parts)
        for part in parts:
            missing = (0, tokens - part.input_ids.shape[1])
            part.input_ids, part.attention_mask = (F.pad(t, missing) for t in (part.input_ids, part.attention_mask))
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def correct_queries(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Which queries `(queries, 4)`, best scored first, to choose for targets `(objects, 4)`; both (cx, cy, w, h).

    Of the queries that hold a target (IoU above `LEAST_IOU`) it is the best scored one. Others would find it again:
    the selector sees the scores. To call the nearest correct is to ask for what cannot be told: a selector taught so
    learns its rows by heart.
    """
    if not len(targets):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    iou, _ = box_overlap(box_cxcywh_to_xyxy(boxes)[:, None], box_cxcywh_to_xyxy(targets))  # (queries, objects)
    best, target = iou.max(-1)
    holds = F.one_hot(target, len(targets)).bool() & (best > LEAST_IOU)[:, None]
    return (holds & (holds.cumsum(0) == 1)).any(-1)


@torch.no_grad()
def keep_queries(model: Any, batch: dict[str, Any]) -> KeptQueries:
    """What the selector of a model in inference mode would read of a batch of one level, on the CPU."""
    vision = encode_vision(model, batch.get("pixel_values"), batch.get("vision_features"))
    names = ("input_ids", "attention_mask", "instruction_levels", "image_ids")
    inputs = {name: batch[name] for name in names if name in batch}
    found = model.instruction_queries(vision_embeds=vision, **inputs)
    compared = model.dot_product_scoring.sam3i_adapter.simple.queries
    best = found.pred_logits.topk(min(found.pred_logits.shape[-1], compared), dim=-1).indices  # (rows, kept)
    rows = torch.arange(len(best), device=best.device)[:, None]
    boxes = found.pred_boxes[rows, best].float()
    correct = [
        correct_queries(of_row, label["boxes"].to(boxes)) for of_row, label in zip(boxes, batch["labels"], strict=True)
    ]
    states = (found.pred_logits[rows, best].float(), found.queries[rows, best].half(), boxes)
    asked = (batch["input_ids"], batch["attention_mask"].bool(), torch.stack(correct))
    return KeptQueries(*(tensor.cpu() for tensor in (*states, *asked)))


def selection_loss(logits: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    """Two cross-entropies of logits `(rows, queries)`: of a choice among them and nothing, and of yes or no to each.

    The choice teaches to compare. Every target wants its share of the probability; where the instruction denotes
    nothing, nothing is the choice, whose logit is 0. Yes or no makes scores of the logits: what should not be found
    wants to be below 0.
    """
    wanted = torch.cat([correct, ~correct.any(-1, keepdim=True)], dim=-1).to(logits.dtype)
    choice = F.cross_entropy(F.pad(logits, (0, 1)), wanted / wanted.sum(-1, keepdim=True))
    return choice + F.binary_cross_entropy_with_logits(logits, wanted[:, :-1], reduction="sum") / len(logits)


@dataclass(frozen=True)
class SelectorTraining:
    """How long a selector learns alone, and how it is fed."""

    steps: int  # of the optimizer, on kept queries
    batch_size: int = 8  # rows that the decoder sees at once while queries are collected
    seed: int = 0
    progress: bool = True


def train_selector(model: Any, level: InstructionLevel, kept: KeptQueries, training: SelectorTraining) -> float:
    """Train the selector of one level, and nothing else, on kept queries; no random state but its own is touched.

    Returns the share of the last rows whose best query was correct or, where nothing is denoted, was turned down.
    """
    selector = getattr(model.dot_product_scoring.sam3i_adapter, level.value)
    parameters = [parameter.requires_grad_(True) for parameter in selector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, training.steps // 20, training.steps)
    embed = model.get_input_embeddings()
    device, hits = embed.weight.device, torch.zeros((), device=embed.weight.device)
    order = _orders(len(kept), training.seed)
    progress = tqdm(range(training.steps), desc=f"{level.value}: selector", leave=False, disable=not training.progress)
    for step in progress:
        chosen = kept.chosen(next(order))
        part = {field.name: getattr(chosen, field.name).to(device) for field in fields(chosen)}
        with torch.no_grad():
            words = embed(part["input_ids"])
        logits, queries, boxes = (part[name][:, None] for name in ("logits", "queries", "boxes"))
        logits = selector(logits, queries.float(), boxes, words, part["attention_mask"])[:, 0].float()
        loss = selection_loss(logits, part["correct"])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        best, query = logits.detach().max(-1, keepdim=True)
        turned_down = ~part["correct"].any(-1, keepdim=True)
        hits = 0.98 * hits + 0.02 * torch.where(best > 0, part["correct"].gather(1, query), turned_down).float().mean()
        if training.progress and step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", correct=f"{hits.item():.2f}")
    return hits.item()


def _orders(rows: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of row numbers, epoch after epoch without end."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < min(BATCH_SIZE, rows):
            left = torch.cat([left, torch.randperm(rows, generator=generator)])
        yield left[:BATCH_SIZE]
        left = left[BATCH_SIZE:]


def warm_up_selector(
    model: Any,
    level: InstructionLevel,
    rows: Any,
    prepare: Callable[[list], dict[str, Any]],
    training: SelectorTraining,
) -> float | None:
    """Train the selector of one level alone, on as many of the rows as the steps can show `VIEWS` times.

    The processes of a run share the decoding; each then trains on all of it. `prepare` makes a batch for
    [`keep_queries`] of some rows. Returns what [`train_selector`] does; None where no query holds a target.
    """
    state = process_state()
    training = replace(training, progress=training.progress and state.is_main_process)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(training.seed))
    chosen = chosen[: max(BATCH_SIZE, training.steps * BATCH_SIZE // VIEWS)].sort().values
    mine = chosen.tensor_split(state.num_processes)[state.process_index].tolist()  # joined, they are in order again
    was_training, parts = model.training, []
    model.eval()
    starts = range(0, len(mine), training.batch_size)
    for start in tqdm(starts, desc=f"{level.value}: queries", leave=False, disable=not training.progress):
        batch = prepare([rows[index] for index in mine[start : start + training.batch_size]])
        kept = keep_queries(model, batch)
        denotes_nothing = torch.tensor([not len(label["boxes"]) for label in batch["labels"]])
        parts.append(kept.chosen(denotes_nothing | kept.correct.any(-1)))  # not what no query has found
    model.train(was_training)
    if state.num_processes > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    kept = KeptQueries.joined(parts)
    if not kept.correct.any():
        logger.warning(f"No query holds a target of a {level.value} instruction: its selector starts as it is.")
        return None
    share = train_selector(model, level, kept, training)
    logger.info(f"Selector of {level.value} instructions: {share:.0%} of {len(kept)} rows correct")
    return share


def begin_stage(trainer: "Sam3ITrainer") -> dict[str, float]:
    """The head start: train the selector of the level that the stage is about to learn, where there is one.

    Returns how often it chooses correctly in the end.
    """
    share = None if len(trainer.stage.levels) > 1 else _train_for_stage(trainer, *trainer.stage.levels)
    return {} if share is None else {"selector_accuracy": share}


def end_joint_stage(trainer: "Sam3ITrainer") -> dict[str, float]:
    """Train the selector of each level once more, on what the model finds after the joint stage.

    The queries have changed since the selector had its head start, and choosing still takes many examples. Returns how
    often each selector chooses correctly in the end.
    """
    found: dict[str, float] = {}
    if len(trainer.stage.levels) < 2 or not trains_selectors(trainer):
        return found
    if trainer.is_fsdp_enabled:
        logger.warning("Weights are sharded: the selectors are not trained once more at the end.")
        return found
    own = trainer.train_dataset, trainer.data_collator
    for level in trainer.stage.levels:
        trainer.prepare_data(level.value)
        share = _train_for_stage(trainer, level)
        if share is not None:
            found[f"selector_accuracy_{level.value}"] = share
    trainer.train_dataset, trainer.data_collator = own
    return found


def trains_selectors(trainer: "Sam3ITrainer") -> bool:
    """Whether there are selectors, steps for them, and no replay: alone on new rows they would forget the old ones."""
    return bool(trainer.args.selector_steps) and trainer.instruction_model.selects_instances and trainer.replay is None


def most_head_steps(trainer: "Sam3ITrainer") -> int:
    """Steps that a head may take by itself, from those planned for the stage."""
    return HEAD_STEPS_PER_STAGE_STEP * trainer.plan.stage(trainer.stage).steps  # type: ignore[union-attr]


def _train_for_stage(trainer: "Sam3ITrainer", level: InstructionLevel) -> float | None:
    if not trains_selectors(trainer):
        return None
    args = trainer.args
    training = SelectorTraining(
        steps=min(args.selector_steps, most_head_steps(trainer)),
        batch_size=args.per_device_eval_batch_size,
        seed=args.seed + trainer.stage.index,
        progress=not args.disable_tqdm,
    )
    return warm_up_selector(trainer.instruction_model, level, trainer.train_dataset, trainer.selector_batch, training)
