# SPDX-License-Identifier: Apache-2.0
"""The masks an agent can choose from: free of doubles, ordered by score, and drawn on the image with numbers."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from scipy import ndimage

MAX_OVERLAP = 0.3  # intersection over the smaller area, as in the published agent
MIN_DRAWING_SIDE = 448  # pixels; smaller images are enlarged, so that numbers fit on their masks
PAINT = 0.35
CLOSE_UP_MARGIN = 0.5


@dataclass(frozen=True)
class MaskCandidates:
    """Masks available to the agent, numbered from 1 in this order.

    Shapes: masks bool [K, H, W], scores float [K], boxes float [K, 4] xyxy pixels.
    """

    masks: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, indices: list[int]) -> MaskCandidates:
        """The candidates of these zero-based indices."""
        return MaskCandidates(self.masks[indices], self.scores[indices], self.boxes[indices])

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

    def draw(self, image: Image.Image) -> Image.Image:
        """The image with every mask painted in its color, outlined and numbered."""
        drawing = paint_masks(image, self.masks)
        scale = drawing.width / image.width
        font = ImageFont.load_default(size=max(14, drawing.height // 28))
        pen = ImageDraw.Draw(drawing)
        for index, mask in enumerate(self.masks):
            x, y = innermost_point(mask)
            at, text = (round((x + 0.5) * scale), round((y + 0.5) * scale)), str(index + 1)
            left, top, right, bottom = pen.textbbox(at, text, font=font, anchor="mm")
            pen.rectangle((left - 5, top - 5, right + 5, bottom + 5), fill="black", outline=mask_color(index), width=2)
            pen.text(at, text, font=font, anchor="mm", fill="white")
        return drawing

    def draw_alone(self, image: Image.Image, index: int) -> tuple[Image.Image, Image.Image]:
        """One mask painted on the whole image, and a close-up of it with half its size around it."""
        mask = self.masks[index]
        rows, columns = bounding_slices(mask)
        margin = max(8, round(CLOSE_UP_MARGIN * max(rows.stop - rows.start, columns.stop - columns.start)))
        box = (
            max(0, columns.start - margin),
            max(0, rows.start - margin),
            min(image.width, columns.stop + margin),
            min(image.height, rows.stop + margin),
        )
        crop = mask[box[1] : box[3], box[0] : box[2]]
        return paint_masks(image, mask[None]), paint_masks(image.crop(box), crop[None])


def mask_color(index: int) -> tuple[int, int, int]:
    """A vivid color, far from those of neighbouring numbers (hues a golden angle apart)."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.9 if index % 2 else 0.65, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def paint_masks(image: Image.Image, masks: np.ndarray) -> Image.Image:
    """Paints masks [K, H, W] on an image of H x W pixels, enlarged to at least 448 pixels on its shorter side."""
    image = image.convert("RGB")
    scale = max(1.0, MIN_DRAWING_SIDE / min(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    canvas = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32).copy()
    outline = max(1, min(size) // 150)
    for index, mask in enumerate(masks):
        large = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
        color = np.asarray(mask_color(index), dtype=np.float32)
        region = bounding_slices(large)
        inside, view = large[region], canvas[region]
        view[inside] += PAINT * (color - view[inside])
        view[inside & ~ndimage.binary_erosion(inside, iterations=outline)] = color
    return Image.fromarray(canvas.round().astype(np.uint8))


def innermost_point(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is farthest from its border."""
    rows, columns = bounding_slices(mask)
    depth = ndimage.distance_transform_edt(np.pad(mask[rows, columns], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x) + columns.start, int(y) + rows.start


def bounding_slices(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the tight box of a mask that is not empty."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]


__all__ = ["MaskCandidates", "bounding_slices", "innermost_point", "mask_color", "paint_masks"]
