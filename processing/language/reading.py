# SPDX-License-Identifier: Apache-2.0
"""From the words of a simple instruction back to its meaning: the denotation check reads what a writer wrote.

The grammar is small and says "not understood" (None) rather than guess; a text that it does not understand is left to
the checker model.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..levels import COMMAND
from . import lexicon
from .colors import COLOR_NAMES
from .meaning import Filter, Meaning, Selector
from .nouns import NounForms, plural_of, words_of

_COLORS = {name: name for name in COLOR_NAMES} | {"gray": "grey", "violet": "purple"}
_SIZES = {word: size for size, words in lexicon.SIZE_WORDS.items() for word in words}
_LARGEST = {word: size for size, words in lexicon.EXTREME_SIZE_WORDS.items() for word in words}
_EXTREMES = {word: side for side, words in lexicon.EXTREME_WORDS.items() for word in words}
_EXTREMES |= {"topmost": "top", "uppermost": "top", "bottommost": "bottom", "lowermost": "bottom"}
_NUMBERS = {word: number for number, word in lexicon.NUMBER_WORDS.items()}
_ORDINALS = {word: number for number, word in lexicon.ORDINAL_WORDS.items()}
_HALVES = {"left": "left", "right": "right", "upper": "top", "top": "top", "lower": "bottom", "bottom": "bottom"}
_DIRECTIONS = {
    "left of": "left",
    "to the left of": "left",
    "on the left of": "left",
    "right of": "right",
    "to the right of": "right",
    "on the right of": "right",
    "above": "top",
    "below": "bottom",
    "beneath": "bottom",
}
_ARTICLE = r"(?:all of the|all the|all|the|a|an|every|each|any|only the)"
_PICTURE = r"(?: of the (?:picture|image|photo))?"
_REFERENCE = r"the <(\d+)(?:s|p)>"
_DIRECTED = rf"({'|'.join(sorted(_DIRECTIONS, key=len, reverse=True))}) {_REFERENCE}"
_AFTER_PATTERNS = (
    ("beside", rf"just {_DIRECTED}"),
    ("side", rf"(?:located )?{_DIRECTED}"),
    ("region", rf"(?:on|in|at) the ({'|'.join(_HALVES)})(?: side| half)?{_PICTURE}(?= |$)"),
    ("same_color", rf"(?:of|with|in) the same colou?r as {_REFERENCE}"),
    ("same_color", rf"(?:with|that (?:has|have)) the colou?r of {_REFERENCE}"),
    ("inside", rf"inside(?: of)? {_REFERENCE}"),
    ("containing", rf"(?:with|that (?:has|have)) {_REFERENCE} inside"),
    ("not_color", rf"(?:not (?:in )?|without )({'|'.join(_COLORS)})(?: colou?r)?\b"),
    ("color", rf"(?:in |of )?({'|'.join(_COLORS)})(?: colou?r)?\b"),
    ("size", rf"(?:of )?({'|'.join(_SIZES)})(?: size)?\b"),
    ("near", rf"(?:nearest|closest) to {_REFERENCE}"),
    ("far", rf"(?:farthest|furthest|most distant) from {_REFERENCE}"),
    ("ordinal", r"from the (left|right|top|bottom)\b"),
    ("nothing", r"in the (?:picture|image|photo)"),
)
_AFTER = [(kind, re.compile(rf"^(?:that (?:is|are) )?{pattern}")) for kind, pattern in _AFTER_PATTERNS]
_EXCEPT = re.compile(r"^(?:except|but|except for) the (\w+)(?: one)?$")
_COMPARED = re.compile(rf"^the ({'|'.join((*_EXTREMES, *_LARGEST))}) of the ((?:\w+ )*)<(\d+)p>")
_HEAD = re.compile(rf"^(?:{_ARTICLE} )?((?:\w+ )*)<(\d+)(s|p)>(?: |$)(.*)$")


@dataclass(frozen=True)
class Reading:
    """What a text was understood to ask for, and whether it speaks of one or of several."""

    meaning: Meaning
    is_plural: bool


def read_simple(text: str, nouns: Iterable[str], forms: NounForms) -> Reading | None:
    """The meaning of a simple instruction or concept, or None where it is not understood."""
    normal = " ".join(text.lower().replace("’", "'").split()).strip(" .!?")
    normal = COMMAND.sub("", normal).strip(" ,.").removesuffix(" please")
    marked = _mark_nouns(normal, sorted(nouns), forms)
    if marked is None:
        return None
    words, table = marked
    return _noun_phrase(words, table)


def _mark_nouns(text: str, nouns: list[str], forms: NounForms) -> tuple[str, dict[int, str]] | None:
    """The text with every named category replaced by "<number s>" or "<number p>"; None if two share a form."""
    words, found = words_of(text), {}
    table = dict(enumerate(nouns))
    names: dict[tuple[str, ...], tuple[int, str]] = {}
    for number, noun in table.items():
        plurals = {tuple(words_of(plural_of(" ".join(form)))) for form in forms.forms(noun)}
        for form in forms.forms(noun):
            names.setdefault(form, (number, "p" if form in plurals else "s"))
            if names[form][0] != number:
                found[form] = True  # shared by two categories
    longest = max((len(form) for form in names), default=0)
    marked, i = [], 0
    while i < len(words):
        for size in range(min(longest, len(words) - i), 0, -1):
            form = tuple(words[i : i + size])
            if form in names:
                if form in found:
                    return None
                number, case = names[form]
                marked.append(f"<{number}{case}>")
                i += size
                break
        else:
            marked.append(words[i])
            i += 1
    return " ".join(marked), table


def _noun_phrase(text: str, table: dict[int, str]) -> Reading | None:
    if text.startswith("both "):
        text = "the two " + text.removeprefix("both ").removeprefix("the ")
    text = _COMPARED.sub(r"the \1 \2<\3s>", text)
    head = _HEAD.match(text)
    if head is None:
        return None
    before, number, case, rest = head.groups()
    meaning = _with_adjectives(Meaning(table[int(number)]), before.split())
    ordinal = next((_ORDINALS[word] for word in before.split() if word in _ORDINALS), None)
    while meaning is not None and rest:
        meaning, rest, used = _with_after(meaning, rest, table, ordinal)
        ordinal = None if used else ordinal
    if meaning is None or ordinal is not None:
        return None
    return Reading(meaning, case == "p")


def _with_adjectives(meaning: Meaning, words: list[str]) -> Meaning | None:
    filters, selector, number = list(meaning.filters), None, None
    for word in words:
        if word in _COLORS:
            filters.append(Filter("color", _COLORS[word]))
        elif word in _SIZES:
            filters.append(Filter("size", _SIZES[word]))
        elif word in _EXTREMES and selector is None:
            selector = Selector("extreme", _EXTREMES[word])
        elif word in _LARGEST and selector is None:
            selector = Selector("size", _LARGEST[word])
        elif word in _NUMBERS and number is None:
            number = _NUMBERS[word]
        elif word not in _ORDINALS:
            return None
    if number is not None:
        if selector is None:
            filters.append(Filter("count", str(number)))
        elif selector.kind == "extreme":
            selector = replace(selector, count=number)
        else:
            return None
    return Meaning(meaning.noun, tuple(filters), selector)


def _with_after(
    meaning: Meaning, rest: str, table: dict[int, str], ordinal: int | None
) -> tuple[Meaning | None, str, bool]:
    """The meaning with the next modifier taken in, what is left of the text, and whether the ordinal was used."""
    rest = rest.removeprefix("and ")
    excluded = _EXCEPT.match(rest)
    if excluded is not None:
        inner = _with_adjectives(Meaning(meaning.noun), [excluded.group(1)])
        if inner is None or inner.selector is None or meaning.selector is not None:
            return None, "", False
        return replace(meaning, selector=replace(inner.selector, excluded=True)), "", False
    for kind, pattern in _AFTER:
        match = pattern.match(rest)
        if match is None:
            continue
        left = rest[match.end() :].strip()
        groups = match.groups()
        if kind == "nothing":
            return meaning, left, False
        if kind == "beside" or (kind == "side" and ordinal == 1):  # "the first cup left of the plate"
            if meaning.selector is not None or (kind == "beside") != (ordinal is None):
                return None, "", False
            selector = Selector("beside", _DIRECTIONS[groups[0]], reference=table[int(groups[1])])
            return replace(meaning, selector=selector), left, kind == "side"
        if kind in ("near", "far", "ordinal"):
            if meaning.selector is not None or (kind == "ordinal") != (ordinal is not None):
                return None, "", False
            if ordinal is not None:
                return replace(meaning, selector=Selector("ordinal", groups[0], ordinal)), left, True
            return replace(meaning, selector=Selector("distance", kind, reference=table[int(groups[0])])), left, False
        return _filtered(meaning, _after_filter(kind, groups, table)), left, False
    if rest.startswith("of the "):
        whole = _noun_phrase(rest.removeprefix("of "), table)
        if whole is None:
            return None, "", False
        return _filtered(meaning, Filter("part", whole=whole.meaning)), "", False
    return None, "", False


def _after_filter(kind: str, groups: tuple[str, ...], table: dict[int, str]) -> Filter:
    if kind == "region":
        return Filter("region", _HALVES[groups[0]])
    if kind == "side":
        return Filter("side", _DIRECTIONS[groups[0]], table[int(groups[1])])
    if kind in ("color", "not_color"):
        return Filter(kind, _COLORS[groups[0]])
    if kind == "size":
        return Filter(kind, _SIZES[groups[0]])
    return Filter(kind, reference=table[int(groups[0])])


def _filtered(meaning: Meaning, item: Filter) -> Meaning | None:
    """The meaning with one more filter; None where a selector has already been read, whose scope would be unclear."""
    if meaning.selector is not None and meaning.selector.kind in ("ordinal", "distance", "beside"):
        return None
    return replace(meaning, filters=(*meaning.filters, item))
