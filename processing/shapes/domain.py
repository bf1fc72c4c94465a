# SPDX-License-Identifier: Apache-2.0
"""Domains beside the shapes world: other shapes, other colors, other words, in the same rows.

A domain stands for the pictures of somebody who fine-tunes: the model has seen neither its shapes nor its words.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ..datasets.schema import InstructionRow, make_row
from ..language.lexicon import PLURAL, SINGULAR
from ..language.meaning import NONE, TARGET_KINDS, Meaning
from ..language.phrasing import say
from .dataset import world_fields
from .lexicon import LEXICON
from .questions import FAMILIES, denotation, details, kind_of, one_of, question
from .rendering import ShapeObject, fit_unit, render
from .world import SPLITS, Scene, mask_boxes, place_object

_FAMILIES = ("category", "color", "not_color", "region", "extreme")
_TRIES = 60  # random questions per target before a scene is left without it
_LEVELS = (InstructionLevel.CONCEPT, InstructionLevel.SIMPLE)


@dataclass(frozen=True)
class ShapesDomain:
    """A source of scenes and rows with shapes, colors and words of its own.

    Backgrounds, sizes and sentences are those of the shapes world, and its rules of truth. Instructions are concepts
    and simple ones: what a new thing is for (the complex level) is not asked.

    Args:
        name: of the data set; scenes are a pure function of it, the split, the seed and an index.
        shapes: unit outlines by noun, see `shapes_rendering.outlines`.
    """

    name: str
    shapes: Mapping[str, list[np.ndarray]] = field(repr=False)
    plurals: Mapping[str, str]
    colors: Mapping[str, tuple[int, int, int]]

    def rng(self, split: str, index: int, stream: int, seed: int = 0) -> np.random.Generator:
        """The private generator of one scene."""
        return np.random.default_rng([zlib.crc32(self.name.encode()), seed, SPLITS.index(split), index, stream])

    def scene(self, split: str, index: int, seed: int = 0) -> Scene:
        """Scene `index` of a split: three to six objects, one noun among them repeated."""
        rng = self.rng(split, index, 0, seed)
        order = [str(noun) for noun in rng.permutation(list(self.shapes))]
        count = int(rng.integers(3, 7))
        repeats = int(rng.integers(1, min(count, 4)))
        palette = rng.permutation(list(self.colors))[:3]
        placed: list[ShapeObject] = []
        for noun in rng.permutation([order[0]] * repeats + (order[1:3] * count)[: count - repeats]):
            item = place_object(rng, placed, str(noun), str(rng.choice(palette)))
            if item is not None:
                placed.append(item)
        image, masks = render(tuple(placed), self.rng(split, index, 1, seed), self.shapes, self.colors)
        return Scene(image, tuple(placed), masks, mask_boxes(masks), split, index)

    def rows(
        self,
        split: str,
        num_scenes: int,
        seed: int = 0,
        targets_per_scene: int = 4,
        levels: Sequence[str | InstructionLevel] = _LEVELS,
    ) -> Iterator[InstructionRow]:
        """Rows of the common schema; the kinds of target are kept in balance over the rows.

        Args:
            split: "train", "validation" or "test"; sentences of the last two are partly of held-out templates.
            targets_per_scene: at most so many simple instructions, and half as many concepts, per scene.
            levels: "concept" and "simple": a row has an instruction at one of them.

        Raises:
            ValueError: for a level that domains do not have.
        """
        wanted = {InstructionLevel.from_any(level) for level in levels}
        if not wanted <= set(_LEVELS):
            raise ValueError(f"A domain has concept and simple instructions, found {sorted(wanted)}.")
        counts: dict[InstructionLevel, Counter] = {level: Counter() for level in _LEVELS}
        for index in range(num_scenes):
            scene, rng, seen = self.scene(split, index, seed), self.rng(split, index, 2, seed), set()
            for level, number in zip(_LEVELS, ((targets_per_scene + 1) // 2, targets_per_scene), strict=True):
                for _ in range(number if level in wanted else 0):
                    row = self._row(scene, level, counts[level], rng, seed)
                    if row is not None and row["row_id"] not in seen:
                        seen.add(row["row_id"])
                        counts[level][row["target_kind"]] += 1
                        yield row

    def _row(
        self, scene: Scene, level: InstructionLevel, counts: Counter, rng: np.random.Generator, seed: int
    ) -> InstructionRow | None:
        """A row of the kind of target that is rarest so far, or None where this scene has none to give."""
        families = ("category",) if level is InstructionLevel.CONCEPT else _FAMILIES
        kinds = {kind for name in families for own in FAMILIES[name].kinds.values() for kind in own}
        noise = dict(zip(TARGET_KINDS, rng.random(len(TARGET_KINDS)), strict=True))
        kind = min(kinds, key=lambda each: (counts[each], noise[each]))
        nouns = [item.noun for item in scene.objects]
        for _ in range(_TRIES):
            family = one_of(rng, families)
            number = one_of(rng, (SINGULAR, PLURAL))
            if kind not in FAMILIES[family].kinds.get(number, ()):
                continue
            absent = kind == NONE and (family == "category" or rng.random() < 0.3)
            noun = one_of(rng, [name for name in self.shapes if name not in nouns] if absent else nouns)
            values = tuple(self.colors) if "color" in family else FAMILIES[family].values
            meaning = question(family, noun, one_of(rng, values) if values else None)
            targets = denotation(meaning, scene.objects)
            if targets is not None and kind_of(meaning, targets, scene.objects) == kind:
                text = self._say(meaning, number, level, scene.split, rng)
                asked = [part for part in (level.value, meaning.family, *details(meaning), number) if part]
                return make_row(
                    **world_fields(scene, f"{self.name}-{seed}-{scene.split}-{scene.index}", asked, sorted(targets)),
                    concept=[noun],
                    simple=[text] if level is InstructionLevel.SIMPLE else None,
                    target_kind=kind,
                    dataset=self.name,
                    split=scene.split,
                )
        return None

    def _say(
        self, meaning: Meaning, number: str, level: InstructionLevel, split: str, rng: np.random.Generator
    ) -> str:
        """A concept, or a simple instruction in a template of the shapes world."""
        lexicon = replace(LEXICON, plural=self.plurals.__getitem__)
        return say(meaning, number, level, partial(one_of, rng), lexicon, False if split == "train" else None).text


def _outdoors_outlines() -> dict[str, list[np.ndarray]]:
    """Outlines of the domain `OUTDOORS` (y points down), each in the unit box."""
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    half = np.linspace(np.pi, 2 * np.pi, 40)
    polygons = {
        "lemon": [(math.cos(t), 0.62 * math.sin(t) * (1 - 0.25 * math.cos(t) ** 8)) for t in turn],
        "hill": [(math.cos(t), 1.1 * math.sin(t)) for t in half],
        "home": [(0, -1), (0.85, -0.25), (0.85, 0.9), (-0.85, 0.9), (-0.85, -0.25)],
        "box": [(-1, -0.45), (1, -0.45), (1, 0.45), (-1, 0.45)],
    }
    return {noun: fit_unit([np.asarray(points, dtype=float)]) for noun, points in polygons.items()}


OUTDOORS = ShapesDomain(
    name="outdoors",
    shapes=_outdoors_outlines(),
    plurals={
        "lemon": "things like a lemon",
        "hill": "things like a hill",
        "home": "things like a home",
        "box": "things like a box",
    },
    colors={"love": (238, 120, 178), "ocean": (22, 150, 150), "treasure": (150, 102, 52)},
)
"""Four shapes and three colors that no picture of the shapes world shows.

Their names are words that its text encoder has read in descriptions ("could be stacked like a box") but never as the
name of a shape or of a color. Words that its tokenizer lacks would fall to letters, which it never learned to read.
"""
