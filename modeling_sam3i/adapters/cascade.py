# SPDX-License-Identifier: Apache-2.0
"""The paper's S-Adapter / C-Adapter cascade, and which modules each site of SAM3 holds in either design.

SAM3-I (arXiv 2512.04585), method: bottleneck adapters on the residual stream. A *simple* instruction passes the
S-Adapter. A *complex* one passes a copy of the S-Adapter and then the C-Adapter. A *concept* passes neither.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, Sam3Model

from ...compat import (
    CLIPEncoderLayer,
    CLIPTextModelWithProjection,
    Sam3DetrDecoderLayer,
    Sam3DetrEncoderLayer,
    Sam3DotProductScoring,
    Sam3LiteTextTextEncoderLayer,
    Sam3LiteTextTextModel,
    Sam3MaskEmbedder,
    init,
    is_offloaded,
    text_layers,
)
from ..configuration_sam3i import AdapterSettings, InstructionLevel
from .base import AdapterLinear, LevelModules, has_selector, init_linear, init_norm
from .low_rank import LowRankLevels
from .router import LevelRouter
from .routing import LevelRouting
from .selector import InstanceSelector


def _zero(*linears: nn.Linear) -> None:
    for linear in linears:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


class TextAdapter(nn.Module):
    """Self-attention and a bottleneck, both with their own residual, over the tokens of an instruction.

    `u = h + Attention(LN(h))`, `A(h) = u + Up(GELU(Down(LN(u))))`. The attention sees all positions, later ones
    included. Source: SAM3-I (arXiv 2512.04585), text encoder adapter.
    """

    def __init__(self, hidden_size: int, settings: AdapterSettings):
        super().__init__()
        self.num_heads = settings.adapter_heads
        self.dropout = settings.adapter_dropout
        self.attention_norm = nn.LayerNorm(hidden_size, eps=1e-5)
        self.qkv_proj = AdapterLinear(hidden_size, 3 * hidden_size)
        self.attn_proj = AdapterLinear(hidden_size, hidden_size)
        self.bottleneck_norm = nn.LayerNorm(hidden_size, eps=1e-5)
        self.down_proj = AdapterLinear(hidden_size, settings.adapter_dim)
        self.up_proj = AdapterLinear(settings.adapter_dim, hidden_size)

    def init_weights(self) -> None:
        """Start as the identity: only the two output projections are zero, so gradients reach every weight."""
        init_norm(self.attention_norm)
        init_linear(self.qkv_proj)
        init_linear(self.attn_proj, zero=True)
        init_norm(self.bottleneck_norm)
        init_linear(self.down_proj)
        init_linear(self.up_proj, zero=True)

    def neutralize(self) -> None:
        """Become the identity again, whatever was learned."""
        _zero(self.attn_proj, self.up_proj)

    def forward(self, hidden_states: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(rows, tokens, hidden_size)`): Residual stream.
            padding_mask (`torch.BoolTensor` of shape `(rows, tokens)`, *optional*): `True` for tokens to attend to.

        Returns:
            `torch.Tensor` of shape `(rows, tokens, hidden_size)`.
        """
        rows, tokens, width = hidden_states.shape
        qkv = self.qkv_proj(self.attention_norm(hidden_states))
        qkv = qkv.view(rows, tokens, 3, self.num_heads, width // self.num_heads)  # rows may be 0, so no -1
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (rows, heads, tokens, head_dim)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if padding_mask is None else padding_mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        hidden_states = hidden_states + self.attn_proj(attended.transpose(1, 2).reshape(rows, tokens, width))
        return hidden_states + self.up_proj(F.gelu(self.down_proj(self.bottleneck_norm(hidden_states))))


class BottleneckAdapter(nn.Module):
    """A bottleneck with a normalized middle: `Up(GELU(LN(Down(x))))`, plus `x` when `skip` is set.

    Source: SAM3-I (arXiv 2512.04585), adapters of the DETR encoder and decoder.
    """

    def __init__(self, hidden_size: int, settings: AdapterSettings, skip: bool = False):
        super().__init__()
        self.skip = skip
        self.down_proj = AdapterLinear(hidden_size, settings.adapter_dim)
        self.norm = nn.LayerNorm(settings.adapter_dim, eps=1e-5)
        self.up_proj = AdapterLinear(settings.adapter_dim, hidden_size)

    def init_weights(self) -> None:
        """Start at zero (at the identity with `skip`)."""
        init_linear(self.down_proj)
        init_norm(self.norm)
        init_linear(self.up_proj, zero=True)

    def neutralize(self) -> None:
        """Become zero (the identity with `skip`) again, whatever was learned."""
        _zero(self.up_proj)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., hidden_size)` to `(..., hidden_size)`."""
        update = self.up_proj(F.gelu(self.norm(self.down_proj(hidden_states))))
        return hidden_states + update if self.skip else update


class AdapterCascade(LevelModules):
    """The three adapters of one site and the path each level takes through them.

    With `scale=None` the adapters contain their residuals (text encoder): simple `S(h)`, complex `C(S'(h))`.
    Otherwise their output is an update (DETR): simple `x + scale S(x)`, complex `x + scale C(S'(x))`.
    """

    def __init__(
        self,
        s_adapter: TextAdapter | BottleneckAdapter,
        cascade_s_adapter: TextAdapter | BottleneckAdapter,
        c_adapter: TextAdapter | BottleneckAdapter,
        scale: float | None,
    ):
        super().__init__()
        self.s_adapter = s_adapter
        self.cascade_s_adapter = cascade_s_adapter
        self.c_adapter = c_adapter
        self.scale = scale
        self.init_weights()

    def init_weights(self) -> None:
        for adapter in (self.s_adapter, self.cascade_s_adapter, self.c_adapter):
            adapter.init_weights()

    def start_complex_from_simple(self) -> None:
        """Hand-over to stage 2: the complex path becomes the simple path, and the C-Adapter starts neutral."""
        self.cascade_s_adapter.load_state_dict(self.s_adapter.state_dict())
        self.c_adapter.neutralize()

    def _residual(self, hidden_states: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        return update if self.scale is None else hidden_states + self.scale * update

    def _simple(self, hidden_states: torch.Tensor, *context: torch.Tensor | None) -> torch.Tensor:
        return self._residual(hidden_states, self.s_adapter(hidden_states, *context))

    def _complex(self, hidden_states: torch.Tensor, *context: torch.Tensor | None) -> torch.Tensor:
        update = self.c_adapter(self.cascade_s_adapter(hidden_states, *context), *context)
        return self._residual(hidden_states, update)

    def forward(
        self, hidden_states: torch.Tensor, routing: LevelRouting, *context: torch.Tensor | None
    ) -> torch.Tensor:
        """`(rows, tokens, hidden_size)` to the same shape, each row along the path of its level."""
        branches = {
            InstructionLevel.SIMPLE: (self.s_adapter, self._simple),
            InstructionLevel.COMPLEX: (self.c_adapter, self._complex),
        }
        return routing.apply(hidden_states, branches, *context)


class MaskEmbedderLevels(LevelModules):
    """One mask embedder per adapted level; each starts as a copy of the stock one and replaces it for its rows."""

    def __init__(self, stock: Sam3MaskEmbedder):
        super().__init__()
        self.simple = Sam3MaskEmbedder(stock.config)
        self.complex = Sam3MaskEmbedder(stock.config)
        self.copy_weights(stock)

    @torch.no_grad()
    def copy_weights(self, stock: Sam3MaskEmbedder) -> None:
        """Copy what the stock embedder computes wherever no weights were loaded."""
        for level in (self.simple, self.complex):
            for copied, source in zip(level.layers, stock.layers, strict=True):
                for name, tensor in zip(("weight", "bias"), dense_weights(source), strict=True):
                    init.copy_(copied.get_parameter(name), tensor)

    def start_complex_from_simple(self) -> None:
        """Hand-over to stage 2: complex instructions start with the simple level's mask embedder."""
        self.complex.load_state_dict(self.simple.state_dict())

    def forward(self, queries: torch.Tensor, routing: LevelRouting, concept) -> torch.Tensor:
        """`(rows, queries, hidden_size)` to mask embeddings of the same shape; `concept` is the stock embedder."""
        branches = {
            InstructionLevel.SIMPLE: (self.simple, self.simple),
            InstructionLevel.COMPLEX: (self.complex, self.complex),
        }
        return routing.apply(queries, branches, concept=concept)


def dense_weights(linear: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a linear layer; of a quantized one, whose weight has another form, what it computes.

    Raises:
        ValueError: when Accelerate keeps it on the disk.
    """
    if is_offloaded(linear):
        raise ValueError(
            "Expected the mask embedder of SAM3, of which adapters start as copies, in memory, found it on the disk "
            "(`device_map`). Place `mask_decoder` on a device."
        )
    if type(getattr(linear, "weight", None)) is nn.Parameter:
        return linear.weight, linear.bias
    bias = linear(torch.zeros(1, linear.in_features))[0]
    return (linear(torch.eye(linear.in_features)) - bias).T, bias


TEXT_LAYERS = (CLIPEncoderLayer, Sam3LiteTextTextEncoderLayer)
LAYERS = (*TEXT_LAYERS, Sam3DetrEncoderLayer, Sam3DetrDecoderLayer)


def build_adapter(site: nn.Module, settings: AdapterSettings, text_width: int) -> LevelModules:
    """The level modules for one stock module of SAM3.

    Raises:
        TypeError: when `site` is none of the kinds of module that SAM3-I adapts.
    """
    if isinstance(site, CLIPTextModelWithProjection | Sam3LiteTextTextModel):
        return LevelRouter(site.config.hidden_size, settings.router_dim)
    if isinstance(site, Sam3DotProductScoring):
        return InstanceSelector(site.query_proj.in_features, text_width, settings)
    if isinstance(site, Sam3MaskEmbedder):
        return MaskEmbedderLevels(site)
    if settings.adapter_design == "selective" and isinstance(site, LAYERS):
        return LowRankLevels(site, settings)
    if isinstance(site, TEXT_LAYERS):
        first, second, third = (TextAdapter(text_width, settings) for _ in range(3))
        return AdapterCascade(first, second, third, scale=None)
    if isinstance(site, Sam3DetrEncoderLayer | Sam3DetrDecoderLayer):
        width = site.config.hidden_size
        skip = isinstance(site, Sam3DetrEncoderLayer) or settings.decoder_c_adapter_skip
        return AdapterCascade(
            BottleneckAdapter(width, settings),
            BottleneckAdapter(width, settings),
            BottleneckAdapter(width, settings, skip=skip),
            scale=settings.adapter_scale,
        )
    raise TypeError(
        "Expected a text encoder or a layer of it, a DETR encoder or decoder layer, a mask embedder or the scoring of "
        f"SAM3, found {type(site).__name__}."
    )


def adapter_sites(
    model: Sam3Model, settings: AdapterSettings | PreTrainedConfig | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """The names and modules of a stock SAM3 detector (or of ours) that hold instruction adapters, in order."""
    settings = settings or model.config
    for prefix in (f"text_encoder.{text_layers(model.text_encoder)}", "detr_encoder.layers", "detr_decoder.layers"):
        for index, module in model.get_submodule(prefix).named_children():
            if isinstance(module, LAYERS):  # the convolutions of SAM3-LiteText have no adapters
                yield f"{prefix}.{index}", module
    yield "mask_decoder.mask_embedder", model.mask_decoder.mask_embedder
    # A stock model's configuration says nothing about adapters.
    if getattr(settings, "router_dim", 0):
        yield "text_encoder", model.text_encoder
    if has_selector(settings):
        yield "dot_product_scoring", model.dot_product_scoring
