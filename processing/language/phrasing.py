# SPDX-License-Identifier: Apache-2.0
"""Meanings put into words at a level.

A concept names the noun. A simple instruction names it too and adds a color, size, place or relation. A complex one
says neither the noun nor the name of a color, only what the thing is for or like.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...modeling_sam3i.instruction_levels import InstructionLevel
from .lexicon import (
    COLOR_WORDS,
    DIRECTION_WORDS,
    FAMILY_WORDS,
    NUMBER_WORDS,
    ORDINAL_WORDS,
    PLURAL,
    SIZE_WORDS,
    THINGS,
    Lexicon,
)
from .meaning import OPEN_KINDS, Filter, Meaning, Selector, selector_family

Choose = Callable[[Sequence[Any]], Any]  # one of a sequence, all equally likely: all randomness of a sentence
_BEFORE_NOUN = ("size", "color")
_WIDER = ("kind", "not_kind")


@dataclass(frozen=True)
class Phrasing:
    """A meaning in words: the text, which phrasing it is, and whether training ever uses that phrasing."""

    text: str
    template: str
    held_out: bool


def can_say(meaning: Meaning, level: InstructionLevel, lexicon: Lexicon) -> bool:
    """Whether a lexicon has words for a meaning at a level."""
    filters, selector = meaning.filters, meaning.selector
    if level is InstructionLevel.CONCEPT:
        return meaning.noun is not None and not filters and selector is None
    if level is InstructionLevel.SIMPLE:
        return meaning.noun is not None
    if meaning.noun is None:
        if selector is not None or len(filters) != 1:
            return False
        kind, reference = filters[0].kind, filters[0].reference
        if kind in _WIDER:
            return filters[0].value in lexicon.kind_clauses
        return kind == "color" or (kind in OPEN_KINDS and (reference is None or reference in lexicon.descriptors))
    if meaning.noun not in lexicon.descriptors:
        return False
    if selector is not None and (
        selector.kind == "ordinal" or selector.count > 1 or (selector.excluded and bool(filters))
    ):
        return False
    conditions: list[tuple[str, Filter | Selector]] = [(item.kind, item) for item in filters]
    conditions += [] if selector is None else [(_modifier_kind(selector), selector)]
    return all(
        _modifiers(kind, item, lexicon) and (item.reference is None or item.reference in lexicon.descriptors)
        for kind, item in conditions
    )


def say(
    meaning: Meaning,
    number: str,
    level: InstructionLevel,
    choose: Choose,
    lexicon: Lexicon,
    held_out: bool | None = None,
) -> Phrasing:
    """Put a meaning into words.

    Args:
        choose: draws among phrasings and synonyms.
        held_out: True: a template or a carrier sentence (or both) that training never uses, the last of its list;
            False: any but these; None: any.

    Raises:
        ValueError: for a meaning that the level has no words for (see [`can_say`]).
    """
    if not can_say(meaning, level, lexicon):
        raise ValueError(
            f"Expected a meaning that the level {level.value} has words for, found {meaning.family!r} of "
            f"{meaning.noun!r}; ask `can_say` first."
        )
    if level is InstructionLevel.CONCEPT:
        return Phrasing(str(meaning.noun), "concept/category/0/0", False)
    simple = level is InstructionLevel.SIMPLE
    carriers = lexicon.simple_carriers if simple else lexicon.complex_carriers
    templates = lexicon.simple[_main_part(meaning)[0]] if simple else _complex_templates(meaning, lexicon)
    which = choose(range(3)) if held_out else None  # held out: the template, the carrier, or both
    template = _pick(templates, None if held_out is None else which in (0, 2), choose)
    carrier = _pick(carriers, None if held_out is None else which in (1, 2), choose)
    plural = number == PLURAL
    if simple:
        phrase = _simple_phrase(meaning, plural, choose, lexicon, templates[template])
    else:
        phrase = templates[template].format(**_complex_slots(meaning, plural, choose, lexicon))
    return Phrasing(
        carriers[carrier].format(np=phrase), f"{level.value}/{meaning.family}/{template}/{carrier}", bool(held_out)
    )


def _pick(phrasings: Sequence[str], last: bool | None, choose: Choose) -> int:
    return len(phrasings) - 1 if last else choose(range(len(phrasings) - (last is False)))


def _main_part(meaning: Meaning) -> tuple[str, tuple[Filter | Selector, ...]]:
    """The family whose template carries a simple sentence, and its conditions; all others are said with the noun."""
    if meaning.selector is not None:
        return selector_family(meaning.selector), (meaning.selector,)
    adjectives = tuple(item for item in meaning.filters if item.kind in _BEFORE_NOUN)
    others = sorted(
        (item for item in meaning.filters if item.kind not in _BEFORE_NOUN), key=lambda item: item.kind == "count"
    )
    if others:
        return others[-1].kind, (others[-1],)
    if not adjectives:
        return "category", ()
    return (adjectives[0].kind if len(adjectives) == 1 else "color_size"), adjectives


def _simple_phrase(meaning: Meaning, plural: bool, choose: Choose, lexicon: Lexicon, template: str) -> str:
    """The noun phrase of a simple instruction: the template of its main condition; the others stay with the noun."""
    family, main = _main_part(meaning)
    slots: dict[str, Any] = {}
    for item in main:
        slots |= {key: value for key, value in _slots(family, item, plural, choose, lexicon).items() if value}
    rest = [item for item in meaning.filters if item not in main]
    before = [_slots(kind, item, plural, choose, lexicon)["s" if kind == "size" else "c"]
              for kind in _BEFORE_NOUN for item in rest if item.kind == kind]  # fmt: skip
    after = []
    for item in rest:
        if item.kind not in _BEFORE_NOUN:
            phrasing = choose([t for t in lexicon.simple[item.kind] if t.startswith("the {n} ")])
            words = _slots(item.kind, item, plural, choose, lexicon)
            after.append(phrasing.removeprefix("the {n} ").format(**words))
    singular = str(meaning.noun)
    one, many = (" ".join([*before, noun, *after]) for noun in (singular, lexicon.plural(singular)))
    verbs = {"be": "are", "have": "have", "the": "all the"} if plural else {"be": "is", "have": "has", "the": "the"}
    return template.format(n=many if plural else one, ns=many, **verbs | slots)


def _slots(family: str, item: Filter | Selector, plural: bool, choose: Choose, lexicon: Lexicon) -> dict[str, Any]:
    """The words that one condition gives to a template."""
    value, words = item.value or "", FAMILY_WORDS.get(family)
    number, whole = "", ""
    if isinstance(item, Selector):
        number = ORDINAL_WORDS.get(item.count, "") if item.kind == "ordinal" else NUMBER_WORDS.get(item.count, "")
    elif item.kind == "count":
        number = NUMBER_WORDS[int(value)]
    elif item.whole is not None:
        templates = lexicon.simple[_main_part(item.whole)[0]]
        whole = _simple_phrase(item.whole, False, choose, lexicon, choose(templates))
    return {
        "c": "" if value in SIZE_WORDS else COLOR_WORDS.get(value, value),
        "s": choose(SIZE_WORDS[value]) if value in SIZE_WORDS else "",
        "x": choose(words[value]) if words else "",
        "side": value,
        "k": number,
        "ref": item.reference or "",
        "whole": whole,
        "be": "are" if plural else "is",
        "have": "have" if plural else "has",
    }


def _complex_templates(meaning: Meaning, lexicon: Lexicon) -> tuple[str, ...]:
    if meaning.family in lexicon.complex:
        return lexicon.complex[meaning.family]
    related = meaning.selector is not None or any(item.reference for item in meaning.filters)
    return lexicon.complex["related" if related else "modified"]


def _complex_slots(meaning: Meaning, plural: bool, choose: Choose, lexicon: Lexicon) -> dict[str, str]:
    """What the noun is for, or what sets its instances apart."""
    described = meaning.category
    thing = lexicon.kinds.get(described or "") or choose(THINGS)
    clause = choose(lexicon.descriptors[described]) if described is not None else ""
    for item in meaning.filters:
        if item.kind in _WIDER:
            clause = choose(lexicon.kind_clauses[item.value or ""])
    conditions: list[tuple[str, Filter | Selector]] = [
        (item.kind, item)
        for item in sorted(meaning.filters, key=lambda item: item.reference is not None)  # a clause comes last
        if item.kind not in OPEN_KINDS
    ]
    if meaning.selector is not None:
        conditions.append((_modifier_kind(meaning.selector), meaning.selector))
    return {
        "t": thing + "s" if plural else thing,
        "be": "are" if plural else "is",
        "all": "everything" if plural else "the only thing",
        "the": "all the" if plural else "the",
        "d": clause,
        "m": " and ".join(_modifier(kind, item, choose, lexicon) for kind, item in conditions),
    }


def _modifier_kind(selector: Selector) -> str:
    return "extreme_size" if selector.kind == "size" else selector.kind


def _modifiers(kind: str, item: Filter | Selector, lexicon: Lexicon) -> tuple[str, ...]:
    return lexicon.modifiers.get((kind, item.value)) or lexicon.modifiers.get((kind, None), ())


def _modifier(kind: str, item: Filter | Selector, choose: Choose, lexicon: Lexicon) -> str:
    """What narrows the choice, said without a color's name and without a noun."""
    return choose(_modifiers(kind, item, lexicon)).format(
        c=choose(lexicon.color_references.get(item.value or "", ("",))),
        x=choose(DIRECTION_WORDS.get(item.value or "", ("",))),
        d2=choose(lexicon.descriptors[item.reference]) if item.reference else "",
    )
