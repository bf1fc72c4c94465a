# SPDX-License-Identifier: Apache-2.0
"""The image encoder in 8 bits, for CPUs: nine tenths of the time of a picture are its matrix products."""

import warnings

import torch
from torch import nn


def quantize_vision(model: nn.Module) -> None:
    """Run the linear layers of a model's image encoder in 8 bits, in place; everything else stays as it is.

    Weights are rounded per output channel once, activations per call (dynamic quantization). Adapters, text encoder
    and decoder keep their precision, so that only the image features differ. The model can no longer be saved or
    trained.

    Args:
        model: A [`Sam3IForInstructionSegmentation`] in float32 on the CPU, for inference.

    Raises:
        ValueError: for a model in another precision or place, or a PyTorch without 8-bit products for this processor.
    """
    found = {f"{parameter.dtype} on {parameter.device.type}" for parameter in model.vision_encoder.parameters()}
    if found != {"torch.float32 on cpu"}:
        raise ValueError(
            f"Expected a model in float32 on the CPU to run fast in 8 bits, found {', '.join(sorted(found))}."
        )
    engines = torch.backends.quantized.supported_engines
    if not {"onednn", "qnnpack"} & set(engines):
        raise ValueError(
            f"Expected a PyTorch with 8-bit products (onednn or qnnpack) for this processor, found {engines}."
        )
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn" if "onednn" in engines else "qnnpack"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it names torchao as its successor, whose products are far slower on CPUs
            torch.ao.quantization.quantize_dynamic(
                model.vision_encoder.backbone,
                {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig},
                dtype=torch.qint8,
                inplace=True,
            )
    finally:
        torch.backends.quantized.engine = before


__all__ = ["quantize_vision"]
