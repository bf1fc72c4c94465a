# SPDX-License-Identifier: Apache-2.0
"""How objects of the shapes world look: outlines, shading, textured backgrounds, and their exact visible masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = 112  # pixels, both sides
COLORS = {
    "red": (214, 48, 49),
    "orange": (243, 140, 38),
    "yellow": (247, 214, 60),
    "green": (52, 168, 83),
    "blue": (48, 104, 214),
    "purple": (140, 72, 190),
}
NOUNS = ("circle", "square", "triangle", "star", "heart", "moon", "ring", "cross")
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class ShapeObject:
    """One object of a scene; `cx`, `cy`, `radius` are pixels, `angle` degrees counter-clockwise."""

    noun: str
    color: str
    size: str
    cx: float
    cy: float
    radius: float
    angle: float
    mirrored: bool = False

    def mirror(self, width: int = IMAGE_SIZE) -> ShapeObject:
        """The object as the mirror image (left and right exchanged) shows it."""
        return replace(self, cx=width - self.cx, angle=-self.angle, mirrored=not self.mirrored)


@lru_cache(maxsize=1)
def outlines() -> dict[str, list[np.ndarray]]:
    """Unit outlines by noun (y points down): the first polygon is filled, a second one is cut out of it.

    Every outline is centered on its bounding box, whose longer side spans [-1, 1] (the square's [-0.88, 0.88], so that
    it does not look larger than its neighbors).
    """
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    disc = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    spike = -np.pi / 2 + np.arange(10) * np.pi / 5
    star = np.stack([np.cos(spike), np.sin(spike)], axis=1) * np.where(np.arange(10) % 2 == 0, 1.0, 0.47)[:, None]
    heart_y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    heart = np.stack([16 * np.sin(turn) ** 3, -heart_y], axis=1)
    arm = 0.34
    quarter = np.array([(-arm, -arm), (-arm, -1), (arm, -1)])
    cross = np.concatenate([_turn(quarter, quarters) for quarters in range(4)])
    shapes = {
        "circle": [disc],
        "square": [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])],
        "triangle": [np.array([(0, -0.9), (1, 0.85), (-1, 0.85)])],
        "star": [star],
        "heart": [heart],
        "moon": [_crescent()],
        "ring": [disc, 0.52 * disc],
        "cross": [cross],
    }
    return {noun: fit_unit(polygons, 0.88 if noun == "square" else 1.0) for noun, polygons in shapes.items()}


def fit_unit(polygons: list[np.ndarray], reach: float = 1.0) -> list[np.ndarray]:
    """Polygons moved and scaled so that the box of the first is centered and its longer side spans [-reach, reach]."""
    low, high = polygons[0].min(axis=0), polygons[0].max(axis=0)
    scale = 2 * reach / (high - low).max()
    return [(polygon - (low + high) / 2) * scale for polygon in polygons]


def _turn(points: np.ndarray, quarters: int) -> np.ndarray:
    """Points turned by a number of quarter turns."""
    c, s = round(math.cos(quarters * math.pi / 2)), round(math.sin(quarters * math.pi / 2))
    return points @ np.array([[c, s], [-s, c]])


def _crescent() -> np.ndarray:
    """A crescent: the outer arc of the unit disc, then back along the arc of a disc shifted to the right."""
    outer = np.linspace(0.32 * np.pi, 1.68 * np.pi, 48)
    shift = 0.62
    tip_x, tip_y = math.cos(outer[0]) - shift, math.sin(outer[0])
    radius, start = math.hypot(tip_x, tip_y), math.atan2(tip_y, tip_x)
    inner = np.linspace(2 * np.pi - start, start, 40)
    return np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], axis=1),
            np.stack([shift + radius * np.cos(inner), radius * np.sin(inner)], axis=1),
        ]
    )


def render(
    objects: tuple[ShapeObject, ...],
    rng: np.random.Generator,
    shapes: Mapping[str, list[np.ndarray]] | None = None,
    colors: Mapping[str, tuple[int, int, int]] = COLORS,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint objects back to front on a textured background.

    Args:
        rng: texture, tints and noise.
        shapes: unit outlines by noun, as [`outlines`] gives them; those of this world if not given.

    Returns:
        uint8 [H, W, 3] and the visible masks, bool [N, H, W]: pixels that the object covers by half or more and that
        no later object covers.
    """
    grid = np.arange(IMAGE_SIZE, dtype=np.float32)
    shapes = outlines() if shapes is None else shapes

    def look(item: ShapeObject, color: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        body, edge, shadow = _coverage(item, shapes[item.noun])
        # Light falls from the upper left: brighter there, darker at the lower right.
        slope = (grid[None, :] - item.cx + grid[:, None] - item.cy) / (2 * item.radius)
        shade = np.clip(1.06 - 0.14 * slope, 0.85, 1.25)[..., None]
        return body, shadow, np.clip(color * shade, 0, 255) * (1 - 0.38 * edge[..., None])

    return paint_objects(background(rng), objects, rng, colors, look)


def paint_objects(
    canvas: np.ndarray,
    objects: tuple[ShapeObject, ...],
    rng: np.random.Generator,
    colors: Mapping[str, tuple[int, int, int]],
    look: Callable[[ShapeObject, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Paint objects on a canvas back to front, as [`render`] returns them.

    `look` gives the coverage, the soft shadow ([H, W] each) and the paint [H, W, 3] of an object in a tinted color.
    """
    masks = np.zeros((len(objects), IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    for row, item in enumerate(objects):
        color = np.asarray(colors[item.color], dtype=np.float32) + rng.uniform(-9, 9, size=3).astype(np.float32)
        body, shadow, paint = look(item, color)
        canvas *= 1 - 0.30 * shadow[..., None]
        canvas += body[..., None] * (paint - canvas)
        masks[row] = body >= 0.5
        masks[:row] &= ~masks[row]
    canvas += rng.normal(0, 2.5, size=canvas.shape).astype(np.float32)
    return np.clip(canvas, 0, 255).round().astype(np.uint8), masks


def _coverage(item: ShapeObject, polygons: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage of body, darker edge and soft shadow in [0, 1], float32 [H, W] each."""
    reach = int(math.ceil(item.radius * 1.15)) + 5
    left, top = int(math.floor(item.cx)) - reach, int(math.floor(item.cy)) - reach
    side = 2 * reach + 1
    turn = math.radians(item.angle)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    fine = Image.new("L", (side * _SUPERSAMPLING, side * _SUPERSAMPLING))
    draw = ImageDraw.Draw(fine)
    borders = []
    for value, polygon in zip((255, 0), polygons, strict=False):
        points = polygon * ((-1, 1) if item.mirrored else (1, 1))
        points = (points @ rotation * item.radius + (item.cx - left, item.cy - top)) * _SUPERSAMPLING
        borders.append([(float(x), float(y)) for x, y in points])
        draw.polygon(borders[-1], fill=value)
    inside = fine.copy()
    draw = ImageDraw.Draw(inside)
    for border in borders:
        draw.line([*border, border[0], border[1]], fill=0, width=2 * _SUPERSAMPLING, joint="curve")
    body, core = (part.resize((side, side), Image.Resampling.BOX) for part in (fine, inside))
    shadow = body.filter(ImageFilter.GaussianBlur(1.6))
    body_, core_, shadow_ = (np.asarray(part, dtype=np.float32) / 255 for part in (body, core, shadow))
    return (
        paste(body_, left, top),
        paste(body_ - core_, left, top),
        paste(shadow_, left + 1, top + 2),
    )


def paste(patch: np.ndarray, left: int, top: int) -> np.ndarray:
    """The patch on an empty canvas, cut at the borders."""
    canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    height, width = patch.shape
    y0, y1, x0, x1 = max(top, 0), min(top + height, IMAGE_SIZE), max(left, 0), min(left + width, IMAGE_SIZE)
    canvas[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    return canvas


def background(rng: np.random.Generator) -> np.ndarray:
    """A muted two-tone texture, float32 [H, W, 3] in [0, 255]."""
    ys, xs = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)
    kind = str(rng.choice(["cloud", "stripes", "checks", "dots", "waves", "planks"]))
    turn = float(rng.uniform(0, np.pi))
    across = xs * math.cos(turn) + ys * math.sin(turn)
    along = -xs * math.sin(turn) + ys * math.cos(turn)
    period = float(rng.uniform(12, 26))
    if kind == "stripes":
        blend = 0.5 + 0.5 * np.tanh(4 * np.sin(2 * np.pi * across / period))
    elif kind == "checks":
        blend = 0.5 + 0.5 * np.tanh(6 * np.sin(2 * np.pi * across / period) * np.sin(2 * np.pi * along / period))
    elif kind == "dots":
        wave = np.cos(2 * np.pi * across / period) + np.cos(2 * np.pi * along / period)
        blend = 0.5 + 0.5 * np.tanh(5 * (wave - 0.9))
    elif kind == "waves":
        blend = 0.5 + 0.5 * np.sin(2 * np.pi * (across + 4 * np.sin(2 * np.pi * along / 40)) / period)
    elif kind == "planks":
        board = np.floor(across / period)
        blend = 0.5 + 0.5 * np.sin(12.9898 * board + 4.1) * np.cos(along / 9 + 2.3 * board) ** 2
    else:
        blend = np.zeros_like(xs)
    blend = 0.7 * blend + 0.6 * (_noise(rng) - 0.5)
    light = float(rng.uniform(170, 225) if rng.random() < 0.7 else rng.uniform(60, 95))
    first = light + rng.uniform(-16, 16, size=3)
    second = first + rng.uniform(10, 22) * (1 if rng.random() < 0.5 else -1) + rng.uniform(-6, 6, size=3)
    return (first + blend[..., None] * (second - first)).astype(np.float32)


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in about [0, 1], float32 [H, W]: two octaves of enlarged random grids."""
    total = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for cells, weight in ((7, 0.65), (20, 0.35)):
        coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        fine = coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        total += weight * np.asarray(fine, dtype=np.float32)
    return total
