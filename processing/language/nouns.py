# SPDX-License-Identifier: Apache-2.0
"""Nouns in sentences: plurals, synonyms, and whether a text names a category."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

# Also as the end of a longer word: "bookshelf", "grandchild", "snowman".
_IRREGULAR = {
    "person": "people", "man": "men", "child": "children", "mouse": "mice", "foot": "feet", "tooth": "teeth",
    "goose": "geese", "knife": "knives", "wife": "wives", "life": "lives", "leaf": "leaves", "shelf": "shelves",
    "loaf": "loaves", "wolf": "wolves", "half": "halves", "calf": "calves", "scarf": "scarves", "thief": "thieves",
    "hoof": "hooves", "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes", "hero": "heroes",
}  # fmt: skip
_WHOLE_IRREGULAR = {"ox": "oxen", "dice": "dice", "die": "dice", "cactus": "cacti", "bus": "buses", "gas": "gases"}
_REGULAR_MAN = frozenset("human german roman ottoman shaman talisman caiman".split())
# What has no other form: pairs, masses, words that are plural already.
_UNCHANGED = frozenset(
    "sheep fish deer moose bison shrimp salmon trout aircraft spacecraft hovercraft watercraft series species cattle "
    "people police broccoli luggage baggage scissors skis shears pliers tongs tweezers binoculars glasses sunglasses "
    "eyeglasses goggles jeans pants shorts trousers leggings tights pajamas clothes stairs headphones earphones fries "
    "furniture jewelry clothing equipment rice bread butter cheese water milk juice sand snow grass hay traffic food "
    "fruit silverware cutlery glassware graffiti trash garbage mail hair lettuce spinach".split()
)
_AFTER_HEAD = re.compile(r" (?:of|with|in|on|at|for|from|to) ")
_WORD = re.compile(r"[a-z0-9]+")


def words_of(text: str) -> list[str]:
    """Lower-case words; hyphens and apostrophes divide."""
    return _WORD.findall(text.lower())


def plural_of(noun: str) -> str:
    """The plural of a noun phrase by the rules of English spelling; its head is the last word, or that before "of".

    "wine glass" -> "wine glasses", "cup of tea" -> "cups of tea", "skis" and "furniture" stay.
    """
    preposition = _AFTER_HEAD.search(noun)
    if preposition is not None:
        return plural_of(noun[: preposition.start()]) + noun[preposition.start() :]
    first, space, head = noun.rpartition(" ")
    return first + space + _plural_word(head)


def _plural_word(word: str) -> str:
    if word in _UNCHANGED:
        return word
    if word in _WHOLE_IRREGULAR:
        return _WHOLE_IRREGULAR[word]
    for end, plural in _IRREGULAR.items():
        if word.endswith(end) and not (end == "man" and word in _REGULAR_MAN):
            return word[: len(word) - len(end)] + plural
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if len(word) > 1 and word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


@lru_cache(maxsize=1)
def builtin_synonyms() -> Mapping[str, tuple[str, ...]]:
    """Words that stand for a category of COCO or of the shapes world."""
    table = json.loads((Path(__file__).parent / "synonyms.json").read_text(encoding="utf-8"))
    return {noun: tuple(words) for noun, words in table.items()}


class NounForms:
    """Every way in which a text may name a category: the noun, its synonyms, and the plurals of both.

    Args:
        synonyms: further synonyms by noun, added to the engine's own.
    """

    def __init__(self, synonyms: Mapping[str, Iterable[str]] | None = None):
        self._extra = {noun.lower(): tuple(words) for noun, words in (synonyms or {}).items()}
        self._forms: dict[str, tuple[tuple[str, ...], ...]] = {}

    def forms(self, noun: str) -> tuple[tuple[str, ...], ...]:
        """The forms of a noun as words, the longest first; the noun's own head counts as a form."""
        noun = noun.lower()
        if noun not in self._forms:
            named = {noun, *builtin_synonyms().get(noun, ()), *self._extra.get(noun, ())}
            named |= {plural_of(name) for name in named}
            self._forms[noun] = tuple(sorted((tuple(words_of(name)) for name in named), key=lambda f: (-len(f), f)))
        return self._forms[noun]

    def named_in(self, noun: str, text: str, and_head: bool = False) -> str | None:
        """The form by which a text names a category, or None.

        Args:
            and_head: whether the last word of a longer noun alone ("glass" of "wine glass") names it, too.
        """
        words = words_of(text)
        forms = self.forms(noun)
        if and_head and " " in noun:
            head = noun.rsplit(" ", 1)[1]
            forms = (*forms, (head,), (_plural_word(head),))
        for form in forms:
            size = len(form)
            if any(tuple(words[i : i + size]) == form for i in range(len(words) - size + 1)):
                return " ".join(form)
        return None
