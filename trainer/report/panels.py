# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report: image with target beside image with each system's answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TARGET_COLOUR = (34, 160, 122)
TILE = 240  # pixels, the longer side of a picture
GAP = 6
PAPER, INK, SOFT = (255, 255, 255), (28, 32, 38), (110, 118, 128)


def draw_masks(image: Image.Image, masks: Sequence[np.ndarray], colour: tuple[int, int, int]) -> Image.Image:
    """The image, its unmasked part toned down, with N masks (bool [H, W]) filled and outlined."""
    factor = max(1, round(TILE / max(image.size)))  # small pictures are enlarged first, so that outlines stay thin
    image = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32)
    union = np.zeros(pixels.shape[:2], dtype=bool)
    edges = np.zeros_like(union)
    reach = max(1, round(1.5 * max(union.shape) / TILE))
    for mask in masks:
        mask = mask.repeat(factor, axis=0).repeat(factor, axis=1)
        union |= mask
        edges |= mask & ~_eroded(mask, reach)
    grey = pixels.mean(axis=2, keepdims=True)
    drawn = np.where(union[..., None], 0.5 * pixels + 0.5 * np.array(colour), 0.45 * pixels + 0.25 * grey + 0.3 * 255)
    drawn[edges] = colour
    return Image.fromarray(drawn.clip(0, 255).astype(np.uint8))


def panel(tiles: Sequence[tuple[str, Image.Image]], tile: int = TILE) -> Image.Image:
    """Pictures side by side, each under its title."""
    shown = [(title, _fit(picture, tile)) for title, picture in tiles]
    height = max(picture.height for _, picture in shown)
    canvas = Image.new("RGB", ((tile + GAP) * len(shown) - GAP, height + 20), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for index, (title, picture) in enumerate(shown):
        left = index * (tile + GAP)
        draw.text((left + 1, 2), _clip(draw, _printable(title), font, tile), fill=SOFT, font=font)
        canvas.paste(picture, (left + (tile - picture.width) // 2, 20))
    return canvas


def contact_sheet(title: str, panels: Sequence[tuple[str, Image.Image]], columns: int = 2) -> Image.Image:
    """A page of captioned panels with a title."""
    head, caption, margin = 44, 38, 18
    width = max(picture.width for _, picture in panels)
    height = max(picture.height for _, picture in panels) + caption
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (columns * (width + margin) + margin, head + rows * (height + margin) + margin)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((margin, 12), _printable(title), fill=INK, font=ImageFont.load_default(22))
    font = ImageFont.load_default(14)
    for index, (text, picture) in enumerate(panels):
        left = margin + index % columns * (width + margin)
        top = head + index // columns * (height + margin)
        canvas.paste(picture, (left, top))
        for line, part in enumerate(text.split("\n")[:2]):
            place = (left, top + picture.height + 2 + 17 * line)
            draw.text(place, _clip(draw, _printable(part), font, width), fill=INK if line == 0 else SOFT, font=font)
    return canvas


def _eroded(mask: np.ndarray, reach: int) -> np.ndarray:
    padded = np.pad(mask, reach)
    inner = mask.copy()
    for shift in range(1, reach + 1):
        for dy, dx in ((shift, 0), (-shift, 0), (0, shift), (0, -shift)):
            inner &= padded[reach + dy : reach + dy + mask.shape[0], reach + dx : reach + dx + mask.shape[1]]
    return inner


def _fit(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _clip(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


def _printable(text: str) -> str:
    """Text without control characters, at most as long as a caption can be."""
    return "".join(character if character.isprintable() else " " for character in text[:300])
