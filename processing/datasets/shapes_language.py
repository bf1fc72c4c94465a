# SPDX-License-Identifier: Apache-2.0
"""Meanings of instructions in the shapes world: what they denote in a scene, and how they are said at each level.

Truth comes first: a [`Meaning`] is drawn, [`denotation`] computes its targets from the objects alone, and only then is
it put into words. "A concept names a shape; a simple instruction names it too and adds a colour, size, place or
relation; a complex one never says the noun nor the name of a colour, only what the thing is for or like."
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from . import shapes_lexicon as lexicon
from .schema import TARGET_KINDS
from .shapes_lexicon import PLURAL, SINGULAR
from .shapes_world import HELD_OUT_PAIRS, IMAGE_SIZE, NOUNS, SIZES, ShapeObject

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
_COLOURS = tuple(lexicon.COLOUR_REFERENCES)
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
    noun = None if spec.any_noun else _one_of(rng, nouns)
    others = [name for name in references if name != noun] or [name for name in NOUNS if name != noun]
    return Meaning(
        family=family,
        noun=noun,
        value=_one_of(rng, spec.values) if spec.values else None,
        second=_one_of(rng, SIZES) if family == "colour_size" else None,
        reference=_one_of(rng, others) if spec.relational else None,
    )


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


@dataclass(frozen=True)
class Phrasing:
    """A meaning in words: the text, which phrasing it is, and whether training ever uses that phrasing."""

    text: str
    template: str
    held_out: bool


def say(
    meaning: Meaning, number: str, level: InstructionLevel, rng: np.random.Generator, held_out: bool = False
) -> Phrasing:
    """Put a meaning into words.

    Args:
        meaning: what to say.
        number: "singular" or "plural".
        level: concept, simple or complex.
        rng: chooses among phrasings and synonyms.
        held_out: use a template or a carrier sentence (or both) that training never uses.

    Raises:
        ValueError: for a meaning that the level cannot say.
    """
    level = InstructionLevel.from_any(level)
    if meaning.family not in families_of(level):
        raise ValueError(f"The level {level.value} says {families_of(level)}, not {meaning.family!r}.")
    if level is InstructionLevel.CONCEPT:
        return Phrasing(meaning.noun, "concept/category/0/0", False)
    simple = level is InstructionLevel.SIMPLE
    templates = lexicon.SIMPLE_TEMPLATES[meaning.family] if simple else _complex_templates(meaning)
    carriers = lexicon.SIMPLE_CARRIERS if simple else lexicon.COMPLEX_CARRIERS
    which = int(rng.integers(3)) if held_out else -1  # held out: the template, the carrier, or both
    template = _pick(templates, which in (0, 2), rng)
    carrier = _pick(carriers, which in (1, 2), rng)
    slots = _simple_slots(meaning, number, rng) if simple else _complex_slots(meaning, number, rng)
    text = carriers[carrier].format(np=templates[template].format(**slots))
    return Phrasing(text, f"{level.value}/{meaning.family}/{template}/{carrier}", held_out)


def mirror_text(text: str) -> str:
    """The sentence that says of the mirrored scene what `text` says of the scene."""
    return " ".join(lexicon.MIRROR_WORDS.get(word, word) for word in text.split())


def _pick(phrasings: tuple[str, ...], last: bool, rng: np.random.Generator) -> int:
    return len(phrasings) - 1 if last else int(rng.integers(len(lexicon.in_training(phrasings))))


def _one_of(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _simple_slots(meaning: Meaning, number: str, rng: np.random.Generator) -> dict[str, str]:
    plural = number == PLURAL
    words = {
        "region": lexicon.SIDE_WORDS,
        "extreme": lexicon.EXTREME_WORDS,
        "all_but_extreme": lexicon.EXTREME_WORDS,
        "extreme_size": lexicon.EXTREME_SIZE_WORDS,
        "side": lexicon.DIRECTION_WORDS,
        "beside": lexicon.DIRECTION_WORDS,
        "distance": lexicon.DISTANCE_WORDS,
    }.get(meaning.family)
    size = meaning.second or meaning.value
    return {
        "n": lexicon.PLURALS[meaning.noun] if plural else meaning.noun,
        "ns": lexicon.PLURALS[meaning.noun],
        "c": meaning.value,
        "s": _one_of(rng, lexicon.SIZE_WORDS[size]) if size in lexicon.SIZE_WORDS else "",
        "x": _one_of(rng, words[meaning.value]) if words else "",
        "ref": meaning.reference,
        "be": "are" if plural else "is",
        "have": "have" if plural else "has",
        "the": "all the" if plural else "the",
    }


def _complex_templates(meaning: Meaning) -> tuple[str, ...]:
    if meaning.family in lexicon.COMPLEX_TEMPLATES:
        return lexicon.COMPLEX_TEMPLATES[meaning.family]
    related = meaning.reference is not None or meaning.family in ("extreme", "extreme_size")
    return lexicon.COMPLEX_TEMPLATES["related" if related else "modified"]


def _complex_slots(meaning: Meaning, number: str, rng: np.random.Generator) -> dict[str, str]:
    plural = number == PLURAL
    thing = _one_of(rng, lexicon.THINGS)
    return {
        "t": thing + "s" if plural else thing,
        "be": "are" if plural else "is",
        "all": "everything" if plural else "the only thing",
        "the": "all the" if plural else "the",
        "d": _one_of(rng, lexicon.DESCRIPTORS[meaning.noun]) if meaning.noun else "",
        "m": _modifier(meaning, rng),
    }


def _modifier(meaning: Meaning, rng: np.random.Generator) -> str:
    """What narrows the choice, said without a colour's name and without a noun of the world."""
    family = {"all_but_extreme": "extreme", "any_colour": "colour"}.get(meaning.family, meaning.family)
    if family == "colour_size":
        colour = _modifier(Meaning("colour", None, meaning.value), rng)
        return f"{colour} and {_modifier(Meaning('size', None, meaning.second), rng)}"
    table = lexicon.COMPLEX_MODIFIERS
    phrasings = table.get((family, meaning.value)) or table.get((family, None))
    if phrasings is None:
        return ""
    return _one_of(rng, phrasings).format(
        c=_one_of(rng, lexicon.COLOUR_REFERENCES.get(meaning.value, ("",))),
        x=_one_of(rng, lexicon.DIRECTION_WORDS.get(meaning.value, ("",))),
        d2=_one_of(rng, lexicon.DESCRIPTORS[meaning.reference]) if meaning.reference else "",
    )


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word of the world, sorted."""
    return lexicon.vocabulary()
