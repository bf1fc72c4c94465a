# SPDX-License-Identifier: Apache-2.0
"""Two processes on the CPU (gloo) against one with twice the batch."""

import json
from pathlib import Path

import pytest
import sharded_module
import torch
import two_processes
import yaml
from safetensors.torch import load_file
from training_fixtures import (
    Group,
    assert_equal,
    finish,
    free_port,
    run_training,
    start,
    tiny_model,
)

from sam3i import load_instruction_adapter
from sam3i.trainer.checkpoints import read_checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "accelerate"


def launch(folder, processes: int, target, *args) -> None:
    """Run a function in processes that form a group, until all have ended well."""
    port = free_port()
    started = [start(folder, target, *args, group=Group(rank, processes, port)) for rank in range(processes)]
    assert [finish(process, folder, rank) for rank, process in enumerate(started)] == [0] * processes


def train(folder, processes: int, **options) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final adapters of a training in processes of its own."""
    launch(folder, processes, run_training, str(folder), {"max_steps": [3, 2, 3]} | OPTIONS | options)
    losses = json.loads((folder / "losses.json").read_text())
    return [loss for _, _, loss in losses], load_file(folder / "adapter_model.safetensors")


# Boxes of random weights meet no target at the usual IoU, from which the selector could learn.
OPTIONS = {"ddp_backend": "gloo", "adapter_design": "selective", "least_iou": 0.0, "selector_steps": 5}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), 1, per_device_train_batch_size=4)


@pytest.mark.parametrize("cached", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_processes_at_half_the_batch_learn_what_one_learns(tmp_path, one_process, cached):
    expected, adapters = one_process
    cache = {"feature_cache": str(tmp_path / "cache")} if cached else {}
    found, found_adapters = train(tmp_path, 2, per_device_train_batch_size=2, **cache)
    assert len(expected) == 8
    assert found == pytest.approx(expected, rel=1e-4)
    for name, tensor in adapters.items():
        torch.testing.assert_close(found_adapters[name], tensor, rtol=1e-2, atol=1e-4, msg=name)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 6 * cached


@pytest.mark.slow
def test_two_processes_with_replay_learn_what_one_learns(tmp_path):
    expected, adapters = train(tmp_path / "one", 1, per_device_train_batch_size=4, replay=True)
    found, found_adapters = train(tmp_path / "two", 2, per_device_train_batch_size=2, replay=True)
    assert found == pytest.approx(expected, rel=1e-4)
    for name, tensor in adapters.items():
        torch.testing.assert_close(found_adapters[name], tensor, rtol=1e-2, atol=1e-4, msg=name)


def test_peft_adapters_in_two_processes_have_the_gradients_of_the_whole_batch(tmp_path):
    launch(tmp_path, 2, two_processes.write_gradients, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind in two_processes.KINDS:
        expected = two_processes.loss_and_gradients(kind, range(8))
        losses = [result[kind].pop("loss") for result in found]
        torch.testing.assert_close(sum(losses) / 2, expected.pop("loss"))
        largest = max(gradient.abs().max().item() for gradient in expected.values())
        assert len(expected) > 50 and largest > 0.1
        for name, gradient in expected.items():
            for result in found:
                torch.testing.assert_close(result[kind][name], gradient, rtol=0, atol=1e-5 * largest, msg=name)


def test_a_sharded_module_has_the_losses_and_gradients_of_a_whole_one(tmp_path):
    launch(tmp_path, 2, sharded_module.compare, str(tmp_path))
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["sharded_loss"] == pytest.approx(result["loss"], rel=1e-6)
        assert result["parameters"] > 100 and result["largest_gradient"] > 0.1
        assert result["largest_difference"] < 1e-5 * result["largest_gradient"]


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="two steps run; what is gathered from shards on CPUs cannot be written")
def test_a_stage_of_sharded_weights_ends_as_one_of_whole_copies_and_its_result_loads(tmp_path):
    for name, sharded in (("whole", False), ("sharded", True)):
        launch(tmp_path / name, 2, sharded_module.train, str(tmp_path / name), sharded)
    found = {name: json.loads((tmp_path / name / "0.json").read_text()) for name in ("whole", "sharded")}
    assert [found[name]["sharded"] for name in found] == [False, True]
    assert found["sharded"]["losses"] == pytest.approx(found["whole"]["losses"], rel=1e-5)
    folder = tmp_path / "sharded"
    adapters = load_file(folder / "adapter_model.safetensors")
    for name, tensor in load_file(tmp_path / "whole" / "adapter_model.safetensors").items():
        torch.testing.assert_close(adapters[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    loaded = load_instruction_adapter(tiny_model(), folder)
    assert_equal({name: loaded.get_parameter(name).detach() for name in adapters}, adapters)
    assert read_checkpoint(folder / "stage-1-simple" / "checkpoint-2") is not None


@pytest.mark.parametrize("name", ["cpu", "one_gpu", "ddp", "fsdp"])
def test_accelerate_files_name_only_settings_that_accelerate_knows(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    expected = {"cpu": "MULTI_CPU", "one_gpu": "NO", "ddp": "MULTI_GPU", "fsdp": "FSDP"}[name]
    assert str(config.distributed_type).removeprefix("DistributedType.") == expected
    assert yaml.safe_load(path.read_text())["mixed_precision"] in ("no", "bf16")
