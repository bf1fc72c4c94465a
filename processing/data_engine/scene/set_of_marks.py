# SPDX-License-Identifier: Apache-2.0
"""Set-of-mark prompting: images with the target outlined, or with numbered instances, for chat models to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image, ImageDraw

from .facts import grow_mask
from .scene import AnnotatedScene

TARGET_COLOR, SIBLING_COLOR = ("magenta", (255, 0, 255)), ("cyan", (0, 255, 255))
SHORTER_SIDE = 336  # pixels: smaller pictures are enlarged, so that outlines and numbers can be read


def enlarge(picture: Image.Image) -> Image.Image:
    """The picture at a whole multiple of its size, at least `SHORTER_SIDE` pixels high and wide."""
    factor = -(-SHORTER_SIDE // min(picture.size))
    return picture if factor <= 1 else picture.resize((picture.width * factor, picture.height * factor))


def mark_target(scene: AnnotatedScene, targets: Iterable[int], siblings: Iterable[int]) -> Image.Image:
    """The picture with target and siblings (annotation ids) outlined in their colors."""
    picture = enlarge(scene.open_image())
    for ids, (_, color) in ((siblings, SIBLING_COLOR), (targets, TARGET_COLOR)):
        for number in ids:
            picture = _outline(picture, scene.by_id[number].pixels(), color)
    return picture


def mark_numbers(scene: AnnotatedScene, numbers: Mapping[int, int]) -> Image.Image:
    """The picture with every instance of `numbers` (annotation id -> number) outlined, its number at its center."""
    picture = enlarge(scene.open_image())
    scale = picture.width / scene.width
    for annotation_id in numbers:
        picture = _outline(picture, scene.by_id[annotation_id].pixels(), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for annotation_id, number in numbers.items():
        x, y = scene.by_id[annotation_id].center
        place = (x * scale, y * scale)
        box = draw.textbbox(place, str(number), anchor="mm", font_size=16)
        draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), fill=(0, 0, 0))
        draw.text(place, str(number), anchor="mm", font_size=16, fill=(255, 255, 255))
    return picture


def _outline(picture: Image.Image, mask: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    enlarged = Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST)
    inside = np.asarray(enlarged)
    edge = grow_mask(inside, 2) & ~inside
    pixels = np.array(picture.convert("RGB"))
    pixels[edge] = color
    return Image.fromarray(pixels)
