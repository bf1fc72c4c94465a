# SPDX-License-Identifier: Apache-2.0
"""The heads that learn by themselves before their stage does: the instance selector, or the level router."""

import math

from transformers import Trainer

from .curriculum import TrainingStage
from .router_training import STEPS as ROUTER_STEPS
from .router_training import train_router
from .selector_warmup import warm_up_selector

STEPS_PER_STEP = 5  # of the selector alone to each of its stage, at most: few rows are soon known by heart


def train_heads(trainer: Trainer) -> dict[str, float]:
    """Train what a stage begins with: the selector of its level or, in the joint stage, the router.

    It comes before the first checkpoint of a stage, so a run that ends within starts the stage anew.

    Args:
        trainer: Its `stage`, `args` and `train_dataset` are those of the stage.

    Returns:
        `dict[str, float]`: How often the head is right in the end; empty where there is none to train.
    """
    model, args, stage, rows = trainer.instruction_model, trainer.args, trainer.stage, trainer.train_dataset
    planned = args.max_steps
    if planned <= 0:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        planned = math.ceil(args.num_train_epochs * len(rows) / batch)
    seed, hidden = args.seed + stage.index, args.disable_tqdm
    if stage is TrainingStage.JOINT:
        # The selector knows by now how many to keep, which a choice among queries would unlearn.
        if not model.config.router_dim:
            return {}
        steps = min(ROUTER_STEPS, planned)
        return {"router_right": train_router(model, trainer.processing_class, rows, steps, seed, hidden)}
    if not args.selector_warmup_steps or not model.selects_instances:
        return {}
    right = warm_up_selector(
        model,
        *stage.levels,
        rows,
        lambda some: trainer._prepare_inputs(trainer.data_collator(some)),
        steps=min(args.selector_warmup_steps, STEPS_PER_STEP * planned),
        batch_size=args.per_device_eval_batch_size,
        seed=seed,
        hidden=hidden,
    )
    return {} if right is None else {"selector_right": right}


__all__ = ["train_heads"]
