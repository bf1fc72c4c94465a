# SPDX-License-Identifier: Apache-2.0
"""The cheap checks of an instruction: length, level rules, duplicates, denotation; no model is asked.

Every check returns its evidence. "fail" sends the instruction back to its writer with the reason; "unsure" means that
the check cannot tell, and leaves the question to the next ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ....modeling_sam3i.configuration_sam3i import InstructionLevel
from ...datasets.schema import is_text
from ...language.meaning import Meaning, denote
from ...language.nouns import NounForms, words_of
from ...language.reading import read_simple
from ...levels import classify_level
from ..scene.facts import Facts
from ..writers.template_writer import TargetPlan

PASS, FAIL, UNSURE = "pass", "fail", "unsure"
MAX_TOKENS = 32  # SAM3's text context, begin and end included
NEAR_DUPLICATE = 0.8  # share of common content words from which two texts for one target say the same
_CONTENT_FREE = frozenset(
    "a an the all of is are that which in on at to and please find show segment can you me i we need look for".split()
)
CONCEPT, SIMPLE, COMPLEX = InstructionLevel


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        check: its name.
        verdict: "pass", "fail" or "unsure".
        reason: one sentence that a writer can act on; empty for a pass.
        evidence: what the verdict rests on, as plain values.
    """

    check: str
    verdict: str
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Candidate:
    """An instruction under examination: its level and text, what it is to denote, and the question where known."""

    level: InstructionLevel
    text: str
    plan: TargetPlan


TokenCounter = Callable[[str], int]


def estimate_tokens(text: str) -> int:
    """An upper estimate of CLIP's tokens where there is no tokenizer: one per four letters of a word, and the ends."""
    return 2 + sum(-(-len(word) // 4) for word in words_of(text)) + sum(text.count(mark) for mark in ",.;:?!'\"()")


def check_length(candidate: Candidate, count_tokens: TokenCounter, max_tokens: int = MAX_TOKENS) -> CheckResult:
    """The instruction is a text and fits the model's context."""
    text = candidate.text
    if not is_text(text) or any(ord(character) < 32 for character in text):
        return CheckResult("length", FAIL, "The instruction must be one non-empty line of text.", {})
    tokens = count_tokens(text)
    evidence = {"tokens": tokens, "max_tokens": max_tokens}
    if tokens > max_tokens:
        return CheckResult("length", FAIL, f"It has {tokens} tokens; shorten it to {max_tokens}.", evidence)
    return CheckResult("length", PASS, "", evidence)


def check_level(candidate: Candidate, forms: NounForms) -> CheckResult:
    """A concept is the noun phrase, a simple instruction names the noun, a complex one does not name it."""
    noun, level, text = candidate.plan.noun, candidate.level, candidate.text
    reads_as = classify_level(text)
    if level is COMPLEX:
        named = None if noun is None else forms.named_in(noun, text, and_head=True)
        evidence = {"noun": noun, "named_by": named, "reads_as": reads_as.value}
        if named is not None:
            reason = f"A complex instruction must not name the target, but {named!r} names {noun!r}."
            return CheckResult("level", FAIL, reason, evidence)
        if len(words_of(text)) < 3:
            return CheckResult("level", FAIL, "A complex instruction says what the target is for or does.", evidence)
        return CheckResult("level", PASS, "", evidence)
    named = None if noun is None else forms.named_in(noun, text)
    evidence = {"noun": noun, "named_by": named, "reads_as": reads_as.value}
    if named is None:
        reason = f"A {level.value} instruction must name the target: use the noun {noun!r}."
        return CheckResult("level", FAIL, reason, evidence)
    if reads_as is not level:
        return CheckResult(
            "level", FAIL, f"It reads as a {reads_as.value} instruction, not a {level.value} one.", evidence
        )
    return CheckResult("level", PASS, "", evidence)


class DuplicateCheck:
    """Compares an instruction with those kept for the same picture; [`keep`] adds one."""

    def __init__(self):
        self._kept: list[tuple[str, frozenset[str], tuple[int, ...], InstructionLevel]] = []

    def keep(self, candidate: Candidate) -> None:
        """Remember an instruction that was not rejected."""
        content = frozenset(words_of(candidate.text)) - _CONTENT_FREE
        self._kept.append((_normal(candidate.text), content, candidate.plan.targets, candidate.level))

    def __call__(self, candidate: Candidate) -> CheckResult:
        """Fails a text kept before, and a near-copy for the same target at the same level.

        The same words for two targets of one picture cannot both be right, and neither is kept twice.
        """
        normal, content = _normal(candidate.text), frozenset(words_of(candidate.text)) - _CONTENT_FREE
        for text, other, targets, level in self._kept:
            same_target = targets == candidate.plan.targets
            if text == normal:
                reason = (
                    "The same instruction exists already."
                    if same_target
                    else (
                        "The same words are in use for another target of this picture: say what tells the two apart."
                    )
                )
                return CheckResult("duplicate", FAIL, reason, {"other": text, "same_target": same_target})
            if same_target and level is candidate.level and content and other:
                overlap = len(content & other) / len(content | other)
                if overlap >= NEAR_DUPLICATE:
                    reason = f"It is nearly the same as {text!r}: say it in other words."
                    return CheckResult("duplicate", FAIL, reason, {"other": text, "overlap": round(overlap, 3)})
        return CheckResult("duplicate", PASS)


def check_denotation(candidate: Candidate, facts: Facts, nouns: tuple[str, ...], forms: NounForms) -> CheckResult:
    """The instruction denotes the target and nothing else, as far as its words can be read and measured.

    Concepts and simple instructions are read from their words; what a template wrote at the complex level is taken at
    its meaning. Everything else is "unsure".
    """
    plan, meaning = candidate.plan, candidate.plan.meaning
    is_plural = None
    if candidate.level is CONCEPT:
        meaning = Meaning(plan.noun)
    elif candidate.level is SIMPLE:
        reading = read_simple(candidate.text, {*nouns, *facts.scene.nouns}, forms)
        meaning, is_plural = (None, None) if reading is None else (reading.meaning, reading.is_plural)
    if meaning is None:
        return CheckResult("denotation", UNSURE, "The words are beyond the reader.", {"understood": False})
    found = denote(meaning, facts)
    evidence: dict[str, Any] = {"understood": True, "family": meaning.family}
    if found is None:
        return CheckResult("denotation", UNSURE, "The picture gives no clear answer to it.", evidence)
    denoted = sorted(facts.scene.instances[i].annotation_id for i in found)
    evidence |= {"denotes": denoted, "target": list(plan.targets)}
    missing, extra = sorted(set(plan.targets) - set(denoted)), sorted(set(denoted) - set(plan.targets))
    if missing or extra:
        parts = [f"it also fits {len(extra)} other instance(s)"] if extra else []
        parts += [f"it does not fit {len(missing)} of the target's instance(s)"] if missing else []
        return CheckResult(
            "denotation", FAIL, f"It does not denote exactly the target: {' and '.join(parts)}.", evidence
        )
    if is_plural is False and len(plan.targets) > 1 and not candidate.text.lower().startswith(("every", "each")):
        return CheckResult("denotation", FAIL, f"It speaks of one, the target has {len(plan.targets)}.", evidence)
    return CheckResult("denotation", PASS, "", evidence)


def _normal(text: str) -> str:
    return " ".join(words_of(text))
