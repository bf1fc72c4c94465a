# SPDX-License-Identifier: Apache-2.0
"""The heads that learn by themselves: the level router, and the instance selector before its stage and at the end."""

import math

from transformers import Trainer
from transformers.utils import logging

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ..curriculum import TrainingStage
from .router_training import STEPS as ROUTER_STEPS
from .router_training import train_router
from .selector_warmup import warm_up_selector

logger = logging.get_logger(__name__)

STEPS_PER_STEP = 5  # of a head alone to each of its stage, at most: few rows are soon known by heart


def train_heads(trainer: Trainer) -> dict[str, float]:
    """Train what a stage begins with: the selector of its level or, in the joint stage, the router.

    It comes before the first checkpoint of a stage, so a run that ends within starts the stage anew.

    Args:
        trainer: Its `stage`, `args` and `train_dataset` are those of the stage.

    Returns:
        `dict[str, float]`: How often the head is right in the end; empty where there is none to train.
    """
    model, args, stage = trainer.instruction_model, trainer.args, trainer.stage
    if stage is not TrainingStage.JOINT:
        right = _train_selector(trainer, *stage.levels)
        return {} if right is None else {"selector_right": right}
    if not model.config.router_dim:
        return {}
    steps, seed = min(ROUTER_STEPS, _most_steps(trainer)), args.seed + stage.index
    rows, hidden = trainer.all_rows, args.disable_tqdm  # the stage's own lack what only one level can ask
    return {"router_right": train_router(model, trainer.processing_class, rows, steps, seed, hidden)}


def finish_selectors(trainer: Trainer) -> dict[str, float]:
    """After the joint stage: train the selector of each level once more, on what the model now finds.

    The queries have changed since the selector had its head start, and choosing still takes many examples. A run that
    ends within goes on from the last checkpoint of the stage.

    Args:
        trainer: As for [`train_heads`]; its rows are those of the stage again when this is done.

    Returns:
        `dict[str, float]`: How often each selector is right in the end.
    """
    stage, found = trainer.stage, {}
    if stage is not TrainingStage.JOINT or not _trains_selectors(trainer):
        return found
    if trainer.is_fsdp_enabled:
        logger.warning("Weights are sharded: the selectors are not trained once more at the end.")
        return found
    own = trainer.train_dataset, trainer.data_collator
    for level in stage.levels:
        trainer.prepare_data(level.value)
        right = _train_selector(trainer, level)
        if right is not None:
            found[f"selector_right_{level.value}"] = right
    trainer.train_dataset, trainer.data_collator = own
    return found


def _trains_selectors(trainer: Trainer) -> bool:
    return bool(trainer.args.selector_steps) and trainer.instruction_model.selects_instances


def _most_steps(trainer: Trainer) -> int:
    """Steps that a head may take by itself, from those planned for the stage."""
    args, planned = trainer.args, trainer.args.max_steps
    if planned <= 0:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        planned = math.ceil(args.num_train_epochs * len(trainer.train_dataset) / batch)
    return STEPS_PER_STEP * planned


def _train_selector(trainer: Trainer, level: InstructionLevel) -> float | None:
    """How often the selector of a level is right after training on the trainer's rows; `None` without one."""
    model, args = trainer.instruction_model, trainer.args
    if not _trains_selectors(trainer):
        return None
    return warm_up_selector(
        model,
        level,
        trainer.train_dataset,
        lambda some: trainer._prepare_inputs(trainer.data_collator(some)),
        steps=min(args.selector_steps, _most_steps(trainer)),
        batch_size=args.per_device_eval_batch_size,
        seed=args.seed + trainer.stage.index,
        hidden=args.disable_tqdm,
    )


__all__ = ["finish_selectors", "train_heads"]
