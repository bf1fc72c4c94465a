# SPDX-License-Identifier: Apache-2.0
"""Two processes on the CPU (gloo) against one with twice the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_module
import torch
import training_fixtures
import yaml
from safetensors.torch import load_file

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "accelerate"


def train(folder, processes: int, **options) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final adapters of a training in processes of its own."""
    options = {"ddp_backend": "gloo", "max_steps": [8, 6, 6]} | options
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *launcher, training_fixtures.__file__, str(folder), json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = json.loads((folder / "losses.json").read_text())
    return [loss for _, _, loss in losses], load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), 1, per_device_train_batch_size=4)


def test_two_processes_at_half_the_batch_have_the_losses_of_one(tmp_path, one_process):
    expected, adapters = one_process
    found, found_adapters = train(tmp_path, 2, per_device_train_batch_size=2)
    assert len(expected) == 20
    assert found == pytest.approx(expected, rel=1e-4)
    for name, tensor in adapters.items():
        torch.testing.assert_close(found_adapters[name], tensor, rtol=1e-2, atol=1e-4)


def test_two_processes_warm_up_the_selector_of_one(tmp_path):
    # Boxes of random weights meet no target at the usual IoU.
    options = {"adapter_design": "selective", "least_iou": 0.0, "selector_steps": 5, "stages": "simple"}
    expected, adapters = train(tmp_path / "one", 1, per_device_train_batch_size=4, **options)
    found, found_adapters = train(tmp_path / "two", 2, per_device_train_batch_size=2, **options)
    assert found == pytest.approx(expected, rel=1e-4)
    name = "base_model.model.dot_product_scoring.level_adapters.sam3i_adapter.simple.logit_proj.weight"
    torch.testing.assert_close(found_adapters[name], adapters[name], rtol=1e-2, atol=1e-4)


def test_two_processes_share_a_feature_cache(tmp_path, one_process):
    cache = tmp_path / "cache"
    found, _ = train(tmp_path, 2, per_device_train_batch_size=2, feature_cache=str(cache))
    assert found == pytest.approx(one_process[0], rel=1e-4)
    assert len(list(cache.rglob("*.safetensors"))) == 6


def test_a_sharded_module_has_the_losses_and_gradients_of_a_whole_one(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, sharded_module.__file__, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["sharded_loss"] == pytest.approx(result["loss"], rel=1e-6)
        assert result["parameters"] > 100 and result["largest_gradient"] > 0.1
        assert result["largest_difference"] < 1e-5 * result["largest_gradient"]


@pytest.mark.parametrize("name", ["cpu", "one_gpu", "ddp", "fsdp"])
def test_accelerate_files_name_only_settings_that_accelerate_knows(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    expected = {"cpu": "MULTI_CPU", "one_gpu": "NO", "ddp": "MULTI_GPU", "fsdp": "FSDP"}[name]
    assert str(config.distributed_type).removeprefix("DistributedType.") == expected
    assert yaml.safe_load(path.read_text())["mixed_precision"] in ("no", "bf16")
