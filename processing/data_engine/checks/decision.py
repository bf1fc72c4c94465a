# SPDX-License-Identifier: Apache-2.0
"""From what the checks found to what happens: accepted, dropped, back to the writer, or before a person."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import FAIL, PASS, CheckResult

ACCEPTED, DROPPED, REVIEW = "accepted", "dropped", "review"
RULES = ("length", "level", "duplicate")  # what these find is so; the others give an opinion
OPINIONS = ("denotation", "checker", "grounding")


def decide(results: Sequence[CheckResult]) -> tuple[str, str]:
    """(outcome, reason) for one instruction.

    A broken rule drops it. Of the opinions: all for it accept, all against it drop, and where they differ, or none
    was to be had, a person decides.
    """
    broken = [item for item in results if item.check in RULES and item.verdict == FAIL]
    if broken:
        return DROPPED, broken[0].reason
    opinions = [item for item in results if item.check in OPINIONS and item.verdict in (PASS, FAIL)]
    against = [item for item in opinions if item.verdict == FAIL]
    if not opinions:
        return REVIEW, "No check could tell whether it denotes the target."
    if not against:
        return ACCEPTED, ""
    if len(against) == len(opinions):
        return DROPPED, " ".join(item.reason for item in against)
    names = ", ".join(f"{item.check} says {item.verdict}" for item in opinions)
    return REVIEW, f"The checks disagree: {names}."
