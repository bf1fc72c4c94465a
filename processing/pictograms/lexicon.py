# SPDX-License-Identifier: Apache-2.0
"""The words of the pictogram world: what its things are called, what they are for, and which wider kinds they are of.

The clauses (`descriptors.json`) follow "that", "what" or "whatever" and take no grammatical number. The LAST clause
of each list is unheard: no instruction of training says it, and most of these clauses hold words that no other one
has. What the clauses of kinds and uses say is true of all nouns of the kind and of no other noun, so that "everything
except what could be eaten" has an answer.
"""

import json
from pathlib import Path

from ..language import lexicon as shared
from ..language.lexicon import Table
from ..shapes.lexicon import WorldWords
from ..shapes.phrasings import with_more_phrasings

PLURALS = {
    "fish": "fish", "bird": "birds", "butterfly": "butterflies", "turtle": "turtles", "cat": "cats",
    "apple": "apples", "burger": "burgers", "carrot": "carrots", "pizza": "pizzas",
    "cup": "cups", "mug": "mugs", "glass": "glasses",
    "car": "cars", "boat": "boats", "plane": "planes",
    "guitar": "guitars", "drum": "drums", "trumpet": "trumpets",
    "hat": "hats", "shoe": "shoes", "shirt": "shirts",
    "tree": "trees", "cactus": "cacti", "flower": "flowers",
}  # fmt: skip
NOUNS = tuple(PLURALS)
_CLAUSES: dict[str, Table] = {
    name: {key: tuple(clauses) for key, clauses in table.items()}
    for name, table in json.loads((Path(__file__).parent / "descriptors.json").read_text(encoding="utf-8")).items()
}
DESCRIPTORS, KIND_CLAUSES = _CLAUSES["things"], _CLAUSES["kinds"]
# What stands for "thing" in a complex instruction, by kind: words that can be counted.
_KIND_WORDS = {"animal": "animal", "vehicle": "vehicle", "plant": "plant"}
KINDS: dict[str, frozenset[str]] = {
    kind: frozenset(nouns.split())
    for kind, nouns in {
        "animal": "fish bird butterfly turtle cat",
        "food": "apple burger carrot pizza",
        "drinking": "cup mug glass",
        "vehicle": "car boat plane",
        "instrument": "guitar drum trumpet",
        "clothing": "hat shoe shirt",
        "plant": "tree cactus flower",
        "flying": "bird butterfly plane",
        "swimming": "fish turtle boat",
    }.items()
}
# One pair per color, six different nouns: compositions that no training image or sentence contains.
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "boat"),
        ("orange", "fish"),
        ("yellow", "shirt"),
        ("green", "guitar"),
        ("blue", "tree"),
        ("purple", "cup"),
    }
)


def _lexicon(clauses: slice) -> shared.Lexicon:
    return shared.Lexicon(
        plural=PLURALS.__getitem__,
        descriptors={noun: every[clauses] for noun, every in DESCRIPTORS.items()},
        complex=shared.COMPLEX_TEMPLATES
        | {"kind": shared.COMPLEX_TEMPLATES["category"], "not_kind": shared.COMPLEX_TEMPLATES["except"]},
        kinds={noun: word for kind, word in _KIND_WORDS.items() for noun in KINDS[kind]},
        kind_clauses={kind: every[clauses] for kind, every in KIND_CLAUSES.items()},
    )


_TRAINING = _lexicon(slice(None, -1))
PICTOGRAM_WORDS = WorldWords(
    name="pictograms",
    nouns=NOUNS,
    lexicon=_TRAINING,
    varied=with_more_phrasings(_TRAINING),
    held_out_pairs=HELD_OUT_PAIRS,
    kinds=KINDS,
    unheard=_lexicon(slice(-1, None)),
)
