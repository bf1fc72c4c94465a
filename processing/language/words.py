# SPDX-License-Identifier: Apache-2.0
"""Words for sizes, places, relations and colours that the shapes world and the data engine share, as data."""

from __future__ import annotations

SINGULAR, PLURAL = "singular", "plural"
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
SIDE_WORDS = {"left": ("left",), "right": ("right",), "top": ("upper",), "bottom": ("lower",)}
EXTREME_WORDS = {"left": ("leftmost",), "right": ("rightmost",), "top": ("highest",), "bottom": ("lowest",)}
EXTREME_SIZE_WORDS = {"large": ("largest", "biggest"), "small": ("smallest", "tiniest")}
DIRECTION_WORDS = {"left": ("left of",), "right": ("right of",), "top": ("above",), "bottom": ("below",)}
DISTANCE_WORDS = {"near": ("nearest to", "closest to"), "far": ("farthest from", "most distant from")}
COLOUR_REFERENCES = {
    "red": ("a tomato", "blood"),
    "orange": ("a carrot", "a pumpkin"),
    "yellow": ("a lemon", "a banana"),
    "green": ("grass", "a frog"),
    "blue": ("the ocean", "jeans"),
    "purple": ("a plum", "grapes"),
}
# What narrows a complex instruction down, by (kind, value): {c} is a colour reference, {x} a direction, {d2} what the
# reference object is for. None names a noun or a colour.
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
    ("side", None): ("{x} whatever {d2}", "anywhere {x} what {d2}"),
    ("beside", None): ("just {x} whatever {d2}", "next {x} what {d2}"),
    ("distance", "near"): ("closest to whatever {d2}", "easiest to reach from what {d2}"),
    ("distance", "far"): ("farthest from whatever {d2}", "hardest to reach from what {d2}"),
    ("same_colour", None): ("in the color of whatever {d2}", "painted like what {d2}"),
}
THINGS = ("thing", "object")
