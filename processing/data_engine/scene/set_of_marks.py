# SPDX-License-Identifier: Apache-2.0
"""Set-of-mark prompting: images with the target outlined, or with numbered instances, for chat models to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from PIL import Image

from ...drawing.instances import draw_masks
from .scene import AnnotatedScene

TARGET_COLOR, SIBLING_COLOR = ("magenta", (255, 0, 255)), ("cyan", (0, 255, 255))
SHORTER_SIDE = 336  # pixels: smaller pictures are enlarged, so that outlines and numbers can be read


def enlarge(picture: Image.Image) -> Image.Image:
    """The picture, at least `SHORTER_SIDE` pixels high and wide."""
    return draw_masks(picture, (), side=_longest_side(picture))


def mark_target(scene: AnnotatedScene, targets: Iterable[int], siblings: Iterable[int]) -> Image.Image:
    """The picture with target and siblings (annotation ids) outlined in their colors."""
    colors = dict.fromkeys(targets, TARGET_COLOR[1]) | dict.fromkeys(siblings, SIBLING_COLOR[1])
    return _draw(scene, colors, colors=list(colors.values()))


def mark_numbers(scene: AnnotatedScene, numbers: Mapping[int, int]) -> Image.Image:
    """The picture with every instance of `numbers` (annotation id -> number) outlined, its number on it."""
    white, tags = [(255, 255, 255)] * len(numbers), [str(number) for number in numbers.values()]
    return _draw(scene, numbers, colors=white, tags=tags, tags_inside=True)


def _draw(scene: AnnotatedScene, ids: Iterable[int], **style: object) -> Image.Image:
    picture = scene.open_image()
    masks = [scene.by_id[number].pixels() for number in ids]
    return draw_masks(picture, masks, dim=False, side=_longest_side(picture), **style)  # type: ignore[arg-type]


def _longest_side(picture: Image.Image) -> int:
    return round(max(picture.size) * max(1.0, SHORTER_SIDE / min(picture.size)))
