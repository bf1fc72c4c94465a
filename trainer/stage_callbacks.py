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
from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging

from .curriculum import TrainingStage

if TYPE_CHECKING:
    from .trainer_sam3i import Sam3ITrainer

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
    """Heads the stage, tells sampler and collator which epoch begins, and says how long the stage will take."""

    def __init__(self, trainer: Sam3ITrainer):
        self.trainer = trainer
        self.start = (0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The header of the stage, and its name on the progress bar."""
        name = f"stage {self.trainer.stage.index + 1} of {len(TrainingStage)}, {self.trainer.stage.value}"
        self.trainer.say(f"{name}: from step {state.global_step} to {state.max_steps}")
        self.start = (state.global_step, time.monotonic())
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.training_bar.set_description(name)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All draws of data follow from the epoch."""
        self.trainer.begin_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After ten steps: what is left, and the memory that was needed."""
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


class StopOnSignal(TrainerCallback):
    """Ends a run after the step in which SIGTERM came (`enable_jit_checkpoint`); the trainer then saves it."""

    def __init__(self, enabled: bool):
        self.enabled, self.asked = enabled, False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM as a request to stop; only the main thread can."""
        if not self.enabled or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when asked."""
        if self.asked:
            control.should_training_stop = True
