# SPDX-License-Identifier: Apache-2.0
"""Calibrated scores: a scale and a bias of the logits per level, so that .5 is the best threshold at each of them.

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
    """What becomes of the classification logits of each level: `scale * logit + bias`.

    Args:
        values: `{"simple": [scale, bias], "complex": [scale, bias]}`; a level that is not named keeps its logits.

    Raises:
        ValueError: for another level, or numbers that are not finite or would turn the order of queries round.
    """

    def __init__(self, values: Mapping[str, Sequence[float]] | None = None):
        self.values: dict[int, tuple[float, float]] = {}
        for name, pair in (values or {}).items():
            level = InstructionLevel.from_any(name)
            numbers = pair if isinstance(pair, list | tuple) else ()
            usable = len(numbers) == 2 and all(
                isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
            )
            if level is InstructionLevel.CONCEPT or not usable or numbers[0] <= 0:
                raise ValueError(
                    "`score_calibration` must give a positive scale and a bias for 'simple' or 'complex', "
                    f"got {name!r}: {pair!r}."
                )
            self.values[level.index] = float(numbers[0]), float(numbers[1])

    @classmethod
    def of(cls, settings: Any) -> "ScoreCalibration":
        """That of a configuration; the identity where it has none, as a stock one."""
        return cls(getattr(settings, "score_calibration", None))

    def to_dict(self) -> dict[str, list[float]] | None:
        """The numbers as a configuration keeps them; `None` for the identity."""
        return {list(InstructionLevel)[index].value: list(pair) for index, pair in self.values.items()} or None

    def __call__(self, logits: torch.Tensor, routing: LevelRouting | None) -> torch.Tensor:
        """`(rows, queries)` to the same shape; rows of a level without calibration keep their bits."""
        if routing is None or not self.values:
            return logits
        if routing.uniform is not None:
            pair = self.values.get(routing.uniform)
            return logits if pair is None else logits * pair[0] + pair[1]
        table = [self.values.get(level.index, (1.0, 0.0)) for level in InstructionLevel]
        scale, bias = torch.tensor(table, dtype=logits.dtype, device=logits.device)[routing.levels].unbind(-1)
        return logits * scale[:, None] + bias[:, None]
