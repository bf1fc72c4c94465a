# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates of SAM3's projections, one set per instruction level.

Every projection of the attention and MLP blocks of an adapted layer, `y = W x + b`, becomes `y + scale * Up(Down(x))`
for the rows of a level, with weights of that level. Rows at the concept level get nothing added and keep their bits.
The rank-r update follows LoRA (Hu et al. 2021, arXiv 2106.09685); routing it by instruction level is our own.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from ...compat import (
    CLIPMLP,
    CLIPAttention,
    Sam3Attention,
    Sam3LiteTextTextAttention,
    Sam3LiteTextTextMLP,
    Sam3MLP,
    clip_attention,
    sam3_attention,
)
from ..configuration_sam3i import AdapterSettings, InstructionLevel
from .base import AdapterLinear, LevelModules, init_linear
from .routing import LevelRouting, precision_of

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "fc1", "fc2")


class LowRankUpdate(nn.Module):
    """`Up(Down(x))` through a space of `rank` dimensions, zero at the start."""

    def __init__(self, linear: Any, rank: int):
        super().__init__()
        self.down_proj = AdapterLinear(linear.in_features, rank, bias=False)
        self.up_proj = AdapterLinear(rank, linear.out_features, bias=False)

    def init_weights(self) -> None:
        init_linear(self.down_proj)
        init_linear(self.up_proj, zero=True)

    @torch.no_grad()
    def start_from(self, other: "LowRankUpdate") -> None:
        """Compute what `other`, of lower rank, computes; the further directions add nothing yet."""
        rank = other.down_proj.out_features
        self.up_proj.weight.zero_()
        self.down_proj.weight[:rank].copy_(other.down_proj.weight)
        self.up_proj.weight[:, :rank].copy_(other.up_proj.weight)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`(..., in_features)` to `(..., out_features)`, computed in the precision of the weights."""
        return self.up_proj(self.down_proj(states.to(precision_of(self, states.dtype))))


class LowRankLevels(LevelModules):
    """The low-rank updates of one layer for the simple and the complex level.

    The complex level is a cascade as in the paper: a copy of the simple update and an update of its own, kept as one
    update of twice the rank.
    """

    updates_projections = True

    def __init__(self, site: nn.Module, settings: AdapterSettings):
        super().__init__()
        self.scale = settings.adapter_scale
        linears, rank = dict(projections(site)), settings.adapter_rank
        if not rank:
            linears = {}
        self.simple = nn.ModuleDict({name: LowRankUpdate(linear, rank) for name, linear in linears.items()})
        self.complex = nn.ModuleDict({name: LowRankUpdate(linear, 2 * rank) for name, linear in linears.items()})
        self.init_weights()

    def init_weights(self) -> None:
        for update in self.modules():
            if isinstance(update, LowRankUpdate):
                update.init_weights()

    def start_complex_from_simple(self) -> None:
        for ours, theirs in zip(self.complex.values(), self.simple.values(), strict=True):
            if isinstance(ours, LowRankUpdate) and isinstance(theirs, LowRankUpdate):
                ours.start_from(theirs)

    def projection_updates(self, part: str, routing: LevelRouting) -> dict[str, Any]:
        return {"level_updates": partial(self.project, part, routing)} if self.simple else {}

    def project(
        self, part: str, routing: LevelRouting, name: str, linear: nn.Module, states: torch.Tensor
    ) -> torch.Tensor:
        """A projection of the site with the update of each row's level.

        Returns:
            `torch.Tensor` of shape `(rows, tokens, out_features)`.
        """
        output, key = linear(states), update_name(part, name)
        for level, updates in ((InstructionLevel.SIMPLE, self.simple), (InstructionLevel.COMPLEX, self.complex)):
            update = updates[key]
            if routing.uniform == level.index:
                output = output.add(update(states).to(output.dtype), alpha=self.scale)
            elif routing.uniform is None or routing.must_run(update):
                rows = routing.rows[level.index]
                if len(rows) or routing.must_run(update):
                    output = output.index_add(0, rows, update(states[rows]).to(output.dtype), alpha=self.scale)
        return output

    def forward(self, hidden_states: torch.Tensor, routing: LevelRouting, *context) -> torch.Tensor:
        """The residual stream stays as it is."""
        return hidden_states


def update_name(part: str, projection: str) -> str:
    """The update of a projection, e.g. `self_attn_q`: no name that LoRA's `target_modules` would take for stock's."""
    return f"{part}_{projection.removesuffix('_proj')}"


def projections(site: nn.Module) -> Iterator[tuple[str, Any]]:
    """The names of the updates of a layer and the projections they update, which may be of a quantized kind."""
    for part, block in site.named_children():
        if isinstance(block, tuple(BLOCK_CLASSES)):
            for name, linear in block.named_children():
                if name in PROJECTIONS:
                    yield update_name(part, name), linear


class Sam3IAttention(Sam3Attention):
    """Attention of the DETR layers; `level_updates(name, projection, states)` replaces `projection(states)`."""

    def forward(self, query, key, value, attention_mask=None, level_updates: Callable | None = None, **kwargs):
        """As in stock, whose own code runs where nothing is updated."""
        if level_updates is None:
            return super().forward(query, key, value, attention_mask, **kwargs)
        heads = [
            split_heads(level_updates(name, getattr(self, name), states), self.num_attention_heads)
            for name, states in (("q_proj", query), ("k_proj", key), ("v_proj", value))
        ]
        attend = sam3_attention(self.config, attention_mask)
        options = {"dropout": 0.0, "scaling": self.scaling, "is_causal": self.is_causal} | kwargs
        attended, weights = attend(self, *heads, attention_mask=attention_mask, **options)
        return level_updates("o_proj", self.o_proj, attended.flatten(2).contiguous()), weights


class UpdatableTextAttention(nn.Module):
    """Base of the attention of text encoders; see [`Sam3IAttention`]."""

    def forward(self, hidden_states, attention_mask=None, level_updates: Callable | None = None, **kwargs):
        """As in stock, whose own code runs where nothing is updated."""
        stock: Any = super()
        if level_updates is None:
            return stock.forward(hidden_states, attention_mask, **kwargs)
        block: Any = self
        heads = [
            split_heads(level_updates(name, getattr(block, name), hidden_states), block.num_heads)
            for name in ("q_proj", "k_proj", "v_proj")
        ]
        options = {"scaling": block.scale, "dropout": block.dropout if self.training else 0.0} | kwargs
        attended, weights = clip_attention(block.config)(block, *heads, attention_mask, **options)
        return level_updates("out_proj", block.out_proj, attended.flatten(2).contiguous()), weights


class Sam3ITextAttention(UpdatableTextAttention, CLIPAttention):
    """Attention of the text encoder."""


class Sam3ILiteTextAttention(UpdatableTextAttention, Sam3LiteTextTextAttention):
    """Attention of SAM3-LiteText's text encoder, which takes no further arguments."""

    def forward(self, hidden_states, attention_mask=None, level_updates: Callable | None = None, **kwargs):
        return super().forward(hidden_states, attention_mask, level_updates, is_causal=self.is_causal)


class UpdatableMLP(nn.Module):
    """Base of the MLPs; see [`Sam3IAttention`]."""

    def forward(self, hidden_states: torch.Tensor, level_updates: Callable | None = None) -> torch.Tensor:
        """As in stock, whose own code runs where nothing is updated."""
        stock: Any = super()
        if level_updates is None:
            return stock.forward(hidden_states)
        block: Any = self
        hidden_states = level_updates("fc1", block.fc1, hidden_states)
        if hasattr(self, "dropout"):
            hidden_states = block.dropout(hidden_states)
        return level_updates("fc2", block.fc2, block.activation_fn(hidden_states))


class Sam3IMLP(UpdatableMLP, Sam3MLP):
    """MLP of the DETR layers."""


class Sam3ITextMLP(UpdatableMLP, CLIPMLP):
    """MLP of the text encoder."""


class Sam3ILiteTextMLP(UpdatableMLP, Sam3LiteTextTextMLP):
    """MLP of SAM3-LiteText's text encoder."""


def split_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """`(rows, tokens, width)` to `(rows, heads, tokens, width / heads)`."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


BLOCK_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    Sam3Attention: Sam3IAttention,
    Sam3MLP: Sam3IMLP,
    CLIPAttention: Sam3ITextAttention,
    CLIPMLP: Sam3ITextMLP,
    Sam3LiteTextTextAttention: Sam3ILiteTextAttention,
    Sam3LiteTextTextMLP: Sam3ILiteTextMLP,
}
