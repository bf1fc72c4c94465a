# SPDX-License-Identifier: Apache-2.0
"""What happens around the steps of a stage: epochs begin, time is estimated, a signal stops the run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging

from ..curriculum import TrainingStage

if TYPE_CHECKING:
    from ..trainer_sam3i import Sam3ITrainer

logger = logging.get_logger(__name__)

TIMED_STEPS = 10


def patience_is_over(callbacks: Iterable[TrainerCallback]) -> bool:
    """Whether an `EarlyStoppingCallback` has seen as many evaluations without improvement as it waits for."""
    return any(
        isinstance(callback, EarlyStoppingCallback)
        and callback.early_stopping_patience_counter >= callback.early_stopping_patience
        for callback in callbacks
    )


class StageCallback(TrainerCallback):
    """Heads the stage, tells sampler and collator which epoch begins, and says how long the stage will take.

    While it is listening, SIGTERM ends the run after its step (`enable_jit_checkpoint`); the trainer then saves it.
    """

    def __init__(self, trainer: Sam3ITrainer):
        self.trainer, self.asked_to_stop = trainer, False
        self.start = (0, 0.0)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM as a request to stop; only the main thread can."""
        enabled = self.trainer.curriculum_args.enable_jit_checkpoint
        if not enabled or threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            self.asked_to_stop = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The header of the stage."""
        name = f"stage {self.trainer.stage.index + 1} of {len(TrainingStage)}, {self.trainer.stage.value}"
        self.trainer.say(f"{name}: from step {state.global_step} to {state.max_steps}")
        self.start = (state.global_step, time.monotonic())

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All draws of data follow from the epoch."""
        self.trainer.begin_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when asked; after ten steps, say what is left, and the memory that was needed."""
        if self.asked_to_stop:
            control.should_training_stop = True
        begun, since = self.start
        if state.global_step != begun + TIMED_STEPS:
            return
        per_step = (time.monotonic() - since) / TIMED_STEPS
        left = int(per_step * (state.max_steps - state.global_step))
        memory = ""
        if torch.cuda.is_available():
            memory = f", at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of device memory so far"
        self.trainer.say(
            f"{per_step:.2f} s a step: about {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left in this stage, "
            f"without evaluations{memory}"
        )


class RunProgress(ProgressCallback):
    """One progress bar for all stages of a run, which names the one that runs."""

    training_bar: Any

    def __init__(self, trainer: Sam3ITrainer):
        super().__init__()
        self.trainer, self.before = trainer, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar at the first stage; steps of finished stages count as taken."""
        plan, stage = self.trainer.plan, self.trainer.stage
        if not state.is_world_process_zero or plan is None:
            return
        self.before = sum(each.steps for each in plan.stages if each.stage.index < stage.index)
        if self.training_bar is None:
            total, taken = sum(each.steps for each in plan.stages), self.before + state.global_step
            self.training_bar = tqdm(total=total, initial=taken, unit="step", dynamic_ncols=True)
        self.training_bar.set_description(f"stage {stage.index + 1} of {len(TrainingStage)}, {stage.value}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Steps of this stage follow those of the stages before."""
        if self.training_bar is not None:
            self.training_bar.update(self.before + state.global_step - self.training_bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The bar stays for the next stage; `close` ends it."""

    def close(self) -> None:
        """End the bar, with the run."""
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None
