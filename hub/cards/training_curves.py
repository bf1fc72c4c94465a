# SPDX-License-Identifier: Apache-2.0
"""The curves of a training as one picture: loss and gIoU over the optimiser steps of all stages."""

import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageColor, ImageDraw, ImageFont

from ...trainer.report.charts import COLOURS
from ...trainer.report.panels import INK, PAPER, SOFT

CURVES_NAME = "training_curves.png"
SCALE = 2  # drawn larger, then reduced: smooth lines
WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 34, 44
GRID, BAND = (226, 229, 233), (246, 247, 249)
EVALUATED = {"simple": "eval_simple_gIoU", "complex": "eval_complex_gIoU"}

Points = list[tuple[float, float]]


def draw_curves(stages: Sequence[dict[str, Any]]) -> bytes | None:
    """The picture of a training record's stages, as PNG; None when nothing was logged.

    Args:
        stages: Entries with "stage", "steps" and "log" (see `trainer.training_record`).
    """
    starts, total = [], 0
    for stage in stages:
        starts.append(total)
        total += stage["steps"]
    loss = {stage["stage"]: _series(stage, "loss", start) for stage, start in zip(stages, starts, strict=True)}
    scores = {
        level: [point for stage, start in zip(stages, starts, strict=True) for point in _series(stage, key, start)]
        for level, key in EVALUATED.items()
    }
    panels = [("Training loss", {name: points for name, points in loss.items() if len(points) > 1}, None)]
    panels.append(
        ("gIoU on the evaluation data, %", {name: points for name, points in scores.items() if points}, 100.0)
    )
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    picture = Image.new("RGB", (WIDTH * len(panels) * SCALE, HEIGHT * SCALE), PAPER)
    named = [(stage["stage"], start) for stage, start in zip(stages, starts, strict=True)]
    for index, (title, lines, top) in enumerate(panels):
        _Panel(
            picture, index * WIDTH, total, top or _round_up(max(y for line in lines.values() for _, y in line))
        ).draw(title, lines, named)
    picture = picture.resize((picture.width // SCALE, picture.height // SCALE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _series(stage: dict[str, Any], key: str, start: int) -> Points:
    return [(start + entry["step"], entry[key]) for entry in stage["log"] if key in entry and "step" in entry]


class _Panel:
    """One diagram; coordinates are pixels of the final picture."""

    def __init__(self, picture: Image.Image, left: int, steps: int, top: float):
        self.pen = ImageDraw.Draw(picture)
        self.left, self.steps, self.top = left, max(1, steps), top

    def _place(self, step: float, value: float) -> tuple[float, float]:
        x = self.left + LEFT + step / self.steps * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - min(1.0, max(0.0, value / self.top)) * (HEIGHT - TOP - BOTTOM)
        return x * SCALE, y * SCALE

    def _text(self, x: float, y: float, text: str, size: int, fill, anchor: str) -> None:
        font = ImageFont.load_default(size * SCALE)
        self.pen.text((x * SCALE, y * SCALE), text, fill=fill, font=font, anchor=anchor)

    def draw(self, title: str, lines: dict[str, Points], stages: Sequence[tuple[str, int]]) -> None:
        """Axes, the stages as bands, the lines and their names."""
        ends = [start for _, start in stages[1:]] + [self.steps]
        for index, ((name, start), end) in enumerate(zip(stages, ends, strict=True)):
            (x0, y0), (x1, y1) = self._place(start, self.top), self._place(end, 0)
            self.pen.rectangle((x0, y0, x1, y1), fill=BAND if index % 2 else PAPER)
            self._text((x0 + x1) / 2 / SCALE, HEIGHT - BOTTOM + 22, name, 10, SOFT, "ma")
            self._text(x1 / SCALE, HEIGHT - BOTTOM + 6, f"{end:,}", 10, SOFT, "ra" if end == self.steps else "ma")
        for tick in range(5):
            value = self.top * tick / 4
            (x0, y), (x1, _) = self._place(0, value), self._place(self.steps, value)
            self.pen.line((x0, y, x1, y), fill=GRID, width=SCALE)
            self._text(x0 / SCALE - 6, y / SCALE, f"{value:g}", 10, SOFT, "rm")
        self._text(self.left + LEFT, 8, title, 13, INK, "la")
        right = self.left + WIDTH - RIGHT
        for index, (name, points) in reversed(list(enumerate(lines.items()))):
            colour = ImageColor.getrgb(COLOURS[index % len(COLOURS)])
            places = [self._place(*point) for point in points]
            if len(places) > 1:
                self.pen.line(places, fill=colour, width=2 * SCALE, joint="curve")
            for x, y in places if len(places) < 40 else ():
                self.pen.ellipse((x - 2 * SCALE, y - 2 * SCALE, x + 2 * SCALE, y + 2 * SCALE), fill=colour)
            self._text(right, 11, name, 10, colour, "ra")
            right -= self.pen.textlength(name, font=ImageFont.load_default(10 * SCALE)) / SCALE + 12


def _round_up(value: float) -> float:
    """The next number of one digit, and zeros, whose quarters are short."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 3, 4, 5, 6, 8, 10) if value <= factor * power * (1 + 1e-9))


__all__ = ["CURVES_NAME", "draw_curves"]
