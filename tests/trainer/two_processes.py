# SPDX-License-Identifier: Apache-2.0
"""Gradients of PEFT adapters: of eight rows, and of parts of them in processes, as DDP averages them."""

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from training_fixtures import tiny_config, tiny_dataset, tiny_processor
from transformers import Sam3Config, Sam3Model

from sam3i import InstructionAdapterConfig, InstructionCollator, Sam3IForInstructionSegmentation

KINDS = ("instruction", "lora")
ROWS_OF_PROCESSES = (range(3), range(3, 8))


def tuned_model(kind: str) -> torch.nn.Module:
    """Adapters in training that are no longer the identity, the same in every process; without dropout."""
    torch.manual_seed(0)
    config = tiny_config(adapter_design="selective" if kind == "instruction" else "cascade")
    if kind == "lora":
        options = LoraConfig(target_modules=["q_proj", "v_proj", "fc1"], r=2)
        model = get_peft_model(Sam3IForInstructionSegmentation(config), options)
    else:
        stock = Sam3Model(Sam3Config.from_dict(config.to_dict() | {"model_type": "sam3"}))
        model = get_peft_model(stock, InstructionAdapterConfig.from_model_config(config), adapter_name="instruction")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape) * 0.05)
    return model.train()


def loss_and_gradients(kind: str, indices: range, parallel: bool = False) -> dict[str, torch.Tensor]:
    model, dataset = tuned_model(kind), tiny_dataset()
    batch = InstructionCollator(tiny_processor(), "complex")([dataset[index] for index in indices])
    batch["instruction_levels"] = torch.tensor([1 + index % 2 for index in indices])
    module = DistributedDataParallel(model, find_unused_parameters=True) if parallel else model
    loss = module(**batch).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def write_gradients(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {kind: loss_and_gradients(kind, ROWS_OF_PROCESSES[rank], parallel=True) for kind in KINDS}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
