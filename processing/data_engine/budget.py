# SPDX-License-Identifier: Apache-2.0
"""Caps on what a run may spend on chat models: calls, tokens, money."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any


class BudgetExhaustedError(RuntimeError):
    """A cap would be passed by one more call; raise the cap and run again to go on."""


@dataclass(frozen=True)
class Budget:
    """Caps; None is no cap.

    Attributes:
        max_calls: answered requests, those in doubt after a crash included.
        max_tokens: prompt and completion together.
        max_cost: in the currency of the prices.
        prompt_price, completion_price: per million tokens.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self):
        for name, value in asdict(self).items():
            if value is not None and value < 0:
                raise ValueError(f"`{name}` must be 0 or more, received {value}.")
        if self.max_cost is not None and not (self.prompt_price or self.completion_price):
            raise ValueError("`max_cost` needs `prompt_price` or `completion_price` (per million tokens).")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of some tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


class Spending:
    """What has been spent and what calls in flight may still spend, against a budget; safe for threads."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self._reserved: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, int]:
        """Set the most that a call may take aside before it is made.

        Raises:
            BudgetExhaustedError: the call might pass a cap.
        """
        with self._lock:
            prompt = self.prompt_tokens + prompt_tokens + sum(item[0] for item in self._reserved)
            completion = self.completion_tokens + completion_tokens + sum(item[1] for item in self._reserved)
            budget = self.budget
            wanted = (
                ("calls", budget.max_calls, self.calls + len(self._reserved) + 1),
                ("tokens", budget.max_tokens, prompt + completion),
                ("cost", budget.max_cost, budget.cost(prompt, completion)),
            )
            for name, cap, value in wanted:
                if cap is not None and value > cap:
                    raise BudgetExhaustedError(
                        f"One more call might bring the {name} to {value:g}, above the cap of {cap:g}; "
                        "raise the cap and run again to go on."
                    )
            self._reserved.append((prompt_tokens, completion_tokens))
            return prompt_tokens, completion_tokens

    def settle(self, reservation: tuple[int, int], calls: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Replace a reservation by what the call took."""
        with self._lock:
            self._reserved.remove(reservation)
        self.add(calls, prompt_tokens, completion_tokens)

    def add(self, calls: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what was spent, now or in an earlier session."""
        with self._lock:
            self.calls += calls
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "calls": self.calls,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost": round(self.budget.cost(self.prompt_tokens, self.completion_tokens), 6),
        }
