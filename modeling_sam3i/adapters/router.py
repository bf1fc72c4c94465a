# SPDX-License-Identifier: Apache-2.0
"""The level router: which of the three levels an instruction is at, read from its words by a small head.

It looks at what the frozen text encoder of SAM3 says at the concept level, so it neither changes nor follows what the
adapters learn. It is our own; in the paper the user names the level.
"""

from collections.abc import Callable

import torch
from torch import nn

from ..configuration_sam3i import AUTO_LEVEL_INDEX, InstructionLevel
from .base import AdapterLinear, LevelModules, init_linear, init_norm
from .routing import LevelRouting, precision_of


class LevelRouter(LevelModules):
    """Scores of the three levels for an instruction, from its tokens.

    `logits = W [mean; max] of GELU(Down(LN(h)))` over the tokens that are not padding.

    Args:
        width (`int`): Width of the text encoder.
        inner (`int`): Width of the head.
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


def choose_levels(
    routing: LevelRouting,
    router: LevelRouter | None,
    states: Callable[[], torch.Tensor],
    mask: torch.Tensor | None,
) -> tuple[LevelRouting, torch.Tensor | None]:
    """Replace -1 by the level that the router finds most probable.

    Args:
        routing: Levels of the rows, -1 where the router shall choose.
        router: The model's router, if it has one.
        states (`Callable`): Gives the router's input `(rows, tokens, width)`; called only where there is a choice.
        mask (`torch.Tensor` of shape `(rows, tokens)`, *optional*): 1 for tokens, 0 for padding.

    Returns:
        The routing, and the router's logits `(rows, 3)` where it was asked.

    Raises:
        ValueError: when there is a choice and no router.
    """
    if not routing.has_open_rows:
        return routing, None
    if router is None:
        raise ValueError(
            "`instruction_levels` leaves rows to the model's level router (-1), and this model has none. Load the "
            "processor with auto_levels='rules', or name the levels."
        )
    logits = router(states(), mask)
    levels = routing.levels
    return LevelRouting(torch.where(levels == AUTO_LEVEL_INDEX, logits.argmax(-1), levels)), logits


__all__ = ["LevelRouter", "choose_levels"]
