# SPDX-License-Identifier: Apache-2.0
"""The image encoder for CPUs: linear layers in 8 bits, attention and neck in bfloat16 where a processor multiplies it.

Nine tenths of the time of a picture are the encoder's matrix products. What lies between two of them is computed some
rows at a time, so that it stays in the processor's cache.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.sam3.modeling_sam3 import Sam3MLP, Sam3ViTRoPEAttention

ROWS = 576
"""Hidden states that go through a layer at a time, and queries of a head: as many as a window of the encoder holds."""


def processor_has(*features: str) -> bool:
    """Whether PyTorch says that this processor has one of these instructions; False where PyTorch cannot tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(feature, False) for feature in features)


class Int8Linear(nn.Module):
    """A linear layer in 8 bits: weights rounded once for each output, activations in every call.

    Activations take 7 of the 8 bits on processors without VNNI, which overflow otherwise.
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
        self.reduce_range = not processor_has("avx512_vnni", "avx_vnni")
        self.register_buffer("weight", rounded.int_repr())  # (out, in), for fingerprints
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic(hidden_states, self.packed, reduce_range=self.reduce_range)


class PiecewiseMLP(nn.Module):
    """`Sam3MLP`, some rows at a time."""

    def __init__(self, mlp: Sam3MLP):
        super().__init__()
        self.fc1, self.activation_fn, self.fc2 = mlp.fc1, mlp.activation_fn, mlp.fc2

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        found = _in_pieces(lambda rows: self.fc2(self.activation_fn(self.fc1(rows))), hidden_states.flatten(0, -2))
        return found.view(hidden_states.shape)


class PiecewiseAttention(nn.Module):
    """`Sam3ViTRoPEAttention` by plain products in a precision, some rows and then one head at a time."""

    def __init__(self, attention: Sam3ViTRoPEAttention, dtype: torch.dtype):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.o_proj = attention.o_proj
        self.heads, self.scaling, self.dtype = attention.num_attention_heads, attention.scaling, dtype

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """Hidden states (windows, height, width, channels) to the same; the weights of the attention are not kept."""
        windows, height, width, channels = hidden_states.shape
        rows = hidden_states.reshape(-1, channels)
        # An angle belongs to a pair of channels: (rows, 1, head_dim / 2).
        cos, sin = (
            part.reshape(height * width, -1)[:, ::2].repeat(windows, 1)[:, None] for part in position_embeddings
        )
        states = torch.empty(3, len(rows), self.heads, channels // self.heads, dtype=self.dtype)
        for start in range(0, len(rows), ROWS):
            piece = slice(start, start + ROWS)
            query, key, value = (
                layer(rows[piece]).view(-1, *states.shape[2:]) for layer in (self.q_proj, self.k_proj, self.v_proj)
            )
            _rotate(query * self.scaling, cos[piece], sin[piece], states[0, piece])
            _rotate(key, cos[piece], sin[piece], states[1, piece])
            states[2, piece] = value
        attended = torch.empty_like(states[0])
        for window in range(windows):
            piece = slice(window * height * width, (window + 1) * height * width)
            for head in range(self.heads):
                query, key, value = states[:, piece, head].contiguous()
                for part, place in zip(query.split(ROWS), attended[piece, head].split(ROWS), strict=True):
                    place.copy_((part @ key.T).softmax(-1) @ value)
        return _in_pieces(self.o_proj, attended.flatten(1)).view(hidden_states.shape), None


def _in_pieces(layer: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """What a layer that keeps the width of its rows makes of them in float32, some at a time."""
    found = torch.empty(rows.shape)
    for piece, place in zip(rows.split(ROWS), found.split(ROWS), strict=True):
        place.copy_(layer(piece.float()))
    return found


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, place: torch.Tensor) -> None:
    """Rotary positions, written to `place` with the first channels of all pairs before the second ones.

    Queries and keys in the same new order have the same products.
    """
    first, second = states[..., ::2], states[..., 1::2]
    half = first.shape[-1]
    place[..., :half] = first * cos - second * sin
    place[..., half:] = first * sin + second * cos


class BFloat16Layer(nn.Module):
    """A layer that computes in bfloat16 between inputs and outputs in float32."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer.bfloat16()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.layer(hidden_states.bfloat16()).float()


@torch.no_grad()
def make_vision_fast(model: Any) -> None:
    """Run a model's image encoder in lower precision on the CPU and everything else in float32, in place.

    Adapters, text encoder and decoder keep their precision, so that only the image features differ: at the concept
    level, too. The model is for inference then, and no longer for saving. Raises ValueError for a model elsewhere, or
    a PyTorch without 8-bit products for this processor.
    """
    if model.device.type != "cpu":
        raise ValueError(f"Expected a model on the CPU to run fast, found one on {model.device}: leave fast out.")
    engines = torch.backends.quantized.supported_engines
    engine = next((name for name in ("onednn", "qnnpack") if name in engines), None)
    if engine is None:
        raise ValueError("Expected a PyTorch with 8-bit products for this processor, found none: leave fast out.")
    model.float()
    encoder = model.vision_encoder
    precision = torch.bfloat16 if processor_has("avx512_bf16", "amx_bf16") else torch.float32
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    try:
        for name, module in list(encoder.backbone.named_modules()):
            if type(module) is nn.Linear:
                owner = encoder.backbone.get_submodule(name.rpartition(".")[0])
                if not isinstance(owner, nn.ModuleDict):  # of PEFT, whose adapters keep their precision
                    encoder.backbone.set_submodule(name, Int8Linear(module))
    finally:
        torch.backends.quantized.engine = before
    for name, module in list(encoder.backbone.named_modules()):
        if type(module) is Sam3MLP:
            encoder.backbone.set_submodule(name, PiecewiseMLP(module))
        elif type(module) is Sam3ViTRoPEAttention:
            encoder.backbone.set_submodule(name, PiecewiseAttention(module, precision))
    if precision is torch.bfloat16:
        encoder.neck.fpn_layers = nn.ModuleList(BFloat16Layer(layer) for layer in encoder.neck.fpn_layers)
