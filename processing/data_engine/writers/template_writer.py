# SPDX-License-Identifier: Apache-2.0
"""A writer without any model: questions drawn at random, kept where masks and pixels give a clear answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from ....modeling_sam3i.instruction_levels import InstructionLevel
from ...language.colors import COLOR_NAMES, HUES
from ...language.everyday import everyday_lexicon
from ...language.lexicon import NUMBER_WORDS, PLURAL, SIDES, SINGULAR, Lexicon
from ...language.meaning import ALL, NONE, ONE, SOME, Filter, Meaning, Selector, denote, target_kind
from ...language.phrasing import can_say, say
from ..scene.facts import Facts

CONCEPT, SIMPLE, COMPLEX = InstructionLevel
ABSENT_SHARE = 0.15  # of the questions without an answer: their category is not in the picture
SINGLE_SHARE = 0.15  # of the questions for one or some: their category may have a single instance
SECOND_FILTER_SHARE = 0.25
PLACED_SHARE = 0.3  # of the relations whose answer the place in the picture gives, whatever the reference
# Families that nearly every picture offers, and the share of their draws that is kept: they must not crowd out others.
COMMON_SHARES = {
    "count": 0.25, "not_noun": 0.3, "not_color": 0.5, "any_color": 0.4, "noun_shared": 0.4, "noun_alone": 0.6,
    "color_shared": 0.5, "color_alone": 0.7,
}  # fmt: skip
# Questions without a parameter have an answer or not, as the scene is: how often they are asked where they have none.
# The shares leave about a quarter of each family without an answer (in the shapes world).
EMPTY_SHARES = {
    "not_noun": 0.65, "noun_shared": 0.55, "noun_alone": 0.1, "color_shared": 0.9, "color_alone": 0.17
}  # fmt: skip
_TRIES = 16  # random questions per family and kind
_FILTER_KINDS = ("color", "size", "region", "side", "not_color", "same_color", "inside", "containing", "count")
_SELECTOR_KINDS = ("extreme", "extreme_size", "distance", "beside", "ordinal", "all_but", "pair")
_OPEN_KINDS = ("any_color", "not_noun", "noun_shared", "noun_alone", "color_shared", "color_alone")


@dataclass(frozen=True)
class TargetPlan:
    """What is to be written about: a target of a scene."""

    targets: tuple[int, ...]  # annotation ids, ascending; empty for a question without an answer
    kind: str  # target kind
    noun: str | None  # the category; None where anything may answer
    granularity: str = "object"  # "object" or "part"
    meaning: Meaning | None = None  # the question behind it; None where a chat model finds one
    number: str = SINGULAR  # grammatical number of the sentence


class TemplateWriter:
    """Draws questions for scenes and puts them into words at the levels that have the words.

    Args:
        nouns: every category of the source, for questions about what is absent.
    """

    name = "templates"
    version = "2"

    def __init__(self, nouns: Sequence[str], levels: Sequence[InstructionLevel] = tuple(InstructionLevel)):
        self.nouns = tuple(nouns)
        self.levels = tuple(levels)

    def draw(self, facts: Facts, kinds: Sequence[str], rng: Random) -> TargetPlan | None:
        """A question whose answer is clear, or None if none was met by chance.

        A kind is drawn first, then a family, then its details: what is common in pictures does not crowd out what is
        rare. Questions without an answer take the place of ones that have one, with the same family and number, so
        that no form of words tells whether there is a target.
        """
        kind = rng.choice([name for name in kinds if name != NONE] or [ONE, SOME, ALL])
        none_share = (NONE in kinds) / len(kinds)
        families = [*_FILTER_KINDS, *_SELECTOR_KINDS, "color_size", "category", "part"]
        if facts.scene.is_exhaustive and COMPLEX in self.levels:
            families += _OPEN_KINDS
        for family in rng.sample(families, len(families)):
            if rng.random() > COMMON_SHARES.get(family, 1.0):
                continue
            plan = self._question(family, kind, facts, rng)
            if plan is not None:
                # A question without an answer in the place of one that has one, in the same form.
                return self._question(family, NONE, facts, rng, plan) if rng.random() < none_share else plan
            if none_share and rng.random() < EMPTY_SHARES.get(family, 0.0):
                plan = self._question(family, NONE, facts, rng)
                if plan is not None:
                    return plan
        return None

    def _question(
        self, family: str, kind: str, facts: Facts, rng: Random, like: TargetPlan | None = None
    ) -> TargetPlan | None:
        """A question of a family with an answer of a kind; `like` asks for the form and number of another."""
        for _ in range(_TRIES if like is None else 4 * _TRIES):
            meaning = self.draw_meaning(family, facts, kind, rng)
            if meaning is None or not self._levels_of(meaning, facts):
                continue
            if like is not None and _form(meaning) != _form(like.meaning):
                continue
            if any((item.value, meaning.noun) in facts.scene.reserved_pairs for item in meaning.filters):
                continue
            found = denote(meaning, facts)
            if found is None or target_kind(meaning, found, facts) != kind:
                continue
            if kind == NONE or not _is_placed(meaning, found, facts) or rng.random() < PLACED_SHARE:
                plan = self._plan(meaning, found, kind, facts, rng)
                return plan if like is None else replace(plan, number=like.number)
        return None

    def write(self, plan: TargetPlan, facts: Facts, rng: Random) -> list[tuple[InstructionLevel, str]]:
        """One text per level that can say the question; the concept, too, where it denotes the same."""
        meaning = plan.meaning or Meaning(plan.noun)
        texts = [
            (level, say(meaning, plan.number, level, rng.choice, lexicon_of(facts)).text)
            for level in self._levels_of(meaning, facts)
        ]
        if CONCEPT in self.levels and plan.noun is not None and CONCEPT not in dict(texts):
            found = denote(Meaning(plan.noun), facts)
            if found is not None and plan.targets == _ids(found, facts):
                texts.insert(0, (CONCEPT, plan.noun))
        return texts

    def _levels_of(self, meaning: Meaning, facts: Facts) -> list[InstructionLevel]:
        return [level for level in self.levels if can_say(meaning, level, lexicon_of(facts))]

    def _plan(self, meaning: Meaning, found: frozenset[int], kind: str, facts: Facts, rng: Random) -> TargetPlan:
        granularity = facts.scene.instances[min(found)].granularity if found else "object"
        singular = kind == ONE or (kind == NONE and not _needs_plural(meaning) and rng.random() < 0.5)
        if meaning.selector is not None:  # "the leftmost cups" is no question
            singular = not meaning.selector.excluded and (
                meaning.selector.kind != "extreme" or meaning.selector.count == 1
            )
        return TargetPlan(
            targets=_ids(found, facts),
            kind=kind,
            noun=meaning.noun,
            granularity=granularity,
            meaning=meaning,
            number=SINGULAR if singular else PLURAL,
        )

    def draw_meaning(self, family: str, facts: Facts, kind: str, rng: Random) -> Meaning | None:
        """A random question of a family about a scene, drawn so that it may well be of `kind`; None without words."""
        scene = facts.scene
        present = [noun for noun in scene.nouns if noun not in scene.partial_nouns]
        absent = [noun for noun in self.nouns if scene.is_absent(noun)]
        if family in _OPEN_KINDS:
            return self._open_meaning(family, absent if kind == ALL else present, rng)
        if kind in (ONE, SOME) and rng.random() > SINGLE_SHARE:
            present = [noun for noun in present if len(scene.nouns[noun]) > 1]  # something to choose among
        # "The leftmost cup" is there wherever a cup is.
        superlative = family in _SELECTOR_KINDS and family not in ("all_but", "distance", "beside")
        absent_share = 1.0 if family in ("category", "count") else 0.5 if superlative else ABSENT_SHARE
        missing = kind == NONE and rng.random() < absent_share
        pool = absent if missing else present
        if not pool:
            return None
        noun = rng.choice(sorted(pool))
        references = sorted(name for name in scene.nouns if name != noun and len(scene.nouns[name]) == 1)
        if kind == NONE and absent and rng.random() < ABSENT_SHARE:
            references = [name for name in absent if name != noun]
        if family == "category":
            return Meaning(noun)
        if family == "part":
            return self._part_meaning(noun, facts, rng)
        filters: tuple[Filter | None, ...] = ()
        selector = None
        if family in _SELECTOR_KINDS:
            selector = self._selector(family, references, rng)
            if selector is None:
                return None
        else:
            kinds = ("color", "size") if family == "color_size" else (family,)
            filters = tuple(self._filter(name, noun, references, facts, rng) for name in kinds)
        if family == "all_but" and kind == ONE:
            return None  # "all the cups except the leftmost" speaks of several
        if family not in ("count", "all_but", "pair", "color_size") and rng.random() < SECOND_FILTER_SHARE:
            # A region after a reference or an ordinal could belong to either of two nouns.
            bound = family in ("side", "beside", "distance", "same_color", "inside", "containing", "ordinal")
            second = rng.choice(("color", "size") if bound else ("color", "region", "size"))
            if second != family.removeprefix("not_"):
                filters = (*filters, self._filter(second, noun, references, facts, rng))
        said = tuple(item for item in filters if item is not None)
        return Meaning(noun, said, selector) if len(said) == len(filters) else None

    @staticmethod
    def _open_meaning(family: str, nouns: list[str], rng: Random) -> Meaning | None:
        if family == "any_color":
            return Meaning(None, (Filter("color", rng.choice(list(HUES)[:6])),))
        if family == "not_noun":
            return Meaning(None, (Filter("not_noun", reference=rng.choice(nouns)),)) if nouns else None
        return Meaning(None, (Filter(family),))

    @staticmethod
    def _part_meaning(noun: str, facts: Facts, rng: Random) -> Meaning | None:
        owners = {facts.scene.by_id[item.whole].noun for item in facts.scene.nouns.get(noun, ()) if item.whole}
        if not owners:
            return None
        owner = rng.choice(sorted(owners))
        selector = rng.choice((None, Selector("extreme", rng.choice(SIDES)), Selector("size", "large")))
        color = rng.choice((None, Filter("color", rng.choice(COLOR_NAMES))))
        whole = Meaning(owner, (color,) if color else (), None if color else selector)
        return Meaning(noun, (Filter("part", whole=whole),))

    @staticmethod
    def _selector(family: str, references: list[str], rng: Random) -> Selector | None:
        side = rng.choice(SIDES)
        if family == "extreme":
            return Selector("extreme", side)
        if family == "extreme_size":
            return Selector("size", rng.choice(("large", "small")))
        if family == "ordinal":
            return Selector("ordinal", side, rng.choice((1, 2, 2, 3)))
        if family == "all_but":
            return Selector("extreme", side, excluded=True)
        if family == "pair":
            return Selector("extreme", side, rng.choice((2, 2, 3)))
        if not references:
            return None
        if family == "beside":
            return Selector("beside", side, reference=rng.choice(references))
        return Selector("distance", rng.choice(("near", "far")), reference=rng.choice(references))

    @staticmethod
    def _filter(kind: str, noun: str, references: list[str], facts: Facts, rng: Random) -> Filter | None:
        if kind in ("color", "not_color"):
            seen = sorted({color for color in facts.colors if color is not None})
            return Filter(kind, rng.choice([*seen, rng.choice(list(HUES)[:6])]))
        if kind == "size":
            return Filter(kind, rng.choice(("large", "small")))
        if kind == "region":
            return Filter(kind, rng.choice(SIDES))
        if kind == "count":
            count = len(facts.scene.nouns.get(noun, ())) or rng.choice((2, 2, 3))
            return Filter(kind, str(count)) if count in NUMBER_WORDS else None
        if not references:
            return None
        if kind == "side":
            return Filter(kind, rng.choice(SIDES), rng.choice(references))
        return Filter(kind, reference=rng.choice(references))


def _form(meaning: Meaning | None) -> str:
    """What a phrasing shows of a question: its conditions, how many it selects, whether it names a noun."""
    if meaning is None:
        return ""
    count = "" if meaning.selector is None else f" {meaning.selector.count}"
    return f"{meaning.family}{count}{'' if meaning.noun else ' open'}"


def _is_placed(meaning: Meaning, found: frozenset[int], facts: Facts) -> bool:
    """Whether a relation's answer is the outermost on that side, or all on that half, whatever the reference."""
    relations = [item for item in (*meaning.filters, meaning.selector) if item and item.kind in ("side", "beside")]
    filters = tuple(item for item in meaning.filters if item not in relations)
    for item in relations:
        place = Meaning(meaning.noun, filters, Selector("extreme", item.value or ""))
        half = Meaning(meaning.noun, (*filters, Filter("region", item.value)))
        if found in (denote(place, facts), denote(half, facts)):
            return True
    return False


def _needs_plural(meaning: Meaning) -> bool:
    return any(item.kind in ("count", "noun_shared", "color_shared") for item in meaning.filters)


def _ids(found: frozenset[int], facts: Facts) -> tuple[int, ...]:
    return tuple(sorted(facts.scene.instances[i].annotation_id for i in found))


def lexicon_of(facts: Facts) -> Lexicon:
    """The words for a scene: everyday ones, and what its source says its nouns are for."""
    return everyday_lexicon(frozenset(facts.nouns), tuple(facts.scene.descriptors.items()))
