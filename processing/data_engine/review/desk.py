# SPDX-License-Identifier: Apache-2.0
"""The review desk: people's decisions, what follows from them, which pair to show next, and how far the work is."""

import hashlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ....modeling_sam3i.instruction_levels import InstructionLevel
from ...language.nouns import NounForms
from ..checks import (
    ACCEPTED,
    DROPPED,
    FAIL,
    REVIEW,
    RULES,
    Candidate,
    CheckResult,
    DuplicateCheck,
    TokenCounter,
    check_denotation,
    check_length,
    check_level,
    estimate_tokens,
)
from ..run import RunDirectory
from ..scene.facts import Facts
from ..scene.scene import scene_of_record
from ..writers.template_writer import TargetPlan

ACCEPT, EDIT, REJECT, SKIP = DECISIONS = ("accept", "edit", "reject", "skip")


class DecisionError(ValueError):
    """A decision that cannot be taken: an unknown pair or word, or an edit without a text."""


@dataclass(frozen=True)
class Decision:
    """One person's decision on one pair."""

    pair_id: str  # the pair
    decision: str  # "accept", "edit" (accept with `text` instead), "reject" or "skip" (no verdict)
    author: str  # who
    time: float  # when, seconds since 1970
    text: str | None = None  # the new text of an edit

    def __post_init__(self):
        if self.decision not in DECISIONS:
            raise DecisionError(f"A decision is one of {', '.join(DECISIONS)}; received {self.decision!r}.")
        if not self.author.strip():
            raise DecisionError("A decision needs its author's name.")
        if (self.decision == EDIT) != bool(self.text and self.text.strip()):
            raise DecisionError(f"An edit has a new text, and nothing else has; received {self.text!r}.")


def agreement_of(decisions: Iterable[Iterable[Decision]]) -> dict[str, Any]:
    """How far authors agree on keeping or dropping: over all pairs of authors with a common pair of data.

    `pairs` counts instructions with two or more decisions, `observed` is the share of agreeing couples of decisions,
    `kappa` Cohen's kappa with pooled marginals (Scott's pi); None where there is nothing to compare.
    """
    votes = [[item.decision != REJECT for item in said if item.decision != SKIP] for said in decisions]
    shared = [item for item in votes if len(item) > 1]
    couples = [(a, b) for item in shared for i, a in enumerate(item) for b in item[i + 1 :]]
    if not couples:
        return {"pairs": 0, "observed": None, "kappa": None}
    observed = sum(a == b for a, b in couples) / len(couples)
    kept = sum(a + b for a, b in couples) / (2 * len(couples))
    chance = kept**2 + (1 - kept) ** 2
    kappa = None if chance == 1 else round((observed - chance) / (1 - chance), 4)
    return {"pairs": len(shared), "observed": round(observed, 4), "kappa": kappa}


@dataclass(frozen=True)
class QueuedPair:
    """A pair that waits for a person."""

    pair: dict[str, Any]  # its record, checks included
    target: dict[str, Any]  # the record of its target, without the pairs
    picture: dict[str, Any]  # the record of its picture, without the targets
    value: float  # expected value of looking at it, the higher the sooner
    decisions: tuple[Decision, ...]  # what people said so far, the latest of each author


class ReviewDesk:
    """Decisions on the pairs of a run.

    A pair is settled when most of the authors who have decided agree on what becomes of it; a tie stays open.
    Threads may share a desk, and several processes may have desks on one run: nobody's decision is lost.

    Args:
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
        self._on_file: Counter = Counter()
        self._lock = threading.RLock()
        self._last_picture = self._last_decision = 0
        self.refresh()

    def refresh(self) -> None:
        """Take in what others have written and decided since."""
        with self._lock:
            new = list(self.run.store.pictures(self._last_picture))
            if new:
                self._last_picture = new[-1][0]
                records = [*self._records, *(record for _, record in new)]
                self._records = sorted(records, key=lambda record: record["order"])
                self._pairs = {
                    pair["pair_id"]: (pair, target, record)
                    for record in self._records
                    for target in record["targets"]
                    for pair in target["pairs"]
                }
            for number, line in self.run.store.decisions(self._last_decision):
                self._last_decision, made = number, Decision(**line)
                self._on_file[made.author] += 1
                self._decisions[made.pair_id][made.author] = made

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
        new = self.run.store.add_decisions(asdict(item) for item in sorted(wanted, key=lambda item: item.time))
        self.refresh()
        return new

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

    def settled(
        self, image_id: str | None = None
    ) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str, str]]:
        """(pair, target, picture, outcome, text) of every instruction (of one picture), in the order of the source."""
        with self._lock:
            return [
                (pair, target, record, *self.outcome(pair))
                for pair, target, record in self._pairs.values()
                if pair["level"] is not None and image_id in (None, record["image_id"])
            ]

    def nouns(self) -> tuple[str, ...]:
        """Every noun that the run's pictures and questions name, sorted."""
        with self._lock:
            named = {item["noun"] for record in self._records for item in record["instances"]}
            named |= {target["noun"] for record in self._records for target in record["targets"] if target["noun"]}
            return tuple(sorted(named))

    def queue(self, author: str | None = None) -> list[QueuedPair]:
        """Pairs that wait for a person, the most valuable first; those that `author` has not decided on.

        To an author, pairs of the share for second looks wait until two have decided. The value of a look is the
        chance that it ends in an accepted pair, estimated from what became of pairs with the same conflict of checks,
        times how scarce its cell (level, kind, granularity) is among the accepted.
        """
        with self._lock:
            accepted: Counter = Counter()
            waiting = []
            # accepted and all, one of each to begin with
            chances: dict[tuple, list[int]] = defaultdict(lambda: [1, 2])
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
                kept, total = chances[_conflict(pair)]
                queue.append(self._queued(pair, target, record, kept / total / (1 + accepted[_cell(pair, target)])))
            return sorted(queue, key=lambda item: (-item.value, item.pair["pair_id"]))

    def _queued(
        self, pair: dict[str, Any], target: dict[str, Any], record: dict[str, Any], value: float
    ) -> QueuedPair:
        target = {key: item for key, item in target.items() if key != "pairs"}
        record = {key: item for key, item in record.items() if key != "targets"}
        return QueuedPair(pair, target, record, value, self.decisions(pair["pair_id"]))

    def _wants_second_look(self, pair_id: str) -> bool:
        """Whether a pair is one that two authors are asked about, and one has decided so far."""
        decided = [item for item in self._decisions.get(pair_id, {}).values() if item.decision != SKIP]
        chosen = int.from_bytes(hashlib.sha256(pair_id.encode()).digest()[:4], "big") < self.second_looks * 2**32
        return chosen and len(decided) == 1

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
        return Counter(self._on_file)


def _cell(pair: dict[str, Any], target: dict[str, Any]) -> tuple[str, str, str]:
    return pair["level"], target["kind"], target["granularity"]


def _conflict(pair: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((item["check"], item["verdict"]) for item in pair["checks"])


class EditChecks:
    """Checks edits of a run's instructions."""

    def __init__(self, desk: ReviewDesk, count_tokens: TokenCounter = estimate_tokens):
        self.desk = desk
        self.count_tokens = count_tokens
        self.forms = NounForms()

    def __call__(self, item: QueuedPair, text: str) -> list[CheckResult]:
        """What each check finds about a new text for a pair's target; all of them are run.

        "unsure" is no objection: the reviewer knows. A complex instruction is beyond the denotation check.
        """
        candidate = Candidate(InstructionLevel.from_any(item.pair["level"]), text, _plan(item.target))
        found = [check_length(candidate, self.count_tokens, self.desk.run.config.max_tokens)]
        if found[0].verdict == FAIL and not found[0].evidence:  # no line of text: nothing to read
            return found
        facts = Facts(scene_of_record(item.picture, self.desk.run.path))
        found.append(check_level(candidate, self.forms))
        found.append(self._duplicates(item)(candidate))
        found.append(check_denotation(candidate, facts, self.desk.nouns(), self.forms))
        return found

    def _duplicates(self, item: QueuedPair) -> DuplicateCheck:
        """The check, knowing what else is kept of the same picture."""
        check = DuplicateCheck()
        for pair, target, _, outcome, text in self.desk.settled(item.picture["image_id"]):
            if outcome != DROPPED and pair["pair_id"] != item.pair["pair_id"]:
                check.keep(Candidate(InstructionLevel.from_any(pair["level"]), text, _plan(target)))
        return check


def breaks_a_rule(results: list[CheckResult]) -> bool:
    """Whether a check failed that finds what is so, and gives no verdict of its own."""
    return any(item.verdict == FAIL and item.check in RULES for item in results)


def _plan(target: dict[str, Any]) -> TargetPlan:
    return TargetPlan(tuple(target["targets"]), target["kind"], target["noun"], target["granularity"])
