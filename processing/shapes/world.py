# SPDX-License-Identifier: Apache-2.0
"""The shapes world: small deterministic scenes of colored shapes with exact visible masks.

A scene is a pure function of `(seed, split, index)`: nothing reads or changes a global random state. Objects are
listed back to front. The color-noun pairs of [`HELD_OUT_PAIRS`] never appear in a training image; validation and
test images contain them like any other pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .lexicon import LEXICON, WorldWords
from .phrasings import VARIED
from .rendering import COLORS, IMAGE_SIZE, NOUNS, ShapeObject, render

SPLITS = ("train", "validation", "test")
SIZES = ("small", "large")
RADII = {"small": (10.0, 12.5), "large": (16.0, 20.0)}  # pixels, half of the longer side before rotation
MAX_ROTATION = 15.0  # degrees
# One pair per color, six different nouns: compositions that no training image or sentence contains.
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "ring"),
        ("orange", "moon"),
        ("yellow", "heart"),
        ("green", "star"),
        ("blue", "triangle"),
        ("purple", "square"),
    }
)
WORDS = WorldWords("shapes", NOUNS, LEXICON, VARIED, HELD_OUT_PAIRS)
_MAX_OVERLAP = 0.10  # of the smaller radius, so that at most a sliver of an object is hidden


@dataclass(frozen=True)
class Scene:
    """A rendered scene."""

    image: np.ndarray  # uint8 [H, W, 3]
    objects: tuple[ShapeObject, ...]  # the N objects, back to front
    masks: np.ndarray  # bool [N, H, W], the visible pixels of each object (disjoint)
    boxes: np.ndarray  # float32 [N, 4], tight boxes of the masks as (cx, cy, w, h) in [0, 1]
    split: str  # where the scene comes from
    index: int
    is_mirrored: bool = False

    def mirror(self) -> Scene:
        """The scene with left and right exchanged; sentences must be mirrored (or made) anew for it."""
        width = self.image.shape[1]
        masks = np.ascontiguousarray(self.masks[:, :, ::-1])
        return Scene(
            image=np.ascontiguousarray(self.image[:, ::-1]),
            objects=tuple(item.mirror(width) for item in self.objects),
            masks=masks,
            boxes=mask_boxes(masks),
            split=self.split,
            index=self.index,
            is_mirrored=not self.is_mirrored,
        )


class ShapesWorld:
    """An endless, randomly accessible source of scenes.

    Args:
        seed: the world; two worlds of one seed are equal in every byte.
        split: "train", "validation" or "test"; splits never share a scene.

    Raises:
        ValueError: for an unknown split or a negative index.
    """

    words: ClassVar[WorldWords] = WORDS

    def __init__(self, seed: int = 0, split: str = "train"):
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {SPLITS}, got {split!r}.")
        self.seed = int(seed)
        self.split = split

    def rng(self, index: int, stream: int) -> np.random.Generator:
        """The private generator of one scene; `stream` keeps layout, texture and sentences independent."""
        if index < 0:
            raise ValueError(f"A scene index is 0 or more, got {index}.")
        return np.random.default_rng([self.seed, SPLITS.index(self.split), int(index), stream])

    def layout(self, index: int) -> tuple[ShapeObject, ...]:
        """The objects of scene `index` without rendering it."""
        rng = self.rng(index, stream=0)
        forbidden = self.words.held_out_pairs if self.split == "train" else frozenset()
        count = int(rng.choice([2, 3, 4, 5, 6], p=[0.08, 0.16, 0.24, 0.26, 0.26]))
        palette = rng.permutation(list(COLORS))[: int(rng.integers(2, 5))]
        placed: list[ShapeObject] = []
        for noun in _draw_nouns(rng, count, self.words.nouns):
            allowed = [color for color in palette if (color, noun) not in forbidden]
            allowed = allowed or [color for color in COLORS if (color, noun) not in forbidden]
            item = place_object(rng, placed, noun, str(rng.choice(allowed)))
            if item is not None:
                placed.append(item)
        return tuple(placed)

    def paint(self, objects: tuple[ShapeObject, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The image, uint8 [H, W, 3], and the visible masks, bool [N, H, W], of some objects."""
        return render(objects, rng)

    def scene(self, index: int) -> Scene:
        """Scene `index`, rendered."""
        objects = self.layout(index)
        image, masks = self.paint(objects, self.rng(index, stream=1))
        return Scene(image, objects, masks, mask_boxes(masks), self.split, int(index))


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes (cx, cy, w, h) in [0, 1] of bool masks [N, H, W]; float32 [N, 4]."""
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for row, mask in enumerate(masks):
        xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        left, right, top, bottom = xs[0], xs[-1] + 1, ys[0], ys[-1] + 1
        center = (left + right) / 2 / width, (top + bottom) / 2 / height
        boxes[row] = (*center, (right - left) / width, (bottom - top) / height)
    return boxes


def _draw_nouns(rng: np.random.Generator, count: int, nouns_known: tuple[str, ...]) -> list[str]:
    """Nouns of a scene: one repeated noun (so that there is something to choose among), sometimes two."""
    order = [str(noun) for noun in rng.permutation(nouns_known)]
    repeats = min(count, int(rng.choice([1, 2, 3, 4], p=[0.15, 0.30, 0.35, 0.20])))
    nouns = [order[0]] * repeats
    if count - repeats >= 2 and rng.random() < 0.45:
        nouns += [order[1]] * 2
    nouns += order[2 : 2 + count - len(nouns)]
    return [str(noun) for noun in rng.permutation(nouns)]


def place_object(rng: np.random.Generator, placed: list[ShapeObject], noun: str, color: str) -> ShapeObject | None:
    """A free place for one more object (smaller if need be), or None in a crowded scene."""
    large = rng.random() < 0.5
    for size in ("large", "small") if large else ("small",):
        for _ in range(40):
            radius = float(rng.uniform(*RADII[size]))
            cx, cy = (float(value) for value in rng.uniform(radius + 1.5, IMAGE_SIZE - radius - 1.5, size=2))
            clear = all(
                math.hypot(cx - other.cx, cy - other.cy)
                > radius + other.radius - _MAX_OVERLAP * min(radius, other.radius)
                for other in placed
            )
            if clear:
                angle = float(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
                return ShapeObject(noun, color, size, cx, cy, radius, angle, bool(rng.random() < 0.5))
    # The first object always fits, so a scene is never empty; two objects always fit as well.
    return None
