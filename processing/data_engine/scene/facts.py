# SPDX-License-Identifier: Apache-2.0
"""What can be measured of a scene from its pixels and masks, and how sure a comparison has to be."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...language.colors import mask_color
from .scene import AnnotatedScene

PLACE_MARGIN = 0.08  # of the image's shorter side: the least difference of two places that counts
BESIDE_MARGIN = 0.10  # the same for being left of, above, ... a reference object
SIZE_RATIO = 1.35  # least ratio of two side lengths (square roots of areas) for "large" against "small"
EXTREME_SIZE_RATIO = 1.25  # least ratio of the side lengths of the largest and the second largest
TOUCHING = 2  # pixels between two masks below which one may hide part of the other
INSIDE_SHARE = 0.95  # of an instance's box that must lie within another's for it to be inside


@dataclass
class Facts:
    """Measurements of one scene, as `language.meaning.SceneFacts`; instances go by their place in `scene.instances`.

    Places and distances are in units of the image's shorter side.
    """

    scene: AnnotatedScene
    compares_alone: bool = False
    place_margin: float = PLACE_MARGIN
    beside_margin: float = BESIDE_MARGIN
    middle_margin: float = PLACE_MARGIN

    @property
    def is_exhaustive(self) -> bool:
        return self.scene.is_exhaustive

    @property
    def unit(self) -> float:
        """The image's shorter side, pixels."""
        return float(min(self.scene.width, self.scene.height))

    @cached_property
    def nouns(self) -> tuple[str, ...]:
        """The category of every instance."""
        return tuple(item.noun for item in self.scene.instances)

    @cached_property
    def colors(self) -> tuple[str | None, ...]:
        """The color's name of every instance, None where it has no clear one."""
        image = np.asarray(self.scene.open_image())
        return tuple(mask_color(image, instance.pixels()) for instance in self.scene.instances)

    @cached_property
    def centers(self) -> np.ndarray:
        """Centers of the boxes, [N, 2] (x, y)."""
        boxes = np.array([item.box for item in self.scene.instances], dtype=float).reshape(-1, 4)
        return (boxes[:, :2] + boxes[:, 2:] / 2) / self.unit

    @cached_property
    def sides(self) -> np.ndarray:
        """Square roots of the areas, pixels, [N]."""
        return np.array([math.sqrt(instance.area) for instance in self.scene.instances])

    @cached_property
    def is_whole(self) -> tuple[bool, ...]:
        """Whether nothing can hide part of an instance: it touches neither another mask nor the border."""
        from scipy.ndimage import binary_dilation  # here, as the status of a run waits for its import otherwise

        masks = [instance.pixels() for instance in self.scene.instances]
        whole = []
        for i, (mask, instance) in enumerate(zip(masks, self.scene.instances, strict=True)):
            x, y, width, height = (int(value) for value in instance.box)
            if x <= 0 or y <= 0 or x + width >= self.scene.width or y + height >= self.scene.height:
                whole.append(False)
                continue
            near = binary_dilation(mask, np.ones((3, 3), dtype=bool), iterations=TOUCHING)
            whole.append(not any((near & other).any() for j, other in enumerate(masks) if j != i))
        return tuple(whole)

    def is_partial(self, noun: str | None) -> bool:
        """Whether some instances of a noun may be missing."""
        return noun in self.scene.partial_nouns

    def is_absent(self, noun: str) -> bool:
        """Whether the scene is known to hold no instance of a noun."""
        return self.scene.is_absent(noun)

    def whole_of(self, i: int) -> int | None:
        """The instance that a part belongs to, where it is known."""
        owner = self.scene.instances[i].whole
        return next((j for j, item in enumerate(self.scene.instances) if item.annotation_id == owner), None)

    def is_a(self, i: int, kind: str | None) -> bool | None:
        """Unknown: categories are not sorted into wider kinds."""
        return None

    def of_size(self, value: str | None, members: list[int], every: list[int]) -> list[int] | None:
        """Large or small by the scene's bounds, or among all of the category where its sizes fall into two groups."""
        if self.scene.size_bounds is not None:
            sizes = {i: self._absolute_size(i) for i in members}
            return None if None in sizes.values() else [i for i in members if sizes[i] == value]
        if any(not self.is_whole[i] for i in every) or len(every) < 2:
            return None
        ranked = sorted(every, key=lambda i: self.sides[i])
        ratios = [self.sides[b] / self.sides[a] for a, b in zip(ranked, ranked[1:], strict=False)]
        cut = max(range(len(ratios)), key=ratios.__getitem__)
        if ratios[cut] < SIZE_RATIO:
            return None
        group = ranked[cut + 1 :] if value == "large" else ranked[: cut + 1]
        return [i for i in members if i in group]

    def _absolute_size(self, i: int) -> str | None:
        """Whether instance i is "small" or "large" by the scene's bounds; None in between."""
        largest_small, smallest_large = self.scene.size_bounds or (0.0, math.inf)
        side = max(self.scene.instances[i].box[2:]) / self.unit
        return "small" if side <= largest_small else "large" if side >= smallest_large else None

    def by_size(self, value: str, members: list[int]) -> list[int] | None:
        """Members, the "large" or the "small" first; None where the first is not clear."""
        if any(not self.is_whole[i] for i in members):
            return None
        ranked = sorted(members, key=lambda i: self.sides[i], reverse=value == "large")
        pair = [self.sides[i] for i in ranked[:2]]
        return None if len(pair) == 2 and max(pair) / min(pair) < EXTREME_SIZE_RATIO else ranked

    def along(self, i: int, side: str | None) -> float:
        """How far the center of instance i reaches towards a side."""
        x, y = self.centers[i]
        return float({"left": -x, "right": x, "top": -y, "bottom": y}[side or "left"])

    def beyond_middle(self, i: int, side: str | None) -> float:
        """How far the center of instance i lies beyond the image's middle line, towards a side."""
        extent = self.scene.width if side in ("left", "right") else self.scene.height
        middle = extent / 2 / self.unit
        return self.along(i, side) - (middle if side in ("right", "bottom") else -middle)

    def distance(self, i: int, j: int) -> float:
        """Distance of two centers."""
        return float(np.hypot(*(self.centers[i] - self.centers[j])))

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
