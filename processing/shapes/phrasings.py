# SPDX-License-Identifier: Apache-2.0
"""More ways to say what the shapes world says, for training alone: synonyms of constructions and other word orders.

A text encoder trained on two constructions of each question falls by ten points on a third one. Every phrasing
here is made of words that the world has anyway, and none is a held-out one: those stay the last of their lists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..language.lexicon import Lexicon, Table
from .lexicon import LEXICON

# What several families have in common.
_ONE_OF_ALL = ("the {x} one of the {ns}", "the {x} one of all the {ns}", "the {x} {n} here")
_RELATED = (
    "the {t} here that {d} and {be} {m}",
    "the {t} that {d} {m}",
    "whatever {d} and {be} {m}",
    "the {t} {m} of all that {d}",
)


def _shared(what: str) -> tuple[str, ...]:
    return (
        f"everything with the {what} of another",
        f"everything that has the same {what} as another",
        f"everything here that has a twin in {what}",
        f"all things that have the {what} of another",
    )


def _alone(what: str) -> tuple[str, ...]:
    return (
        f"{{all}} that has no twin in {what}",
        f"{{all}} with a {what} found only once",
        f"{{all}} of a {what} that is found once",
    )


SIMPLE: Table = {
    "category": ("only {the} {n}", "{the} {n} of the picture", "{the} {n} to be found here"),
    "color": (
        "the {n} that {have} the color {c}",
        "the {n} with {c} color",
        "{the} {c} {n} in the picture",
        "the {n} that {be} in {c} color",
        "{the} {c} {n} here",
    ),
    "size": (
        "the {n} that {have} a {s} size",
        "{the} {s} {n} in the picture",
        "the {n} with a {s} size",
        "{the} {s} {n} here",
    ),
    "color_size": (
        "the {c} {s} {n}",
        "the {n} that {be} {s} and {c}",
        "the {n} that {be} {c} and {s}",
        "the {s} {n} with {c} color",
        "the {c} {n} of {s} size",
    ),
    "not_color": (
        "the {n} in any color but {c}",
        "the {n} of any color except {c}",
        "the {n} that {have} any color but {c}",
        "the {n} that {be} in any color but {c}",
    ),
    "region": (
        "the {n} at the {x} side",
        "the {n} that {be} on the {x} side",
        "the {n} that {be} in the {x} half",
        "the {n} on the {x} side of the picture",
    ),
    "extreme": (*_ONE_OF_ALL, "the {n} found {x}", "the {x} of all {ns}"),
    "all_but_extreme": (
        "all {ns} but the {x} one",
        "all the {ns} without the {x} one",
        "the {ns} but the {x} one",
    ),
    "extreme_size": (*_ONE_OF_ALL, "the {x} of all {ns}", "the {n} with the {x} size"),
    "side": (
        "the {n} anywhere {x} the {ref}",
        "the {n} found {x} the {ref}",
        "all {ns} {x} the {ref}",
    ),
    "beside": (
        "the {n} next {x} the {ref}",
        "the next {n} {x} the {ref}",
        "the {n} found just {x} the {ref}",
    ),
    "distance": (
        "the {n} {x} the {ref} in the picture",
        "only the {n} {x} the {ref}",
        "the {n} found {x} the {ref}",
        "the {n} that is the one {x} the {ref}",
    ),
    "same_color": (
        "the {n} in the color of the {ref}",
        "the {n} that {have} the same color as the {ref}",
        "the {n} in the same color as the {ref}",
        "the {n} with the color of the {ref}",
        "the {n} that {be} in color like the {ref}",
    ),
}
SIMPLE_CARRIERS = (
    "point to {np}",
    "look for {np}",
    "please show {np}",
    "please segment {np}",
    "show only {np}",
    "find {np} here",
)
_CATEGORY = ("what {d}", "whatever {d}", "{the} {t} in the picture that {d}")
_EXCEPT = ("{all} except whatever {d}", "{all} here except what {d}", "{all} that is not whatever {d}")
COMPLEX: Table = {
    "category": _CATEGORY,
    "modified": ("only the {t} {m} that {d}", *_RELATED),
    "related": _RELATED,
    "all_but_extreme": (
        "everything that {d} but the one {m}",
        "whatever {d} except the one {m}",
        "all that {d} without the one {m}",
    ),
    "any_color": ("{all} that is {m}", "{all} found here {m}", "{all} to be found {m}"),
    "except": _EXCEPT,
    "kind": _CATEGORY,
    "not_kind": _EXCEPT,
    "shape_shared": _shared("shape"),
    "shape_alone": _alone("shape"),
    "color_shared": _shared("color"),
    "color_alone": _alone("color"),
}
COMPLEX_CARRIERS = ("i look for {np}", "we need {np}", "can you show {np}", "can we find {np}", "help find {np}")


def _more(table: Mapping[str, Sequence[str]], phrasings: Table) -> dict[str, tuple[str, ...]]:
    """Both tables' phrasings; the held-out one stays the last."""
    return {family: (*own[:-1], *phrasings.get(family, ()), own[-1]) for family, own in table.items()}


def with_more_phrasings(lexicon: Lexicon) -> Lexicon:
    """A lexicon on the shared tables with the phrasings of this file too."""
    return replace(
        lexicon,
        simple=_more(lexicon.simple, SIMPLE),
        complex=_more(lexicon.complex, COMPLEX),
        simple_carriers=(*lexicon.simple_carriers[:-1], *SIMPLE_CARRIERS, lexicon.simple_carriers[-1]),
        complex_carriers=(*lexicon.complex_carriers[:-1], *COMPLEX_CARRIERS, lexicon.complex_carriers[-1]),
    )


VARIED: Lexicon = with_more_phrasings(LEXICON)
