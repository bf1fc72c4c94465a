# SPDX-License-Identifier: Apache-2.0
"""The words of the shapes world: its nouns and what they are for; all else is the language layer's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..language import lexicon as shared

PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "heart": "hearts",
    "moon": "moons",
    "ring": "rings",
    "cross": "crosses",
}
# A mirror exchanges left and right; these words carry nothing else, so exchanging them keeps a sentence true.
MIRROR_WORDS = {"left": "right", "leftmost": "rightmost", "begins": "ends"}
MIRROR_WORDS.update({value: key for key, value in list(MIRROR_WORDS.items())})
# What each shape is for, does, or is found with; every clause follows "that", "what" or "whatever".
DESCRIPTORS = {
    "circle": ("would roll down a hill", "a child could kick in a game", "could bounce like a ball"),
    "square": ("could hold a gift", "could be stacked like a box", "would cover a wall as a tile"),
    "triangle": ("would warn a driver", "could be the roof of a home", "you could eat like pizza"),
    "star": ("would guide a sailor home", "people would wish upon", "could top a winter tree"),
    "heart": ("would stand for love", "could beat in a chest", "a lover would give"),
    "moon": ("would light up the night", "a wolf would howl at", "could move the tide"),
    "ring": ("would fit on a finger", "a bride would wear", "you could look through"),
    "cross": ("would mark a treasure", "would help to add numbers", "a doctor could wear"),
}
LEXICON = shared.Lexicon(PLURALS.__getitem__, DESCRIPTORS)


@dataclass(frozen=True)
class WorldWords:
    """What a world of scenes brings to the writer of its instructions."""

    name: str  # of the world, for ids
    nouns: tuple[str, ...]  # the names of its things
    lexicon: shared.Lexicon  # its words; training does not use the last phrasing of each list
    varied: shared.Lexicon  # the same with more phrasings, for training alone
    held_out_pairs: frozenset[tuple[str, str]]  # (color, noun) that no training scene or sentence combines
    # by wider kind or use of things, the nouns that belong to it
    kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # the same words, but with descriptors and clauses of kinds that training never says
    unheard: shared.Lexicon | None = None

    def definitions(self) -> list[tuple[str, str]]:
        """(noun, clause) of everything that the world says of its things, unheard clauses included."""
        tables = [lexicon.descriptors for lexicon in (self.lexicon, self.unheard) if lexicon is not None]
        return [(noun, clause) for table in tables for noun, clauses in table.items() for clause in clauses]

    def vocabulary(self) -> tuple[str, ...]:
        """Every word that an instruction of this world can hold, sorted."""
        lexicons = [self.varied] if self.unheard is None else [self.varied, self.unheard]
        return vocabulary(self.nouns, lexicons)


def vocabulary(
    nouns: Iterable[str] = tuple(PLURALS), lexicons: Iterable[shared.Lexicon] = (LEXICON,)
) -> tuple[str, ...]:
    """Every word that an instruction of a world can hold, sorted; of the shapes world, if not told otherwise."""
    lexicon, *others = lexicons
    nouns = tuple(nouns)
    texts = [*nouns, *map(lexicon.plural, nouns), *shared.COLOR_REFERENCES, *MIRROR_WORDS, *shared.THINGS]
    texts += "is are has have the all thing things object objects one ones everything only".split()
    tables: list[Mapping[Any, Iterable[str]]] = [
        shared.SIZE_WORDS, shared.SIDE_WORDS, shared.EXTREME_WORDS, shared.EXTREME_SIZE_WORDS, shared.DIRECTION_WORDS,
        shared.DISTANCE_WORDS, lexicon.simple, lexicon.descriptors, lexicon.color_references, lexicon.modifiers,
        lexicon.complex, lexicon.kind_clauses,
    ]  # fmt: skip
    for each in others:
        tables += [each.descriptors, each.kind_clauses]
    texts += [text for table in tables for phrasings in table.values() for text in phrasings]
    texts += [*lexicon.simple_carriers, *lexicon.complex_carriers]
    texts += [word + ending for word in lexicon.kinds.values() for ending in ("", "s")]
    return tuple(sorted({word for text in texts for word in text.split() if not word.startswith("{")}))
