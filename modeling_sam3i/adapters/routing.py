# SPDX-License-Identifier: Apache-2.0
"""Which rows of a batch follow which instruction level, decided once per forward pass."""

from collections.abc import Callable

import torch

from ..configuration_sam3i import InstructionLevel


class LevelRouting:
    """The rows of each level in a batch of instructions.

    It is made once from the `instruction_levels` tensor and handed down explicitly to every adapter, so that two
    forward passes, activation checkpointing and threads cannot mix up their levels.

    Args:
        levels (`torch.LongTensor` of shape `(rows,)`): 0 concept, 1 simple, 2 complex.
    """

    def __init__(self, levels: torch.LongTensor):
        self.levels = levels
        counts = torch.bincount(levels, minlength=len(InstructionLevel)).tolist()
        present = [index for index, count in enumerate(counts) if count]
        self.uniform: int | None = present[0] if len(present) == 1 else None
        self.rows = [(levels == index).nonzero().squeeze(-1) for index in range(len(InstructionLevel))]

    @staticmethod
    def must_run(owner: torch.nn.Module) -> bool:
        """Whether a module must run even on no rows, so that its trainable weights get a gradient."""
        return torch.is_grad_enabled() and owner.training and any(p.requires_grad for p in owner.parameters())

    def apply(
        self,
        hidden_states: torch.Tensor,
        branches: dict[InstructionLevel, tuple[torch.nn.Module, Callable[..., torch.Tensor]]],
        *row_context: torch.Tensor | None,
        concept: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Send each row through the branch of its level and put the results back in order.

        In inference a branch runs only on its own rows, and not at all when it has none. In training a branch with
        trainable weights always runs, on no rows if need be, so that every weight gets a gradient in every step
        (`DistributedDataParallel` then needs no search for unused parameters).

        Args:
            hidden_states (`torch.Tensor` of shape `(rows, ...)`): Input of every branch.
            branches (`dict`): For each adapted level the module that owns the weights and the function to call.
            row_context (`torch.Tensor` of shape `(rows, ...)` or `None`): Further arguments, split by row likewise.
            concept (`Callable`, *optional*): The stock computation; the identity if not given.

        Returns:
            `torch.Tensor` of shape `(rows, ...)`.
        """
        concept = concept or (lambda states: states)
        uniform = None if self.uniform is None else list(InstructionLevel)[self.uniform]
        training = any(self.must_run(owner) for owner, _ in branches.values())
        if uniform is not None and not training:
            return branches[uniform][1](hidden_states, *row_context) if uniform in branches else concept(hidden_states)
        output = concept(hidden_states)
        for level, (_, branch) in branches.items():
            rows = self.rows[level.index]
            if len(rows) or training:
                context = [None if tensor is None else tensor[rows] for tensor in row_context]
                output = output.index_copy(0, rows, branch(hidden_states[rows], *context).to(output.dtype))
        return output
