# SPDX-License-Identifier: Apache-2.0
"""The picture of a pair for the review page: as it is, and a layer with target and siblings to lay over it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from ...masks import decode_mask
from ..scene.record import picture_of_record
from ..scene.sources import open_picture
from .review import QueuedPair

LONGEST_SIDE = 1400  # pixels: larger pictures are made smaller for the page
LAYER_SIDE = 1000  # pixels: layers of smaller pictures are drawn at this size, so that outlines are smooth
TARGET, SIBLING, PICKED = (255, 46, 147), (34, 211, 238), (250, 204, 21)
_NUMBER_INK = (15, 18, 25)


def number_instances(item: QueuedPair) -> dict[int, int]:
    """Numbers, left to right, of what is marked (annotation id -> number): target, siblings, what a check picked."""
    target, noun = set(item.target["targets"]), item.target["noun"]
    named = target | picked_instances(item)
    for check in item.pair["checks"]:
        named |= set(_ids(check["evidence"].get("denotes")))
    shown = [
        entry
        for entry in item.picture["instances"]
        if entry["annotation_id"] in named or noun in (None, entry["noun"])
    ]
    shown.sort(key=lambda entry: (entry["box"][0] + entry["box"][2] / 2, entry["annotation_id"]))
    return {entry["annotation_id"]: number for number, entry in enumerate(shown, start=1)}


def picked_instances(item: QueuedPair) -> set[int]:
    """What the second model took the instruction to mean, where it answered."""
    return {
        i for check in item.pair["checks"] if check["check"] == "checker" for i in _ids(check["evidence"].get("found"))
    }


def picture_html(item: QueuedPair, folder: Any, numbers: Mapping[int, int]) -> str:
    """The picture with its layer; both are data, so that the page has nothing to fetch.

    Args:
        item: the pair.
        folder: of the run.
        numbers: see [`number_instances`].

    Raises:
        OSError, ValueError: the picture cannot be read.
    """
    picture = open_picture(picture_of_record(item.picture, folder), f"picture {item.picture['image_id']}")
    layer = marked_layer(item, numbers)
    width, height = picture.size
    if max(picture.size) > LONGEST_SIDE:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    style = f"aspect-ratio:{width}/{height};--ratio:{width / height:.4f}"
    kept = "PNG" if picture.width * picture.height <= 400_000 else "JPEG"
    return (
        f'<div class="stage"><div class="picture" style="{style}">'
        f'<img src="{_data_url(picture, kept)}" alt="the picture">'
        f'<img class="layer" src="{_data_url(layer, "PNG")}" alt="target and siblings"></div></div>'
    )


def marked_layer(item: QueuedPair, numbers: Mapping[int, int]) -> Image.Image:
    """RGBA: the target filled and outlined, siblings outlined, what the second model picked outlined once more."""
    width, height = item.picture["width"], item.picture["height"]
    scale = min(LONGEST_SIDE / max(width, height), max(1.0, LAYER_SIDE / max(width, height)))
    layer = Image.new("RGBA", (round(width * scale), round(height * scale)), (0, 0, 0, 0))
    line = max(3, round(max(layer.size) / 260))
    target, picked = set(item.target["targets"]), picked_instances(item)
    entries = [entry for entry in item.picture["instances"] if entry["annotation_id"] in numbers]
    for entry in sorted(entries, key=lambda entry: entry["annotation_id"] in target):
        is_target = entry["annotation_id"] in target
        mask, place = _enlarged(entry, scale, 4 * line)
        if is_target:
            _paint(layer, mask, place, (*TARGET, 62))
        _paint(layer, _edge(mask, line + 2), place, (10, 12, 18, 150))
        _paint(layer, _edge(mask, line), place, (*(TARGET if is_target else SIBLING), 255))
        if entry["annotation_id"] in picked:
            _paint(layer, _edge(_grown(mask, 2 * line), line), place, (*PICKED, 255))
    draw, font = ImageDraw.Draw(layer), ImageFont.load_default(max(15, round(max(layer.size) / 36)))
    for entry in entries:
        x, y, w, h = (value * scale for value in entry["box"])
        _tag(
            draw, (x + w / 2, y + h / 2), str(numbers[entry["annotation_id"]]), font, entry["annotation_id"] in target
        )
    return layer


def _tag(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, font: Any, is_target: bool) -> None:
    left, top, right, bottom = draw.textbbox(place, text, font=font, anchor="mm")
    radius = max(right - left, bottom - top) / 2 + 6
    box = (place[0] - radius, place[1] - radius, place[0] + radius, place[1] + radius)
    draw.ellipse(box, fill=(*(TARGET if is_target else SIBLING), 255), outline=(10, 12, 18, 200), width=2)
    draw.text(place, text, font=font, anchor="mm", fill=(255, 255, 255) if is_target else _NUMBER_INK)


def _enlarged(entry: Mapping[str, Any], scale: float, margin: int) -> tuple[Image.Image, tuple[int, int]]:
    """An instance's mask at the size of the layer, cut out with a margin and without its steps, and where it lies."""
    x, y, w, h = entry["box"]
    around = math.ceil(margin / scale)
    left, top = math.floor(x) - around, math.floor(y) - around
    cut = (left, top, math.ceil(x + w) + around, math.ceil(y + h) + around)
    mask = Image.fromarray(decode_mask(entry["mask"])).convert("L").crop(cut)
    size = max(1, round(mask.width * scale)), max(1, round(mask.height * scale))
    enlarged = mask.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(0.7 * max(1.0, scale)))
    return enlarged.point([0] * 128 + [255] * 128), (round(left * scale), round(top * scale))


def _grown(mask: Image.Image, pixels: int) -> Image.Image:
    """The mask with about so many pixels more on every side: one deviation of a blur away, 16 % of it is left."""
    return mask.filter(ImageFilter.GaussianBlur(pixels)).point([0] * 40 + [255] * 216)


def _edge(mask: Image.Image, pixels: int) -> Image.Image:
    """A band of so many pixels around a mask, softened."""
    return ImageChops.subtract(_grown(mask, pixels), mask).filter(ImageFilter.GaussianBlur(0.8))


def _paint(layer: Image.Image, mask: Image.Image, place: tuple[int, int], colour: tuple[int, int, int, int]) -> None:
    """Lay a colour over the part of a layer that a mask covers; the mask may reach past the layer."""
    paint = Image.new("RGBA", mask.size, colour[:3] + (0,))
    paint.putalpha(mask.point([value * colour[3] // 255 for value in range(256)]))
    outside = max(0, -place[0]), max(0, -place[1])
    layer.alpha_composite(paint, (max(0, place[0]), max(0, place[1])), outside)


def _data_url(picture: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    options = {"quality": 90} if kind == "JPEG" else {"compress_level": 3}
    picture.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _ids(value: Any) -> list[int]:
    return [item for item in value if isinstance(item, int)] if isinstance(value, list) else []
