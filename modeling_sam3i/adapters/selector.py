# SPDX-License-Identifier: Apache-2.0
"""The pairwise instance selector: which of several objects of one noun an instruction means.

SAM3 finds the objects; what instructions such as "the leftmost dog" need is a choice among them. The selector
compares the most probable queries of a decoder layer pairwise, by box and by content, gated by the instruction, and
adds what it finds to their logits. It reads the words of the instruction themselves, the frozen token embeddings: what
the text encoder makes of them tells objects apart, not "leftmost" from "rightmost". It reads them twice: as one
summary, which says what to compare, and word by word, matched with each query ("the blue one" asks for no comparison).
It is our own; the paper has no counterpart.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ...compat import init
from ..configuration_sam3i import AdapterSettings, InstructionLevel
from .base import AdapterLinear, LevelModules, init_linear, init_norm
from .routing import LevelRouting, precision_of

PAIR_NUMBERS = 12
LOGIT_LIMIT = 8.0


class PairwiseSelector(nn.Module):
    """The change of query logits for one instruction level, zero at the start.

    Notation of the comments: `b` box, `s` clipped logit (both without gradient), `c` and `c2` two readings of the
    instruction, `g` a query, `g'` a query gated by `c`, `p` a pair of queries, `rho` the reference object ("left of
    the dog": the dog).
    """

    def __init__(self, width: int, text_width: int, settings: AdapterSettings):
        super().__init__()
        inner = settings.selector_dim
        self.heads = settings.selector_heads
        self.queries = settings.selector_queries
        self.pooling = AdapterLinear(text_width, 2, bias=False)
        self.instruction_proj = AdapterLinear(text_width, inner)
        self.instruction_norm = nn.LayerNorm(inner)
        self.reference_text_proj = AdapterLinear(text_width, inner)
        self.reference_text_norm = nn.LayerNorm(inner)
        self.reference_query_proj = AdapterLinear(width, inner, bias=False)
        self.content_proj = AdapterLinear(width, inner)
        self.place_proj = AdapterLinear(5, inner, bias=False)
        self.query_norm = nn.LayerNorm(inner)
        self.query_gate = AdapterLinear(inner, inner)
        self.pair_proj = AdapterLinear(PAIR_NUMBERS, inner)
        self.pair_gate = AdapterLinear(inner, inner)
        self.pair_bias = AdapterLinear(inner, self.heads)
        self.attention_query = AdapterLinear(2 * inner, inner)
        self.attention_key = AdapterLinear(inner, inner)
        self.attention_value = AdapterLinear(inner, inner)
        self.pair_value = AdapterLinear(inner, inner)
        self.likeness_query_proj = AdapterLinear(width, inner, bias=False)
        self.likeness_reference_proj = AdapterLinear(width, inner, bias=False)
        self.likeness_proj = AdapterLinear(inner, inner)
        self.match_query_proj = AdapterLinear(width, 2 * inner, bias=False)
        self.match_word_proj = AdapterLinear(text_width, 2 * inner, bias=False)
        self.match_pooling = AdapterLinear(text_width, 2 * self.heads, bias=False)
        self.match_proj = AdapterLinear(4 * self.heads, inner)
        self.logit_weight = nn.Parameter(torch.ones(self.heads))
        self.output_norm = nn.LayerNorm(4 * inner)
        self.hidden_proj = AdapterLinear(4 * inner, inner)
        self.logit_proj = AdapterLinear(inner, 1)

    def init_weights(self) -> None:
        """PyTorch's defaults; only the last projection is zero."""
        for module in self.children():
            if isinstance(module, nn.LayerNorm):
                init_norm(module)
            elif isinstance(module, nn.Linear):
                init_linear(module, zero=module is self.logit_proj)
        init.ones_(self.logit_weight)

    def forward(
        self,
        logits: torch.Tensor,
        queries: torch.Tensor,
        boxes: torch.Tensor,
        words: torch.Tensor,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            logits (`torch.Tensor` of shape `(rows, layers, queries)`): Classification logits.
            queries (`torch.Tensor` of shape `(rows, layers, queries, width)`): Decoder output.
            boxes (`torch.Tensor` of shape `(rows, layers, queries, 4)`): (cx, cy, w, h) in [0, 1].
            words (`torch.Tensor` of shape `(rows, tokens, text_width)`): Token embeddings of the instruction.
            text_mask (`torch.BoolTensor` of shape `(rows, tokens)`, *optional*): `True` where a token is not padding.

        Returns:
            `torch.Tensor` of shape `(rows, layers, queries)`: new logits; queries that are not among the
            `selector_queries` best keep theirs.
        """
        if logits.shape[-1] <= self.queries:
            return logits + self.change(logits, queries, boxes, words, text_mask)
        best = logits.topk(self.queries, dim=-1).indices  # (rows, layers, compared)
        queries = queries.gather(2, best[..., None].expand(-1, -1, -1, queries.shape[-1]))
        boxes = boxes.gather(2, best[..., None].expand(-1, -1, -1, 4))
        change = self.change(logits.gather(2, best), queries, boxes, words, text_mask)
        return logits.scatter_add(2, best, change)

    def change(self, logits, queries, boxes, words, text_mask) -> torch.Tensor:
        """What is added to `logits` `(rows, layers, compared)`; arguments as in [`forward`]."""
        dtype = precision_of(self, queries.dtype)
        text = F.layer_norm(words.to(dtype), words.shape[-1:])
        strength = self.pooling(text)  # (rows, tokens, 2)
        if text_mask is not None:
            strength = strength.masked_fill(~text_mask.bool()[..., None], torch.finfo(strength.dtype).min)
        main, reference = (strength.softmax(1).transpose(1, 2) @ text).unbind(1)  # each (rows, text_width)
        c = self.instruction_norm(self.instruction_proj(main))[:, None, None]  # (rows, 1, 1, inner)
        c2 = self.reference_text_norm(self.reference_text_proj(reference))[:, None, None]

        b = boxes.detach().float()
        s = logits.detach().clamp(-LOGIT_LIMIT, LOGIT_LIMIT).to(dtype)
        level = s / 3
        content = F.layer_norm(queries.to(dtype), queries.shape[-1:])
        place = torch.cat([3 * (b - 0.5).to(dtype), level[..., None]], dim=-1)
        g = self.query_norm(self.content_proj(content) + self.place_proj(place))  # (rows, layers, compared, inner)
        gated = g * (1 + self.query_gate(c))

        resemblance = (self.reference_query_proj(content) * c2).sum(-1) * g.shape[-1] ** -0.5
        rho = resemblance.softmax(-1)  # (rows, layers, compared)
        pairs = self.pair_numbers(b, level, rho).to(dtype)
        p = F.gelu(self.pair_proj(pairs) * (1 + self.pair_gate(c)[..., None, :]))  # (..., compared, compared, inner)

        asks = self._split(self.attention_query(torch.cat([g, c.expand_as(g)], dim=-1)))
        offers = self._split(self.attention_key(gated))  # (rows, layers, heads, compared, head_dim)
        attention = asks @ offers.transpose(-1, -2) * asks.shape[-1] ** -0.5
        attention = attention + self.logit_weight[:, None, None] * s[:, :, None, None]
        attention = attention + self.pair_bias(p).movedim(-1, 2)
        attention = attention.softmax(-1)  # (rows, layers, heads, compared, compared)
        # The values of pairs are summed before their projection, which keeps one tensor of pairs instead of two.
        seen = torch.einsum("...hqk,...qki->...qhi", attention, p)
        values = self.pair_value(seen).unflatten(-1, (self.heads, -1))  # (..., heads, heads, head_dim)
        message = values.diagonal(dim1=-3, dim2=-2).transpose(-1, -2).flatten(-2)  # each head its own part
        message = message + (attention @ self._split(self.attention_value(gated))).transpose(-2, -3).flatten(-2)

        summary = self.output_norm(torch.cat([g, gated, message, c.expand_as(g)], dim=-1))
        reference_content = (rho[..., None] * content).sum(-2, keepdim=True)  # "of the color of the star": the star
        likeness = self.likeness_query_proj(content) * self.likeness_reference_proj(reference_content)
        matches = self.word_matches(content, text, text_mask)
        hidden = self.hidden_proj(summary) + self.likeness_proj(likeness) + self.match_proj(matches)
        return self.logit_proj(F.gelu(hidden)).squeeze(-1).to(logits.dtype)

    def word_matches(self, content, text, text_mask) -> torch.Tensor:
        """How well queries match single words, in several kinds: a weighted mean over the words, and the best.

        Args:
            content (`torch.Tensor` of shape `(rows, layers, compared, width)`): Normalized queries.
            text (`torch.Tensor` of shape `(rows, tokens, text_width)`): Normalized token embeddings.
            text_mask (`torch.BoolTensor` of shape `(rows, tokens)`, *optional*): `True` where a token is not padding.

        Returns:
            `torch.Tensor` of shape `(rows, layers, compared, 2 * kinds)`.
        """
        kinds = self.match_pooling.out_features
        queries = self.match_query_proj(content).unflatten(-1, (kinds, -1))
        words = self.match_word_proj(text).unflatten(-1, (kinds, -1))
        matches = torch.einsum("rlqkd,rtkd->rlqkt", queries, words) * words.shape[-1] ** -0.5
        strength = self.match_pooling(text).transpose(1, 2)[:, None, None]  # (rows, 1, 1, kinds, tokens)
        candidates = matches
        if text_mask is not None:
            padding, lowest = ~text_mask.bool()[:, None, None, None], torch.finfo(matches.dtype).min
            strength, candidates = strength.masked_fill(padding, lowest), matches.masked_fill(padding, lowest)
        mean = (strength.softmax(-1) * matches).sum(-1)
        return torch.cat([mean, candidates.amax(-1)], dim=-1)

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        """`(rows, layers, compared, inner)` to `(rows, layers, heads, compared, inner / heads)`."""
        return states.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    @staticmethod
    def pair_numbers(b: torch.Tensor, level: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
        """How query `q` stands to query `k` and both to the reference object, in twelve numbers.

        Args:
            b (`torch.Tensor` of shape `(..., queries, 4)`): Boxes (cx, cy, w, h).
            level (`torch.Tensor` of shape `(..., queries)`): Logits, scaled.
            rho (`torch.Tensor` of shape `(..., queries)`): Probability of being the reference object.

        Returns:
            `torch.Tensor` of shape `(..., queries, queries, 12)`: offset, its size per axis, ratio of extents, the
            two logits and distances to the reference object, and the offset of `q` from it.
        """
        center, extent = b[..., :2], b[..., 2:].clamp(min=1e-3).log()
        offset = center[..., :, None, :] - center[..., None, :, :]  # (..., q, k, 2)
        weight = rho.to(b.dtype)[..., None, :, None]
        away = (weight * offset).sum(-2)  # v_q (..., q, 2)
        distance = (weight[..., 0] * offset.norm(dim=-1)).sum(-1)  # D_q (..., q)
        of_q = torch.stack([level.to(b.dtype), 3 * distance, *(3 * away).unbind(-1)], dim=-1)
        of_k = torch.stack([level.to(b.dtype), 3 * distance], dim=-1)
        of_q = of_q[..., :, None, :].expand(*offset.shape[:-1], -1)
        of_k = of_k[..., None, :, :].expand(*offset.shape[:-1], -1)
        ratio = extent[..., :, None, :] - extent[..., None, :, :]
        return torch.cat([3 * offset, 3 * offset.abs(), ratio, of_q, of_k], dim=-1)


class InstanceSelector(LevelModules):
    """The pairwise selectors of the simple and the complex level, on the classification scores of SAM3."""

    def __init__(self, width: int, text_width: int, settings: AdapterSettings):
        super().__init__()
        self.simple = PairwiseSelector(width, text_width, settings)
        self.complex = PairwiseSelector(width, text_width, settings)
        self.init_weights()

    def init_weights(self) -> None:
        self.simple.init_weights()
        self.complex.init_weights()

    def start_complex_from_simple(self) -> None:
        self.complex.load_state_dict(self.simple.state_dict())

    def forward(
        self,
        logits: torch.Tensor,
        routing: LevelRouting,
        queries: torch.Tensor,
        boxes: torch.Tensor,
        words: torch.Tensor,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits `(rows, layers, queries)` after selection, each row at its level; see [`PairwiseSelector`]."""
        branches = {
            InstructionLevel.SIMPLE: (self.simple, self.simple),
            InstructionLevel.COMPLEX: (self.complex, self.complex),
        }
        return routing.apply(logits, branches, queries, boxes, words, text_mask)
