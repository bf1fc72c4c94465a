# SPDX-License-Identifier: Apache-2.0
"""What can be measured of a scene from its pixels and masks, and how sure a comparison has to be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...language.colors import mask_colour
from .scene import Scene

SIDES = ("left", "right", "top", "bottom")
PLACE_MARGIN = 0.08  # of the picture's shorter side: the least difference of two places that counts
BESIDE_MARGIN = 0.10  # the same for being left of, above, ... a reference object
SIZE_RATIO = 1.35  # least ratio of two side lengths (square roots of areas) for "large" against "small"
TOUCHING = 2  # pixels between two masks below which one may hide part of the other
INSIDE_SHARE = 0.95  # of an instance's box that must lie within another's for it to be inside


@dataclass(frozen=True)
class Facts:
    """Measurements of one scene; instances go by their place in `scene.instances`."""

    scene: Scene

    @property
    def unit(self) -> float:
        """The picture's shorter side, pixels."""
        return float(min(self.scene.width, self.scene.height))

    @cached_property
    def colours(self) -> tuple[str | None, ...]:
        """The colour's name of every instance, None where it has no clear one."""
        picture = np.asarray(self.scene.open_image())
        return tuple(mask_colour(picture, instance.pixels()) for instance in self.scene.instances)

    @cached_property
    def centres(self) -> np.ndarray:
        """Centres of the boxes in units of the shorter side, [N, 2] (x, y)."""
        return np.array([item.centre for item in self.scene.instances], dtype=float).reshape(-1, 2) / self.unit

    @cached_property
    def sides(self) -> np.ndarray:
        """Square roots of the areas, pixels, [N]."""
        return np.array([math.sqrt(instance.area) for instance in self.scene.instances])

    @cached_property
    def is_whole(self) -> tuple[bool, ...]:
        """Whether nothing can hide part of an instance: it touches neither another mask nor the border."""
        masks = [instance.pixels() for instance in self.scene.instances]
        whole = []
        for i, (mask, instance) in enumerate(zip(masks, self.scene.instances, strict=True)):
            x, y, width, height = (int(value) for value in instance.box)
            if x <= 0 or y <= 0 or x + width >= self.scene.width or y + height >= self.scene.height:
                whole.append(False)
                continue
            near = grow_mask(mask, TOUCHING)
            whole.append(not any((near & other).any() for j, other in enumerate(masks) if j != i))
        return tuple(whole)

    def absolute_size(self, i: int) -> str | None:
        """Whether instance i is "small" or "large" by the scene's bounds; None in between, or without bounds."""
        if self.scene.size_bounds is None:
            return None
        largest_small, smallest_large = self.scene.size_bounds
        side = max(self.scene.instances[i].box[2:]) / self.unit
        return "small" if side <= largest_small else "large" if side >= smallest_large else None

    def along(self, i: int, side: str) -> float:
        """How far the centre of instance i reaches towards a side, in units of the shorter side."""
        x, y = self.centres[i]
        return float({"left": -x, "right": x, "top": -y, "bottom": y}[side])

    def beyond_middle(self, i: int, side: str) -> float:
        """How far the centre of instance i lies beyond the picture's middle line, towards a side."""
        extent = self.scene.width if side in ("left", "right") else self.scene.height
        middle = extent / 2 / self.unit
        return self.along(i, side) - (middle if side in ("right", "bottom") else -middle)

    def distance(self, i: int, j: int) -> float:
        """Distance of two centres, in units of the shorter side."""
        return float(np.hypot(*(self.centres[i] - self.centres[j])))

    def is_inside(self, i: int, j: int) -> bool | None:
        """Whether instance i lies inside instance j (by boxes); None where it is neither clearly in nor out."""
        if i == j:
            return False
        x, y, width, height = self.scene.instances[i].box
        left, top, outer_width, outer_height = self.scene.instances[j].box
        across = min(x + width, left + outer_width) - max(x, left)
        down = min(y + height, top + outer_height) - max(y, top)
        share = max(0.0, across) * max(0.0, down) / max(1.0, width * height)
        if share >= INSIDE_SHARE:
            return width * height < 0.8 * outer_width * outer_height
        return False if share < 0.3 else None


def grow_mask(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask with `pixels` more on every side (and corner)."""
    grown = mask.copy()
    for axis in (0, 1):
        source = grown.copy()
        for step in range(1, pixels + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            grown[tuple(ahead)] |= source[tuple(behind)]
            grown[tuple(behind)] |= source[tuple(ahead)]
    return grown
