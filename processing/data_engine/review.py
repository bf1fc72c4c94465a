# SPDX-License-Identifier: Apache-2.0
"""What people decide: an append-only file of decisions, what follows from them, and whom to ask next."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .append_log import AppendLog, read_log
from .decision import ACCEPTED, DROPPED, REVIEW
from .run_directory import RunDirectory

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


@dataclass(frozen=True)
class QueuedPair:
    """A pair that waits for a person.

    Attributes:
        pair: its record, checks included.
        target: the record of its target, without the pairs.
        picture: the record of its picture, without the targets.
        value: expected value of looking at it, the higher the sooner.
        decisions: what people said so far, the latest of each author.
    """

    pair: dict[str, Any]
    target: dict[str, Any]
    picture: dict[str, Any]
    value: float
    decisions: tuple[Decision, ...]


class ReviewDesk:
    """Decisions on the pairs of a run.

    A pair is settled when most of the authors who have an opinion agree on what becomes of it; a tie stays open.
    """

    def __init__(self, run: RunDirectory):
        self.run = run
        self._pairs = {
            pair["pair_id"]: (pair, target, record)
            for record in run.ordered_records()
            for target in record["targets"]
            for pair in target["pairs"]
        }
        self._decisions: dict[str, dict[str, Decision]] = defaultdict(dict)
        self._all: list[Decision] = []
        for line in read_log(run.decisions_path):
            self._note(Decision(**line))

    def _note(self, decision: Decision) -> None:
        self._all.append(decision)
        self._decisions[decision.pair_id][decision.author] = decision

    def decide(
        self, pair_id: str, decision: str, author: str, text: str | None = None, when: float | None = None
    ) -> Decision:
        """Keep a decision; an author's later decision on a pair replaces the earlier one, which stays on file."""
        made = Decision(pair_id, decision, author, time.time() if when is None else when, text)
        self.take([made])
        return made

    def take(self, decisions: Iterable[Decision]) -> int:
        """Keep decisions that are not on file yet; returns how many were new.

        Raises:
            DecisionError: a decision on a pair that the run does not have.
        """
        known = set(self._all)
        new = [item for item in decisions if item not in known]
        for item in new:
            if item.pair_id not in self._pairs or self._pairs[item.pair_id][0]["level"] is None:
                raise DecisionError(f"{self.run.path} has no instruction {item.pair_id!r}.")
        log = AppendLog(self.run.decisions_path)
        for item in sorted(new, key=lambda item: item.time):
            log.append(asdict(item))
            self._note(item)
        log.close()
        return len(new)

    def decisions(self, pair_id: str) -> tuple[Decision, ...]:
        """The latest decision of every author on a pair."""
        return tuple(self._decisions.get(pair_id, {}).values())

    def outcome(self, pair: dict[str, Any]) -> tuple[str, str]:
        """(outcome, text) of a pair after what people said; the machines' where they said nothing."""
        votes = Counter(
            (ACCEPTED, item.text or pair["text"]) if item.decision in (ACCEPT, EDIT) else (DROPPED, pair["text"])
            for item in self.decisions(pair["pair_id"])
            if item.decision != SKIP
        )
        if not votes:
            return pair["outcome"], pair["text"]
        ranked = votes.most_common(2)
        if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
            return REVIEW, pair["text"]
        return ranked[0][0]

    def settled(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str, str]]:
        """(pair, target, picture, outcome, text) of every instruction, in the order of the source."""
        for pair, target, record in self._pairs.values():
            if pair["level"] is not None:
                yield pair, target, record, *self.outcome(pair)

    def queue(self, author: str | None = None) -> list[QueuedPair]:
        """Pairs that wait for a person, the most valuable first; those that `author` has not decided on.

        The value of a look is the chance that it ends in an accepted pair, estimated from what became of pairs with
        the same conflict of checks, times how scarce its cell (level, kind, granularity) is among the accepted.
        """
        accepted: Counter = Counter()
        waiting = []
        chances: dict[tuple, list[int]] = defaultdict(lambda: [1, 2])  # accepted and all, one of each to begin with
        for pair, target, record, outcome, _ in self.settled():
            accepted[_cell(pair, target)] += outcome == ACCEPTED
            if pair["outcome"] == REVIEW and outcome != REVIEW:
                chances[_conflict(pair)][0] += outcome == ACCEPTED
                chances[_conflict(pair)][1] += 1
            if outcome == REVIEW:
                waiting.append((pair, target, record))
        queue = []
        for pair, target, record in waiting:
            said = self.decisions(pair["pair_id"])
            if author is not None and any(item.author == author for item in said):
                continue
            right, total = chances[_conflict(pair)]
            value = right / total / (1 + accepted[_cell(pair, target)])
            target = {key: item for key, item in target.items() if key != "pairs"}
            record = {key: item for key, item in record.items() if key != "targets"}
            queue.append(QueuedPair(pair, target, record, value, said))
        return sorted(queue, key=lambda item: (-item.value, item.pair["pair_id"]))

    def agreement(self) -> dict[str, Any]:
        """How far authors agree on keeping or dropping: over all pairs of authors with a common pair of data.

        `pairs` counts instructions with two or more opinions, `observed` is the share of agreeing couples of opinions,
        `kappa` Cohen's kappa with pooled marginals (Scott's pi); None where there is nothing to compare.
        """
        votes = [
            [item.decision != REJECT for item in said.values() if item.decision != SKIP]
            for said in self._decisions.values()
        ]
        shared = [item for item in votes if len(item) > 1]
        couples = [(a, b) for item in shared for i, a in enumerate(item) for b in item[i + 1 :]]
        if not couples:
            return {"pairs": 0, "observed": None, "kappa": None}
        observed = sum(a == b for a, b in couples) / len(couples)
        kept = sum(a + b for a, b in couples) / (2 * len(couples))
        chance = kept**2 + (1 - kept) ** 2
        kappa = None if chance == 1 else round((observed - chance) / (1 - chance), 4)
        return {"pairs": len(shared), "observed": round(observed, 4), "kappa": kappa}

    def authors(self) -> Counter:
        """Decisions on file per author."""
        return Counter(item.author for item in self._all)


def _cell(pair: dict[str, Any], target: dict[str, Any]) -> tuple[str, str, str]:
    return pair["level"], target["kind"], target["granularity"]


def _conflict(pair: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((item["check"], item["verdict"]) for item in pair["checks"])
