# SPDX-License-Identifier: Apache-2.0
"""An edited instruction goes through the checks again that need no model."""

from __future__ import annotations

from ....modeling_sam3i.instruction_levels import InstructionLevel
from ...language.nouns import NounForms
from ..checks import (
    DROPPED,
    FAIL,
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
from ..scene.facts import Facts
from ..scene.scene import scene_of_record
from ..writers.template_writer import TargetPlan
from .desk import QueuedPair, ReviewDesk


class EditChecks:
    """Checks edits of a run's instructions."""

    def __init__(self, desk: ReviewDesk, count_tokens: TokenCounter = estimate_tokens, forms: NounForms | None = None):
        self.desk = desk
        self.count_tokens = count_tokens
        self.forms = forms or NounForms()

    def __call__(self, item: QueuedPair, text: str) -> list[CheckResult]:
        """What each check finds about a new text for a pair's target; all of them are run.

        "unsure" is no objection: the reviewer knows. A complex instruction is beyond the denotation check.
        """
        candidate = Candidate(InstructionLevel.from_any(item.pair["level"]), text, _plan(item))
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
        for pair, target, _, outcome, text in self.desk.settled_of(item.picture["image_id"]):
            if outcome != DROPPED and pair["pair_id"] != item.pair["pair_id"]:
                plan = TargetPlan(tuple(target["targets"]), target["kind"], target["noun"], target["granularity"])
                check.keep(Candidate(InstructionLevel.from_any(pair["level"]), text, plan))
        return check


def breaks_a_rule(results: list[CheckResult]) -> bool:
    """Whether a check failed that finds what is so, and gives no verdict of its own."""
    return any(item.verdict == FAIL and item.check in RULES for item in results)


def _plan(item: QueuedPair) -> TargetPlan:
    target = item.target
    return TargetPlan(tuple(target["targets"]), target["kind"], target["noun"], target["granularity"])
