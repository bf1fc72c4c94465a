# SPDX-License-Identifier: Apache-2.0
"""The instance selector by itself: it learns to choose before its stage learns to find, and again after the last one.

To choose among objects ("the leftmost", "the blue one") takes very many examples, and a step on the whole model shows
only a few. But SAM3 finds the objects already, and all that the selector reads of a row (its best queries and the
words) is a few kilobytes. So the decoder runs once per row, what the selector would read is kept in memory, and the
selector alone learns from that in large batches: some fifty times as many rows a second. 2,000 steps keep at most
16,000 rows; with the 48 queries of 256 numbers of real SAM3 that is 0.4 GB.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup
from transformers.utils import logging

from ...compat import box_cxcywh_to_xyxy
from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...modeling_sam3i.losses.matcher import box_overlap
from ..learner import encode_vision
from ..processes import process_state

logger = logging.get_logger(__name__)

BATCH_SIZE = 128
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
LEAST_IOU = 0.5  # of a query's box with a target's, to hold it
VIEWS = 16  # of each row, at least: more rows than the steps can show so often are not collected


@dataclass
class KeptQueries:
    """What the selector reads of R rows and should answer; the order of the rows is that of the dataset.

    Args:
        logits (`torch.Tensor` of shape `(R, Q)`): Scores of the queries before selection.
        queries (`torch.Tensor` of shape `(R, Q, width)`): Decoder output of the last layer, in half precision.
        boxes (`torch.Tensor` of shape `(R, Q, 4)`): (cx, cy, w, h) in [0, 1].
        input_ids (`torch.LongTensor` of shape `(R, tokens)`): The instruction.
        attention_mask (`torch.BoolTensor` of shape `(R, tokens)`): `True` for its tokens.
        right (`torch.BoolTensor` of shape `(R, Q)`): Which queries to choose.
    """

    logits: torch.Tensor
    queries: torch.Tensor
    boxes: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    right: torch.Tensor

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


def right_queries(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Which queries should be chosen: of those that hold a target (IoU above `LEAST_IOU`), the best scored one.

    Several queries may hold one target. Others than the best scored would find it again: the selector sees the scores.
    To call the nearest right is to ask for what cannot be told: a selector taught so learns its rows by heart.

    Args:
        boxes (`torch.Tensor` of shape `(queries, 4)`): Of the queries, best scored first, (cx, cy, w, h).
        targets (`torch.Tensor` of shape `(objects, 4)`): Of the targets, likewise.

    Returns:
        `torch.BoolTensor` of shape `(queries,)`.
    """
    if not len(targets):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    iou, _ = box_overlap(box_cxcywh_to_xyxy(boxes)[:, None], box_cxcywh_to_xyxy(targets))  # (queries, objects)
    best, target = iou.max(-1)
    holds = F.one_hot(target, len(targets)).bool() & (best > LEAST_IOU)[:, None]
    return (holds & (holds.cumsum(0) == 1)).any(-1)


@torch.no_grad()
def keep_queries(model: nn.Module, batch: dict[str, Any]) -> KeptQueries:
    """What the selector would read of the rows of a batch of `InstructionCollator`, on the CPU.

    Args:
        model: The model, in inference mode.
        batch: With `pixel_values` or `vision_features`; of one level, so that rows run in their order.
    """
    vision = encode_vision(model, batch.get("pixel_values"), batch.get("vision_features"))
    names = ("input_ids", "attention_mask", "instruction_levels", "image_ids")
    inputs = {name: batch[name] for name in names if name in batch}
    asked = []
    selector = model.dot_product_scoring.sam3i_adapter
    hook = selector.register_forward_pre_hook(lambda module, arguments: asked.append(arguments))
    try:  # no score exceeds 1, so no masks are made
        model.segment(threshold=1.0, row_chunk_size=len(batch["input_ids"]), vision_embeds=vision, **inputs)
    finally:
        hook.remove()
    logits, _, queries, boxes = (item[:, -1] if torch.is_tensor(item) else item for item in asked[0][:4])
    best = logits.topk(min(logits.shape[-1], selector.simple.queries), dim=-1).indices  # (rows, kept)
    rows = torch.arange(len(best), device=best.device)[:, None]
    boxes = boxes[rows, best].float()
    right = [
        right_queries(of_row, label["boxes"].to(boxes)) for of_row, label in zip(boxes, batch["labels"], strict=True)
    ]
    kept = (logits[rows, best].float(), queries[rows, best].half(), boxes)
    kept += (batch["input_ids"], batch["attention_mask"].bool(), torch.stack(right))
    return KeptQueries(*(tensor.cpu() for tensor in kept))


def selection_loss(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Two cross-entropies: of a choice among the queries of each row and nothing, and of yes or no to each query.

    The choice teaches to compare. Every target wants its share of the probability; where the instruction denotes
    nothing, nothing is the choice, whose logit is 0. Yes or no makes scores of the logits: what should not be found
    wants to be below 0.

    Args:
        logits (`torch.Tensor` of shape `(rows, queries)`): After selection.
        right (`torch.BoolTensor` of shape `(rows, queries)`): The queries to choose.
    """
    wanted = torch.cat([right, ~right.any(-1, keepdim=True)], dim=-1).to(logits.dtype)
    choice = F.cross_entropy(F.pad(logits, (0, 1)), wanted / wanted.sum(-1, keepdim=True))
    return choice + F.binary_cross_entropy_with_logits(logits, wanted[:, :-1], reduction="sum") / len(logits)


def train_selector(
    model: nn.Module, level: InstructionLevel, kept: KeptQueries, steps: int, seed: int, hidden: bool
) -> float:
    """Train the selector of one level, and nothing else, on kept queries; no random state but its own is touched.

    Args:
        hidden (`bool`): Whether to show no progress bar.

    Returns:
        `float`: The share of the last rows seen for which the best query was a right one, or where nothing is
        denoted, was turned down.
    """
    selector = getattr(model.dot_product_scoring.sam3i_adapter, level.value)
    parameters = [parameter.requires_grad_(True) for parameter in selector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    embed = model.text_encoder.text_model.embeddings.token_embedding
    device, hits = embed.weight.device, 0.0
    order = _orders(len(kept), seed)
    progress = tqdm(range(steps), desc=f"{level.value}: selector", disable=hidden)
    for _ in progress:
        part = kept.chosen(next(order))
        part = {field.name: getattr(part, field.name).to(device) for field in fields(part)}
        with torch.no_grad():
            words = embed(part["input_ids"])
        logits, queries, boxes = (part[name][:, None] for name in ("logits", "queries", "boxes"))
        logits = selector(logits, queries.float(), boxes, words, part["attention_mask"])[:, 0].float()
        loss = selection_loss(logits, part["right"])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        best, query = logits.detach().max(-1, keepdim=True)
        hit = torch.where(best > 0, part["right"].gather(1, query), ~part["right"].any(-1, keepdim=True))
        hits = 0.98 * hits + 0.02 * hit.float().mean().item()
        progress.set_postfix(loss=f"{loss.item():.3f}", right=f"{hits:.2f}")
    return hits


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
    model: nn.Module,
    level: InstructionLevel,
    rows: Any,
    prepare: Callable[[list], dict[str, Any]],
    steps: int,
    batch_size: int,
    seed: int,
    hidden: bool,
) -> float | None:
    """Train the selector of one level alone, on as many rows as the steps can show `VIEWS` times.

    The processes of a run share the decoding; each then trains on all of it.

    Args:
        rows: `datasets.Dataset` of instruction rows.
        prepare: Makes a batch for [`keep_queries`] of some of them.
        batch_size (`int`): How many of them the decoder sees at once.
        hidden (`bool`): Whether to show no progress bars.

    Returns:
        `float`, *optional*: The share of rows that end with a right choice; `None` where no query holds a target.
    """
    state = process_state()
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen = chosen[: max(BATCH_SIZE, steps * BATCH_SIZE // VIEWS)].sort().values
    mine = chosen.tensor_split(state.num_processes)[state.process_index].tolist()  # joined, they are in order again
    hidden = hidden or not state.is_main_process
    training, parts = model.training, []
    model.eval()
    for start in tqdm(range(0, len(mine), batch_size), desc=f"{level.value}: queries", disable=hidden):
        batch = prepare([rows[index] for index in mine[start : start + batch_size]])
        kept = keep_queries(model, batch)
        denotes_nothing = torch.tensor([not len(label["boxes"]) for label in batch["labels"]])
        parts.append(kept.chosen(denotes_nothing | kept.right.any(-1)))  # not what no query has found
    model.train(training)
    if state.num_processes > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    kept = KeptQueries.joined(parts)
    if not kept.right.any():
        logger.warning(f"No query holds a target of a {level.value} instruction: its selector starts as it is.")
        return None
    share = train_selector(model, level, kept, steps, seed, hidden)
    logger.info(f"Selector of {level.value} instructions: {share:.0%} of {len(kept)} rows right")
    return share


__all__ = ["KeptQueries", "keep_queries", "right_queries", "selection_loss", "train_selector", "warm_up_selector"]
