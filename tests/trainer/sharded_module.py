# SPDX-License-Identifier: Apache-2.0
"""In several processes on the CPU: a joint step whole and sharded by FSDP2, and whole stages of the trainer."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard
from training_fixtures import tiny_dataset, tiny_model, tiny_processor, tiny_trainer

from sam3i import Sam3ITrainer
from sam3i.trainer.collator import InstructionCollator
from sam3i.trainer.curriculum import TrainingStage, freeze_for_stage
from sam3i.trainer.stage.module import StageModule

CONFIG = Path(__file__).resolve().parents[2] / "examples" / "accelerate" / "fsdp.yaml"


def train(folder: str, sharded: bool) -> None:
    """Train a stage with a checkpoint, and write adapters and losses."""
    if sharded:
        make_accelerator = Sam3ITrainer.create_accelerator_and_postprocess

        def on_the_cpu(trainer: Sam3ITrainer) -> None:
            """Accelerate never asks for shards on CPUs; what it does with them does not depend on the device."""
            make_accelerator(trainer)
            settings = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
            trainer.accelerator.state.distributed_type = DistributedType.FSDP
            trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=settings["fsdp_version"],
                auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
                transformer_cls_names_to_wrap=settings["fsdp_transformer_layer_cls_to_wrap"].split(","),
                state_dict_type=settings["fsdp_state_dict_type"],
                reshard_after_forward=settings["fsdp_reshard_after_forward"],
            )
            trainer.is_fsdp_enabled = True
            gather = trainer.accelerator.get_state_dict

            def gathered(*args, **kwargs):
                """What is gathered on a CPU arrives later; a copy from a GPU would have waited for it."""
                tensors = gather(*args, **kwargs).items()
                return {name: tensor.wait() if hasattr(tensor, "wait") else tensor for name, tensor in tensors}

            trainer.accelerator.get_state_dict = gathered

        Sam3ITrainer.create_accelerator_and_postprocess = on_the_cpu
    saving = {"save_strategy": "steps", "save_steps": 2, "ddp_backend": "gloo"}
    trainer = tiny_trainer(folder, stages="simple", max_steps=3, per_device_train_batch_size=2, **saving)
    trainer.train()
    kinds = {type(parameter).__name__ for parameter in trainer.instruction_model.parameters()}
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = {"losses": losses, "sharded": "DTensor" in kinds}
    Path(folder, f"{trainer.args.process_index}.json").write_text(json.dumps(found))


def compare(folder: str) -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (processes,))
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.adapter_parameters().values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    freeze_for_stage(model, TrainingStage.JOINT)
    torch.manual_seed(3)
    stage_module = StageModule(model, TrainingStage.JOINT).train()
    dataset = tiny_dataset()
    rows = [dataset[index] for index in range(rank * 4, rank * 4 + 4)]
    batch = InstructionCollator(tiny_processor(), "joint")(rows)

    loss = stage_module(**batch)["loss"]
    loss.backward()
    expected = {}
    for name, parameter in stage_module.named_parameters():
        if parameter.requires_grad:
            expected[name] = parameter.grad.clone()
            dist.all_reduce(expected[name])
    stage_module.zero_grad()

    layers = yaml.safe_load(CONFIG.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    for module in stage_module.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(stage_module, mesh=mesh)
    sharded_loss = stage_module(**batch)["loss"]
    sharded_loss.backward()
    found = {name: p.grad.full_tensor() for name, p in stage_module.named_parameters() if p.requires_grad}
    result = {
        "loss": loss.item(),
        "sharded_loss": sharded_loss.item(),
        "parameters": len(found),
        "largest_gradient": max(tensor.abs().max().item() for tensor in expected.values()) / processes,
        "largest_difference": max((found[n] - expected[n] / processes).abs().max().item() for n in expected),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()
