# SPDX-License-Identifier: Apache-2.0
"""Whenever a training is killed, it goes on and ends as one that was not."""

import itertools
import json
import random
import signal

import pytest
from safetensors.torch import load_file
from training_fixtures import STOPPED, assert_equal, finish, run_training, start

# Selectors, router, evaluations, the best weights, calibration, sealing and rotation: each may be cut off.
OPTIONS = {
    "max_steps": [2, 2, 2],
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 1,
    "dropout": 0.2,
    "adapter_design": "selective",
    "least_iou": 0.0,
    "selector_steps": 15,
    "evaluate": True,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "enable_jit_checkpoint": True,
}
KILL, TERM = signal.SIGKILL, signal.SIGTERM
# Functions in the order in which a run comes to them: every signal is sent to one that goes on after the one before.
PLACES = [
    ("train_selector", KILL),
    ("warm_up_selector", TERM),
    ("evaluate_levels", KILL),
    ("seal_checkpoint", KILL),
    ("rotate_checkpoints", KILL),
    ("calibrate_level", KILL),
    ("record_stage", KILL),
    ("evaluate_levels", TERM),
    ("seal_checkpoint", TERM),
    ("rotate_checkpoints", TERM),
    ("train_router", KILL),
    ("end_joint_stage", KILL),
    ("_finish_stage", KILL),
    ("train_selector", TERM),
    ("warm_up_selector", KILL),
    ("calibrate_level", TERM),
    ("record_stage", TERM),
    ("evaluate_levels", KILL),
    ("rotate_checkpoints", KILL),
    ("train_router", TERM),
]
ANYWHERE = 30 - len(PLACES)


def train(folder, **more) -> int:
    """Train, resuming what is in the folder; the exit status."""
    return finish(start(folder, run_training, str(folder), OPTIONS | more), folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder) == 0
    return folder


def assert_as_whole(folder, whole):
    assert_equal(*(load_file(each / "adapter_model.safetensors") for each in (folder, whole)))
    settings = [json.loads((each / "adapter_config.json").read_text()) for each in (folder, whole)]
    assert settings[0] == settings[1]  # the calibration among them


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_signaled_in_every_part_of_a_stage_and_resumed_the_weights_are_the_same(tmp_path, whole):
    moments, folders = random.Random(3), itertools.count()
    folder = tmp_path / str(next(folders))
    for name, number in PLACES:
        signaled, expected = (name, moments.randint(1, 15), number), -KILL if number == KILL else STOPPED
        status = train(folder, signaled=signaled)
        if status == 0:  # the run has come past this place already: another one begins
            assert_as_whole(folder, whole)
            folder = tmp_path / str(next(folders))
            status = train(folder, signaled=signaled)
        assert status == expected, name
    assert train(folder) == 0
    assert_as_whole(folder, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_moment_and_resumed_the_weights_are_the_same(tmp_path, whole):
    moments, killed, runs = random.Random(4), 0, 0
    while killed < ANYWHERE:
        folder, status = tmp_path / str(runs), None
        while status != 0:
            call = moments.randint(1, 1_000_000)
            status = train(folder, signaled=(None, call, moments.choice([KILL, TERM])))
            killed += status != 0
        assert_as_whole(folder, whole)
        runs += 1
