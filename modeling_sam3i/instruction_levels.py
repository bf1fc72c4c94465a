# SPDX-License-Identifier: Apache-2.0
"""The taxonomy of instructions; a module of its own, so that data can be read without Transformers and PyTorch."""

from enum import Enum


class InstructionLevel(str, Enum):
    """How much an instruction says (SAM3-I, arXiv 2512.04585, taxonomy of instructions).

    `CONCEPT` is a noun phrase ("dog") and runs stock SAM3. `SIMPLE` names the noun and adds an attribute, a position
    or a relation ("the brown dog on the left"). `COMPLEX` never names it and needs reasoning ("the animal waiting to
    be let out").
    """

    CONCEPT = "concept"
    SIMPLE = "simple"
    COMPLEX = "complex"

    @property
    def index(self) -> int:  # type: ignore[override]  # a string's own is of no use here
        """The integer that stands for the level in tensors: 0 concept, 1 simple, 2 complex."""
        return list(InstructionLevel).index(self)

    @classmethod
    def from_any(cls, value: "str | int | InstructionLevel") -> "InstructionLevel":
        """Read a level from its name, its index or a level. Raises ValueError when `value` is none of them."""
        if isinstance(value, str):
            try:
                return cls(str(getattr(value, "value", value)).strip().lower())
            except ValueError:
                pass
        elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(cls):
            return list(cls)[value]
        names = ", ".join(f"{level.value!r} ({level.index})" for level in cls)
        raise ValueError(f"Unknown instruction level {value!r}: expected one of {names}.")
