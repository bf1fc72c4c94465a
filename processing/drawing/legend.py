# SPDX-License-Identifier: Apache-2.0
"""The strip under a picture of results: which instruction, at which level, found how many instances."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

LEVEL_COLOURS = {"concept": (96, 125, 155), "simple": (46, 150, 96), "complex": (138, 92, 206)}
BACKGROUND = (22, 24, 29)
TEXT = (238, 240, 244)
FAINT = (150, 156, 168)


class PictureScale:
    """Line widths and fonts in proportion to the picture."""

    def __init__(self, size: tuple[int, int]):
        side = math.sqrt(size[0] * size[1]) * 0.5 + max(size) * 0.5
        self.line = max(1.5, side / 380)
        self.box_line = max(1, round(side / 700))
        self.font = self._font(max(11, side / 46))
        self.tag_font = self._font(max(11, side / 54))
        self.gap = max(3, round(side / 110))
        self.line_height = math.ceil((self.font.getbbox("Ag")[3] - self.font.getbbox("Ag")[1]) * 1.42)

    @staticmethod
    def _font(size: float) -> ImageFont.FreeTypeFont:
        return ImageFont.load_default(round(size))


def _ink_on(colour: Sequence[int]) -> tuple[int, int, int]:
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (16, 18, 22) if luminance > 140 else (255, 255, 255)


def draw_pill(text: str, font: ImageFont.FreeTypeFont, fill: Sequence[int], padding: float) -> Image.Image:
    """A rounded label, drawn large and reduced so that its corners are smooth."""
    left, top, right, bottom = font.getbbox("0Ag")
    text_width = font.getlength(text)
    width, height = math.ceil(text_width + 2 * padding), math.ceil(bottom - top + 1.1 * padding)
    shape = Image.new("L", (width * 4, height * 4), 0)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, width * 4 - 1, height * 4 - 1), radius=height * 1.3, fill=255)
    pill = Image.new("RGBA", (width, height), (*fill, 255))
    pill.putalpha(shape.resize((width, height), Image.Resampling.LANCZOS))
    ImageDraw.Draw(pill).text((width / 2, height / 2), text, font=font, fill=_ink_on(fill), anchor="mm")
    return pill


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, most_lines: int = 4) -> list[str]:
    """Break text at words, and words where they must; end with an ellipsis when it does not fit."""
    lines, line = [], ""
    for word in text.split():
        while font.getlength(word) > width and len(word) > 1:
            cut = next((n for n in range(len(word) - 1, 0, -1) if font.getlength(word[:n]) <= width), 1)
            lines += [line, word[:cut]] if line else [word[:cut]]
            line, word = "", word[cut:]
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width or not line:
            line = longer
        else:
            lines.append(line)
            line = word
    lines.append(line)
    if len(lines) > most_lines:
        last = lines[most_lines - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: most_lines - 1], last.rstrip() + "..."]
    return lines


def _dot(image: Image.Image, x: float, y: float, radius: float, colour: Sequence[int]) -> None:
    side = math.ceil(radius * 2)
    shape = Image.new("L", (side * 4, side * 4), 0)
    ImageDraw.Draw(shape).ellipse((0, 0, side * 4 - 1, side * 4 - 1), fill=255)
    shape = shape.resize((side, side), Image.Resampling.LANCZOS)
    image.paste(tuple(colour), (round(x - radius), round(y - radius)), shape)


@dataclass
class _Entry:
    """One instruction of the legend, measured."""

    lines: list[str]
    pill: Image.Image | None
    count: str
    shades: list[Colour]
    text_left: int
    below: bool
    height: int


def _measure(width: int, text: str, level: str | None, own: list[Colour], dots: int, scale: PictureScale) -> _Entry:
    gap, line_height = scale.gap, scale.line_height
    pill = draw_pill(level, scale.tag_font, LEVEL_COLOURS[level], gap * 0.9) if level else None
    count = f"{len(own)} found" if own else "nothing found"
    shades = (own or [FAINT])[:dots]
    text_left = 3 * gap + round(len(shades) * line_height * 0.72)
    right = math.ceil(scale.tag_font.getlength(count)) + 2 * gap + (pill.width + gap if pill else 0)
    below = width - text_left - right - gap < 10 * scale.font.size  # too narrow for text and pill side by side
    lines = _wrap(text, scale.font, width - text_left - (2 * gap if below else right + gap))
    height = line_height * len(lines) + (round(line_height * 1.25) if below else 0)
    return _Entry(lines, pill, count, shades, text_left, below, height)


def draw_legend(
    width: int,
    colours: list[list[Colour]],
    captions: list[tuple[str, str | None]],
    title: str | None,
    scale: PictureScale,
) -> Image.Image:
    """Draw the strip.

    Args:
        width (`int`): Of the picture above, in pixels.
        colours: For each instruction the colours of its instances.
        captions: For each instruction its text and its level, where known.
        title (`str`, *optional*): A line above the instructions.
        scale ([`PictureScale`]): Of the picture above.
    """
    gap, line_height = scale.gap, scale.line_height
    dots = 5 if len(colours) == 1 else 1  # several instructions have one colour each
    titles = _wrap(title, scale.font, width - 4 * gap) if title else []
    entries = [
        _measure(width, text, level, own, dots, scale) for (text, level), own in zip(captions, colours, strict=True)
    ]
    title_height = line_height * len(titles) + gap if titles else 0
    height = 2 * gap + title_height + sum(entry.height + gap for entry in entries) + gap // 2
    strip = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(strip)

    def write(lines: list[str], x: float, y: float) -> None:
        for index, line in enumerate(lines):
            draw.text((x, y + line_height * (index + 0.5)), line, font=scale.font, fill=TEXT, anchor="lm")

    write(titles, 2 * gap, 2 * gap)
    y = 2 * gap + title_height
    for entry in entries:
        radius = line_height * 0.27
        for index, colour in enumerate(entry.shades):
            _dot(strip, 2 * gap + radius + index * line_height * 0.72, y + line_height / 2, radius, colour)
        write(entry.lines, entry.text_left, y)
        middle = y + line_height * (len(entry.lines) + 0.65 if entry.below else 0.5)
        pill_width = entry.pill.width if entry.pill else 0
        x = entry.text_left if entry.below else width - 2 * gap - pill_width
        if entry.pill:
            strip.paste(entry.pill, (round(x), round(middle - entry.pill.height / 2)), entry.pill)
        space = gap if entry.pill else 0
        x, anchor = (x + pill_width + space, "lm") if entry.below else (x - space, "rm")
        draw.text((x, middle), entry.count, font=scale.tag_font, fill=FAINT, anchor=anchor)
        y += entry.height + gap
    return strip


__all__ = ["BACKGROUND", "LEVEL_COLOURS", "PictureScale", "draw_legend", "draw_pill"]
