# SPDX-License-Identifier: Apache-2.0
"""The masks an agent can choose from: free of doubles, ordered by score, and drawn on the image with numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

from ....processing.drawing.instances import draw_masks, longest_side
from ..segmenters import SegmentationResult

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_OVERLAP = 0.3  # intersection over the smaller area, as in the published agent
MIN_DRAWING_SIDE = 448  # pixels: smaller images are enlarged, so that numbers fit on their masks
CLOSE_UP_MARGIN = 0.5


class MaskCandidates(SegmentationResult):
    """Masks available to the agent, numbered from 1 in this order."""

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, indices: list[int]) -> MaskCandidates:
        """The candidates of these zero-based indices."""
        boxes = None if self.boxes is None else self.boxes[indices]
        return MaskCandidates(self.masks[indices], self.scores[indices], boxes)

    def without_overlaps(self) -> MaskCandidates:
        """Orders by score and drops empty masks and those that lie over or in one of a higher score.

        Two masks overlap when their intersection exceeds 0.3 of the smaller one.
        """
        order = [int(i) for i in np.argsort(-self.scores, kind="stable") if self.masks[i].any()]
        rles = [coco_mask.encode(np.asfortranarray(self.masks[i], dtype=np.uint8)) for i in order]
        # With the crowd flag, pycocotools divides the intersection by the first mask's area.
        shares = np.asarray(coco_mask.iou(rles, rles, [1] * len(rles))).reshape(len(order), len(order))
        overlaps = np.maximum(shares, shares.T)
        kept: list[int] = []
        for rank in range(len(order)):
            if not any(overlaps[rank, other] > MAX_OVERLAP for other in kept):
                kept.append(rank)
        return self.take([order[rank] for rank in kept])

    def draw(self, image: Image) -> Image:
        """The image with every mask outlined and numbered."""
        numbers = [str(number) for number in range(1, len(self) + 1)]
        return draw_masks(
            image, self.masks, tags=numbers, tags_inside=True, dim=False, side=longest_side(image, MIN_DRAWING_SIDE)
        )

    def draw_alone(self, image: Image, index: int) -> tuple[Image, Image]:
        """One mask outlined on the whole image, and a close-up of it with half its size around it."""
        mask = self.masks[index]
        rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
        margin = max(8, round(CLOSE_UP_MARGIN * max(rows.stop - rows.start, columns.stop - columns.start)))
        left, top = max(0, columns.start - margin), max(0, rows.start - margin)
        right, bottom = min(image.width, columns.stop + margin), min(image.height, rows.stop + margin)
        close, crop = image.crop((left, top, right, bottom)), mask[top:bottom, left:right]
        whole = draw_masks(image, [mask], dim=False, side=longest_side(image, MIN_DRAWING_SIDE))
        return whole, draw_masks(close, [crop], dim=False, side=longest_side(close, MIN_DRAWING_SIDE))
