# SPDX-License-Identifier: Apache-2.0
"""What people say about pairs, and how far they agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

ACCEPT, EDIT, REJECT, SKIP = DECISIONS = ("accept", "edit", "reject", "skip")


class DecisionError(ValueError):
    """A decision that cannot be taken: an unknown pair or word, or an edit without a text."""


@dataclass(frozen=True)
class Decision:
    """One person's decision on one pair.

    Attributes:
        pair_id: the pair.
        decision: "accept", "edit" (accept with `text` instead), "reject" or "skip" (no opinion).
        author: who.
        time: when, seconds since 1970.
        text: the new text of an edit.
    """

    pair_id: str
    decision: str
    author: str
    time: float
    text: str | None = None

    def __post_init__(self):
        if self.decision not in DECISIONS:
            raise DecisionError(f"A decision is one of {', '.join(DECISIONS)}; received {self.decision!r}.")
        if not self.author.strip():
            raise DecisionError("A decision needs its author's name.")
        if (self.decision == EDIT) != bool(self.text and self.text.strip()):
            raise DecisionError(f"An edit has a new text, and nothing else has; received {self.text!r}.")


def agreement_of(opinions: Iterable[Iterable[Decision]]) -> dict[str, Any]:
    """How far authors agree on keeping or dropping: over all pairs of authors with a common pair of data.

    `pairs` counts instructions with two or more opinions, `observed` is the share of agreeing couples of opinions,
    `kappa` Cohen's kappa with pooled marginals (Scott's pi); None where there is nothing to compare.

    Args:
        opinions: per pair, the latest decision of every author.
    """
    votes = [[item.decision != REJECT for item in said if item.decision != SKIP] for said in opinions]
    shared = [item for item in votes if len(item) > 1]
    couples = [(a, b) for item in shared for i, a in enumerate(item) for b in item[i + 1 :]]
    if not couples:
        return {"pairs": 0, "observed": None, "kappa": None}
    observed = sum(a == b for a, b in couples) / len(couples)
    kept = sum(a + b for a, b in couples) / (2 * len(couples))
    chance = kept**2 + (1 - kept) ** 2
    kappa = None if chance == 1 else round((observed - chance) / (1 - chance), 4)
    return {"pairs": len(shared), "observed": round(observed, 4), "kappa": kappa}
