# SPDX-License-Identifier: Apache-2.0
"""The three stages of SAM3-I training: what each one feeds, trains and starts from.

Source: SAM3-I (arXiv 2512.04585), training stages.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import nn

from ..modeling_sam3i.configuration_sam3i import InstructionLevel
from .collator import JOINT
from .transforms import keyed_random


class TrainingStage(str, Enum):
    """A stage of the curriculum.

    `SIMPLE` trains the S-Adapter on simple instructions. `COMPLEX` copies it into the complex path and trains that
    path on complex instructions. `JOINT` trains both on pairs of instructions of one target and aligns them.
    """

    SIMPLE = "simple"
    COMPLEX = "complex"
    JOINT = "joint"

    @property
    def index(self) -> int:  # type: ignore[override]
        """Place in the curriculum: 0, 1, 2."""
        return list(TrainingStage).index(self)

    @property
    def folder(self) -> str:
        """Name of the stage's folder in the output folder."""
        return f"stage-{self.index + 1}-{self.value}"

    @property
    def levels(self) -> tuple[InstructionLevel, ...]:
        """The levels of instruction that the stage feeds."""
        if self is TrainingStage.JOINT:
            return (InstructionLevel.SIMPLE, InstructionLevel.COMPLEX)
        return (InstructionLevel.from_any(self.value),)

    @property
    def sampling(self) -> str:
        """What `InstructionCollator` draws from a row."""
        return JOINT if self is TrainingStage.JOINT else self.value

    @classmethod
    def from_any(cls, value: "str | TrainingStage") -> "TrainingStage":
        """Read a stage from its name or a stage."""
        try:
            return cls(str(getattr(value, "value", value)).strip().lower())
        except ValueError:
            names = ", ".join(repr(stage.value) for stage in cls)
            raise ValueError(f"Unknown training stage {value!r}: expected one of {names}.") from None


_SIMPLE_NAMES = (".s_adapter.", ".sam3i_adapter.simple.", ".long_position_embedding.")
_COMPLEX_NAMES = (".cascade_s_adapter.", ".c_adapter.", ".sam3i_adapter.complex.", ".long_position_embedding.")
TRAINED_NAMES: dict[TrainingStage, tuple[str, ...]] = {
    TrainingStage.SIMPLE: _SIMPLE_NAMES,
    TrainingStage.COMPLEX: _COMPLEX_NAMES,
    TrainingStage.JOINT: _SIMPLE_NAMES + _COMPLEX_NAMES,
}
"""The freeze rule: a parameter trains in a stage when its name contains one of these. All others are frozen."""

TEXT_LAYERS = ("text_encoder.text_model.", "text_encoder.layers.")  # of SAM3, and of SAM3-LiteText
"""Text adapters learn at a rate of their own."""

RATE_FACTORS = {"dot_product_scoring.": ("selector", 0.5)}
"""Groups of adapters with a factor on the learning rate, by a part of their parameters' names: low-rank updates bear a
higher rate than the instance selector."""


def is_trained(name: str, stage: TrainingStage) -> bool:
    """Whether the parameter of that name trains in a stage."""
    return any(part in name for part in TRAINED_NAMES[stage])


def complex_is_fresh(model: Any) -> bool:
    """Whether the complex adapters were never trained: all their output projections are zero."""
    outputs = [
        parameter
        for name, parameter in model.adapter_parameters().items()
        if any(part in name for part in _COMPLEX_NAMES) and (".up_proj." in name or ".attn_proj." in name)
    ]
    return not any(bool(parameter.any()) for parameter in outputs)


def freeze_for_stage(model: Any, stage: TrainingStage) -> list[str]:
    """Let exactly the parameters of a stage train, which are named; none of them may be a weight of SAM3 itself."""
    adapters = model.adapter_parameters()
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, stage))
        if parameter.requires_grad:
            trained.append(name)
    strangers = [name for name in trained if name not in adapters]
    if strangers or not trained:
        found = f"{strangers[0]!r}, a weight of SAM3" if strangers else "nothing"
        raise ValueError(
            f"Expected stage {stage.value!r} to train instruction adapters, found {found}. Name its weights in "
            "`TRAINED_NAMES`."
        )
    return trained


def rate_group(name: str, learning_rate: float, text_learning_rate: float) -> tuple[str, float]:
    """The group of a parameter ("adapters", "text", "selector") and its peak learning rate."""
    for part, (group, factor) in RATE_FACTORS.items():
        if part in name:
            return group, learning_rate * factor
    if any(layers in name for layers in TEXT_LAYERS):
        return "text", text_learning_rate
    return "adapters", learning_rate


def parameter_groups(
    module: nn.Module, learning_rate: float, text_learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The trainable parameters in groups: by learning rate (see `rate_group`) and weight decay, of matrices alone."""
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group, rate = rate_group(name, learning_rate, text_learning_rate)
            groups.setdefault((group, rate, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [
        {"name": name, "params": parameters, "lr": rate, "weight_decay": decay}
        for (name, rate, decay), parameters in groups.items()
    ]


def read_stages(stages: str | TrainingStage | Iterable[str | TrainingStage]) -> tuple[TrainingStage, ...]:
    """Stages in the order of the curriculum, from one or several names.

    Raises:
        ValueError: for none, an unknown one, one twice, or another order.
    """
    items = [stages] if isinstance(stages, str) else list(stages)
    chosen = tuple(TrainingStage.from_any(item) for item in items)
    if not chosen or [stage.index for stage in chosen] != sorted({stage.index for stage in chosen}):
        raise ValueError(
            "Expected `stages` as one or more of 'simple', 'complex', 'joint' in this order, found "
            f"{[stage.value for stage in chosen]}."
        )
    return chosen


def stage_values(name: str, value: Any) -> tuple[Any, ...]:
    """The value of a training argument in each of the three stages, from one for all or one for each."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (value,) * len(TrainingStage)
    if len(value) != len(TrainingStage):
        raise ValueError(f"Expected `{name}` as one value or one for each of 3 stages, found {value!r}.")
    return tuple(value)


class StageSampler(torch.utils.data.Sampler[int]):
    """All rows in an order that is a function of (seed, stage, epoch) alone, so that training resumes anywhere.

    Before every `every - 1` steps of `step` rows there is a step of replay rows, whose numbers follow those of the
    others. The last step of an epoch is then filled up with rows of its first, so that no step mixes both.
    """

    def __init__(self, rows: int, seed: int, stage: TrainingStage, replay: int = 0, step: int = 1, every: int = 2):
        self.rows, self.seed, self.stage, self.epoch = rows, seed, stage, 0
        self.replay, self.step, self.every = replay, step, every

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if not self.replay:
            return self.rows
        return self.step * steps_with_replay(math.ceil(self.rows / self.step), self.every)

    def __iter__(self):
        order = self._shuffled(range(self.rows), "order")
        if not self.replay:
            return iter(order)
        new = itertools.cycle(order)
        old = itertools.cycle(self._shuffled(range(self.rows, self.rows + self.replay), "replay"))
        sources = (new if step % self.every else old for step in range(len(self) // self.step))
        return itertools.chain.from_iterable(itertools.islice(source, self.step) for source in sources)

    def _shuffled(self, numbers: range, name: str) -> list[int]:
        order = list(numbers)
        keyed_random(self.seed, self.stage.value, self.epoch, name).shuffle(order)
        return order


def steps_with_replay(steps: int, every: int) -> int:
    """Steps with one of replay rows before every `every - 1` of the given ones."""
    return steps + math.ceil(steps / (every - 1))
