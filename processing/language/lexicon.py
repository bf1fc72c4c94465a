# SPDX-License-Identifier: Apache-2.0
"""The words of instructions, as data: templates per level and family of meanings, words of sizes, places and colors.

Slots: {n} the noun in the number of the sentence, {ns} its plural, {c} a color, {s} a size word, {x} the family's
word, {k} a number or ordinal, {ref} another noun, {whole} another noun phrase, {be} is/are, {have} has/have, {the}
"the" or "all the"; in complex templates {t} thing(s) or object(s), {d} what the noun is for, {d2} what the reference
is for, {m} modifiers, {all} "everything" or "the only thing".

In the tables that the shapes world shares, the LAST phrasing of each list is held out: its training never uses it,
though all of its words occur elsewhere. The data engine does not use it either ([`in_training`]), so that a model
trained on what the engine writes meets it as new.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Table = Mapping[str, tuple[str, ...]]
SINGULAR, PLURAL = "singular", "plural"
SIDES = ("left", "right", "top", "bottom")
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
SIDE_WORDS = {"left": ("left",), "right": ("right",), "top": ("upper",), "bottom": ("lower",)}
EXTREME_WORDS = {"left": ("leftmost",), "right": ("rightmost",), "top": ("highest",), "bottom": ("lowest",)}
EXTREME_SIZE_WORDS = {"large": ("largest", "biggest"), "small": ("smallest", "tiniest")}
DIRECTION_WORDS = {"left": ("left of",), "right": ("right of",), "top": ("above",), "bottom": ("below",)}
DISTANCE_WORDS = {"near": ("nearest to", "closest to"), "far": ("farthest from", "most distant from")}
ORDINAL_WORDS = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth"}
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
FAMILY_WORDS: dict[str, Table] = {  # what {x} is, by family
    "region": SIDE_WORDS,
    "extreme": EXTREME_WORDS,
    "all_but_extreme": EXTREME_WORDS,
    "pair": EXTREME_WORDS,
    "extreme_size": EXTREME_SIZE_WORDS,
    "side": DIRECTION_WORDS,
    "beside": DIRECTION_WORDS,
    "distance": DISTANCE_WORDS,
}
COLOR_REFERENCES = {
    "red": ("a tomato", "blood"),
    "orange": ("a carrot", "a pumpkin"),
    "yellow": ("a lemon", "a banana"),
    "green": ("grass", "a frog"),
    "blue": ("the ocean", "jeans"),
    "purple": ("a plum", "grapes"),
}
MORE_COLOR_REFERENCES = COLOR_REFERENCES | {
    "pink": ("a flamingo", "bubble gum"),
    "black": ("coal", "a raven"),
    "white": ("snow", "milk"),
    "grey": ("ash", "cement"),
}
COLOR_WORDS = {"grey": "gray"}  # how a color is written, where its name in files is another
THINGS = ("thing", "object")

SIMPLE_TEMPLATES = {
    "category": ("{the} {n}", "{the} {n} in the picture", "{the} {n} here", "{the} {n} that {be} in the picture"),
    "color": ("{the} {c} {n}", "the {n} that {be} {c}", "the {n} in {c}", "the {n} of {c} color"),
    "size": ("{the} {s} {n}", "the {n} that {be} {s}", "the {n} of {s} size", "{the} {n} that {be} of {s} size"),
    "color_size": (
        "the {s} {c} {n}",
        "the {c} {n} that {be} {s}",
        "{the} {s} {n} in {c}",
        "the {s} {n} that {be} {c}",
    ),
    "not_color": ("the {n} that {be} not {c}", "the {n} without {c} color", "the {n} not in {c}"),
    "region": ("the {n} on the {x} side", "the {n} in the {x} half", "the {n} in the {x} half of the picture"),
    "extreme": ("the {x} {n}", "the {x} of the {ns}", "the {n} that is {x}"),
    "all_but_extreme": ("all the {ns} except the {x} one", "all the {ns} but the {x}", "the {ns} except the {x}"),
    "extreme_size": ("the {x} {n}", "the {x} of the {ns}", "the {n} that is {x}"),
    "side": ("the {n} {x} the {ref}", "the {n} that {be} {x} the {ref}", "all the {n} {x} the {ref}"),
    "beside": ("the {n} just {x} the {ref}", "the first {n} {x} the {ref}", "the {n} that is just {x} the {ref}"),
    "distance": ("the {n} {x} the {ref}", "the {n} that is {x} the {ref}", "the one of the {ns} {x} the {ref}"),
    "same_color": (
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
# What narrows a complex instruction down, by (kind, value): {c} is a color reference, {x} a direction. None names a
# noun or a color.
COMPLEX_MODIFIERS = {
    ("color", None): ("in the color of {c}", "painted like {c}"),
    ("not_color", None): ("in any color but that of {c}", "painted unlike {c}"),
    ("size", "small"): ("easy to hide in a hand", "taking no room"),
    ("size", "large"): ("hard to hide in a hand", "taking up room"),
    ("region", "left"): ("in the half where reading begins", "on the side where a line begins"),
    ("region", "right"): ("in the half where reading ends", "on the side where a line ends"),
    ("region", "top"): ("in the half where birds fly", "on the side of the sky"),
    ("region", "bottom"): ("in the half where feet walk", "on the side of the ground"),
    ("extreme", "left"): ("closest to where reading begins", "first in line where a line begins"),
    ("extreme", "right"): ("closest to where reading ends", "first in line where a line ends"),
    ("extreme", "top"): ("closest to the sky", "above the rest of its kind"),
    ("extreme", "bottom"): ("closest to the ground", "below the rest of its kind"),
    ("extreme_size", "large"): ("taking the most room", "hardest to hide"),
    ("extreme_size", "small"): ("taking the least room", "easiest to hide"),
    ("side", None): ("{x} whatever {d2}", "anywhere {x} what {d2}"),
    ("beside", None): ("just {x} whatever {d2}", "next {x} what {d2}"),
    ("distance", "near"): ("closest to whatever {d2}", "easiest to reach from what {d2}"),
    ("distance", "far"): ("farthest from whatever {d2}", "hardest to reach from what {d2}"),
    ("same_color", None): ("in the color of whatever {d2}", "painted like what {d2}"),
}
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
    "any_color": ("{all} {m}", "{all} here {m}", "{all} in the picture {m}"),
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
    "color_shared": (
        "everything that has a twin in color",
        "everything sharing its color with another",
        "everything with a twin in color",
    ),
    "color_alone": (
        "{all} without a twin in color",
        "{all} of a color found once",
        "{all} here without a twin in color",
    ),
}
COMPLEX_CARRIERS = ("{np}", "i need {np}", "can you find {np}", "we look for {np}", "can you point to {np}")


def in_training(phrasings: tuple[str, ...]) -> tuple[str, ...]:
    """The phrasings that training uses: all but the last."""
    return phrasings[:-1]


@dataclass(frozen=True)
class Lexicon:
    """What one world brings to the language layer: plurals, what its nouns are for, and phrasings other than these."""

    plural: Callable[[str], str]  # the plural of a noun
    descriptors: Table  # by noun, clauses that follow "that", "what" or "whatever" and take no grammatical number
    color_references: Table = field(default_factory=COLOR_REFERENCES.copy)  # by color, things that have it
    # what narrows a complex instruction down, by (kind, value)
    modifiers: Mapping[tuple[str, str | None], tuple[str, ...]] = field(default_factory=COMPLEX_MODIFIERS.copy)
    simple: Table = field(default_factory=SIMPLE_TEMPLATES.copy)  # templates by family of meanings
    complex: Table = field(default_factory=COMPLEX_TEMPLATES.copy)
    simple_carriers: tuple[str, ...] = SIMPLE_CARRIERS  # sentences around a noun phrase {np}
    complex_carriers: tuple[str, ...] = COMPLEX_CARRIERS
    # by noun, the wider word ("animal") that a complex instruction uses for "thing"
    kinds: Mapping[str, str] = field(default_factory=dict)
    # by kind of thing or use of things, clauses like the descriptors that hold for all of them
    kind_clauses: Table = field(default_factory=dict)
