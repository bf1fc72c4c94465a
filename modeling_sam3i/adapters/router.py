# SPDX-License-Identifier: Apache-2.0
"""The level router: which of the three levels an instruction is at, read from its words by a small head.

It looks at what the frozen text encoder of SAM3 says at the concept level, so it neither changes nor follows what the
adapters learn. It is our own; in the paper the user names the level.
"""

import torch
from torch import nn

from ..configuration_sam3i import InstructionLevel
from .base import AdapterLinear, LevelModules, init_linear, init_norm
from .routing import precision_of


class LevelRouter(LevelModules):
    """Scores of the three levels for an instruction, from its tokens.

    `logits = W [mean; max] of GELU(Down(LN(h)))` over the tokens that are not padding.
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down_proj = AdapterLinear(width, inner)
        self.level_proj = AdapterLinear(2 * inner, len(InstructionLevel))
        self.init_weights()

    def init_weights(self) -> None:
        """PyTorch's defaults; the scores start as zero."""
        init_norm(self.norm)
        init_linear(self.down_proj)
        init_linear(self.level_proj, zero=True)

    def start_complex_from_simple(self) -> None:
        """Nothing to hand over: all levels share the head."""

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            states (`torch.Tensor` of shape `(rows, tokens, width)`): Last hidden states of the text encoder at the
                concept level.
            mask (`torch.Tensor` of shape `(rows, tokens)`, *optional*): 1 for tokens, 0 for padding.

        Returns:
            `torch.Tensor` of shape `(rows, 3)`: logits of concept, simple and complex.
        """
        tokens = nn.functional.gelu(self.down_proj(self.norm(states.to(precision_of(self, states.dtype)))))
        if mask is None:
            return self.level_proj(torch.cat([tokens.mean(1), tokens.amax(1)], dim=-1))
        kept = mask.bool()[..., None]
        mean = (tokens * kept).sum(1) / kept.sum(1).clamp(min=1)
        highest = tokens.masked_fill(~kept, torch.finfo(tokens.dtype).min).amax(1)
        return self.level_proj(torch.cat([mean, highest], dim=-1))
