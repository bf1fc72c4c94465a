# SPDX-License-Identifier: Apache-2.0
"""The words for images of everyday things: what the template writer says about COCO-style categories.

Simple instructions can be said of every noun. Complex ones need to know what a noun is for or does; that is known of
COCO's 80 categories and some 60 more (`descriptors.json`, each clause chosen to fit one of them only) and of nouns
that a source describes itself; a picture with any other noun gets no complex text, and the build says so. Templates
say function, habit, color, size, place and relation; they cannot say what is going on in an image, who does what to
whom, or what a person would infer from looking: that takes a chat model as the writer.
"""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from . import lexicon as shared
from .lexicon import Lexicon, in_training
from .nouns import plural_of

_SIMPLE = {family: in_training(phrasings) for family, phrasings in shared.SIMPLE_TEMPLATES.items()} | {
    # "all the red cups" and "the cups" have the form of a concept.
    "category": ("{the} {n} in the picture",),
    "color": ("the {c} {n}", "the {n} that {be} {c}", "the {n} in {c}"),
    "size": ("the {s} {n}", "the {n} that {be} {s}", "the {n} of {s} size"),
    "inside": ("the {n} inside the {ref}", "the {n} that {be} inside the {ref}"),
    "containing": ("the {n} with the {ref} inside", "the {n} that {have} the {ref} inside"),
    "part": ("the {n} of {whole}",),
    "count": ("the {k} {n}",),
    "pair": ("the {k} {x} {n}",),
    "ordinal": ("the {k} {n} from the {side}",),
}
_KNOWN: dict[str, list[str]] = json.loads((Path(__file__).parent / "descriptors.json").read_text(encoding="utf-8"))
EVERYDAY = Lexicon(
    plural=plural_of,
    descriptors={noun: tuple(clauses) for noun, (_, *clauses) in _KNOWN.items()},
    kinds={noun: kind for noun, (kind, *_) in _KNOWN.items()},
    color_references=shared.MORE_COLOR_REFERENCES,
    modifiers=shared.COMPLEX_MODIFIERS | {("inside", None): ("inside whatever {d2}",)},
    simple=_SIMPLE,
    complex={family: in_training(phrasings) for family, phrasings in shared.COMPLEX_TEMPLATES.items()},
    simple_carriers=(*in_training(shared.SIMPLE_CARRIERS), "please show {np}"),
    complex_carriers=in_training(shared.COMPLEX_CARRIERS),
)


ALIASES = {
    "aeroplane": "airplane", "plane": "airplane", "automobile": "car", "bike": "bicycle", "cellphone": "cell phone",
    "computer keyboard": "keyboard", "computer mouse": "mouse", "cone": "traffic cone", "doughnut": "donut",
    "dustbin": "trash can", "fridge": "refrigerator", "garbage can": "trash can", "hair dryer": "hair drier",
    "hard hat": "helmet", "hardhat": "helmet", "lorry": "truck", "man": "person", "mobile phone": "cell phone",
    "motorbike": "motorcycle", "pedestrian": "person", "phone": "cell phone", "pot plant": "potted plant",
    "remote control": "remote", "safety helmet": "helmet", "sofa": "couch", "television": "tv",
    "traffic signal": "traffic light", "wineglass": "wine glass", "woman": "person", "worker": "person",
}  # fmt: skip


@lru_cache(maxsize=256)
def everyday_lexicon(present: frozenset[str], own: tuple[tuple[str, tuple[str, ...]], ...] = ()) -> Lexicon:
    """The words for a scene.

    What a noun is for tells it apart from nouns that are known, too; so complex instructions are said only where all
    of the scene's nouns are known, and no two of them are names of one thing.

    Args:
        present: the scene's nouns.
        own: what the source itself says that its nouns are for, by noun.
    """
    known = {alias: name for alias, name in ALIASES.items() if alias in present} | {n: n for n in EVERYDAY.descriptors}
    descriptors, kinds = dict(own), {}
    others = present - set(descriptors)
    if others <= set(known) and len({known[noun] for noun in others}) == len(others):
        taken = {known[noun] for noun in others}
        for noun, name in known.items():
            if noun not in descriptors and (noun in others or name not in taken):
                descriptors[noun], kinds[noun] = EVERYDAY.descriptors[name], EVERYDAY.kinds[name]
    return replace(EVERYDAY, descriptors=descriptors, kinds=kinds)
