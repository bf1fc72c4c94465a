# SPDX-License-Identifier: Apache-2.0
"""Loading instruction adapters into the native model, all of them or none, and with the base model that they name."""

import os

import torch
from transformers import Sam3Model
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ...compat import attention_of
from ..configuration_sam3i import Sam3IConfig
from .repository import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterSource,
    BaseModelNotFoundError,
    read_adapter_config,
    read_adapter_tensors,
    to_file_name,
)

# Dropout changes nothing that a trained adapter computes, so it may differ between model and file.
FREE_SETTINGS = ("adapter_dropout",)


def fill_adapters(model: Sam3Model, repo: str | os.PathLike, **download) -> Sam3Model:
    """Overwrite the adapters of a native model with those of a repository.

    Args:
        model: A native SAM3-I model.
        repo: Folder or Hub repository.
        download: `revision`, `token`, `subfolder` and their like.

    Returns:
        The model.

    Raises:
        AdapterFileError: when a file is absent, damaged or of another kind.
        AdapterMismatchError: when tensors or settings are not the model's.
    """
    description = read_adapter_config(repo, **download)
    tensors = read_adapter_tensors(repo, **download)
    differing = [
        f"{name} is {value!r} there and {getattr(model.config, name)!r} here"
        for name, value in description.settings().items()
        if value != getattr(model.config, name) and name not in FREE_SETTINGS
    ]
    if differing:
        raise AdapterMismatchError(
            f"The adapter of {repo} was trained with other settings than the model's: {'; '.join(differing)}. Load "
            f"both together with `{type(model).__name__}.from_pretrained({str(repo)!r})`."
        )
    parameters = {to_file_name(name): parameter for name, parameter in model.adapter_parameters().items()}
    AdapterMismatchError.check(tensors, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return model


def load_with_base(
    model_class: type[Sam3Model], source: AdapterSource, base: str | None, *args, **kwargs
) -> tuple[Sam3Model, dict]:
    """Load the base model that an adapter repository names, with the settings of the adapter, and the adapter.

    Args:
        model_class: The native model.
        source: Where the adapter is.
        base (`str`, *optional*): Base model instead of the one that the repository names.
        kwargs: Arguments of `from_pretrained`.

    Returns:
        The model, which keeps where its adapters are from as `adapter_source`, and the report on the weights of its
        base.

    Raises:
        AdapterFileError: when the repository cannot be read.
        BaseModelNotFoundError: when the base model cannot be found.
    """
    repo = source.repo
    if os.path.isfile(os.path.join(repo, CONFIG_NAME)):
        raise AdapterFileError(
            f"{repo} holds a whole model (`{CONFIG_NAME}`) and an instruction adapter (`{ADAPTER_CONFIG_NAME}`), "
            "which would overwrite that model's own adapters. Keep them in two folders."
        )
    adapter = read_adapter_config(repo, **source.download)
    base = base or adapter.base_model_name_or_path
    if not base:
        raise BaseModelNotFoundError(
            f"The adapter in {repo} names no base model. Pass `base_model_name_or_path` with a repository of SAM3."
        )
    for name in ("adapter_kwargs", "subfolder"):
        kwargs.pop(name, None)
    if source.base_in_use is None:
        kwargs["revision"] = adapter.revision  # the one in `kwargs` is the adapter repository's
    config = kwargs.get("config")
    if config is None:
        kwargs = adapter.settings() | kwargs
    else:
        values = Sam3IConfig.lift_detector_config(config.to_dict()) | adapter.settings()
        kwargs["config"] = Sam3IConfig.from_dict(values, attn_implementation=attention_of(config))
    try:
        model, info = model_class._load(base, *args, **kwargs)
    except OSError as error:
        raise BaseModelNotFoundError(
            f"The adapter in {repo} works on {base}, which cannot be loaded: {error}\nIf it is gated, ask for access "
            "and log in; if it lies elsewhere, pass `base_model_name_or_path`."
        ) from error
    model.adapter_source = source
    return fill_adapters(model, repo, **source.download), info


__all__ = ["fill_adapters", "load_with_base"]
