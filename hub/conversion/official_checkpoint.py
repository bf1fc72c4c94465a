# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoint files of the authors and of Meta without running code from them."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .official_keys import NESTED_STATE


class CheckpointConversionError(ValueError):
    """A checkpoint that cannot be converted completely; nothing was written.

    Args:
        problems (`dict[str, list[str]]`, *optional*): Kind of problem to the names concerned.
    """

    shown = 8

    def __init__(self, message: str, problems: dict[str, list[str]] | None = None):
        self.problems = problems or {}
        lines = [message]
        for kind, names in self.problems.items():
            lines.append(f"{kind} ({len(names)}):")
            lines.extend(f"  {name}" for name in names[: self.shown])
            if len(names) > self.shown:
                lines.append(f"  and {len(names) - self.shown} more")
        super().__init__("\n".join(lines))


def read_official_checkpoint(checkpoint: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint without running code from it; tensors stay on disk until they are used.

    Returns:
        The weights by official name, and whatever lies beside them.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointConversionError: when it is damaged, holds Python objects, or is no dictionary of weights.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint file (.pt or .safetensors), found no file at {str(path)!r}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path), {}
    if not zipfile.is_zipfile(path):
        raise CheckpointConversionError(
            f"{path.name} is not a complete PyTorch checkpoint: truncated, or another kind of file. Download it again."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise CheckpointConversionError(
            f"{path.name} holds Python objects beside tensors, which can run code when loaded, and was refused. "
            "Save its state dict alone with `torch.save`."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointConversionError(f"{path.name} is damaged: {error}. Download it again.") from error
    if not isinstance(content, Mapping):
        raise CheckpointConversionError(f"Expected a dictionary in {path.name}, found {type(content).__name__}.")
    beside = {}
    if isinstance(content.get(NESTED_STATE), Mapping):
        beside = {name: value for name, value in content.items() if name != NESTED_STATE}
        content = content[NESTED_STATE]
    if not content:
        raise CheckpointConversionError(f"Expected weights in {path.name}, found none.")
    return dict(content), beside


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Weights by official name; the file is flat, so a nested state shows in the names."""
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise CheckpointConversionError(f"{path.name} is damaged or cut off ({error}). Download it again.") from error
    if not weights:
        raise CheckpointConversionError(f"Expected weights in {path.name}, found none.")
    nested = f"{NESTED_STATE}."
    if all(name.startswith(nested) for name in weights):
        return {name.removeprefix(nested): tensor for name, tensor in weights.items()}
    return weights
