# SPDX-License-Identifier: Apache-2.0
"""Meanings of instructions in the shapes world, and what they denote in a scene.

Truth comes first: a [`Meaning`] is drawn, [`denotation`] computes its targets from the objects alone, and only then
is it put into words (`shapes_phrasing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ..datasets.schema import TARGET_KINDS
from .lexicon import COLOUR_REFERENCES, PLURAL, SINGULAR
from .rendering import IMAGE_SIZE, NOUNS, ShapeObject
from .world import HELD_OUT_PAIRS, SIZES

ONE, SOME, ALL, NONE = TARGET_KINDS
SIDES = ("left", "right", "top", "bottom")
MIDDLE_BAND = 0.06  # of the image: an object this near to the middle line is on neither side
SIDE_MARGIN = 6.0  # pixels by which an object must lie beside the reference to count as beside it
PLACE_MARGIN = 5.0  # pixels between the best and the second best of a comparison of places
RADIUS_MARGIN = 1.5  # pixels between the largest and the second largest


@dataclass(frozen=True)
class Meaning:
    """What an instruction asks for.

    Attributes:
        family: the kind of question, a key of `FAMILIES`.
        noun: the category asked for; None where any object may answer.
        value: side, size, colour or distance, as the family needs it.
        second: the size of `colour_size`.
        reference: the noun of the reference object of a relation.
    """

    family: str
    noun: str | None
    value: str | None = None
    second: str | None = None
    reference: str | None = None

    def mirror(self) -> Meaning:
        """The same question about the mirrored scene."""
        swapped = {"left": "right", "right": "left"}.get(self.value or "", self.value)
        return replace(self, value=swapped)


@dataclass(frozen=True)
class Family:
    """A family of meanings: the grammatical numbers and target kinds it can have, and what it draws."""

    kinds: dict[str, tuple[str, ...]]
    values: tuple[str, ...] = ()
    relational: bool = False
    any_noun: bool = False
    complex_only: bool = False


_ANY = {SINGULAR: (ONE, NONE), PLURAL: (SOME, ALL, NONE)}
_ONE = {SINGULAR: (ONE, NONE)}
_COLOURS = tuple(COLOUR_REFERENCES)
FAMILIES: dict[str, Family] = {
    "category": Family({SINGULAR: (ONE, NONE), PLURAL: (ALL, NONE)}),
    "colour": Family(_ANY, _COLOURS),
    "size": Family(_ANY, SIZES),
    "colour_size": Family(_ANY, _COLOURS),
    "not_colour": Family(_ANY, _COLOURS),
    "region": Family(_ANY, SIDES),
    "extreme": Family(_ONE, SIDES),
    "all_but_extreme": Family({PLURAL: (SOME, NONE)}, SIDES),
    "extreme_size": Family(_ONE, SIZES),
    "side": Family({PLURAL: (SOME, ALL, NONE)}, SIDES, relational=True),
    "beside": Family(_ONE, SIDES, relational=True),
    "distance": Family(_ONE, ("near", "far"), relational=True),
    "same_colour": Family(_ANY, relational=True),
    "any_colour": Family(_ANY, _COLOURS, any_noun=True, complex_only=True),
    "except": Family(_ANY, complex_only=True),
    "shape_shared": Family({PLURAL: (SOME, ALL, NONE)}, any_noun=True, complex_only=True),
    "shape_alone": Family(_ANY, any_noun=True, complex_only=True),
    "colour_shared": Family({PLURAL: (SOME, ALL, NONE)}, any_noun=True, complex_only=True),
    "colour_alone": Family(_ANY, any_noun=True, complex_only=True),
}


def families_of(level: InstructionLevel) -> tuple[str, ...]:
    """The families that a level can say."""
    if level is InstructionLevel.CONCEPT:
        return ("category",)
    return tuple(
        name for name, family in FAMILIES.items() if level is InstructionLevel.COMPLEX or not family.complex_only
    )


def denotation(meaning: Meaning, objects: Sequence[ShapeObject]) -> frozenset[int] | None:
    """The objects that a meaning denotes, by index; empty where nothing fits.

    None means that the scene gives no clear answer (an object near the middle line, a tie, two possible reference
    objects), so the question must not be asked of it.
    """
    members = [i for i, item in enumerate(objects) if meaning.noun in (None, item.noun)]
    reference = None
    if meaning.reference is not None:
        candidates = [item for item in objects if item.noun == meaning.reference]
        if len(candidates) > 1:
            return None
        if not candidates:
            return frozenset()
        reference = candidates[0]
    chosen = _DENOTATIONS[meaning.family](meaning, objects, members, reference)
    return None if chosen is None else frozenset(chosen)


def target_kind(meaning: Meaning, targets: frozenset[int], objects: Sequence[ShapeObject]) -> str:
    """The target kind; "all" is relative to the named category, or to the whole scene where none is named."""
    if not targets:
        return NONE
    if len(targets) == 1:
        return ONE
    general = meaning.noun is None or meaning.family == "except"
    members = sum(general or item.noun == meaning.noun for item in objects)
    return ALL if len(targets) == members else SOME


def place_shortcuts(meaning: Meaning, objects: Sequence[ShapeObject]) -> set[frozenset[int]]:
    """Answers to a relation that ignore its reference: the outermost of the noun on that side, and its image half."""
    answers = set()
    for family in ("extreme", "region"):
        answer = denotation(Meaning(family, meaning.noun, meaning.value), objects)
        if answer is not None:
            answers.add(answer)
    half = [i for i, item in enumerate(objects) if item.noun == meaning.noun and _offset(item, meaning.value) > 0]
    return answers | {frozenset(half)}


def draw_meaning(
    family: str, rng: np.random.Generator, nouns: Sequence[str] = NOUNS, references: Sequence[str] = NOUNS
) -> Meaning:
    """A random meaning of a family about one of `nouns`; nothing is known yet about what it denotes."""
    spec = FAMILIES[family]
    noun = None if spec.any_noun else one_of(rng, nouns)
    others = [name for name in references if name != noun] or [name for name in NOUNS if name != noun]
    return Meaning(
        family=family,
        noun=noun,
        value=one_of(rng, spec.values) if spec.values else None,
        second=one_of(rng, SIZES) if family == "colour_size" else None,
        reference=one_of(rng, others) if spec.relational else None,
    )


def one_of(rng: np.random.Generator, words: Sequence[str]) -> str:
    """One of some words, all equally likely."""
    return words[int(rng.integers(len(words)))]


def names_held_out_pair(meaning: Meaning) -> bool:
    """Whether the words of a meaning combine a colour and a noun that training keeps apart."""
    return (
        meaning.family in ("colour", "colour_size", "not_colour") and (meaning.value, meaning.noun) in HELD_OUT_PAIRS
    )


def _along(item: ShapeObject, side: str | None) -> float:
    """How far an object reaches towards a side, pixels."""
    return {"left": -item.cx, "right": item.cx, "top": -item.cy, "bottom": item.cy}[side or "left"]


def _offset(item: ShapeObject, side: str | None) -> float:
    """How far an object lies from the middle line towards a side, pixels."""
    middle = IMAGE_SIZE / 2 * (1 if side in ("right", "bottom") else -1)
    return _along(item, side) - middle


def _split(members: list[int], value: Callable[[int], float], margin: float) -> list[int] | None:
    """Members whose value is at least `margin`; None if any value lies within +-margin."""
    values = {i: value(i) for i in members}
    if any(abs(v) < margin for v in values.values()):
        return None
    return [i for i, v in values.items() if v > 0]


def _best(members: list[int], value: Callable[[int], float], margin: float) -> list[int] | None:
    """The member of the highest value; None if the second is within `margin`."""
    ranked = sorted(members, key=value, reverse=True)
    if len(ranked) > 1 and value(ranked[0]) - value(ranked[1]) < margin:
        return None
    return ranked[:1]


def _distance(first: ShapeObject, second: ShapeObject) -> float:
    return math.hypot(first.cx - second.cx, first.cy - second.cy)


def _with_colour(meaning, objects, members, reference):
    return [i for i in members if objects[i].colour == meaning.value]


def _all_but_extreme(meaning, objects, members, reference):
    best = _best(members, lambda i: _along(objects[i], meaning.value), PLACE_MARGIN)
    return None if best is None else [i for i in members if i not in best]


def _on_side(meaning, objects, members, reference):
    edge = _along(reference, meaning.value)
    return _split(members, lambda i: _along(objects[i], meaning.value) - edge, SIDE_MARGIN)


def _beside(meaning, objects, members, reference):
    on_side = _on_side(meaning, objects, members, reference)
    return None if on_side is None else _best(on_side, lambda i: -_distance(objects[i], reference), PLACE_MARGIN)


def _by_distance(meaning, objects, members, reference):
    sign = -1 if meaning.value == "near" else 1
    return _best(members, lambda i: sign * _distance(objects[i], reference), PLACE_MARGIN)


def _shared(attribute: str, wanted: bool):
    def choose(meaning, objects, members, reference):
        values = [getattr(item, attribute) for item in objects]
        return [i for i in members if (values.count(values[i]) > 1) is wanted]

    return choose


def _extreme_size(meaning, objects, members, reference):
    sign = 1 if meaning.value == "large" else -1
    return _best(members, lambda i: sign * objects[i].radius, RADIUS_MARGIN)


_DENOTATIONS: dict[str, Callable] = {
    "category": lambda m, objects, members, ref: members,
    "colour": _with_colour,
    "any_colour": _with_colour,
    "size": lambda m, objects, members, ref: [i for i in members if objects[i].size == m.value],
    "colour_size": lambda m, objects, members, ref: [
        i for i in members if objects[i].colour == m.value and objects[i].size == m.second
    ],
    "not_colour": lambda m, objects, members, ref: [i for i in members if objects[i].colour != m.value],
    "region": lambda m, objects, members, ref: _split(
        members, lambda i: _offset(objects[i], m.value), MIDDLE_BAND * IMAGE_SIZE
    ),
    "extreme": lambda m, objects, members, ref: _best(members, lambda i: _along(objects[i], m.value), PLACE_MARGIN),
    "all_but_extreme": _all_but_extreme,
    "extreme_size": _extreme_size,
    "side": _on_side,
    "beside": _beside,
    "distance": _by_distance,
    "same_colour": lambda m, objects, members, ref: [i for i in members if objects[i].colour == ref.colour],
    "except": lambda m, objects, members, ref: [i for i in range(len(objects)) if i not in members],
    "shape_shared": _shared("noun", True),
    "shape_alone": _shared("noun", False),
    "colour_shared": _shared("colour", True),
    "colour_alone": _shared("colour", False),
}
