# SPDX-License-Identifier: Apache-2.0
"""The pipeline behind the demo and other tools, loaded from a name that a person typed."""

from pathlib import Path

import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..processing.pipeline.pipeline_sam3i import InstructionSegmentationPipeline


def check_model_name(name: str) -> None:
    """Raise `FileNotFoundError` for a name that is neither a folder nor fit for the Hub."""
    try:
        if not Path(name).is_dir():
            validate_repo_id(name)
    except HFValidationError as error:
        raise FileNotFoundError(f"expected a folder or a name on the Hub, found no folder {name}") from error


def load_pipeline(name: str, device: str | None = None) -> InstructionSegmentationPipeline:
    """Load a model with its processor.

    Args:
        name (`str`): SAM3-I or stock SAM3, a folder or a Hub name.
        device (`str`, *optional*): Where it runs; the first accelerator if not given.

    Raises:
        OSError, TypeError, ValueError: when there is no such model, or it is of another family; the message says.
    """
    from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ..processing.processing_sam3i import Sam3IProcessor

    if device is not None:
        try:
            torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"Expected `device` as cpu, cuda, mps or their like, found {device!r}.") from error
    check_model_name(name)
    model = Sam3IForInstructionSegmentation.from_pretrained(name).eval()
    processor = Sam3IProcessor.from_pretrained(name)
    return InstructionSegmentationPipeline(model=model, processor=processor, device=device)


__all__ = ["check_model_name", "load_pipeline"]
