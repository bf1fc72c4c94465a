# SPDX-License-Identifier: Apache-2.0
"""What an instruction asks for, as data, and which instances of a scene that is.

A [`Meaning`] is a category, filters on it, and at most one selector that compares what the filters leave. A denotation
is computed from what is known of the scene alone; where the scene gives no clear answer (a tie, an instance near the
middle line, a color without a name, two possible reference objects) it is None, and the question must not be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

TARGET_KINDS = ("1-to-1", "1-to-N", "1-to-all", "none")
ONE, SOME, ALL, NONE = TARGET_KINDS
# Filters that stand for the noun: of any category but one, sharing its shape or color with another (or not), of a
# wider kind of thing (or not).
OPEN_KINDS = ("not_noun", "noun_shared", "noun_alone", "color_shared", "color_alone", "kind", "not_kind")
_FAMILY_NAMES = {
    "color+size": "color_size",
    "size+color": "color_size",
    "not_noun": "except",
    "noun_shared": "shape_shared",
    "noun_alone": "shape_alone",
}
_MIRRORED = {"left": "right", "right": "left"}


class SceneFacts(Protocol):
    """What must be known of a scene to answer questions about it; instances go by number."""

    compares_alone: bool  # a superlative may be said of a single instance ("the leftmost cup" where there is one cup)
    place_margin: float  # least difference of two places that counts, in the unit of `along` and `distance`
    beside_margin: float  # the same for being left of, above, ... a reference object
    middle_margin: float  # the same for being on one side of the middle line

    @property
    def is_exhaustive(self) -> bool:
        """Whether every object of the scene is an instance, so that a question may leave the noun open."""

    @property
    def nouns(self) -> Sequence[str]:
        """Of every instance."""

    @property
    def colors(self) -> Sequence[str | None]:
        """Of every instance; None for a color without a clear name."""

    def is_partial(self, noun: str | None) -> bool:
        """Whether some instances of a noun may be missing."""

    def is_absent(self, noun: str) -> bool:
        """Whether the scene is known to hold no instance of a noun."""

    def along(self, i: int, side: str | None) -> float:
        """How far the center of instance i reaches towards a side."""

    def beyond_middle(self, i: int, side: str | None) -> float:
        """How far it lies beyond the middle line, towards a side."""

    def distance(self, i: int, j: int) -> float:
        """Distance of two centers."""

    def of_size(self, value: str | None, members: list[int], every: list[int]) -> list[int] | None:
        """Those of `members` that are "large" or "small" among `every` instance of their category."""

    def by_size(self, value: str, members: list[int]) -> list[int] | None:
        """Members, the "large" or the "small" first; None where the first is not clear."""

    def is_inside(self, i: int, j: int) -> bool | None:
        """Whether instance i lies inside instance j; None where that is not clear."""

    def whole_of(self, i: int) -> int | None:
        """The instance that a part belongs to, where it is known."""

    def is_a(self, i: int, kind: str | None) -> bool | None:
        """Whether an instance is of a wider kind ("animal"); None where that is not known."""


@dataclass(frozen=True)
class Filter:
    """One condition on instances.

    `kind` is one of "color", "not_color" (value: its name), "size" (value: "large" or "small", among its category, or
    by the scene's own bounds where it has them), "region" (value: a half of the image), "side" (value: a side of the
    reference), "same_color", "inside", "containing" (of or in the reference), "not_noun" (any category but the
    reference), "noun_shared", "noun_alone", "color_shared", "color_alone" (shared with another instance, or not),
    "count" (value: how many there are), "part" (of what `whole` denotes), "kind", "not_kind" (value: a wider kind of
    thing, or a use of things).
    """

    kind: str
    value: str | None = None
    reference: str | None = None
    whole: Meaning | None = None


@dataclass(frozen=True)
class Selector:
    """A comparison among instances.

    `kind` is "extreme" (value: a side; `count`: how many from there), "ordinal" (value: the side to count from;
    `count`: which), "size" (value: "large" or "small"), "distance" (value: "near" or "far" of the reference), "beside"
    (the nearest on a side of the reference; value: the side). `excluded` asks for all the others instead.
    """

    kind: str
    value: str
    count: int = 1
    reference: str | None = None
    excluded: bool = False


@dataclass(frozen=True)
class Meaning:
    """A category (None: anything), what it is filtered by, and what is selected of the rest."""

    noun: str | None
    filters: tuple[Filter, ...] = ()
    selector: Selector | None = None

    @property
    def family(self) -> str:
        """The kinds of its conditions, e.g. "color+extreme"; "category" where there are none."""
        kinds = [item.kind for item in self.filters]
        if self.selector is not None:
            kinds.append(selector_family(self.selector))
        if self.noun is None and kinds == ["color"]:
            return "any_color"
        name = "+".join(kinds) or "category"
        return _FAMILY_NAMES.get(name, name)

    @property
    def category(self) -> str | None:
        """The noun that the question is about: its own, or the one that it leaves out."""
        return self.noun or next((item.reference for item in self.filters if item.kind == "not_noun"), None)

    def mirror(self) -> Meaning:
        """The same question about the scene with left and right exchanged."""
        filters = tuple(
            replace(item, value=_MIRRORED.get(item.value or "", item.value), whole=item.whole and item.whole.mirror())
            for item in self.filters
        )
        chosen = self.selector and replace(
            self.selector, value=_MIRRORED.get(self.selector.value, self.selector.value)
        )
        return replace(self, filters=filters, selector=chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Meaning:
        """The inverse of [`to_dict`]."""
        filters = tuple(
            Filter(**{**item, "whole": None if item["whole"] is None else cls.from_dict(item["whole"])})
            for item in data["filters"]
        )
        return cls(data["noun"], filters, None if data["selector"] is None else Selector(**data["selector"]))


def selector_family(selector: Selector) -> str:
    """The family of questions that a selector makes."""
    if selector.excluded:
        return f"all_but_{selector.kind}"
    if selector.count > 1 and selector.kind == "extreme":
        return "pair"
    return "extreme_size" if selector.kind == "size" else selector.kind


def denote(meaning: Meaning, facts: SceneFacts) -> frozenset[int] | None:
    """Numbers of the instances that a meaning denotes; empty where nothing fits, None where it is unclear."""
    if any(facts.is_absent(noun) for noun in _anchors(meaning)):
        # Nothing is left of a dog where there is no dog.
        return None if _named(meaning, facts) is None else frozenset()
    members = _candidates(meaning, facts)
    if members is None or meaning.selector is None:
        return None if members is None else frozenset(members)
    if _is_alone(meaning.selector, members, facts):
        return None
    chosen = _SELECTORS[meaning.selector.kind](meaning.selector, facts, members)
    if chosen is None:
        return None
    return frozenset(i for i in members if i not in chosen) if meaning.selector.excluded else frozenset(chosen)


def compares_one(meaning: Meaning, facts: SceneFacts) -> bool:
    """Whether a superlative or an ordinal is said of a single instance: "the leftmost dog" supposes another one."""
    members = _candidates(meaning, facts)
    return members is not None and meaning.selector is not None and _is_alone(meaning.selector, members, facts)


def _is_alone(selector: Selector, members: list[int], facts: SceneFacts) -> bool:
    return len(members) == 1 and selector.kind != "beside" and not facts.compares_alone


def _anchors(meaning: Meaning) -> list[str]:
    """The nouns that a meaning refers to."""
    nouns = [item.reference for item in meaning.filters if item.kind != "not_noun"]
    nouns += [meaning.selector.reference] if meaning.selector is not None else []
    return [noun for noun in nouns if noun is not None]


def _named(meaning: Meaning, facts: SceneFacts) -> list[int] | None:
    """All instances of a meaning's noun; None where the scene does not tell."""
    if (meaning.noun is None and not facts.is_exhaustive) or facts.is_partial(meaning.noun):
        return None
    every = [i for i, noun in enumerate(facts.nouns) if meaning.noun in (None, noun)]
    return None if not every and meaning.noun is not None and not facts.is_absent(meaning.noun) else every


def _candidates(meaning: Meaning, facts: SceneFacts) -> list[int] | None:
    """What the filters leave, for the selector to compare; None where it is unclear."""
    every = _named(meaning, facts)
    members = every
    # "The two red cups" are counted last.
    for condition in sorted(meaning.filters, key=lambda item: item.kind == "count"):
        if every is None or members is None:
            return None
        members = _FILTERS[condition.kind](condition, facts, members, every)
    return members


def target_kind(meaning: Meaning, targets: frozenset[int], facts: SceneFacts) -> str:
    """The target kind; "all" is relative to the named category, or to the whole scene where none is named."""
    if not targets:
        return NONE
    members = sum(meaning.noun in (None, noun) for noun in facts.nouns)
    if len(targets) == members and len(targets) > 1:
        return ALL
    return ONE if len(targets) == 1 else SOME


def _reference(noun: str | None, facts: SceneFacts) -> int | None:
    """The only instance of a noun; None where there is not exactly one."""
    found = [i for i, name in enumerate(facts.nouns) if name == noun]
    return found[0] if len(found) == 1 and not facts.is_partial(noun) else None


def _color(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int] | None:
    if any(facts.colors[i] is None for i in members):
        return None
    wanted = condition.kind == "color"
    return [i for i in members if (facts.colors[i] == condition.value) is wanted]


def _size(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int] | None:
    return facts.of_size(condition.value, members, every)


def _clearly(members: list[int], value: Callable[[int], float], margin: float) -> list[int] | None:
    """Members whose value is positive; None if any lies within +-margin."""
    values = {i: value(i) for i in members}
    if any(abs(number) < margin for number in values.values()):
        return None
    return [i for i, number in values.items() if number > 0]


def _region(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int] | None:
    return _clearly(members, lambda i: facts.beyond_middle(i, condition.value), facts.middle_margin)


def _side(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int] | None:
    anchor = _reference(condition.reference, facts)
    if anchor is None:
        return None
    others = [i for i in members if i != anchor]
    edge = facts.along(anchor, condition.value)
    return _clearly(others, lambda i: facts.along(i, condition.value) - edge, facts.beside_margin)


def _same_color(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int] | None:
    anchor = _reference(condition.reference, facts)
    if anchor is None or any(facts.colors[i] is None for i in (anchor, *members)):
        return None
    return [i for i in members if i != anchor and facts.colors[i] == facts.colors[anchor]]


def _containment(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int] | None:
    anchor = _reference(condition.reference, facts)
    if anchor is None:
        return None
    pairs = [(i, anchor) if condition.kind == "inside" else (anchor, i) for i in members]
    answers = [facts.is_inside(*pair) for pair in pairs]
    if any(answer is None for answer in answers):
        return None
    return [i for i, answer in zip(members, answers, strict=True) if answer]


def _not_noun(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int]:
    return [i for i in members if facts.nouns[i] != condition.reference]


def _shared(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int] | None:
    attribute, wanted = condition.kind.split("_")
    values: list[str | None] = list(facts.colors) if attribute == "color" else list(facts.nouns)
    if any(value is None for value in values):
        return None
    return [i for i in members if (values.count(values[i]) > 1) is (wanted == "shared")]


def _count(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int] | None:
    return members if len(members) in (0, int(condition.value or 0)) else None


def _part(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int] | None:
    wholes = None if condition.whole is None else denote(condition.whole, facts)
    owners = [facts.whole_of(i) for i in members]
    if not wholes or any(owner is None for owner in owners):
        return None
    return [i for i, owner in zip(members, owners, strict=True) if owner in wholes]


def _kind(condition: Filter, facts: SceneFacts, members: list[int], every: list[int]) -> list[int] | None:
    answers = [facts.is_a(i, condition.value) for i in members]
    if None in answers:
        return None
    return [i for i, answer in zip(members, answers, strict=True) if answer is (condition.kind == "kind")]


_FILTERS: dict[str, Callable[[Filter, SceneFacts, list[int], list[int]], list[int] | None]] = {
    "color": _color,
    "not_color": _color,
    "size": _size,
    "region": _region,
    "side": _side,
    "same_color": _same_color,
    "inside": _containment,
    "containing": _containment,
    "not_noun": _not_noun,
    "noun_shared": _shared,
    "noun_alone": _shared,
    "color_shared": _shared,
    "color_alone": _shared,
    "count": _count,
    "part": _part,
    "kind": _kind,
    "not_kind": _kind,
}


def _first(members: list[int], value: Callable[[int], float], margin: float, count: int = 1) -> list[int] | None:
    """The `count` members of the highest values; None if the next one is within `margin`, or there are too few."""
    ranked = sorted(members, key=value, reverse=True)
    if members and len(ranked) <= count - (count == 1):
        return None
    if len(ranked) > count and value(ranked[count - 1]) - value(ranked[count]) < margin:
        return None
    return ranked[:count]


def _extreme(selector: Selector, facts: SceneFacts, members: list[int]) -> list[int] | None:
    return _first(members, lambda i: facts.along(i, selector.value), facts.place_margin, selector.count)


def _ordinal(selector: Selector, facts: SceneFacts, members: list[int]) -> list[int] | None:
    """The n-th from a side; an ordinal beyond the end denotes nothing, and is no fair question."""
    ranked = sorted(members, key=lambda i: facts.along(i, selector.value), reverse=True)
    places = [facts.along(i, selector.value) for i in ranked]
    if len(ranked) < selector.count:
        return [] if not ranked else None
    if any(a - b < facts.place_margin for a, b in zip(places[: selector.count], places[1:], strict=False)):
        return None
    return [ranked[selector.count - 1]]


def _extreme_size(selector: Selector, facts: SceneFacts, members: list[int]) -> list[int] | None:
    ranked = facts.by_size(selector.value, members)
    return None if ranked is None else ranked[:1]


def _distance(selector: Selector, facts: SceneFacts, members: list[int]) -> list[int] | None:
    anchor = _reference(selector.reference, facts)
    if anchor is None:
        return None
    sign = -1 if selector.value == "near" else 1
    others = [i for i in members if i != anchor]
    return _first(others, lambda i: sign * facts.distance(i, anchor), facts.place_margin)


def _beside(selector: Selector, facts: SceneFacts, members: list[int]) -> list[int] | None:
    anchor = _reference(selector.reference, facts)
    on_side = _side(Filter("side", selector.value, selector.reference), facts, members, members)
    if anchor is None or on_side is None:
        return None
    return _first(on_side, lambda i: -facts.distance(i, anchor), facts.place_margin)


_SELECTORS: dict[str, Callable[[Selector, SceneFacts, list[int]], list[int] | None]] = {
    "extreme": _extreme,
    "ordinal": _ordinal,
    "size": _extreme_size,
    "distance": _distance,
    "beside": _beside,
}
