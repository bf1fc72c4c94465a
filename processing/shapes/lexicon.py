# SPDX-License-Identifier: Apache-2.0
"""Phrasings of the shapes world, as data: templates per level, the knowledge behind complex instructions.

Every family of meanings has phrasings; the LAST one of each list, like the last carrier sentence of each level, is
held out: training never uses it, though all of its words occur elsewhere in training.
"""

from __future__ import annotations

from ..language.words import (
    COLOUR_REFERENCES,
    COMPLEX_MODIFIERS,
    DIRECTION_WORDS,
    DISTANCE_WORDS,
    EXTREME_SIZE_WORDS,
    EXTREME_WORDS,
    PLURAL,  # noqa: F401
    SIDE_WORDS,
    SINGULAR,  # noqa: F401
    SIZE_WORDS,
    THINGS,
)

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

# Slots: {n} noun in the number of the sentence, {ns} its plural, {c} colour, {s} size word, {x} the family's word,
# {ref} another noun, {be} is/are, {have} has/have, {the} "the" or "all the".
SIMPLE_TEMPLATES = {
    "category": ("{the} {n}", "{the} {n} in the picture", "{the} {n} here", "{the} {n} that {be} in the picture"),
    "colour": ("{the} {c} {n}", "the {n} that {be} {c}", "the {n} in {c}", "the {n} of {c} color"),
    "size": ("{the} {s} {n}", "the {n} that {be} {s}", "the {n} of {s} size", "{the} {n} that {be} of {s} size"),
    "colour_size": (
        "the {s} {c} {n}",
        "the {c} {n} that {be} {s}",
        "{the} {s} {n} in {c}",
        "the {s} {n} that {be} {c}",
    ),
    "not_colour": ("the {n} that {be} not {c}", "the {n} without {c} color", "the {n} not in {c}"),
    "region": ("the {n} on the {x} side", "the {n} in the {x} half", "the {n} in the {x} half of the picture"),
    "extreme": ("the {x} {n}", "the {x} of the {ns}", "the {n} that is {x}"),
    "all_but_extreme": ("all the {ns} except the {x} one", "all the {ns} but the {x}", "the {ns} except the {x}"),
    "extreme_size": ("the {x} {n}", "the {x} of the {ns}", "the {n} that is {x}"),
    "side": ("the {n} {x} the {ref}", "the {n} that {be} {x} the {ref}", "all the {n} {x} the {ref}"),
    "beside": ("the {n} just {x} the {ref}", "the first {n} {x} the {ref}", "the {n} that is just {x} the {ref}"),
    "distance": ("the {n} {x} the {ref}", "the {n} that is {x} the {ref}", "the one of the {ns} {x} the {ref}"),
    "same_colour": (
        "the {n} with the same color as the {ref}",
        "the {n} that {have} the color of the {ref}",
        "the {n} of the same color as the {ref}",
    ),
}
SIMPLE_CARRIERS = (
    "{np}",
    "{np}",
    "find {np}",
    "show {np}",
    "segment {np}",
    "please point to {np}",
    "please find {np}",
)

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
# {t} thing(s)/object(s), {d} descriptor, {m} modifier, {be} is/are, {all} "everything" or "the only thing".
COMPLEX_TEMPLATES = {
    "category": ("{the} {t} that {d}", "only the {t} that {d}", "{the} {t} here that {d}"),
    "modified": ("the {t} {m} that {d}", "the {t} that {d} and {be} {m}", "what {d} and {be} {m}"),
    # A relation ends with a clause of its own, so the modifier comes last.
    "related": (
        "the {t} that {d} and {be} {m}",
        "what {d} and {be} {m}",
        "only the {t} that {d} and {be} {m}",
    ),
    "all_but_extreme": (
        "all the things that {d} except the one {m}",
        "everything that {d} except the one {m}",
        "all the objects that {d} but the one {m}",
    ),
    "any_colour": ("{all} {m}", "{all} here {m}", "{all} in the picture {m}"),
    "except": ("{all} that is not what {d}", "{all} except what {d}", "{all} but what {d}"),
    "shape_shared": (
        "everything that has a twin in shape",
        "everything sharing its shape with another",
        "everything with a twin in shape",
    ),
    "shape_alone": (
        "{all} without a twin in shape",
        "{all} of a shape found once",
        "{all} here without a twin in shape",
    ),
    "colour_shared": (
        "everything that has a twin in color",
        "everything sharing its color with another",
        "everything with a twin in color",
    ),
    "colour_alone": (
        "{all} without a twin in color",
        "{all} of a color found once",
        "{all} here without a twin in color",
    ),
}
COMPLEX_CARRIERS = ("{np}", "i need {np}", "can you find {np}", "we look for {np}", "can you point to {np}")


def in_training(phrasings: tuple[str, ...]) -> tuple[str, ...]:
    """The phrasings that training uses: all but the last."""
    return phrasings[:-1]


def vocabulary() -> tuple[str, ...]:
    """Every word that an instruction of this world can hold, sorted."""
    texts = [*PLURALS, *PLURALS.values(), *COLOUR_REFERENCES, *MIRROR_WORDS, *THINGS]
    texts += "is are has have the all thing things object objects one ones everything only".split()
    for table in (
        SIZE_WORDS, SIDE_WORDS, EXTREME_WORDS, EXTREME_SIZE_WORDS, DIRECTION_WORDS, DISTANCE_WORDS, SIMPLE_TEMPLATES,
        DESCRIPTORS, COLOUR_REFERENCES, COMPLEX_MODIFIERS, COMPLEX_TEMPLATES,
    ):  # fmt: skip
        texts += [text for phrasings in table.values() for text in phrasings]
    texts += [*SIMPLE_CARRIERS, *COMPLEX_CARRIERS]
    return tuple(sorted({word for text in texts for word in text.split() if not word.startswith("{")}))
