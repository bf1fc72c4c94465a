# SPDX-License-Identifier: Apache-2.0
"""The pictogram world: the scenes, questions and data sets of the shapes world with other things and other words."""

import math
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageFilter

from ..shapes.dataset import ShapesInstructionDataset
from ..shapes.lexicon import WorldWords
from ..shapes.rendering import COLORS, IMAGE_SIZE, ShapeObject, background, paint_objects, paste
from ..shapes.world import ShapesWorld
from .lexicon import PICTOGRAM_WORDS

PICTURES = Path(__file__).parent / "pictures"
_SUPERSAMPLING = 4
_MIDDLE = 0.6  # lightness that shows a color as it is; lighter parts go to white, darker ones to black
_CONTRAST = 0.9
# What lies behind the things: above and below of a horizon, as RGB.
_PLACES = (
    ((176, 206, 232), (168, 186, 142)),  # sky over a meadow
    ((188, 214, 230), (222, 206, 168)),  # sky over sand
    ((150, 190, 206), (88, 124, 150)),  # sky over the sea
    ((214, 206, 196), (160, 134, 112)),  # a wall over a wooden floor
    ((196, 204, 206), (120, 122, 126)),  # a wall over asphalt
    ((62, 70, 92), (52, 58, 56)),  # night
)


@lru_cache(maxsize=64)
def pictogram(noun: str) -> Image.Image:
    """A noun's picture in gray with its coverage (mode LA, 64 x 64), of one mean lightness for all nouns."""
    with Image.open(PICTURES / f"{noun}.png") as picture:
        colored = picture.convert("RGBA")
    gray = np.asarray(colored.convert("L"), dtype=np.float32) / 255
    cover = np.asarray(colored.getchannel("A"), dtype=np.float32) / 255
    mean = (gray * cover).sum() / cover.sum()
    level = np.clip(_MIDDLE + _CONTRAST * (gray - mean), 0, 1)
    stacked = np.stack([level * 255, cover * 255], axis=-1).round().astype(np.uint8)
    return Image.fromarray(stacked)


def render(objects: tuple[ShapeObject, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paint objects back to front: uint8 [H, W, 3], and the visible masks, bool [N, H, W].

    A mask holds the pixels that the object covers by half or more and that no later object covers.
    """
    canvas = background(rng)
    if rng.random() < 0.6:
        canvas = _place(canvas, rng)
    return paint_objects(canvas, objects, rng, COLORS, _look)


def _look(item: ShapeObject, color: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    level, body, shadow = _coverage(item)
    light = np.clip((level - _MIDDLE) / (1 - _MIDDLE), 0, 1)[..., None]
    paint = np.clip(color, 0, 255) * np.clip(level / _MIDDLE, 0, 1)[..., None]
    return body, shadow, paint + 0.8 * light * (255 - paint)


def _coverage(item: ShapeObject) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lightness, coverage and soft shadow of an object in [0, 1], float32 [H, W] each."""
    reach = int(math.ceil(item.radius * 1.3)) + 4
    left, top = int(math.floor(item.cx)) - reach, int(math.floor(item.cy)) - reach
    side = (2 * reach + 1) * _SUPERSAMPLING
    picture = pictogram(item.noun)
    turn, scale = math.radians(item.angle), picture.width / (2 * item.radius * _SUPERSAMPLING)
    c, s = math.cos(turn) * scale, math.sin(turn) * scale
    # From a pixel of the patch to the one of the picture that is seen there.
    x0, y0 = (item.cx - left) * _SUPERSAMPLING, (item.cy - top) * _SUPERSAMPLING
    flip = -1 if item.mirrored else 1
    middle = picture.width / 2
    way = (flip * c, -flip * s, middle - flip * (c * x0 - s * y0), s, c, middle - s * x0 - c * y0)
    channels = [
        channel.transform((side, side), Image.Transform.AFFINE, way, Image.Resampling.BILINEAR)
        for channel in picture.split()
    ]
    level, cover = (
        np.asarray(channel.resize((side // _SUPERSAMPLING,) * 2, Image.Resampling.BOX), dtype=np.float32) / 255
        for channel in channels
    )
    soft = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.6))
    shadow = np.asarray(soft, dtype=np.float32) / 255
    return paste(level, left, top), paste(cover, left, top), paste(shadow, left + 1, top + 2)


def _place(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A horizon with the light and dark of a texture; float32 [H, W, 3]."""
    above, below = _PLACES[int(rng.integers(len(_PLACES)))]
    horizon = float(rng.uniform(0.35, 0.75)) * IMAGE_SIZE
    rows = np.arange(IMAGE_SIZE, dtype=np.float32)
    share = np.clip(rows - horizon + 0.5, 0, 1)[:, None, None]
    colors = np.asarray(above, dtype=np.float32) * (1 - share) + np.asarray(below, dtype=np.float32) * share
    shade = 1 + 0.12 * (rows[:, None, None] / IMAGE_SIZE - 0.5)
    return (colors * shade + (texture - texture.mean()) * 0.8 + rng.uniform(-10, 10, size=3)).astype(np.float32)


class PictogramsWorld(ShapesWorld):
    """Scenes of ordinary things; see [`ShapesWorld`] for the arguments."""

    words: ClassVar[WorldWords] = PICTOGRAM_WORDS

    def paint(self, objects: tuple[ShapeObject, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return render(objects, rng)


class PictogramsInstructionDataset(ShapesInstructionDataset):
    """Instructions of the pictogram world as samples; see [`ShapesInstructionDataset`].

    Complex instructions of validation and test are held out in one of two ways: by the phrasing, or by words that
    training never says of a thing (their `template` ends with "/unheard").
    """

    world_type: ClassVar[type[ShapesWorld]] = PictogramsWorld
