# SPDX-License-Identifier: Apache-2.0
"""The review desk: what follows from people's decisions, which pair to show next, and how far the work is."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..append_log import LogReader, shared_log
from ..checks.decision import ACCEPTED, DROPPED, REVIEW
from ..run import RunDirectory
from .opinions import ACCEPT, EDIT, SKIP, Decision, DecisionError, agreement_of


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
    Threads may share a desk, and several processes may have desks on one run: nobody's decision is lost.

    Args:
        run: the run; it may be at work, see [`refresh`].
        second_looks: share of the pairs that a second author is asked about too, so that agreement can be measured.
    """

    def __init__(self, run: RunDirectory, second_looks: float = 0.0):
        if not 0 <= second_looks <= 1:
            raise ValueError(f"`second_looks` is a share from 0 to 1, received {second_looks}.")
        self.run = run
        self.second_looks = second_looks
        self._records: list[dict[str, Any]] = []
        self._pairs: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {}
        self._decisions: dict[str, dict[str, Decision]] = defaultdict(dict)
        self._all: list[Decision] = []
        self._lock = threading.RLock()
        self._new_records, self._new_decisions = LogReader(run.records_path), LogReader(run.decisions_path)
        self.refresh()

    def refresh(self) -> None:
        """Take in what others have written and decided since."""
        with self._lock:
            records = self._new_records.read()
            if records:
                self._records = sorted([*self._records, *records], key=lambda record: record["order"])
                self._pairs = {
                    pair["pair_id"]: (pair, target, record)
                    for record in self._records
                    for target in record["targets"]
                    for pair in target["pairs"]
                }
            for line in self._new_decisions.read():
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
        wanted = list(decisions)
        for item in wanted:
            if item.pair_id not in self._pairs or self._pairs[item.pair_id][0]["level"] is None:
                raise DecisionError(f"{self.run.path} has no instruction {item.pair_id!r}.")
        with self._lock, shared_log(self.run.decisions_path) as log:
            self.refresh()
            known = set(self._all)
            new = [item for item in wanted if item not in known]
            for item in sorted(new, key=lambda item: item.time):
                log.append(asdict(item))
            self.refresh()
        return len(new)

    def find(self, pair_id: str) -> QueuedPair | None:
        """A pair by its id, whether it waits or not; None where the run has no such instruction."""
        with self._lock:
            if pair_id not in self._pairs or self._pairs[pair_id][0]["level"] is None:
                return None
            return self._queued(*self._pairs[pair_id], 0.0)

    def decisions(self, pair_id: str) -> tuple[Decision, ...]:
        """The latest decision of every author on a pair."""
        return tuple(self._decisions.get(pair_id, {}).values())

    def outcome(self, pair: dict[str, Any]) -> tuple[str, str]:
        """(outcome, text) of a pair after what people said; the machines' where they said nothing."""
        if pair["pair_id"] not in self._decisions:
            return pair["outcome"], pair["text"]
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

    def settled_of(self, image_id: str) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str, str]]:
        """What [`settled`] gives for one picture."""
        with self._lock:
            return [
                (pair, target, record, *self.outcome(pair))
                for record in self._records
                if record["image_id"] == image_id
                for target in record["targets"]
                for pair in target["pairs"]
                if pair["level"] is not None
            ]

    def nouns(self) -> tuple[str, ...]:
        """Every noun that the run's pictures and questions name, sorted."""
        with self._lock:
            named = {item["noun"] for record in self._records for item in record["instances"]}
            named |= {target["noun"] for record in self._records for target in record["targets"] if target["noun"]}
            return tuple(sorted(named))

    def queue(self, author: str | None = None) -> list[QueuedPair]:
        """Pairs that wait for a person, the most valuable first; those that `author` has not decided on.

        To an author, pairs of the share for second looks wait until two have an opinion. The value of a look is the
        chance that it ends in an accepted pair, estimated from what became of pairs with the same conflict of checks,
        times how scarce its cell (level, kind, granularity) is among the accepted.
        """
        with self._lock:
            accepted: Counter = Counter()
            waiting = []
            chances: dict[tuple, list[int]] = defaultdict(
                lambda: [1, 2]
            )  # accepted and all, one of each to begin with
            for pair, target, record, outcome, _ in self.settled():
                accepted[_cell(pair, target)] += outcome == ACCEPTED
                if pair["outcome"] != REVIEW:
                    if outcome == REVIEW:  # people have come to differ on what the machines had settled
                        waiting.append((pair, target, record))
                    continue
                if outcome != REVIEW:
                    chances[_conflict(pair)][0] += outcome == ACCEPTED
                    chances[_conflict(pair)][1] += 1
                if outcome == REVIEW or (author is not None and self._wants_second_look(pair["pair_id"])):
                    waiting.append((pair, target, record))
            queue = []
            for pair, target, record in waiting:
                if author is not None and author in self._decisions.get(pair["pair_id"], {}):
                    continue
                right, total = chances[_conflict(pair)]
                queue.append(self._queued(pair, target, record, right / total / (1 + accepted[_cell(pair, target)])))
            return sorted(queue, key=lambda item: (-item.value, item.pair["pair_id"]))

    def _queued(
        self, pair: dict[str, Any], target: dict[str, Any], record: dict[str, Any], value: float
    ) -> QueuedPair:
        target = {key: item for key, item in target.items() if key != "pairs"}
        record = {key: item for key, item in record.items() if key != "targets"}
        return QueuedPair(pair, target, record, value, self.decisions(pair["pair_id"]))

    def _wants_second_look(self, pair_id: str) -> bool:
        """Whether a pair is one that two authors are asked about, and one has an opinion so far."""
        opinions = [item for item in self._decisions.get(pair_id, {}).values() if item.decision != SKIP]
        chosen = int.from_bytes(hashlib.sha256(pair_id.encode()).digest()[:4], "big") < self.second_looks * 2**32
        return chosen and len(opinions) == 1

    def progress(self, author: str | None = None) -> dict[str, int]:
        """How far the people are.

        Of the pairs that the machines left to them, `done` are settled and `kept` of these accepted; `left` wait (for
        `author`, where given), and `author` has `decided` on so many and `skipped` so many.
        """
        with self._lock:
            outcomes = Counter(outcome for pair, *_, outcome, _ in self.settled() if pair["outcome"] == REVIEW)
            own = Counter(
                said[author].decision == SKIP
                for said in self._decisions.values()
                if author is not None and author in said
            )
            return {
                "done": outcomes.total() - outcomes[REVIEW],
                "kept": outcomes[ACCEPTED],
                "left": len(self.queue(author)),
                "decided": own[False],
                "skipped": own[True],
            }

    def agreement(self) -> dict[str, Any]:
        """How far authors agree; see [`agreement_of`]."""
        with self._lock:
            return agreement_of(said.values() for said in self._decisions.values())

    def authors(self) -> Counter:
        """Decisions on file per author."""
        return Counter(item.author for item in self._all)


def _cell(pair: dict[str, Any], target: dict[str, Any]) -> tuple[str, str, str]:
    return pair["level"], target["kind"], target["granularity"]


def _conflict(pair: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((item["check"], item["verdict"]) for item in pair["checks"])
