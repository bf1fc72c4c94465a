# SPDX-License-Identifier: Apache-2.0
"""Instruction adapters as files: `adapter_config.json` and `adapter_model.safetensors`, as PEFT lays them out.

What is written here loads into the native model and, through PEFT, into a stock SAM3.
"""

import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Sam3Model
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, logging

from ...compat import mark_adapters_loaded
from .loading import fill_adapters
from .repository import read_adapter_config, read_adapter_tensors, to_file_name

logger = logging.get_logger(__name__)

DEFAULT_ADAPTER_NAME = "instruction"


def save_adapter(
    model: Sam3Model,
    save_directory: str | os.PathLike,
    base_model_name_or_path: str | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the instruction adapters of a native model, without SAM3 itself, as an adapter repository.

    Args:
        model ([`Sam3IForInstructionSegmentation`]): The model.
        save_directory: Folder to write to; made if need be.
        base_model_name_or_path (`str`, *optional*): The repository that holds the weights of SAM3; where the model was
            loaded from, if not given.
        state_dict (`dict[str, torch.Tensor]`, *optional*): The model's weights where they cannot be taken from it, as
            in sharded training.

    Raises:
        TypeError: when `model` is not a native SAM3-I model.
    """
    from ..peft.tuner import InstructionAdapterConfig

    if not hasattr(model, "adapter_parameters"):
        raise TypeError(
            f"Expected a Sam3IForInstructionSegmentation, found {type(model).__name__}. A PEFT model saves its "
            "adapters with `save_pretrained`."
        )
    base = base_model_name_or_path or model.name_or_path or None
    if base is None:
        logger.warning(
            "The adapter names no base model, because the model was not loaded from a repository: whoever loads it "
            "must pass `base_model_name_or_path`."
        )
    config = InstructionAdapterConfig.from_model_config(
        model.config, base_model_name_or_path=None if base is None else str(base), inference_mode=True
    )
    weights = model.state_dict() if state_dict is None else state_dict
    tensors = {to_file_name(name): weights[name].detach().cpu().contiguous() for name in model.adapter_parameters()}
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{ADAPTER_SAFE_WEIGHTS_NAME}.unfinished"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.replace(folder / ADAPTER_SAFE_WEIGHTS_NAME)
    auto_mapping = {"base_model_class": Sam3Model.__name__, "parent_library": Sam3Model.__module__}
    config.save_pretrained(folder, auto_mapping_dict=auto_mapping)


def load_instruction_adapter(
    model: Sam3Model, repo: str | os.PathLike, adapter_name: str = DEFAULT_ADAPTER_NAME, **download
) -> Sam3Model:
    """Load an adapter repository into a model, all of it or nothing.

    Args:
        model: A native SAM3-I model, whose adapters are overwritten, or a stock `Sam3Model`, which gets the adapters
            as a PEFT adapter (`model.set_adapter`, `model.disable_adapters` and `model.delete_adapter` then work).
        repo: Folder or Hub repository.
        adapter_name (`str`): Name of the adapter on a stock model.
        download: `revision`, `token`, `subfolder` and their like.

    Returns:
        The model.

    Raises:
        AdapterFileError: when a file is absent, damaged or of another kind.
        AdapterMismatchError: when tensors or settings are not the model's.
    """
    if hasattr(model, "adapter_parameters"):
        return fill_adapters(model, repo, **download)
    return _load_on_stock(model, repo, adapter_name, download)


def _load_on_stock(model: Sam3Model, repo: str | os.PathLike, adapter_name: str, download: dict) -> Sam3Model:
    from peft import inject_adapter_in_model
    from peft.utils import set_peft_model_state_dict

    from ..peft.tuner import InstructionAdapterConfig

    values = asdict(read_adapter_config(repo, **download))
    tensors = read_adapter_tensors(repo, **download)
    if adapter_name in getattr(model, "peft_config", {}):
        raise ValueError(f"The model already has an adapter named {adapter_name!r}. Choose another `adapter_name`.")
    config = InstructionAdapterConfig(**values | {"inference_mode": True})
    inject_adapter_in_model(config, model, adapter_name)
    mark_adapters_loaded(model)
    set_peft_model_state_dict(model, tensors, adapter_name)  # the tuner checks it, and takes the adapter off again
    return model


__all__ = ["DEFAULT_ADAPTER_NAME", "load_instruction_adapter", "save_adapter"]
