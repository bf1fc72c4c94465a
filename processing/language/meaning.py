# SPDX-License-Identifier: Apache-2.0
"""What an instruction asks for, as data, and which instances of a scene that is.

A [`Meaning`] is a category, filters on it, and at most one selector that compares what the filters leave. A denotation
is computed from masks and pixels alone; where the scene gives no clear answer (a tie, an instance near the middle
line, a colour without a name, two possible reference objects) it is None, and the question must not be asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..data_engine.scene.facts import BESIDE_MARGIN, PLACE_MARGIN, SIZE_RATIO, Facts
from ..datasets.schema import TARGET_KINDS

ONE, SOME, ALL, NONE = TARGET_KINDS
EXTREME_SIZE_RATIO = 1.25  # least ratio of the side lengths of the largest and the second largest


@dataclass(frozen=True)
class Filter:
    """One condition on instances.

    `kind` is one of "colour", "not_colour" (value: its name), "size" (value: "large" or "small", among its category,
    or by the scene's own bounds where it has them),
    "region" (value: a half of the picture), "side" (value: a side of the reference), "same_colour", "inside",
    "containing" (of or in the reference), "not_noun" (any category but the reference), "noun_shared", "noun_alone",
    "colour_shared", "colour_alone" (shared with another instance, or not), "count" (value: how many there are),
    "part" (of what `whole` denotes).
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
    (the nearest on a side of the reference; value: the side).
    `excluded` asks for all the others instead.
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
        """The kinds of its conditions, e.g. "colour+extreme"; "category" where there are none."""
        kinds = [item.kind for item in self.filters]
        if self.selector is not None:
            prefix = "all_but_" if self.selector.excluded else ""
            kinds.append(prefix + {"size": "extreme_size"}.get(self.selector.kind, self.selector.kind))
        return "+".join(kinds) or "category"

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


def denote(meaning: Meaning, facts: Facts) -> frozenset[int] | None:
    """Places in `scene.instances` of what a meaning denotes; empty where nothing fits, None where it is unclear."""
    scene = facts.scene
    if meaning.noun is None and not scene.is_exhaustive:
        return None
    if meaning.noun in scene.partial_nouns:
        return None
    every = [i for i, item in enumerate(scene.instances) if meaning.noun in (None, item.noun)]
    if not every and meaning.noun is not None and not scene.is_absent(meaning.noun):
        return None
    anchors = [item.reference for item in meaning.filters if item.kind != "not_noun"]
    anchors += [meaning.selector.reference] if meaning.selector is not None else []
    if any(noun is not None and scene.is_absent(noun) for noun in anchors):
        return frozenset()  # nothing is left of a dog where there is no dog
    members = every
    for condition in sorted(
        meaning.filters, key=lambda item: item.kind == "count"
    ):  # "the two red cups": counted last
        found = _FILTERS[condition.kind](condition, facts, members, every)
        if found is None:
            return None
        members = found
    if meaning.selector is not None:
        chosen = _SELECTORS[meaning.selector.kind](meaning.selector, facts, members)
        if chosen is None:
            return None
        members = [i for i in members if i not in chosen] if meaning.selector.excluded else chosen
    return frozenset(members)


def target_kind(meaning: Meaning, targets: frozenset[int], facts: Facts) -> str:
    """The target kind; "all" is relative to the named category, or to the whole scene where none is named."""
    if not targets:
        return NONE
    members = sum(meaning.noun in (None, item.noun) for item in facts.scene.instances)
    if len(targets) == members and len(targets) > 1:
        return ALL
    return ONE if len(targets) == 1 else SOME


def _reference(noun: str | None, facts: Facts) -> int | None:
    """The only instance of a noun; None where there is not exactly one."""
    found = [i for i, item in enumerate(facts.scene.instances) if item.noun == noun]
    return found[0] if len(found) == 1 and noun not in facts.scene.partial_nouns else None


def _colour(condition: Filter, facts: Facts, members: list[int], every: list[int]) -> list[int] | None:
    if any(facts.colours[i] is None for i in members):
        return None
    wanted = condition.kind == "colour"
    return [i for i in members if (facts.colours[i] == condition.value) is wanted]


def _size(condition: Filter, facts: Facts, members: list[int], every: list[int]) -> list[int] | None:
    """Large or small by the scene's bounds, or among all of the category where its sizes fall into two groups."""
    if facts.scene.size_bounds is not None:
        sizes = {i: facts.absolute_size(i) for i in members}
        return None if None in sizes.values() else [i for i in members if sizes[i] == condition.value]
    if any(not facts.is_whole[i] for i in every):
        return None
    ranked = sorted(every, key=lambda i: facts.sides[i])
    if len(ranked) < 2:
        return None
    ratios = [facts.sides[b] / facts.sides[a] for a, b in zip(ranked, ranked[1:], strict=False)]
    cut = max(range(len(ratios)), key=ratios.__getitem__)
    if ratios[cut] < SIZE_RATIO:
        return None
    group = ranked[cut + 1 :] if condition.value == "large" else ranked[: cut + 1]
    return [i for i in members if i in group]


def _clearly(members: list[int], value: Callable[[int], float], margin: float) -> list[int] | None:
    """Members whose value is positive; None if any lies within +-margin."""
    values = {i: value(i) for i in members}
    if any(abs(number) < margin for number in values.values()):
        return None
    return [i for i, number in values.items() if number > 0]


def _region(condition: Filter, facts: Facts, members: list[int], every: list[int]) -> list[int] | None:
    return _clearly(members, lambda i: facts.beyond_middle(i, condition.value), PLACE_MARGIN)


def _side(condition: Filter, facts: Facts, members: list[int], every: list[int]) -> list[int] | None:
    anchor = _reference(condition.reference, facts)
    if anchor is None:
        return None
    others = [i for i in members if i != anchor]
    edge = facts.along(anchor, condition.value)
    return _clearly(others, lambda i: facts.along(i, condition.value) - edge, BESIDE_MARGIN)


def _same_colour(condition: Filter, facts: Facts, members: list[int], every: list[int]) -> list[int] | None:
    anchor = _reference(condition.reference, facts)
    if anchor is None or any(facts.colours[i] is None for i in (anchor, *members)):
        return None
    return [i for i in members if i != anchor and facts.colours[i] == facts.colours[anchor]]


def _containment(condition: Filter, facts: Facts, members: list[int], every: list[int]) -> list[int] | None:
    anchor = _reference(condition.reference, facts)
    if anchor is None:
        return None
    pairs = [(i, anchor) if condition.kind == "inside" else (anchor, i) for i in members]
    answers = [facts.is_inside(*pair) for pair in pairs]
    if any(answer is None for answer in answers):
        return None
    return [i for i, answer in zip(members, answers, strict=True) if answer]


def _not_noun(condition: Filter, facts: Facts, members: list[int], every: list[int]) -> list[int]:
    return [i for i in members if facts.scene.instances[i].noun != condition.reference]


def _shared(condition: Filter, facts: Facts, members: list[int], every: list[int]) -> list[int] | None:
    attribute, wanted = condition.kind.split("_")
    values = list(facts.colours) if attribute == "colour" else [item.noun for item in facts.scene.instances]
    if any(value is None for value in values):
        return None
    return [i for i in members if (values.count(values[i]) > 1) is (wanted == "shared")]


def _count(condition: Filter, facts: Facts, members: list[int], every: list[int]) -> list[int] | None:
    return members if len(members) in (0, int(condition.value or 0)) else None


def _part(condition: Filter, facts: Facts, members: list[int], every: list[int]) -> list[int] | None:
    wholes = denote(condition.whole, facts)
    owners = [facts.scene.instances[i].whole for i in members]
    if not wholes or any(owner is None for owner in owners):
        return None
    numbers = {facts.scene.instances[i].annotation_id for i in wholes}
    return [i for i, owner in zip(members, owners, strict=True) if owner in numbers]


_FILTERS: dict[str, Callable[[Filter, Facts, list[int], list[int]], list[int] | None]] = {
    "colour": _colour,
    "not_colour": _colour,
    "size": _size,
    "region": _region,
    "side": _side,
    "same_colour": _same_colour,
    "inside": _containment,
    "containing": _containment,
    "not_noun": _not_noun,
    "noun_shared": _shared,
    "noun_alone": _shared,
    "colour_shared": _shared,
    "colour_alone": _shared,
    "count": _count,
    "part": _part,
}


def _first(members: list[int], value: Callable[[int], float], margin: float, count: int = 1) -> list[int] | None:
    """The `count` members of the highest values; None if the next one is within `margin`, or there are too few."""
    ranked = sorted(members, key=value, reverse=True)
    if members and len(ranked) <= count - (count == 1):
        return None
    if len(ranked) > count and value(ranked[count - 1]) - value(ranked[count]) < margin:
        return None
    return ranked[:count]


def _extreme(selector: Selector, facts: Facts, members: list[int]) -> list[int] | None:
    return _first(members, lambda i: facts.along(i, selector.value), PLACE_MARGIN, selector.count)


def _ordinal(selector: Selector, facts: Facts, members: list[int]) -> list[int] | None:
    """The n-th from a side; an ordinal beyond the end denotes nothing, and is no fair question."""
    ranked = sorted(members, key=lambda i: facts.along(i, selector.value), reverse=True)
    places = [facts.along(i, selector.value) for i in ranked]
    if len(ranked) < selector.count:
        return [] if not ranked else None
    if any(a - b < PLACE_MARGIN for a, b in zip(places[: selector.count], places[1:], strict=False)):
        return None
    return [ranked[selector.count - 1]]


def _extreme_size(selector: Selector, facts: Facts, members: list[int]) -> list[int] | None:
    if any(not facts.is_whole[i] for i in members):
        return None
    sign = 1 if selector.value == "large" else -1
    ranked = sorted(members, key=lambda i: sign * facts.sides[i], reverse=True)
    if len(ranked) > 1:
        pair = facts.sides[ranked[0]], facts.sides[ranked[1]]
        if max(pair) / min(pair) < EXTREME_SIZE_RATIO:
            return None
    return ranked[:1]


def _distance(selector: Selector, facts: Facts, members: list[int]) -> list[int] | None:
    anchor = _reference(selector.reference, facts)
    if anchor is None:
        return None
    sign = -1 if selector.value == "near" else 1
    others = [i for i in members if i != anchor]
    return _first(others, lambda i: sign * facts.distance(i, anchor), PLACE_MARGIN)


def _beside(selector: Selector, facts: Facts, members: list[int]) -> list[int] | None:
    on_side = _side(Filter("side", selector.value, selector.reference), facts, members, members)
    if on_side is None:
        return None
    anchor = _reference(selector.reference, facts)
    return _first(on_side, lambda i: -facts.distance(i, anchor), PLACE_MARGIN)


_SELECTORS: dict[str, Callable[[Selector, Facts, list[int]], list[int] | None]] = {
    "extreme": _extreme,
    "ordinal": _ordinal,
    "size": _extreme_size,
    "distance": _distance,
    "beside": _beside,
}
