# SPDX-License-Identifier: Apache-2.0
"""Meanings put into words at a level."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from . import phrases, words
from .meaning import Filter, Meaning, Selector
from .nouns import plural_of
from .words import PLURAL, SINGULAR

Descriptors = Mapping[str, tuple[str, ...]]
_BEFORE_NOUN = ("colour", "size")
_OPEN_KINDS = ("noun_shared", "noun_alone", "colour_shared", "colour_alone")


def can_say(meaning: Meaning, level: InstructionLevel, descriptors: Descriptors) -> bool:
    """Whether the templates have words for a meaning at a level."""
    filters, selector = meaning.filters, meaning.selector
    if level is InstructionLevel.CONCEPT:
        return meaning.noun is not None and not filters and selector is None
    if level is InstructionLevel.SIMPLE:
        return meaning.noun is not None
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
    plural, selector, article = number == PLURAL, meaning.selector, "the"
    moved = _moved_after(filters, meaning, rng)
    before = []
    if "size" in filters and moved != "size":
        before.append(rng.choice(words.SIZE_WORDS[filters["size"].value]))
    if "colour" in filters and moved != "colour":
        before.append(filters["colour"].value)
    after = [
        _after(item, plural, before, rng) for item in meaning.filters if item.kind not in (*_BEFORE_NOUN, "count")
    ]
    after += [_after(filters[moved], plural, before, rng)] if moved is not None else []
    if "count" in filters:
        article = "the " + phrases.NUMBER_WORDS[int(filters["count"].value)]
    elif not filters and selector is None:
        article, after = "all the" if plural and rng.random() < 0.5 else "the", [phrases.ANYWHERE]
    elif selector is None and plural and after and moved != "size" and "side" not in filters:
        # "all the red cups", and "all the cups of small size", have the form of a concept.
        article = rng.choice(("the", "all the"))
    if selector is None:
        return " ".join([article, *before, _noun(meaning, plural), *after])
    return _selected_phrase(selector, before, meaning, plural, after, rng)


def _selected_phrase(
    selector: Selector, before: list[str], meaning: Meaning, plural: bool, after: list[str], rng: Random
) -> str:
    """The noun phrase of a meaning that compares."""
    noun = _noun(meaning, plural)
    if selector.excluded:
        rest = rng.choice(phrases.ALL_BUT).format(x=rng.choice(words.EXTREME_WORDS[selector.value]))
        return " ".join(["all the", *before, noun, *after, rest])
    if selector.kind == "extreme" and selector.count > 1:
        side = rng.choice(words.EXTREME_WORDS[selector.value])
        return " ".join(["the", phrases.NUMBER_WORDS[selector.count], side, *before, noun, *after])
    if selector.kind in ("extreme", "size"):
        table = words.EXTREME_WORDS if selector.kind == "extreme" else words.EXTREME_SIZE_WORDS
        template = rng.choice(phrases.SUPERLATIVES)
        slots = {"n": " ".join([*before, noun]), "ns": " ".join([*before, _noun(meaning, True)])}
        return " ".join([template.format(x=rng.choice(table[selector.value]), **slots), *after])
    if selector.kind == "ordinal":
        first, last = phrases.ORDINAL_WORDS[selector.count], phrases.ORDINAL_STARTS[selector.value]
    elif selector.kind == "beside":
        direction = rng.choice(words.DIRECTION_WORDS[selector.value])
        first, last = rng.choice((("", f"just {direction}"), ("first", direction)))
        last += f" the {selector.reference}"
    else:
        first, last = "", f"{rng.choice(words.DISTANCE_WORDS[selector.value])} the {selector.reference}"
        last = rng.choice((last, f"that is {last}"))
    return " ".join(word for word in ("the", first, *before, noun, *after, last) if word)


def _noun(meaning: Meaning, plural: bool) -> str:
    return plural_of(meaning.noun) if plural else meaning.noun


def _moved_after(filters: Mapping[str, Filter], meaning: Meaning, rng: Random) -> str | None:
    """Which of colour and size stands after the noun: only where nothing else does, so that it cannot be misread."""
    movable = [kind for kind in _BEFORE_NOUN if kind in filters]
    if meaning.selector is not None or len(filters) > len(movable) or rng.random() > phrases.AFTER_SHARE:
        return None
    return rng.choice(movable) if movable else None


def _after(item: Filter, plural: bool, before: list[str], rng: Random) -> str:
    whole = "" if item.whole is None else noun_phrase(item.whole, SINGULAR, rng)
    table = phrases.COLOUR_AFTER_SIZED if item.kind == "colour" and before else phrases.SIMPLE_AFTER[item.kind]
    return rng.choice(table).format(
        value=item.value,
        size=rng.choice(words.SIZE_WORDS.get(item.value or "", ("",))),
        half=rng.choice(words.SIDE_WORDS.get(item.value or "", ("",))),
        x=rng.choice(words.DIRECTION_WORDS.get(item.value or "", ("",))),
        ref=item.reference,
        whole=whole,
        be="are" if plural else "is",
        have="have" if plural else "has",
    )


def _open_phrase(meaning: Meaning, number: str, rng: Random, descriptors: Descriptors) -> str:
    """The complex instruction's phrase: what the noun is for, or what sets its instances apart."""
    plural = number == PLURAL
    thing = rng.choice(words.THINGS)
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
        compares = meaning.selector is not None or any(item.reference for item in meaning.filters)
        templates = phrases.COMPLEX_TEMPLATES["related" if compares else "modified" if meaning.filters else "category"]
    if described is not None:
        slots["d"] = rng.choice(descriptors[described])
    ordered = sorted(meaning.filters, key=lambda item: item.reference is not None)  # a clause comes last
    modifiers = [_modifier(item.kind, item, rng, descriptors) for item in ordered]
    if meaning.selector is not None:
        kind = "extreme_size" if meaning.selector.kind == "size" else meaning.selector.kind
        modifiers.append(_modifier(kind, meaning.selector, rng, descriptors))
    slots["m"] = " and ".join(modifier for modifier in modifiers if modifier)
    return rng.choice(templates).format(**slots)


def _modifier(kind: str, item: Filter | Selector, rng: Random, descriptors: Descriptors) -> str:
    if kind in ("not_noun", *_OPEN_KINDS):
        return ""
    table = phrases.COMPLEX_MODIFIERS
    return rng.choice(table.get((kind, item.value)) or table[kind, None]).format(
        c=rng.choice(phrases.COLOUR_REFERENCES.get(item.value or "", ("",))),
        x=rng.choice(words.DIRECTION_WORDS.get(item.value or "", ("",))),
        d2=rng.choice(descriptors[item.reference]) if item.reference else "",
    )
