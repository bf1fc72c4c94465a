# SPDX-License-Identifier: Apache-2.0
"""Training arguments of the curriculum: those of Transformers, some of them per stage."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import SchedulerType, TrainingArguments

from .curriculum import TrainingStage, read_stages, stage_values
from .defaults import EVAL_THRESHOLD, FEATURE_CACHE_GB, LOGGING_STEPS, STAGE_DEFAULTS

STAGED_ARGUMENTS = (*STAGE_DEFAULTS, "text_learning_rate")
"""Arguments that take one value for all stages or a sequence of three."""

COMPLEX_STARTS = ("auto", "simple", "own")

_OF_OUTPUTS = "evaluations make figures of instances, not of model outputs"
UNSUPPORTED = {
    **dict.fromkeys(("prediction_loss_only", "batch_eval_metrics", "include_for_metrics"), _OF_OUTPUTS),
    **dict.fromkeys(("eval_accumulation_steps", "eval_use_gather_object"), _OF_OUTPUTS),
    "label_smoothing_factor": "the loss is the model's own",
    "neftune_noise_alpha": "word embeddings stay as they are",
    "train_sampling_strategy": "the order of rows follows from seed, stage and epoch, so that a run can be resumed",
    "auto_find_batch_size": "a run that is resumed has to have the batch size it was planned with",
    "save_only_model": "checkpoints are what a run goes on from, and small",
}
"""Arguments of Transformers that would have no effect, or a wrong one, and why."""


def _staged(name: str, help_text: str) -> Any:
    return field(default_factory=lambda: list(STAGE_DEFAULTS[name]), metadata={"help": help_text})


def _argument(default: Any, help_text: str, **more: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help_text, **more})
    return field(default=default, metadata={"help": help_text, **more})


@dataclass
class Sam3ITrainingArguments(TrainingArguments):
    """
    The arguments of [`Sam3ITrainer`].

    All of `TrainingArguments` apply. Those below, where they are marked "per stage", take one value or one for each
    of the three stages (on a command line of `HfArgumentParser`: one or three values).

    Raises:
        ValueError: when an argument is out of its range; the message ends with the value received.
    """

    # The parent class has one number where these have one or three.
    learning_rate: list[float] = _staged("learning_rate", "Peak learning rate, per stage.")  # type: ignore[assignment]
    num_train_epochs: list[float] = _staged("num_train_epochs", "Epochs, per stage.")  # type: ignore[assignment]
    max_steps: list[int] = _staged(  # type: ignore[assignment]
        "max_steps", "Optimizer steps, per stage; overrides the epochs where it is positive."
    )
    warmup_steps: list[float] = _staged(  # type: ignore[assignment]
        "warmup_steps", "Steps (or the share of all steps, below 1) of linear warm-up, per stage."
    )
    per_device_train_batch_size: list[int] = _staged(  # type: ignore[assignment]
        "per_device_train_batch_size", "Targets (pairs, in the joint stage) per process, per stage."
    )
    weight_decay: list[float] = _staged(  # type: ignore[assignment]
        "weight_decay", "Weight decay, per stage; biases and norms have none."
    )
    selector_steps: list[int] = _staged(
        "selector_steps",
        "Steps on kept queries in which a selector learns alone, per stage: before a stage of one level, and for both "
        "levels after the joint one; at most five times those of the stage. 0 for none.",
    )
    text_learning_rate: list[float] | None = _argument(
        None, "That of the text adapters, per stage; 1/16 of `learning_rate` if not given."
    )
    stages: list[str] = _argument(["simple", "complex", "joint"], "The stages to run: one or more, in this order.")
    start_complex_from: str = _argument(
        "auto",
        "What the complex stage starts from: 'simple' (a copy of the simple path), 'own' (the model's complex path as "
        "it is), or 'auto': a copy where the complex adapters are fresh, their own where they were trained.",
        choices=list(COMPLEX_STARTS),
    )
    lr_scheduler_type: SchedulerType | str = _argument(
        "cosine", "'cosine', 'inverse_sqrt' (the paper's) or another of Transformers."
    )
    max_grad_norm: float = _argument(0.1, "Largest norm of the gradient; longer ones are clipped.")

    feature_cache: str | None = _argument(
        None, "Folder in which the frozen vision features are kept, so that images are encoded once in all."
    )
    feature_cache_limit_gb: float = _argument(
        FEATURE_CACHE_GB, "Most disk space for the feature cache, in GB of 10^9 bytes."
    )
    replay_every: int = _argument(
        2, "Where there are `replay` rows: of so many steps one is on them. More leaves more room for what is new."
    )

    logging_steps: float = _argument(LOGGING_STEPS, "Steps between log entries; the first step has one, too.")
    logging_first_step: bool = _argument(True, "Whether the first step of a stage is logged.")
    eval_threshold: float = _argument(EVAL_THRESHOLD, "Score an instance must exceed in evaluations.")
    calibrate: bool = _argument(
        True,
        "Whether a finished stage calibrates its scores on `eval_dataset`, so that 0.5 is the best threshold. With "
        "`load_best_model_at_end` one half of the images chooses checkpoints and the other calibrates.",
    )
    early_stopping_patience: int | None = _argument(
        None, "End a stage after so many evaluations without improvement of `metric_for_best_model`."
    )
    metric_for_best_model: str | None = _argument(
        None,
        "The evaluation figure that decides; if not given 'stage_best_gIoU': gIoU over the stage's levels, each at "
        "its best threshold, so that scores that move in training are no progress.",
    )
    enable_jit_checkpoint: bool = _argument(
        False, "Whether SIGTERM ends the run after its step, with a checkpoint to go on from exactly."
    )
    allow_changed: list[str] = _argument(
        [], "What may differ from the training that is resumed, by name: 'data', 'learning_rate' and their like."
    )

    activation_checkpointing: bool | None = _argument(
        None, "Whether activations are computed again in the backward pass: less memory, a third more time."
    )
    save_total_limit: int | None = _argument(2, "Checkpoints to keep per stage.")
    remove_unused_columns: bool = _argument(False, "The collator reads all columns of a row, so this stays False.")
    ddp_find_unused_parameters: bool | None = _argument(
        False, "Every trainable weight gets a gradient in every step, so no search is needed."
    )

    def __post_init__(self):
        self.stages = read_stages(self.stages)
        for name in STAGED_ARGUMENTS:  # one value in a list, as a command line gives it, is one value
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                setattr(self, name, value[0] if len(value) == 1 else tuple(value))
        self.check()
        given = {name: getattr(self, name) for name in STAGED_ARGUMENTS}
        for name, value in given.items():  # the parent class checks single values
            setattr(self, name, stage_values(name, value)[0])
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
        if self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "stage_best_gIoU", True
        if self.activation_checkpointing and not hasattr(TrainingArguments, "activation_checkpointing"):
            self.gradient_checkpointing = True  # as older versions of Transformers call it
        super().__post_init__()
        for name, value in given.items():
            setattr(self, name, value)

    def check(self) -> None:
        """Check what Transformers does not know of.

        Raises:
            ValueError: when an argument is out of its range.
        """
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
        for name, lowest in (("early_stopping_patience", 1), ("replay_every", 2)):
            if getattr(self, name) is not None and getattr(self, name) < lowest:
                raise ValueError(f"Expected `{name}` >= {lowest}, found {getattr(self, name)!r}.")
        if self.start_complex_from not in COMPLEX_STARTS:
            raise ValueError(
                f"Expected `start_complex_from` as one of {', '.join(COMPLEX_STARTS)}, found "
                f"{self.start_complex_from!r}."
            )
        defaults = {item.name: item.default for item in fields(TrainingArguments) if item.name in UNSUPPORTED}
        for name, default in defaults.items():
            if getattr(self, name) not in (default, None, []):
                raise ValueError(f"`{name}` is not supported: {UNSUPPORTED[name]}. Found {getattr(self, name)!r}.")
        if self.remove_unused_columns:
            raise ValueError("The collator reads whole rows: expected `remove_unused_columns=False`, found True.")

    def for_stage(self, stage: TrainingStage) -> Any:
        """The arguments of one stage: single values, and the stage's own output folder."""
        single: Any = copy.copy(self)
        for name in STAGED_ARGUMENTS:
            setattr(single, name, stage_values(name, getattr(self, name))[stage.index])
        if single.text_learning_rate is None:
            single.text_learning_rate = single.learning_rate / 16
        single.output_dir = str(Path(str(self.output_dir)) / stage.folder)
        single.restore_callback_states_from_checkpoint = True  # the patience of early stopping
        return single
