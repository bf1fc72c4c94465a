# SPDX-License-Identifier: Apache-2.0
"""Meanings put into words at a level."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from . import phrases
from .meaning import Filter, Meaning, Selector
from .nouns import plural_of
from .phrases import PLURAL

Descriptors = Mapping[str, tuple[str, ...]]
_BEFORE_NOUN = ("colour", "size", "count")
_OPEN_KINDS = ("noun_shared", "noun_alone", "colour_shared", "colour_alone")


def can_say(meaning: Meaning, level: InstructionLevel, descriptors: Descriptors) -> bool:
    """Whether the templates have words for a meaning at a level."""
    filters, selector = meaning.filters, meaning.selector
    if level is InstructionLevel.CONCEPT:
        return meaning.noun is not None and not filters and selector is None
    if level is InstructionLevel.SIMPLE:
        return meaning.noun is not None and (bool(filters) or selector is not None)
    if meaning.noun is None:
        if selector is not None or len(filters) != 1:
            return False
        kind, reference = filters[0].kind, filters[0].reference
        return kind in ("colour", *_OPEN_KINDS) or (kind == "not_noun" and reference in descriptors)
    if meaning.noun not in descriptors:
        return False
    said = [(item.kind, item.value, item.reference) for item in filters]
    if selector is not None:
        if selector.kind == "ordinal" or selector.count > 1 or (selector.excluded and filters):
            return False
        said.append(("extreme_size" if selector.kind == "size" else selector.kind, selector.value, selector.reference))
    table = phrases.COMPLEX_MODIFIERS
    return all(
        ((kind, value) in table or (kind, None) in table) and (reference is None or reference in descriptors)
        for kind, value, reference in said
    )


def say(meaning: Meaning, number: str, level: InstructionLevel, rng: Random, descriptors: Descriptors) -> str:
    """A meaning in words.

    Args:
        meaning: what to say.
        number: "singular" or "plural".
        level: concept, simple or complex.
        rng: chooses among phrasings.
        descriptors: what nouns are for, for complex instructions.

    Raises:
        ValueError: for a meaning that the level has no words for (see [`can_say`]).
    """
    if not can_say(meaning, level, descriptors):
        raise ValueError(f"There are no words at level {level.value!r} for {meaning}; ask `can_say` first.")
    if level is InstructionLevel.CONCEPT:
        return meaning.noun
    if level is InstructionLevel.SIMPLE:
        return rng.choice(phrases.SIMPLE_CARRIERS).format(np=noun_phrase(meaning, number, rng))
    return rng.choice(phrases.COMPLEX_CARRIERS).format(np=_open_phrase(meaning, number, rng, descriptors))


def noun_phrase(meaning: Meaning, number: str, rng: Random) -> str:
    """The simple instruction's noun phrase: article, what stands before the noun, the noun, what stands after it."""
    filters = {item.kind: item for item in meaning.filters}
    selector, article = meaning.selector, "the"
    plural = number == PLURAL
    noun = plural_of(meaning.noun) if plural else meaning.noun
    before = [rng.choice(phrases.SIZE_WORDS[filters["size"].value])] if "size" in filters else []
    before += [filters["colour"].value] if "colour" in filters else []
    after = [_after(item, plural, rng) for item in meaning.filters if item.kind not in _BEFORE_NOUN]
    if "count" in filters:
        count = int(filters["count"].value)
        article = rng.choice(("both", "the two")) if count == 2 else "the " + phrases.NUMBER_WORDS[count]
    elif selector is None and plural and after:  # "all the red cups" is the form of a concept
        article = rng.choice(("the", "all the"))
    if selector is not None and not selector.excluded:
        first, last = _selector_words(selector, rng)
        before, after = [*first, *before], [*after, *last]
    words = [article, *before, noun, *after]
    if selector is not None and selector.excluded:
        first, _ = _selector_words(selector, rng)
        words[0] = "all the"
        words += [rng.choice(("except", "but")), "the", *first, rng.choice(("one", ""))]
    return " ".join(word for word in words if word)


def _selector_words(selector: Selector, rng: Random) -> tuple[list[str], list[str]]:
    """What stands before and after the noun."""
    if selector.kind == "extreme":
        number = [phrases.NUMBER_WORDS[selector.count]] if selector.count > 1 else []
        return [*number, phrases.EXTREME_WORDS[selector.value]], []
    if selector.kind == "ordinal":
        return [phrases.ORDINAL_WORDS[selector.count]], [phrases.ORDINAL_STARTS[selector.value]]
    if selector.kind == "size":
        return [rng.choice(phrases.EXTREME_SIZE_WORDS[selector.value])], []
    return [], [rng.choice(phrases.DISTANCE_WORDS[selector.value]), "the", selector.reference]


def _after(item: Filter, plural: bool, rng: Random) -> str:
    whole = "" if item.whole is None else noun_phrase(item.whole, phrases.SINGULAR, rng)
    return rng.choice(phrases.SIMPLE_AFTER[item.kind]).format(
        value=item.value,
        half=phrases.HALF_WORDS.get(item.value or "", ""),
        direction=phrases.DIRECTION_WORDS.get(item.value or "", ""),
        ref=item.reference,
        whole=whole,
        be="are" if plural else "is",
        have="have" if plural else "has",
    )


def _open_phrase(meaning: Meaning, number: str, rng: Random, descriptors: Descriptors) -> str:
    """The complex instruction's phrase: what the noun is for, or what sets its instances apart."""
    plural = number == PLURAL
    thing = rng.choice(phrases.THINGS)
    slots = {
        "t": thing + "s" if plural else thing,
        "the": "all the" if plural else "the",
        "be": "are" if plural else "is",
        "all": "everything" if plural else "the only thing",
        "d": "",
        "m": "",
    }
    described = meaning.noun
    if meaning.noun is None:
        kind = meaning.filters[0].kind
        described = meaning.filters[0].reference
        templates = phrases.COMPLEX_TEMPLATES["anything" if kind == "colour" else kind]
    elif meaning.selector is not None and meaning.selector.excluded:
        templates = phrases.COMPLEX_TEMPLATES["all_but"]
    else:
        has_modifier = meaning.filters or meaning.selector is not None
        templates = phrases.COMPLEX_TEMPLATES["modified" if has_modifier else "category"]
    if described is not None:
        slots["d"] = rng.choice(descriptors[described])
    modifiers = [_modifier(item.kind, item, plural, rng, descriptors) for item in meaning.filters]
    if meaning.selector is not None:
        kind = "extreme_size" if meaning.selector.kind == "size" else meaning.selector.kind
        modifiers.append(_modifier(kind, meaning.selector, plural, rng, descriptors))
    slots["m"] = " and ".join(modifier for modifier in modifiers if modifier)
    return rng.choice(templates).format(**slots)


def _modifier(kind: str, item: Filter | Selector, plural: bool, rng: Random, descriptors: Descriptors) -> str:
    if kind in ("not_noun", *_OPEN_KINDS):
        return ""
    table = phrases.COMPLEX_MODIFIERS
    return rng.choice(table.get((kind, item.value)) or table[kind, None]).format(
        c=rng.choice(phrases.COLOUR_REFERENCES.get(item.value or "", ("",))),
        direction=phrases.DIRECTION_WORDS.get(item.value or "", ""),
        d2=rng.choice(descriptors[item.reference]) if item.reference else "",
        have="have" if plural else "has",
    )
