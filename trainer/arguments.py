# SPDX-License-Identifier: Apache-2.0
"""Training arguments of the curriculum: those of Transformers, some of them per stage."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from .curriculum import TrainingStage, read_stages, stage_values

STAGED_ARGUMENTS = (
    "learning_rate",
    "text_learning_rate",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "per_device_train_batch_size",
    "weight_decay",
    "selector_steps",
)
"""Arguments that take one value for all stages or a sequence of three."""


def _argument(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class Sam3ITrainingArguments(TrainingArguments):
    """
    The arguments of [`Sam3ITrainer`].

    All of `TrainingArguments` apply. Those below, where they are marked "per stage", take one value or one for each
    of the three stages. The defaults are the paper's where it states them; its learning rates are peaks of a schedule
    that falls as the inverse square root of the step, ours are made for a cosine.

    Raises:
        ValueError: when an argument is out of its range; the message ends with the value received.
    """

    stages: Any = _argument(("simple", "complex", "joint"), "The stages to run: one or more names, in this order.")
    start_complex_from_simple: bool = _argument(
        True, "Whether the complex stage starts as a copy of the simple path; False goes on with the model's own."
    )
    learning_rate: Any = _argument((5e-4, 5e-4, 1.5e-4), "Peak learning rate, per stage.")
    text_learning_rate: Any = _argument(None, "That of the text adapters, per stage; 1/16 of the above if not given.")
    num_train_epochs: Any = _argument((8, 8, 4), "Epochs, per stage.")
    max_steps: Any = _argument(-1, "Optimiser steps, per stage; overrides the epochs where it is positive.")
    warmup_steps: Any = _argument(0.03, "Steps (or the share of all steps, below 1) of linear warm-up, per stage.")
    per_device_train_batch_size: Any = _argument(8, "Targets (pairs, in the joint stage) per process, per stage.")
    weight_decay: Any = _argument(0.1, "Weight decay, per stage; biases and norms have none.")
    selector_steps: Any = _argument(
        2000,
        "Steps on kept queries in which a selector learns alone, per stage: before a stage of one level, and for both "
        "levels after the joint one; at most five times those of the stage.",
    )
    lr_scheduler_type: Any = _argument("cosine", "'cosine', 'inverse_sqrt' (the paper's) or another of Transformers.")
    max_grad_norm: float = _argument(0.1, "Largest norm of the gradient; longer ones are clipped.")

    feature_cache: str | None = _argument(
        None, "Folder in which the frozen vision features are kept, so that images are encoded once in all."
    )
    feature_cache_limit_gb: float = _argument(100.0, "Most disk space for the feature cache, in GB of 10^9 bytes.")

    eval_threshold: float = _argument(0.5, "Score an instance must exceed in evaluations.")
    early_stopping_patience: int | None = _argument(
        None, "End a stage after so many evaluations without improvement of `metric_for_best_model`."
    )
    metric_for_best_model: str | None = _argument(
        None, "The evaluation figure that decides; 'stage_gIoU' (over the stage's levels) if not given."
    )

    save_total_limit: int | None = _argument(2, "Checkpoints to keep per stage.")
    remove_unused_columns: bool = _argument(False, "The collator reads all columns of a row, so this stays False.")
    ddp_find_unused_parameters: bool | None = _argument(
        False, "Every trainable weight gets a gradient in every step, so no search is needed."
    )

    def __post_init__(self):
        self.stages = read_stages(self.stages)
        self._check_own()
        given = {name: getattr(self, name) for name in STAGED_ARGUMENTS}
        for name, value in given.items():  # the parent class checks single values
            setattr(self, name, stage_values(name, value)[0])
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
        if self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "stage_gIoU", True
        super().__post_init__()
        for name, value in given.items():
            if not isinstance(value, int | float) and value is not None:
                setattr(self, name, stage_values(name, value))

    def _check_own(self) -> None:
        positive = ("learning_rate", "text_learning_rate", "num_train_epochs", "per_device_train_batch_size")
        not_negative = ("warmup_steps", "weight_decay", "selector_steps")
        for name in STAGED_ARGUMENTS:
            for value in stage_values(name, getattr(self, name)):
                if value is None and name == "text_learning_rate":
                    continue
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"Expected `{name}` as one number or three, found {getattr(self, name)!r}.")
                if (value <= 0 and name in positive) or (value < 0 and name in not_negative):
                    least = "above 0" if name in positive else "of at least 0"
                    raise ValueError(f"Expected `{name}` {least}, found {getattr(self, name)!r}.")
        if not 0 <= self.eval_threshold <= 1:
            raise ValueError(f"Expected `eval_threshold` in [0, 1], found {self.eval_threshold!r}.")
        if self.feature_cache_limit_gb <= 0:
            raise ValueError(f"Expected `feature_cache_limit_gb` above 0, found {self.feature_cache_limit_gb!r}.")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"Expected `early_stopping_patience` >= 1, found {self.early_stopping_patience!r}.")
        if self.remove_unused_columns:
            raise ValueError("The collator reads whole rows: expected `remove_unused_columns=False`, found True.")

    def for_stage(self, stage: TrainingStage) -> "Sam3ITrainingArguments":
        """The arguments of one stage: single values, and the stage's own output folder."""
        single = copy.copy(self)
        for name in STAGED_ARGUMENTS:
            setattr(single, name, stage_values(name, getattr(self, name))[stage.index])
        if single.text_learning_rate is None:
            single.text_learning_rate = single.learning_rate / 16
        single.output_dir = str(Path(self.output_dir) / stage.folder)
        single.restore_callback_states_from_checkpoint = True  # the patience of early stopping
        return single


__all__ = ["STAGED_ARGUMENTS", "Sam3ITrainingArguments"]
