# SPDX-License-Identifier: Apache-2.0
"""Whenever a training is killed, it goes on and ends as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import training_fixtures
from safetensors.torch import load_file
from training_fixtures import assert_equal

WITHOUT_HEADS = {"max_steps": [30, 30, 30], "save_strategy": "steps", "save_steps": 1, "dropout": 0.2}
# Selectors, router, evaluations, the best weights, calibration, sealing and rotation: each may be cut off.
WITH_ALL = WITHOUT_HEADS | {
    "max_steps": [6, 6, 6],
    "save_total_limit": 1,
    "adapter_design": "selective",
    "least_iou": 0.0,
    "selector_steps": 20,
    "evaluate": True,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "enable_jit_checkpoint": True,
}


def start(folder: Path, options: dict) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, training_fixtures.__file__, str(folder), json.dumps(options)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, **quiet)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "kills", "longest"), [(WITHOUT_HEADS, 10, 2.0), (WITH_ALL, 30, 4.0)])
def test_killed_at_any_moment_and_resumed_the_weights_are_the_same(tmp_path, options, kills, longest):
    whole = start(tmp_path / "whole", options)
    _, errors = whole.communicate(timeout=600)
    assert whole.returncode == 0, errors.decode()
    moments, done = random.Random(3), 0
    while True:
        process = start(tmp_path / "killed", options)
        mark = tmp_path / "killed" / f"started-{process.pid}"
        if done < kills:
            while process.poll() is None and not mark.exists():
                time.sleep(0.01)
            time.sleep(moments.uniform(0, longest))
            if process.poll() is None:
                os.killpg(process.pid, moments.choice([signal.SIGKILL, signal.SIGTERM]))
                _, errors = process.communicate(timeout=300)
                assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM, 3, 0), errors.decode()
                done += 1
                continue
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()
        break
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("killed", "whole"))
    assert_equal(found, expected)
    settings = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("killed", "whole")]
    assert settings[0] == settings[1]  # the calibration among them
