# SPDX-License-Identifier: Apache-2.0
"""The image encoder in 8 bits, for CPUs: nine tenths of the time of a picture are its matrix products."""

import warnings
from typing import Any

import torch
from torch import nn


class Int8Linear(nn.Module):
    """A linear layer in 8 bits: weights rounded once for each output, activations in every call.

    Activations take 7 of the 8 bits, as processors without VNNI overflow otherwise; results are so the same on all.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127  # (out,)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch names a successor whose products are slower than float32 on CPUs
            places = torch.zeros(len(scale), dtype=torch.long)
            rounded = torch.quantize_per_channel(weight, scale, places, axis=0, dtype=torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(rounded, linear.bias)
        self.register_buffer("weight", rounded.int_repr())  # (out, in), for fingerprints
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic(hidden_states, self.packed, reduce_range=True)


@torch.no_grad()
def quantize_vision(model: Any) -> None:
    """Run the linear layers of a model's image encoder in 8 bits and everything else in float32, in place.

    Adapters, text encoder and decoder keep their precision, so that only the image features differ: at the concept
    level, too. The model is for inference then, and no longer for saving. Raises ValueError for a model elsewhere, or
    a PyTorch without 8-bit products for this processor.
    """
    if model.device.type != "cpu":
        raise ValueError(
            f"Expected a model on the CPU to run fast in 8 bits, found one on {model.device}: leave fast out."
        )
    engines = torch.backends.quantized.supported_engines
    engine = next((name for name in ("onednn", "qnnpack") if name in engines), None)
    if engine is None:
        raise ValueError("Expected a PyTorch with 8-bit products for this processor, found none: leave fast out.")
    model.float()
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    try:
        for name, module in list(model.vision_encoder.backbone.named_modules()):
            if type(module) is nn.Linear:
                model.vision_encoder.backbone.set_submodule(name, Int8Linear(module))
    finally:
        torch.backends.quantized.engine = before
