# SPDX-License-Identifier: Apache-2.0
"""The words of the template writer beside `datasets/instruction_words.py`, as data; `{...}` are slots.

Slots: {n} the noun in the number of the sentence, {ns} its plural, {t} thing(s) or object(s), {ref} the reference,
{be} is/are, {have} has/have, {x} a direction, {half} and {size} words of these, {d2} what the reference is for, {c} a
thing of the colour, {whole} another noun phrase.
The shapes world keeps some phrasings for its tests (the last of each list in `datasets/shapes_lexicon.py`); none of
them is here, so that a model trained on what the engine writes meets them as new.
"""

from __future__ import annotations

from .words import COLOUR_REFERENCES as SHARED_COLOUR_REFERENCES
from .words import COMPLEX_MODIFIERS as SHARED_COMPLEX_MODIFIERS

ORDINAL_WORDS = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth"}
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
ORDINAL_STARTS = {
    "left": "from the left",
    "right": "from the right",
    "top": "from the top",
    "bottom": "from the bottom",
}

# What stands after the noun, by kind of filter; the colour and size of a noun stand before it, or after it if nothing
# else does.
SIMPLE_AFTER = {
    "colour": ("that {be} {value}", "in {value}"),
    "size": ("that {be} {size}", "of {size} size"),
    "not_colour": ("that {be} not {value}", "without {value} color"),
    "region": ("on the {half} side", "in the {half} half", "on the {half} side of the picture"),
    "side": ("{x} the {ref}", "that {be} {x} the {ref}"),
    "same_colour": ("with the same color as the {ref}", "that {have} the color of the {ref}"),
    "inside": ("inside the {ref}", "that {be} inside the {ref}"),
    "containing": ("with the {ref} inside", "that {have} the {ref} inside"),
    "part": ("of {whole}",),
}
COLOUR_AFTER_SIZED = ("in {value}",)  # "the small cup in red"
AFTER_SHARE = 0.5  # of the colours and sizes that may stand after the noun
ANYWHERE = "in the picture"  # makes a simple instruction of a noun
# {x} the superlative, {n} what is compared.
SUPERLATIVES = ("the {x} {n}", "the {x} of the {ns}")
ALL_BUT = ("except the {x} one", "but the {x} one", "but the {x}")
SIMPLE_CARRIERS = (
    "{np}",
    "{np}",
    "find {np}",
    "show {np}",
    "segment {np}",
    "please show {np}",
    "please point to {np}",
)

COLOUR_REFERENCES = SHARED_COLOUR_REFERENCES | {
    "pink": ("a flamingo", "bubble gum"),
    "black": ("coal", "a raven"),
    "white": ("snow", "milk"),
    "grey": ("ash", "cement"),
}
COMPLEX_MODIFIERS = SHARED_COMPLEX_MODIFIERS | {("inside", None): ("inside whatever {d2}",)}
# {d} what the noun is for, {m} the modifiers, {all} "everything" or "the only thing".
COMPLEX_TEMPLATES = {
    "category": ("{the} {t} that {d}", "only the {t} that {d}", "{the} {t} in the picture that {d}"),
    "modified": ("the {t} {m} that {d}", "the {t} that {d} and {be} {m}", "only the {t} {m} that {d}"),
    # A modifier that holds a clause or compares comes last.
    "related": ("the {t} that {d} and {be} {m}", "what {d} and {be} {m}"),
    "all_but": ("all the things that {d} except the one {m}", "everything that {d} except the one {m}"),
    "anything": ("{all} {m}", "{all} here {m}"),
    "not_noun": ("{all} except what {d}", "{all} that is not what {d}"),
    "noun_shared": ("everything that has a twin in shape", "everything sharing its shape with another"),
    "noun_alone": ("{all} without a twin in shape", "{all} of a shape found once"),
    "colour_shared": ("everything that has a twin in color", "everything sharing its color with another"),
    "colour_alone": ("{all} without a twin in color", "{all} of a color found once"),
}
COMPLEX_CARRIERS = ("{np}", "i need {np}", "can you find {np}", "we look for {np}")
