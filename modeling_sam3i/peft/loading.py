# SPDX-License-Identifier: Apache-2.0
"""Loading instruction adapters into any SAM3: natively, or as a PEFT adapter of a stock model."""

import os
from dataclasses import asdict
from typing import Any

from peft import inject_adapter_in_model
from peft.utils import set_peft_model_state_dict
from transformers import Sam3Model

from ...compat import mark_adapters_loaded
from ..adapter_io import fill_adapters, read_adapter_config, read_adapter_tensors
from .tuner import InstructionAdapterConfig

DEFAULT_ADAPTER_NAME = "instruction"


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
    native: Any = model
    if hasattr(model, "adapter_parameters"):  # also that of an exported repository, whose class is its own
        return fill_adapters(native, repo, **download)
    values = asdict(read_adapter_config(repo, **download))
    tensors = read_adapter_tensors(repo, **download)
    if adapter_name in getattr(model, "peft_config", {}):
        raise ValueError(f"The model already has an adapter named {adapter_name!r}. Choose another `adapter_name`.")
    config = InstructionAdapterConfig(**values | {"inference_mode": True})
    inject_adapter_in_model(config, model, adapter_name)
    mark_adapters_loaded(model)
    set_peft_model_state_dict(model, tensors, adapter_name)  # the tuner checks it, and takes the adapter off again
    return model
