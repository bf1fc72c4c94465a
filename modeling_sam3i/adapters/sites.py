# SPDX-License-Identifier: Apache-2.0
"""The stock layers of SAM3 with a place for instruction adapters.

Each class subclasses a stock layer, keeps its children (so weight names stay what they were) and takes the routing of
levels as an explicit argument. A stock instance becomes one of ours by [`adopt`], in place.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...compat import (
    CLIPEncoderLayer,
    CLIPTextEmbeddings,
    GradientCheckpointingLayer,
    Sam3DetrDecoder,
    Sam3DetrDecoderLayer,
    Sam3DetrEncoderLayer,
    Sam3DotProductScoring,
    Sam3LiteTextTextEncoderLayer,
    Sam3MaskDecoder,
    Sam3MaskEmbedder,
    exchange_class,
    init,
)
from ..decoder import Sam3IDetrDecoder, Sam3IMaskDecoder
from .base import CONTAINER, LevelModules, adapter_of
from .low_rank import BLOCK_CLASSES
from .routing import LevelRouting

KEPT_POSITIONS = 20  # how many positions a table for long instructions has from stock's as they are


class AdapterSite(nn.Module):
    """Base of the adapted layers; without an adapter in force they compute what stock does."""

    def instruction_adapter(self) -> LevelModules | None:
        """The adapter that is in force."""
        return adapter_of(self)

    def adapt(
        self, hidden_states: torch.Tensor, routing: LevelRouting | None, *context: torch.Tensor | None
    ) -> torch.Tensor:
        """The residual stream after the adapter, `(rows, tokens, hidden_size)`."""
        adapter = self.instruction_adapter()
        if adapter is None or routing is None:
            return hidden_states
        return adapter(hidden_states, routing, *context)

    def updates(self, part: str, routing: LevelRouting | None) -> dict[str, Any]:
        """Arguments for the attention or MLP called `part`: the updates of its projections, if the design has any."""
        adapter = self.instruction_adapter()
        if adapter is None or routing is None or not adapter.updates_projections:
            return {}
        return adapter.projection_updates(part, routing)


class CheckpointedSite(AdapterSite, GradientCheckpointingLayer):
    """An adapted layer that recomputes its activations in the backward pass when the model is told to.

    Stock calls its layers with keyword arguments. Re-entrant checkpointing gives gradients to positional arguments
    only, so those that carry gradients are moved to the front. It also gives none to the weights of a layer whose
    arguments need none, as the first one behind frozen layers, so there the first argument is made to need one.
    """

    positional: tuple[str, ...] = ()

    def __call__(self, *args, **kwargs):
        while len(args) < len(self.positional) and self.positional[len(args)] in kwargs:
            args += (kwargs.pop(self.positional[len(args)]),)
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            carried = any(torch.is_tensor(value) and value.requires_grad for value in args)
            if not carried and any(parameter.requires_grad for parameter in self.parameters()):
                args = (args[0].detach().requires_grad_(), *args[1:])
        return super().__call__(*args, **kwargs)


class AdaptedTextLayer(CheckpointedSite):
    """What a layer of a text encoder computes; the adapter replaces the residual after attention.

    The MLP reads the residual before the adapter, as in the authors' code.
    """

    positional = ("hidden_states",)
    layer_norm1: nn.LayerNorm
    self_attn: Any
    layer_norm2: nn.LayerNorm
    mlp: Any

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        level_routing: LevelRouting | None = None,
        adapter_padding_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(rows, tokens, hidden_size)`): Tokens.
            attention_mask (`torch.Tensor`, *optional*): Mask of the stock attention (causal, padding).
            level_routing: Rows of each level; without it the layer is stock.
            adapter_padding_mask (`torch.BoolTensor` of shape `(rows, tokens)`, *optional*): `True` where a token is
                not padding, for the adapter's own attention.

        Returns:
            `torch.Tensor` of shape `(rows, tokens, hidden_size)`.
        """
        attended, _ = self.self_attn(
            self.layer_norm1(hidden_states),
            attention_mask=attention_mask,
            **self.updates("self_attn", level_routing),
            **kwargs,
        )
        hidden_states = hidden_states + attended
        update = self.mlp(self.layer_norm2(hidden_states), **self.updates("mlp", level_routing))
        return self.adapt(hidden_states, level_routing, adapter_padding_mask) + update


class Sam3ITextLayer(AdaptedTextLayer, CLIPEncoderLayer):
    """A layer of SAM3's text encoder."""


class Sam3ILiteTextLayer(AdaptedTextLayer, Sam3LiteTextTextEncoderLayer):
    """A transformer layer of SAM3-LiteText's text encoder; its convolutional ones have no adapters."""


class Sam3IDetrEncoderLayer(CheckpointedSite, Sam3DetrEncoderLayer):
    """A DETR encoder layer (pre-norm); the adapter acts on the residual after cross-attention."""

    positional = ("vision_feats", "prompt_feats", "vision_pos_encoding")

    def forward(
        self,
        vision_feats: torch.Tensor,
        prompt_feats: torch.Tensor | None,
        vision_pos_encoding: torch.Tensor | None,
        prompt_cross_attn_mask: torch.Tensor | None = None,
        level_routing: LevelRouting | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """`vision_feats` `(rows, pixels, hidden_size)` to the same shape; arguments as in stock.

        Self-attention does not see the prompt, so rows can share it: without `prompt_feats` the layer stops after
        it, and without `vision_pos_encoding` it goes on from there.
        """
        hidden_states = vision_feats
        if vision_pos_encoding is not None:
            normed = self.layer_norm1(vision_feats)
            normed_with_pos = normed + vision_pos_encoding
            attended, _ = self.self_attn(
                query=normed_with_pos,
                key=normed_with_pos,
                value=normed,
                **self.updates("self_attn", level_routing),
                **kwargs,
            )
            hidden_states = self.dropout(attended) + vision_feats
        if prompt_feats is None:
            return hidden_states
        attended, _ = self.cross_attn(
            query=self.layer_norm2(hidden_states),
            key=prompt_feats,
            value=prompt_feats,
            attention_mask=prompt_cross_attn_mask,
            **self.updates("cross_attn", level_routing),
            **kwargs,
        )
        hidden_states = self.dropout(attended) + hidden_states
        update = self.dropout(self.mlp(self.layer_norm3(hidden_states), **self.updates("mlp", level_routing)))
        return update + self.adapt(hidden_states, level_routing)


class Sam3IDetrDecoderLayer(CheckpointedSite, Sam3DetrDecoderLayer):
    """A DETR decoder layer (post-norm); the adapter acts on the residual of the MLP, presence token included."""

    positional = ("hidden_states", "query_pos", "text_features", "vision_features", "vision_pos_encoding")

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_pos: torch.Tensor,
        text_features: torch.Tensor,
        vision_features: torch.Tensor,
        vision_pos_encoding: torch.Tensor,
        text_cross_attn_mask: torch.Tensor | None = None,
        vision_cross_attn_mask: torch.Tensor | None = None,
        level_routing: LevelRouting | None = None,
        one_to_many_queries: int = 0,
        **kwargs,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(rows, 1 + queries, hidden_size)`): Presence token and queries.
            one_to_many_queries (`int`): How many queries at the end are supervised one-to-many; they take no part in
                self-attention.

        The other arguments and the result, `(rows, 1 + queries, hidden_size)`, are those of stock.
        """
        query_pos = F.pad(query_pos, (0, 0, 1, 0))
        own = hidden_states.shape[1] - one_to_many_queries
        queries = hidden_states[:, :own]
        queries_with_pos = queries + query_pos[:, :own]
        attended, _ = self.self_attn(
            query=queries_with_pos,
            key=queries_with_pos,
            value=queries,
            attention_mask=None,
            **self.updates("self_attn", level_routing),
            **kwargs,
        )
        queries = queries + self.self_attn_dropout(attended)
        if one_to_many_queries:
            queries = torch.cat([queries, hidden_states[:, own:]], dim=1)
        hidden_states = self.self_attn_layer_norm(queries)

        attended, _ = self.text_cross_attn(
            query=hidden_states + query_pos,
            key=text_features,
            value=text_features,
            attention_mask=text_cross_attn_mask,
            **self.updates("text_cross_attn", level_routing),
            **kwargs,
        )
        hidden_states = self.text_cross_attn_layer_norm(hidden_states + self.text_cross_attn_dropout(attended))

        attended, _ = self.vision_cross_attn(
            query=hidden_states + query_pos,
            key=vision_features + vision_pos_encoding,
            value=vision_features,
            attention_mask=vision_cross_attn_mask,
            **self.updates("vision_cross_attn", level_routing),
            **kwargs,
        )
        hidden_states = self.vision_cross_attn_layer_norm(hidden_states + self.vision_cross_attn_dropout(attended))

        update = self.mlp_dropout(self.mlp(hidden_states, **self.updates("mlp", level_routing)))
        return self.mlp_layer_norm(self.adapt(hidden_states, level_routing) + update)


class Sam3IMaskEmbedder(AdapterSite, Sam3MaskEmbedder):
    """The mask embedder; each adapted level has its own copy of it."""

    def forward(self, queries: torch.Tensor, level_routing: LevelRouting | None = None) -> torch.Tensor:
        """`queries` `(rows, queries, hidden_size)` to mask embeddings of the same shape."""
        stock: Callable[[torch.Tensor], torch.Tensor] = super().forward
        adapter = self.instruction_adapter()
        if adapter is None or level_routing is None:
            return stock(queries)
        return adapter(queries, level_routing, stock)


class Sam3IDotProductScoring(AdapterSite, Sam3DotProductScoring):
    """The classification scores of queries; the selective design then chooses among the queries."""

    def forward(
        self,
        decoder_hidden_states: torch.Tensor,
        text_features: torch.Tensor,
        text_mask: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        instruction: tuple[torch.Tensor, torch.Tensor | None] | None = None,
        level_routing: LevelRouting | None = None,
        one_to_many_queries: int = 0,
        last_layer_only: bool = False,
    ) -> torch.Tensor:
        """
        Args:
            decoder_hidden_states (`torch.Tensor` of shape `(layers, rows, queries, hidden_size)`): Queries.
            text_features, text_mask: The prompt, as in stock.
            boxes (`torch.Tensor` of shape `(layers, rows, queries, 4)`): Their boxes (cx, cy, w, h) in [0, 1].
            instruction (`tuple`): Token embeddings of the instruction `(rows, tokens, text_width)` and their mask
                `(rows, tokens)` or `None`.
            level_routing: Rows of each level; without it the scores are stock's.
            one_to_many_queries (`int`): How many queries at the end several of which may settle on one object; there
                is nothing to choose among them.
            last_layer_only (`bool`): Whether the scores of earlier layers are not needed.

        Returns:
            `torch.Tensor` of shape `(layers, rows, queries, 1)`.
        """
        scores = super().forward(decoder_hidden_states, text_features, text_mask)
        if self.instruction_adapter() is None or level_routing is None or boxes is None or instruction is None:
            return scores
        own = scores.shape[2] - one_to_many_queries
        chosen = (slice(-1 if last_layer_only else None, None), slice(None), slice(None, own))
        by_row = [tensor[chosen].transpose(0, 1) for tensor in (scores[..., 0], decoder_hidden_states, boxes)]
        logits, *context = by_row  # (rows, layers, queries, ...)
        logits = self.adapt(logits, level_routing, *context, *instruction)
        scores = scores.clone()
        scores[chosen] = logits.transpose(0, 1)[..., None]
        return scores


class Sam3ITextEmbeddings(CLIPTextEmbeddings):
    """Token and position embeddings with a second position table for instructions longer than the stock one.

    Instructions that fit the stock table keep it; longer ones read `long_position_embedding`, whose first positions
    are stock's and whose later ones are interpolated between stock's.
    """

    def extend(self, length: int) -> None:
        """Add the table for up to `length` tokens."""
        self.long_position_embedding = nn.Embedding(length, self.position_embedding.embedding_dim)
        self.init_long_positions(self.long_position_embedding)

    def long_positions(self) -> nn.Embedding | None:
        """The second table, if there is one."""
        return adapter_of(self) if hasattr(self, CONTAINER) else getattr(self, "long_position_embedding", None)

    @torch.no_grad()
    def init_long_positions(self, table: nn.Embedding) -> None:
        """Fill a long table from the stock one, unless its values were loaded."""
        stock, length = self.position_embedding.weight, table.num_embeddings
        kept = min(KEPT_POSITIONS, stock.shape[0] - 1)
        rest = F.interpolate(stock[kept:].T[None].float(), size=length - kept, mode="linear", align_corners=True)
        init.copy_(table.weight, torch.cat([stock[:kept].float(), rest[0].T]).to(stock.dtype))

    def positions_for(self, lengths: torch.Tensor, tokens: int) -> torch.Tensor:
        """Which row of the two tables, laid end to end, each token reads.

        Returns:
            `torch.LongTensor` of shape `(rows, tokens)`.
        """
        stock = self.position_embedding.num_embeddings
        positions = torch.arange(tokens, device=lengths.device).expand(len(lengths), -1)
        return torch.where(lengths[:, None] > stock, positions + stock, positions.clamp(max=stock - 1))

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`input_ids` `(rows, tokens)` to embeddings `(rows, tokens, hidden_size)`; see [`positions_for`]."""
        table = self.long_positions()
        if position_ids is None or table is None:
            return super().forward(input_ids, position_ids, inputs_embeds)
        stock = self.position_embedding.num_embeddings
        short = self.position_embedding(position_ids.clamp(max=stock - 1))
        long = table((position_ids - stock).clamp(min=0)).to(short.dtype)
        return self.token_embedding(input_ids) + torch.where((position_ids < stock)[..., None], short, long)


OURS: dict[type[nn.Module], type[nn.Module]] = {
    CLIPEncoderLayer: Sam3ITextLayer,
    CLIPTextEmbeddings: Sam3ITextEmbeddings,
    Sam3LiteTextTextEncoderLayer: Sam3ILiteTextLayer,
    Sam3DetrEncoderLayer: Sam3IDetrEncoderLayer,
    Sam3DetrDecoderLayer: Sam3IDetrDecoderLayer,
    Sam3DetrDecoder: Sam3IDetrDecoder,
    Sam3MaskEmbedder: Sam3IMaskEmbedder,
    Sam3MaskDecoder: Sam3IMaskDecoder,
    Sam3DotProductScoring: Sam3IDotProductScoring,
} | BLOCK_CLASSES
"""The stock classes that SAM3-I extends, and what they become."""


def adopt(module: nn.Module) -> Any:
    """Turn a stock module and its attention and MLP blocks into ours in place: same weights, same names, same hooks.

    One that is ours already, or that SAM3-I does not extend, stays what it is.
    """
    for part in (module, *module.children()):
        if type(part) in OURS:
            exchange_class(part, OURS[type(part)])
    return module


def restore(module: nn.Module) -> None:
    """Turn what [`adopt`] has made ours into stock's again, throughout."""
    stock = {ours: theirs for theirs, ours in OURS.items()}
    for part in module.modules():
        if type(part) in stock:
            exchange_class(part, stock[type(part)])
