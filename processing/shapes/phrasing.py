# SPDX-License-Identifier: Apache-2.0
"""How meanings of the shapes world are said at each level.

A concept names a shape. A simple instruction names it too and adds a colour, size, place or relation. A complex one
says neither the noun nor the name of a colour, only what the thing is for or like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from . import lexicon
from .lexicon import PLURAL
from .meaning import Meaning, families_of, one_of


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
        "s": one_of(rng, lexicon.SIZE_WORDS[size]) if size in lexicon.SIZE_WORDS else "",
        "x": one_of(rng, words[meaning.value]) if words else "",
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
    thing = one_of(rng, lexicon.THINGS)
    return {
        "t": thing + "s" if plural else thing,
        "be": "are" if plural else "is",
        "all": "everything" if plural else "the only thing",
        "the": "all the" if plural else "the",
        "d": one_of(rng, lexicon.DESCRIPTORS[meaning.noun]) if meaning.noun else "",
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
    return one_of(rng, phrasings).format(
        c=one_of(rng, lexicon.COLOUR_REFERENCES.get(meaning.value, ("",))),
        x=one_of(rng, lexicon.DIRECTION_WORDS.get(meaning.value, ("",))),
        d2=one_of(rng, lexicon.DESCRIPTORS[meaning.reference]) if meaning.reference else "",
    )
