# SPDX-License-Identifier: Apache-2.0
"""Calibrated scores: three numbers per level, with which .5 is the best threshold at each of them.

A query's score is its probability times that of presence, so that where a model doubts presence too often no change
of its queries' logits alone brings a score above .5: presence has a bias of its own.

They are numbers of the configuration (`score_calibration`), in `config.json` of a whole model and in
`adapter_config.json` beside adapters: what was written before there were any loads as the identity. Concepts have
none, they are stock's. Our own; temperature scaling (Guo et al. 2017, arXiv 1706.04599) with a bias is the model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..configuration_sam3i import InstructionLevel
from .routing import LevelRouting


class ScoreCalibration:
    """What becomes of a level's logits: `scale * logit + bias` of queries, `logit + presence_bias` of presence.

    Args:
        values: `{"simple": [scale, bias, presence_bias], "complex": [...]}`; without a third number presence stays,
            and a level that is not named keeps its logits.

    Raises:
        ValueError: for another level, or numbers that are not finite or would turn the order of queries round.
    """

    def __init__(self, values: Mapping[str, Sequence[float]] | None = None):
        self.values: dict[int, tuple[float, float, float]] = {}
        for name, given in (values or {}).items():
            level = InstructionLevel.from_any(name)
            numbers = given if isinstance(given, list | tuple) else ()
            usable = len(numbers) in (2, 3) and all(
                isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
            )
            if level is InstructionLevel.CONCEPT or not usable or numbers[0] <= 0:
                raise ValueError(
                    "`score_calibration` must give a positive scale and a bias, and may give a bias of presence, for "
                    f"'simple' or 'complex', got {name!r}: {given!r}."
                )
            scale, bias, presence_bias = (*map(float, numbers), 0.0)[:3]
            self.values[level.index] = scale, bias, presence_bias

    @classmethod
    def of(cls, settings: Any) -> "ScoreCalibration":
        """That of a configuration; the identity where it has none, as a stock one."""
        return cls(getattr(settings, "score_calibration", None))

    def to_dict(self) -> dict[str, list[float]] | None:
        """The numbers as a configuration keeps them; `None` for the identity."""
        return {list(InstructionLevel)[index].value: list(numbers) for index, numbers in self.values.items()} or None

    def __call__(
        self, logits: torch.Tensor, presence_logits: torch.Tensor, routing: LevelRouting | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(rows, queries)` and `(rows, 1)` to the same; rows of a level without calibration keep their bits."""
        if routing is None or not self.values:
            return logits, presence_logits
        if routing.uniform is not None:
            if routing.uniform not in self.values:
                return logits, presence_logits
            scale, bias, presence_bias = self.values[routing.uniform]
            return logits * scale + bias, presence_logits + presence_bias
        table = [self.values.get(level.index, (1.0, 0.0, 0.0)) for level in InstructionLevel]
        numbers = torch.tensor(table, dtype=logits.dtype, device=logits.device)[routing.levels]
        scales, biases, presence_biases = numbers[:, :, None].unbind(1)  # each (rows, 1)
        return logits * scales + biases, presence_logits + presence_biases
