# SPDX-License-Identifier: Apache-2.0
"""Which rows of a batch follow which instruction level, decided once per forward pass."""

from collections.abc import Callable, Mapping, Sequence

import torch

from ..configuration_sam3i import AUTO_LEVEL_INDEX, InstructionLevel


def precision_of(module: torch.nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """The precision that a module computes in: that of its weights, unless they are quantized."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), otherwise)


class LevelRouting:
    """The rows of each level in a batch of instructions.

    It is made once per call and handed down explicitly to every adapter, so that two forward passes, activation
    checkpointing and threads cannot mix up their levels.

    Args:
        levels (`torch.LongTensor` of shape `(rows,)`): 0 concept, 1 simple, 2 complex, -1 not chosen yet.
        on_host: The same as Python integers, one per row or one for all. Read from the tensor if not given, for which
            the host waits where the tensor is on an accelerator.
    """

    def __init__(self, levels: torch.Tensor, on_host: Sequence[int] | int | None = None):
        self.levels = levels
        if on_host is None:
            on_host = list(levels.tolist())
        present = {on_host} if isinstance(on_host, int) else set(on_host)
        self.uniform: int | None = next(iter(present)) if len(present) == 1 else None
        self.has_open_rows = AUTO_LEVEL_INDEX in present
        self.has_instructions = bool(present - {InstructionLevel.CONCEPT.index})
        self._on_host = on_host
        self._rows: list[torch.Tensor] = []
        if self.uniform is None:
            by_level = [
                [row for row, level in enumerate(self.on_host) if level == i] for i in range(len(InstructionLevel))
            ]
            self._rows = [torch.tensor(rows, dtype=torch.long, device=levels.device) for rows in by_level]

    @property
    def on_host(self) -> list[int]:
        """The level of each row."""
        return [self._on_host] * len(self.levels) if isinstance(self._on_host, int) else list(self._on_host)

    @property
    def rows(self) -> list[torch.Tensor]:
        """For each level its rows, `torch.LongTensor` of shape `(rows of the level,)`."""
        if self.uniform is None:
            return self._rows
        every = torch.arange(len(self.levels), device=self.levels.device)
        return [every if index == self.uniform else every[:0] for index in range(len(InstructionLevel))]

    def expand(self, rows: int) -> "LevelRouting":
        """The routing of one row for several."""
        if len(self.levels) == rows:
            return self
        return LevelRouting(self.levels.expand(rows), self.uniform)

    def take(self, rows: list[int], index: torch.Tensor) -> "LevelRouting":
        """The routing of some rows, given as Python integers and as a tensor."""
        on_host = self.on_host
        return LevelRouting(self.levels[index], [on_host[row] for row in rows])

    @staticmethod
    def must_run(owner: torch.nn.Module) -> bool:
        """Whether a module must run even on no rows, so that its trainable weights get a gradient."""
        return torch.is_grad_enabled() and owner.training and any(p.requires_grad for p in owner.parameters())

    def apply(
        self,
        hidden_states: torch.Tensor,
        branches: Mapping[InstructionLevel, tuple[torch.nn.Module, Callable[..., torch.Tensor]]],
        *row_context: torch.Tensor | None,
        concept: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Send each row through the branch of its level and put the results back in order.

        In inference a branch runs only on its own rows, and not at all when it has none. In training a branch with
        trainable weights always runs, on no rows if need be, so that every weight gets a gradient in every step
        (`DistributedDataParallel` then needs no search for unused parameters). A branch computes in the precision of
        its own weights; adapters may be in float32 on a SAM3 in half precision.

        Args:
            hidden_states (`torch.Tensor` of shape `(rows, ...)`): Input of every branch.
            branches (`dict`): For each adapted level the module that owns the weights and the function to call.
            row_context (`torch.Tensor` of shape `(rows, ...)` or `None`): Further arguments, split by row likewise.
            concept (`Callable`, *optional*): The stock computation; the identity if not given.

        Returns:
            `torch.Tensor` of shape `(rows, ...)`, in the precision of `hidden_states`.
        """

        def run(level: InstructionLevel, states: torch.Tensor, context: Sequence[torch.Tensor | None]) -> torch.Tensor:
            owner, branch = branches[level]
            return branch(states.to(precision_of(owner, states.dtype)), *context).to(hidden_states.dtype)

        concept = concept or (lambda states: states)
        uniform = None if self.uniform is None else list(InstructionLevel)[self.uniform]
        training = any(self.must_run(owner) for owner, _ in branches.values())
        if uniform is not None and not training:
            return run(uniform, hidden_states, row_context) if uniform in branches else concept(hidden_states)
        output = concept(hidden_states)
        for level in branches:
            rows = self.rows[level.index]
            if len(rows) or training:
                context = [None if tensor is None else tensor[rows] for tensor in row_context]
                output = output.index_copy(0, rows, run(level, hidden_states[rows], context).to(output.dtype))
        return output
