# SPDX-License-Identifier: Apache-2.0
"""The questions of the shapes world, by family, and what its objects say to them.

Truth comes first: a question is drawn, [`denotation`] computes its targets from the objects alone, and only then is it
put into words.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ..language.lexicon import COLOR_REFERENCES, PLURAL, SIDES, SINGULAR
from ..language.meaning import ALL, NONE, ONE, OPEN_KINDS, SOME, Filter, Meaning, Selector, denote, target_kind
from .lexicon import WorldWords
from .rendering import IMAGE_SIZE, NOUNS, ShapeObject
from .world import SIZES, WORDS

MIDDLE_BAND = 0.06  # of the image: an object this near to the middle line is on neither side
RADIUS_MARGIN = 1.5  # pixels between the largest and the second largest


@dataclass(frozen=True)
class Family:
    """A family of questions: the grammatical numbers and target kinds it can have, and what it draws."""

    kinds: Mapping[str, tuple[str, ...]]
    values: tuple[str, ...] = ()
    relational: bool = False
    any_noun: bool = False
    complex_only: bool = False
    of_kinds: bool = False  # for worlds whose things are of wider kinds; the values are these


_ANY = {SINGULAR: (ONE, NONE), PLURAL: (SOME, ALL, NONE)}
_ONE = {SINGULAR: (ONE, NONE)}
_COLORS = tuple(COLOR_REFERENCES)
FAMILIES: dict[str, Family] = {
    "category": Family({SINGULAR: (ONE, NONE), PLURAL: (ALL, NONE)}),
    "color": Family(_ANY, _COLORS),
    "size": Family(_ANY, SIZES),
    "color_size": Family(_ANY, _COLORS),
    "not_color": Family(_ANY, _COLORS),
    "region": Family(_ANY, SIDES),
    "extreme": Family(_ONE, SIDES),
    "all_but_extreme": Family({PLURAL: (SOME, NONE)}, SIDES),
    "extreme_size": Family(_ONE, SIZES),
    "side": Family({PLURAL: (SOME, ALL, NONE)}, SIDES, relational=True),
    "beside": Family(_ONE, SIDES, relational=True),
    "distance": Family(_ONE, ("near", "far"), relational=True),
    "same_color": Family(_ANY, relational=True),
    "any_color": Family(_ANY, _COLORS, any_noun=True, complex_only=True),
    "except": Family(_ANY, complex_only=True),
    "shape_shared": Family({PLURAL: (SOME, ALL, NONE)}, any_noun=True, complex_only=True),
    "shape_alone": Family(_ANY, any_noun=True, complex_only=True),
    "color_shared": Family({PLURAL: (SOME, ALL, NONE)}, any_noun=True, complex_only=True),
    "color_alone": Family(_ANY, any_noun=True, complex_only=True),
    "kind": Family(_ANY, any_noun=True, complex_only=True, of_kinds=True),
    "not_kind": Family(_ANY, any_noun=True, complex_only=True, of_kinds=True),
}
_SELECTORS = {"extreme": "extreme", "extreme_size": "size", "beside": "beside", "distance": "distance"}
_FILTERS = {"any_color": "color", "shape_shared": "noun_shared", "shape_alone": "noun_alone"}


def question(
    family: str, noun: str | None, value: str | None = None, second: str | None = None, reference: str | None = None
) -> Meaning:
    """A question of a family; `second` is the size of "color_size"."""
    if family == "category":
        return Meaning(noun)
    if family == "except":
        return Meaning(None, (Filter("not_noun", reference=noun),))
    if family == "color_size":
        return Meaning(noun, (Filter("color", value), Filter("size", second)))
    if family == "all_but_extreme":
        return Meaning(noun, selector=Selector("extreme", value or "", excluded=True))
    if family in _SELECTORS:
        return Meaning(noun, selector=Selector(_SELECTORS[family], value or "", reference=reference))
    return Meaning(noun, (Filter(_FILTERS.get(family, family), value, reference),))


def details(meaning: Meaning) -> list[str | None]:
    """What a question was made of, in the order of [`question`]: noun, value, second value, reference."""
    conditions: list[Any] = [item for item in (*meaning.filters, meaning.selector) if item is not None]
    values = [item.value for item in conditions]
    return [meaning.noun, *values, *(item.reference for item in conditions)]


def families_of(level: InstructionLevel, words: WorldWords = WORDS) -> tuple[str, ...]:
    """The families that a level can say of a world."""
    if level is InstructionLevel.CONCEPT:
        return ("category",)
    return tuple(
        name
        for name, family in FAMILIES.items()
        if (level is InstructionLevel.COMPLEX or not family.complex_only) and (words.kinds or not family.of_kinds)
    )


@dataclass
class ShapesFacts:
    """What the generator knows of a scene, as `language.meaning.SceneFacts`; places in pixels."""

    objects: Sequence[ShapeObject]
    kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    is_exhaustive: bool = True
    compares_alone: bool = True  # a share of the questions may be about the only object of its noun
    place_margin: float = 5.0  # between the best and the second best of a comparison of places
    beside_margin: float = 6.0
    middle_margin: float = MIDDLE_BAND * IMAGE_SIZE

    @cached_property
    def nouns(self) -> list[str]:
        return [item.noun for item in self.objects]

    @cached_property
    def colors(self) -> list[str]:
        return [item.color for item in self.objects]

    def is_partial(self, noun: str | None) -> bool:
        return False

    def is_absent(self, noun: str) -> bool:
        return noun not in self.nouns

    def along(self, i: int, side: str | None) -> float:
        item = self.objects[i]
        return {"left": -item.cx, "right": item.cx, "top": -item.cy, "bottom": item.cy}[side or "left"]

    def beyond_middle(self, i: int, side: str | None) -> float:
        return self.along(i, side) - IMAGE_SIZE / 2 * (1 if side in ("right", "bottom") else -1)

    def distance(self, i: int, j: int) -> float:
        first, second = self.objects[i], self.objects[j]
        return math.hypot(first.cx - second.cx, first.cy - second.cy)

    def of_size(self, value: str | None, members: list[int], every: list[int]) -> list[int]:
        return [i for i in members if self.objects[i].size == value]

    def by_size(self, value: str, members: list[int]) -> list[int] | None:
        radii = {i: self.objects[i].radius * (1 if value == "large" else -1) for i in members}
        ranked = sorted(members, key=radii.__getitem__, reverse=True)
        return None if len(ranked) > 1 and radii[ranked[0]] - radii[ranked[1]] < RADIUS_MARGIN else ranked

    def is_inside(self, i: int, j: int) -> bool | None:
        return False  # objects hardly overlap

    def whole_of(self, i: int) -> int | None:
        return None

    def is_a(self, i: int, kind: str | None) -> bool | None:
        return self.nouns[i] in self.kinds[kind or ""]


def denotation(meaning: Meaning, objects: Sequence[ShapeObject], words: WorldWords = WORDS) -> frozenset[int] | None:
    """The objects that a question denotes, by index; empty where nothing fits, None where there is no clear answer."""
    return denote(meaning, ShapesFacts(objects, words.kinds))


def kind_of(meaning: Meaning, targets: frozenset[int], objects: Sequence[ShapeObject]) -> str:
    """The target kind of a question's answer."""
    return target_kind(meaning, targets, ShapesFacts(objects))


def place_shortcuts(meaning: Meaning, objects: Sequence[ShapeObject]) -> set[frozenset[int]]:
    """Answers to a relation that ignore its reference: the outermost of the noun on that side, and its image half."""
    side = details(meaning)[1]
    answers = {denotation(question(family, meaning.noun, side), objects) for family in ("extreme", "region")}
    facts = ShapesFacts(objects)
    half = [i for i, noun in enumerate(facts.nouns) if noun == meaning.noun and facts.beyond_middle(i, side) > 0]
    return {answer for answer in answers if answer is not None} | {frozenset(half)}


def draw_meaning(
    family: str,
    rng: np.random.Generator,
    nouns: Sequence[str] = NOUNS,
    references: Sequence[str] = NOUNS,
    words: WorldWords = WORDS,
) -> Meaning:
    """A random question of a family about one of `nouns`; nothing is known yet about what it denotes."""
    spec = FAMILIES[family]
    values = tuple(words.kinds) if spec.of_kinds else spec.values
    noun = None if spec.any_noun else one_of(rng, nouns)
    others = [name for name in references if name != noun] or [name for name in words.nouns if name != noun]
    return question(
        family=family,
        noun=noun,
        value=one_of(rng, values) if values else None,
        second=one_of(rng, SIZES) if family == "color_size" else None,
        reference=one_of(rng, others) if spec.relational else None,
    )


def one_of(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    """One of some values, all equally likely."""
    return values[int(rng.integers(len(values)))]


def names_held_out_pair(meaning: Meaning, words: WorldWords = WORDS) -> bool:
    """Whether the words of a question combine a color and a noun that training keeps apart."""
    pairs = [(item.value, meaning.noun) for item in meaning.filters if item.kind not in OPEN_KINDS]
    return any(pair in words.held_out_pairs for pair in pairs)
