# SPDX-License-Identifier: Apache-2.0
"""The processes of a run, on accelerators or not."""

import atexit
import functools

import torch
from accelerate import PartialState


@functools.cache
def _leave_at_exit() -> None:
    """Leave the process group before the interpreter ends; its threads would abort the process otherwise."""

    def leave() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(leave)


def process_state() -> PartialState:
    """How many processes run and which this one is.

    Accelerate joins processes without an accelerator only when told that they are meant to run on the CPU; untold,
    each of them takes itself for the only one.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.num_processes > 1:
        _leave_at_exit()
    return state
