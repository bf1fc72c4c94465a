# SPDX-License-Identifier: Apache-2.0
"""Training transforms: resize jitter, padding and flips, with masks and boxes in step with the image.

As in the training of SAM3 and SAM3-I (arXiv 2512.04585): the image is squashed to a square whose side is drawn
between 480 and 1008 pixels, then put at a random place on a black canvas of 1008 x 1008. Flips are an addition, off
unless asked for, and never happen when an instruction names a side. All draws come from a generator that is passed
in; nothing touches a global random state.
"""

import hashlib
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.sparse import csc_array

from ..processing.masks import CompressedRLE, decode_box

MIN_SCALE = 480 / 1008
SIDES = re.compile(
    r"\b(left|right)(hand|most|ward|wards|side|er)?\b|clockwise|o'?clock|\b(east|west)(ern|ward|wards|ernmost)?\b",
    re.IGNORECASE,
)


def names_sides(text: str) -> bool:
    """Whether an English instruction means something else in a mirror; text in other scripts counts as doing so."""
    return bool(SIDES.search(text)) or any(letter.isalpha() and ord(letter) > 0x24F for letter in text)


def keyed_random(*key: Any) -> random.Random:
    """A generator whose draws are a pure function of the key (numbers and strings), on every machine."""
    digest = hashlib.blake2b(repr(key).encode("utf-8"), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))


@dataclass(frozen=True)
class Placement:
    """Where an image comes to lie on the model's canvas; the same object moves pixels, masks and boxes."""

    canvas: tuple[int, int]  # (height, width) of the canvas in pixels
    size: tuple[int, int]  # (height, width) to which the image is resized
    offset: tuple[int, int] = (0, 0)  # (top, left) of the image on the canvas
    flip: bool = False  # whether the image is mirrored left to right

    def place_image(self, image: Image.Image) -> Image.Image:
        """The image on the canvas, RGB; what it does not cover is black."""
        image = image.convert("RGB")
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        resized = image.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        if self.size == self.canvas:
            return resized
        placed = Image.new("RGB", (self.canvas[1], self.canvas[0]))
        placed.paste(resized, (self.offset[1], self.offset[0]))
        return placed

    def place_masks(self, masks: Sequence[CompressedRLE]) -> torch.Tensor:
        """Bool [N, height, width] of masks of one image on the canvas.

        A pixel belongs to a mask when more than half of it does; a mask with pixels keeps at least one. Masks are
        resized as images are (bilinear, antialiased), but only where they are.
        """
        placed = torch.zeros(len(masks), *self.canvas, dtype=torch.bool)
        for pixels, mask in zip(placed.numpy(), masks, strict=True):
            top, left, block = decode_box(mask)
            if not block.size:
                continue
            height, width = mask["size"]
            down = _resize_weights(height, self.size[0], self.offset[0])
            across = _resize_weights(width, self.size[1], self.offset[1], self.flip)
            x, soft = _resize_rows(across, left, block.T.astype(np.float32))
            y, soft = _resize_rows(down, top, np.ascontiguousarray(soft.T))
            inside = soft > 0.5
            if not inside.any():
                inside.flat[soft.argmax()] = True
            pixels[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        return placed

    def place_boxes(self, boxes: Sequence[Sequence[float]], height: int, width: int) -> torch.Tensor:
        """Boxes [N, 4] (x, y, w, h) in pixels of the image as (cx, cy, w, h) in [0, 1] of the canvas."""
        corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        limit = torch.tensor([width, height, width, height], dtype=torch.float64)
        corners = corners.clamp(min=0).minimum(limit) / limit
        if self.flip:
            corners = torch.stack([1 - corners[:, 2], corners[:, 1], 1 - corners[:, 0], corners[:, 3]], dim=1)
        (top, left), (tall, wide) = self.offset, self.size
        corners = corners * torch.tensor([wide, tall, wide, tall]) + torch.tensor([left, top, left, top])
        corners = corners / torch.tensor([self.canvas[1], self.canvas[0]] * 2)
        low, high = corners[:, :2], corners[:, 2:]
        return torch.cat([(low + high) / 2, high - low], dim=1).float()


@lru_cache(maxsize=64)
def _resize_weights(source: int, size: int, offset: int, flip: bool = False) -> csc_array:
    """Weights [offset + size, source] of one axis: antialiased bilinear, as those of PyTorch; mirrored with `flip`."""
    scale = source / size
    support = max(scale, 1.0)
    centers = (np.arange(size)[:, None] + 0.5) * scale
    pixels = np.floor(centers - support).astype(np.int64) + np.arange(2 * math.ceil(support) + 1)  # [size, taps]
    weights = np.maximum(1 - np.abs(pixels + 0.5 - centers) / support, 0) * ((pixels >= 0) & (pixels < source))
    weights /= weights.sum(1, keepdims=True)
    rows, taps = np.nonzero(weights)
    columns = pixels[rows, taps]
    places = (rows + offset, source - 1 - columns if flip else columns)
    return csc_array((weights[rows, taps].astype(np.float32), places), shape=(offset + size, source))


def _resize_rows(weights: csc_array, start: int, block: np.ndarray) -> tuple[int, np.ndarray]:
    """What becomes of a block [n, m] that starts at row `start` of the source: its first row, and its rows."""
    part = weights[:, start : start + len(block)]
    first, last = part.indices.min(), part.indices.max()
    return int(first), (part @ block)[first : last + 1]


class InstructionTransform:
    """Draws placements: resize jitter with padding, and flips where no instruction names a side.

    Args:
        min_scale: smallest side of the resized image, as a part of the canvas; 1.0 switches the jitter off.

    Raises:
        ValueError: a scale outside (0, 1] or a probability outside [0, 1].
    """

    def __init__(self, min_scale: float = MIN_SCALE, flip_probability: float = 0.0):
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale must lie in (0, 1], found {min_scale}")
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability must lie in [0, 1], found {flip_probability}")
        self.min_scale = min_scale
        self.flip_probability = flip_probability

    def __call__(self, canvas: tuple[int, int], texts: Iterable[str], generator: random.Random) -> Placement:
        """A placement on a canvas of (height, width) pixels for an image with these instructions."""
        scale = generator.uniform(self.min_scale, 1.0)
        size = (max(1, round(canvas[0] * scale)), max(1, round(canvas[1] * scale)))
        offset = (generator.randint(0, canvas[0] - size[0]), generator.randint(0, canvas[1] - size[1]))
        flip = generator.random() < self.flip_probability and not any(names_sides(text) for text in texts)
        return Placement((canvas[0], canvas[1]), size, offset, flip)
