# SPDX-License-Identifier: Apache-2.0
"""What all pictures share: colors that color-blind readers tell apart, readable sizes, tags, text and legend."""

import importlib.util
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

PALETTE: tuple[Color, ...] = (
    (86, 180, 233),  # sky blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (213, 94, 0),  # vermilion
    (0, 114, 178),  # blue
)
"""Okabe and Ito's colors (2008); further instances begin again, so pictures number what has to be told apart."""
TRUTH, PREDICTION = PALETTE[2], PALETTE[1]
POSITIVE, NEGATIVE = PALETTE[2], PALETTE[5]
LEVEL_COLORS: dict[str, Color] = {"concept": (96, 125, 155), "simple": (46, 150, 96), "complex": (138, 92, 206)}
BACKGROUND: Color = (22, 24, 29)
TEXT: Color = (238, 240, 244)
FAINT: Color = (165, 171, 182)

SMALLEST_FONT = 14  # pixels; pictures are made at the size they are shown at, so this is what a reader sees
_MOST_LINES = 4


@cache
def load_font(size: float) -> ImageFont.FreeTypeFont:
    """A sans-serif font with Latin, Greek and Cyrillic letters: matplotlib's, else Pillow's."""
    spec = importlib.util.find_spec("matplotlib")
    places = (spec.submodule_search_locations if spec else None) or []
    path = Path(places[0]) / "mpl-data/fonts/ttf/DejaVuSans.ttf" if places else Path()
    font = ImageFont.truetype(path, round(size)) if path.is_file() else ImageFont.load_default(round(size))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


class PictureScale:
    """Line widths and fonts in proportion to a picture of `size` (width, height)."""

    def __init__(self, size: tuple[int, int]):
        side = math.sqrt(size[0] * size[1]) * 0.5 + max(size) * 0.5
        self.line = max(1.8, side / 340)
        self.font = load_font(max(SMALLEST_FONT, side / 50))
        self.tag_font = load_font(max(SMALLEST_FONT, side / 62))
        self.gap = max(4, round(side / 110))
        self.line_height = math.ceil((self.font.getbbox("Ag")[3] - self.font.getbbox("Ag")[1]) * 1.42)


def _ink_on(color: Sequence[int]) -> Color:
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (16, 18, 22) if luminance > 125 else (255, 255, 255)


def draw_tag(text: str, font: ImageFont.FreeTypeFont, fill: Color, padding: float) -> Image.Image:
    """A rounded label with a dark rim, drawn large and reduced so that its corners are smooth."""
    _, top, _, bottom = font.getbbox("0Ag")
    width, height = math.ceil(font.getlength(text) + 2 * padding), math.ceil(bottom - top + 1.1 * padding)
    width = max(width, height)
    large = Image.new("RGBA", (width * 4, height * 4), (*BACKGROUND, 0))
    corners = (2, 2, width * 4 - 3, height * 4 - 3)
    ImageDraw.Draw(large).rounded_rectangle(corners, height * 1.3, fill=(*fill, 255), outline=BACKGROUND, width=4)
    tag = large.resize((width, height), Image.Resampling.LANCZOS)
    ImageDraw.Draw(tag).text((width / 2, height / 2), text, font=font, fill=_ink_on(fill), anchor="mm")
    return tag


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text on one line, cut with an ellipsis where it is too long."""
    text = " ".join(text[:1000].split())
    if font.getlength(text) <= width:
        return text
    return text[: _fitting(text, font, width - font.getlength("..."))].rstrip() + "..."


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: float, most_lines: int = _MOST_LINES) -> list[str]:
    """Break text at words, and words where they must; end with an ellipsis when it does not fit."""
    rest = " ".join(text[:2000].split())
    lines: list[str] = []
    while rest and len(lines) < most_lines - 1:
        count = _fitting(rest, font, width)
        if count < len(rest):
            count = max(rest.rfind(" ", 0, count + 1), 0) or count
        lines.append(rest[:count])
        rest = rest[count:].lstrip()
    return [*lines, fit_text(rest, font, width)] if rest or not lines else lines


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many characters fit, at least one."""
    return max(1, bisect_right(range(1, len(text) + 1), width, key=lambda count: font.getlength(text[:count])))


@dataclass
class LegendEntry:
    """One instruction of the legend."""

    text: str
    level: str | None  # that it followed, where known
    found: str  # in words
    dots: list[tuple[Color, str]]  # color and text of the dots before it


def draw_legend(width: int, entries: Sequence[LegendEntry], title: str | None, scale: PictureScale) -> Image.Image:
    """The strip under a picture of `width` pixels: which instruction, at which level, found what."""
    gap, line = scale.gap, scale.line_height
    left, room = 2 * gap, width - 4 * gap
    blocks = []  # (image of dots or None, lines, tag or None, words)
    for entry in entries:
        dots = [draw_tag(text, scale.tag_font, color, gap * 0.5) for color, text in entry.dots]
        indent = sum(dot.width + gap // 2 for dot in dots) + gap // 2
        tag = draw_tag(entry.level, scale.tag_font, LEVEL_COLORS[entry.level], gap) if entry.level else None
        blocks.append((dots, wrap_text(entry.text, scale.font, room - indent), tag, entry.found, indent))
    titles = wrap_text(title, scale.font, room) if title else []
    height = 2 * gap + line * (len(titles) + sum(len(block[1]) + 1 for block in blocks)) + gap * len(blocks)
    strip = Image.new("RGB", (width, height), BACKGROUND)
    draw, y = ImageDraw.Draw(strip), gap

    def write(text: str, x: float, color: Color, font: ImageFont.FreeTypeFont) -> None:
        draw.text((x, y + line / 2), text, font=font, fill=color, anchor="lm")

    for text in titles:
        write(text, left, TEXT, scale.font)
        y += line
    for dots, lines, tag, found, indent in blocks:
        y += gap // 2
        x = left
        for dot in dots:
            strip.paste(dot, (x, round(y + line / 2 - dot.height / 2)), dot)
            x += dot.width + gap // 2
        for text in lines:
            write(text, left + indent, TEXT, scale.font)
            y += line
        x = left + indent
        if tag:
            strip.paste(tag, (x, round(y + line / 2 - tag.height / 2)), tag)
            x += tag.width + gap
        write(fit_text(found, scale.tag_font, width - x - gap), x, FAINT, scale.tag_font)
        y += line + gap // 2
    return strip
