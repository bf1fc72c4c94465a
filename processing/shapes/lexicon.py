# SPDX-License-Identifier: Apache-2.0
"""The words of the shapes world: its nouns and what they are for; all else is the language layer's."""

from __future__ import annotations

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
LEXICON = shared.Lexicon(
    plural=PLURALS.__getitem__,
    descriptors=DESCRIPTORS,
    color_references=shared.COLOR_REFERENCES,
    modifiers=shared.COMPLEX_MODIFIERS,
    simple=shared.SIMPLE_TEMPLATES,
    complex=shared.COMPLEX_TEMPLATES,
    simple_carriers=shared.SIMPLE_CARRIERS,
    complex_carriers=shared.COMPLEX_CARRIERS,
)


def vocabulary() -> tuple[str, ...]:
    """Every word that an instruction of this world can hold, sorted."""
    texts = [*PLURALS, *PLURALS.values(), *shared.COLOR_REFERENCES, *MIRROR_WORDS, *shared.THINGS]
    texts += "is are has have the all thing things object objects one ones everything only".split()
    for table in (
        shared.SIZE_WORDS, shared.SIDE_WORDS, shared.EXTREME_WORDS, shared.EXTREME_SIZE_WORDS, shared.DIRECTION_WORDS,
        shared.DISTANCE_WORDS, LEXICON.simple, DESCRIPTORS, LEXICON.color_references, LEXICON.modifiers,
        LEXICON.complex,
    ):  # fmt: skip
        texts += [text for phrasings in table.values() for text in phrasings]
    texts += [*LEXICON.simple_carriers, *LEXICON.complex_carriers]
    return tuple(sorted({word for text in texts for word in text.split() if not word.startswith("{")}))
