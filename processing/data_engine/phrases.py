# SPDX-License-Identifier: Apache-2.0
"""The words of the template writer, as data; `{...}` are slots.

Slots: {n} the noun in the number of the sentence, {ns} its plural, {t} thing(s) or object(s), {ref} the reference,
{be} is/are, {have} has/have, {d2} what the reference is for, {c} a thing of the colour, {whole} another noun phrase.
"""

from __future__ import annotations

SINGULAR, PLURAL = "singular", "plural"
SIZE_WORDS = {"large": ("large", "big"), "small": ("small", "little")}
EXTREME_WORDS = {"left": "leftmost", "right": "rightmost", "top": "highest", "bottom": "lowest"}
EXTREME_SIZE_WORDS = {"large": ("largest", "biggest"), "small": ("smallest", "tiniest")}
DIRECTION_WORDS = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
DISTANCE_WORDS = {"near": ("nearest to", "closest to"), "far": ("farthest from", "most distant from")}
HALF_WORDS = {"left": "left", "right": "right", "top": "upper", "bottom": "lower"}
ORDINAL_WORDS = {2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth"}
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
ORDINAL_STARTS = {
    "left": "from the left",
    "right": "from the right",
    "top": "from the top",
    "bottom": "from the bottom",
}

# What stands after the noun, by kind of filter; the colour and size of a noun stand before it.
SIMPLE_AFTER = {
    "not_colour": ("that {be} not {value}", "not in {value}"),
    "region": ("on the {half} side", "in the {half} half", "in the {half} half of the picture"),
    "side": ("{direction} the {ref}", "that {be} {direction} the {ref}"),
    "same_colour": ("of the same color as the {ref}", "with the same color as the {ref}"),
    "inside": ("inside the {ref}", "that {be} inside the {ref}"),
    "containing": ("with the {ref} inside", "that {have} the {ref} inside"),
    "part": ("of {whole}",),
}
SIMPLE_CARRIERS = ("{np}", "{np}", "{np}", "find {np}", "show {np}", "segment {np}", "please find {np}")

COLOUR_REFERENCES = {
    "red": ("a tomato", "blood"),
    "orange": ("a carrot", "a pumpkin"),
    "yellow": ("a lemon", "a banana"),
    "green": ("grass", "a frog"),
    "blue": ("the ocean", "jeans"),
    "purple": ("a plum", "grapes"),
    "pink": ("a flamingo", "bubble gum"),
    "black": ("coal", "a raven"),
    "white": ("snow", "milk"),
    "grey": ("ash", "cement"),
}
# Modifiers of a complex instruction by (kind, value); none names a noun of the scene or a colour.
COMPLEX_MODIFIERS = {
    ("colour", None): ("in the color of {c}", "painted like {c}"),
    ("not_colour", None): ("in any color but that of {c}", "painted unlike {c}"),
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
    ("side", None): ("{direction} whatever {d2}", "anywhere {direction} what {d2}"),
    ("distance", "near"): ("closest to whatever {d2}", "easiest to reach from what {d2}"),
    ("distance", "far"): ("farthest from whatever {d2}", "hardest to reach from what {d2}"),
    ("same_colour", None): ("in the color of whatever {d2}", "painted like what {d2}"),
    ("inside", None): ("inside whatever {d2}",),
}
# {d} what the noun is for, {m} the modifiers, {all} "everything" or "the only thing".
COMPLEX_TEMPLATES = {
    "category": ("{the} {t} that {d}", "only the {t} that {d}", "{the} {t} here that {d}"),
    "modified": ("the {t} that {d} and {be} {m}", "what {d} and {be} {m}", "only the {t} that {d} and {be} {m}"),
    "all_but": ("all the things that {d} except the one {m}", "everything that {d} except the one {m}"),
    "anything": ("{all} {m}", "{all} here {m}"),
    "not_noun": ("{all} except what {d}", "{all} that is not what {d}"),
    "noun_shared": ("everything that has a twin in shape", "everything sharing its shape with another"),
    "noun_alone": ("{all} without a twin in shape", "{all} of a shape found once"),
    "colour_shared": ("everything that has a twin in color", "everything sharing its color with another"),
    "colour_alone": ("{all} without a twin in color", "{all} of a color found once"),
}
COMPLEX_CARRIERS = ("{np}", "i need {np}", "can you find {np}", "we look for {np}")
THINGS = ("thing", "object")
