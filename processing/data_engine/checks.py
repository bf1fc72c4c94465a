# SPDX-License-Identifier: Apache-2.0
"""The checks of an instruction, and what follows from them.

The cheap ones ask no model: length, level rules, duplicates, denotation. A chat model that answers from the image
alone and a segmenter that follows come after them. Every check returns its evidence. "fail" sends the instruction
back to its writer with the reason; "unsure" means that the check cannot tell, and leaves it to the next ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from ...modeling_sam3i.instruction_levels import InstructionLevel
from ..datasets.schema import is_text
from ..language.meaning import Meaning, compares_one, denote
from ..language.nouns import NounForms, words_of
from ..language.reading import read_simple
from ..levels import classify_level
from ..masks import encode_mask
from .scene.facts import Facts
from .writers.template_writer import TargetPlan

if TYPE_CHECKING:
    from PIL.Image import Image

PASS, FAIL, UNSURE = "pass", "fail", "unsure"
ACCEPTED, DROPPED, REVIEW = "accepted", "dropped", "review"
RULES = ("length", "level", "duplicate")  # what these find is so; the others give a verdict of their own
VERDICTS = ("denotation", "checker", "grounding")
MAX_TOKENS = 32  # SAM3's text context, begin and end included
NEAR_DUPLICATE = 0.8  # share of common content words from which two texts for one target say the same
_CONTENT_FREE = frozenset(
    "a an the all of is are that which in on at to and please find show segment can you me i we need look for".split()
)
CONCEPT, SIMPLE, COMPLEX = InstructionLevel
MAX_NUMBERED = 30  # instances that get a number in the checker's image; the target's category goes first

# (image, instructions, levels) -> one bool array [K, height, width] of found instances per instruction
Grounder = Callable[["Image", list[str], list[str]], Sequence[np.ndarray]]


@dataclass(frozen=True)
class CheckResult:
    """What one check found."""

    check: str  # its name
    verdict: str  # "pass", "fail" or "unsure"
    reason: str = ""  # one sentence that a writer can act on; empty for a pass
    evidence: dict[str, Any] = field(default_factory=dict)  # what the verdict rests on, as plain values


@dataclass(frozen=True)
class Candidate:
    """An instruction that is checked: its level and text, what it is to denote, and the question where known."""

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

    def __init__(self) -> None:
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
    if found is None and compares_one(meaning, facts):
        reason = f"It compares, but there is only one {meaning.noun} to compare: leave the comparison out."
        return CheckResult("denotation", FAIL, reason, evidence)
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


def number_instances(facts: Facts, noun: str | None, rng: Random) -> dict[int, int]:
    """Numbers from 1 for the instances (annotation id -> number), in an order that tells nothing."""
    own = [item.annotation_id for item in facts.scene.instances if item.noun == noun]
    others = [item.annotation_id for item in facts.scene.instances if item.noun != noun]
    rng.shuffle(others)
    chosen = (own + others)[: max(MAX_NUMBERED, len(own))]
    rng.shuffle(chosen)
    return {annotation_id: number for number, annotation_id in enumerate(chosen, start=1)}


def checker_result(candidate: Candidate, numbers: Mapping[int, int], answer: set[int]) -> CheckResult:
    """Compares a checker's answer with the target."""
    by_number = {number: annotation_id for annotation_id, number in numbers.items()}
    strange = sorted(answer - set(by_number))
    found = sorted(by_number[number] for number in answer if number in by_number)
    target = list(candidate.plan.targets)
    evidence = {"found": found, "target": target}
    if strange:
        evidence["unknown_numbers"] = strange
    if not strange and found == target:
        return CheckResult("checker", PASS, "", evidence)
    extra, missing = set(found) - set(target), set(target) - set(found)
    parts = [f"took it to mean {len(extra)} other instance(s)"] if extra or strange else []
    parts += [f"did not find {len(missing)} of the target's instance(s)"] if missing else []
    return CheckResult("checker", FAIL, f"A reader of the picture {' and '.join(parts)}.", evidence)


def grounding_result(candidate: Candidate, facts: Facts, masks: np.ndarray, min_iou: float) -> CheckResult:
    """Compares what a segmenter found (bool [K, height, width]) with the target, as unions of masks.

    The evidence of a failure holds that union as run lengths, "mask", for the person who decides.
    """
    scene = facts.scene
    target = np.zeros((scene.height, scene.width), dtype=bool)
    for annotation_id in candidate.plan.targets:
        target |= scene.by_id[annotation_id].pixels()
    masks = np.asarray(masks, dtype=bool)
    if masks.ndim != 3 or masks.shape[1:] != target.shape:
        raise ValueError(f"A grounder returns masks [K, {scene.height}, {scene.width}], found {masks.shape}.")
    found = np.asarray(masks.any(axis=0))
    union = int((found | target).sum())
    iou = 1.0 if not union else float((found & target).sum() / union)
    evidence: dict[str, Any] = {"iou": round(iou, 4), "instances": len(masks), "min_iou": min_iou}
    if iou >= min_iou:
        return CheckResult("grounding", PASS, "", evidence)
    evidence["mask"] = encode_mask(found)
    what = "something else" if found.any() else "nothing"
    return CheckResult("grounding", FAIL, f"The segmenter finds {what} for it (IoU {iou:.2f}).", evidence)


def decide(results: Sequence[CheckResult]) -> tuple[str, str]:
    """(outcome, reason) for one instruction.

    A broken rule drops it. Of the verdicts: all for it accept, all against it drop, and where they differ, or none
    was to be had, a person decides.
    """
    broken = [item for item in results if item.check in RULES and item.verdict == FAIL]
    if broken:
        return DROPPED, broken[0].reason
    verdicts = [item for item in results if item.check in VERDICTS and item.verdict in (PASS, FAIL)]
    against = [item for item in verdicts if item.verdict == FAIL]
    if not verdicts:
        return REVIEW, "No check could tell whether it denotes the target."
    if not against:
        return ACCEPTED, ""
    if len(against) == len(verdicts):
        return DROPPED, " ".join(item.reason for item in against)
    names = ", ".join(f"{item.check} says {item.verdict}" for item in verdicts)
    return REVIEW, f"The checks disagree: {names}."


def _normal(text: str) -> str:
    return " ".join(words_of(text))
