# SPDX-License-Identifier: Apache-2.0
"""The pipeline of a model that a person named: for the command line, the data engine, the demo and other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .pipeline_sam3i import InstructionSegmentationPipeline


def check_model_name(name: str) -> None:
    """Raise `FileNotFoundError` for a name that is neither a folder nor fit for the Hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        if not Path(name).is_dir():
            validate_repo_id(name)
    except HFValidationError as error:
        raise FileNotFoundError(f"expected a folder or a name on the Hub, found no folder {name}") from error


def precision_on(device: torch.device) -> torch.dtype | str:
    """In what a model runs on a device: on a CPU in float32, as half precision is many times slower there."""
    import torch

    return torch.float32 if device.type == "cpu" else "auto"


def load_pipeline(name: str | Path, device: str | None = None, fast: bool = False) -> InstructionSegmentationPipeline:
    """Load a model with its processor, in the precision of [`precision_on`].

    Args:
        device (`str`, *optional*): Where it runs; the first accelerator if not given.

    Raises:
        OSError, TypeError, ValueError: when there is no such model, or it is of another family; the message says.
    """
    import torch

    from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ..processing_sam3i import Sam3IProcessor
    from .pipeline_sam3i import InstructionSegmentationPipeline

    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            first = str(error).splitlines()[0]
            raise ValueError(f"Expected a `device` of this machine, found {device!r}: {first}") from error
    name = str(name)
    check_model_name(name)
    on_first_accelerator = device is None and torch.accelerator.is_available()
    dtype = "auto" if on_first_accelerator else precision_on(torch.device(device or "cpu"))
    model = Sam3IForInstructionSegmentation.from_pretrained(name, dtype=dtype).eval()
    processor = Sam3IProcessor.from_pretrained(name)
    return InstructionSegmentationPipeline(model=model, processor=processor, device=device, fast=fast)
