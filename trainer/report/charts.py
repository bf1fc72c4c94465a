# SPDX-License-Identifier: Apache-2.0
"""The charts of a report as inline SVG: IoU histogram, precision over recall, bars per group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

COLOURS = ("#3d6fd9", "#e2792e", "#22a07a", "#b5489c", "#8a7a2d", "#5b6470")
WIDTH, HEIGHT = 560, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 42


def colour(index: int) -> str:
    """The colour of the system at this place in the table."""
    return COLOURS[index % len(COLOURS)]


def iou_histogram(ious: Mapping[str, np.ndarray], bins: int = 20) -> str:
    """Share of samples (percent) per IoU bin, systems side by side; IoUs in [0, 1], float [S] per system."""
    shares = {}
    for name, values in ious.items():
        counts, _ = np.histogram(np.clip(values, 0, 1), bins=bins, range=(0, 1))
        shares[name] = counts * 100 / max(1, len(values))
    top = _round_up(max(float(share.max()) for share in shares.values()))
    marks, slot = [], (WIDTH - LEFT - RIGHT) / bins
    for index, (name, share) in enumerate(shares.items()):
        width = (slot - 3) / len(shares)
        for place, value in enumerate(share):
            if value > 0:
                height = value / top * (HEIGHT - TOP - BOTTOM)
                x = LEFT + place * slot + 1.5 + index * width
                tip = f"{name}: {value:.1f} % of the samples have IoU {place / bins:.2f} to {(place + 1) / bins:.2f}"
                marks.append(_bar(x, HEIGHT - BOTTOM - height, width, height, colour(index), tip))
    ticks = [(value, f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    return _frame("".join(marks), "IoU", "% of samples", ticks, _percent_ticks(top, top), "IoU histogram")


def precision_recall(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Precision over recall at IoU .50; per system recall and precision, float [101] each, in [0, 1]."""
    lines = []
    for index, (name, (recall, precision)) in enumerate(curves.items()):
        reached = max(1, int((precision > 0).sum()))  # precision is 0 beyond the highest recall
        pairs = zip(recall[:reached], np.maximum(precision[:reached], 0), strict=True)
        points = " ".join(f"{_x(r):.1f},{_y(p):.1f}" for r, p in pairs)
        lines.append(
            f'<polyline points="{points}" fill="none" stroke="{colour(index)}" stroke-width="2.5" '
            f'stroke-linejoin="round"><title>{escape(name)}</title></polyline>'
        )
    ticks = [(value, f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    return _frame("".join(lines), "recall", "precision", ticks, ticks, "Precision over recall at IoU 0.5")


def group_bars(groups: Sequence[str], values: Mapping[str, Sequence[float | None]], label: str = "gIoU") -> str:
    """One bar per group and system, percent; None leaves a gap."""
    marks, slot = [], (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    width = min(46.0, (slot - 18) / max(1, len(values)))
    for index, (name, row) in enumerate(values.items()):
        for place, value in enumerate(row):
            if value is None:
                continue
            height = value / 100 * (HEIGHT - TOP - BOTTOM)
            x = LEFT + (place + 0.5) * slot + (index - len(values) / 2) * width
            y = HEIGHT - BOTTOM - height
            marks.append(_bar(x + 1, y, width - 2, height, colour(index), f"{name}, {groups[place]}: {value:.1f}"))
            if width >= 20:
                marks.append(
                    f'<text class="value" x="{x + width / 2:.1f}" y="{max(y - 4, 10):.1f}">{value:.0f}</text>'
                )
    ticks = [((place + 0.5) / max(1, len(groups)), name) for place, name in enumerate(groups)]
    return _frame("".join(marks), "", f"{label} %", ticks, _percent_ticks(100, 100), f"{label} per group")


def _frame(marks: str, x_label: str, y_label: str, x_ticks: list, y_ticks: list, title: str) -> str:
    grid = []
    for value, name in y_ticks:
        y = _y(value)
        grid.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
    for value, name in x_ticks:
        x = _x(value)
        grid.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{escape(name)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    labels = f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    turn = f"translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"
    labels += f'<text class="axis" transform="{turn}" text-anchor="middle">{escape(y_label)}</text>'
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return f"{head}{''.join(grid)}{marks}{labels}</svg>"


def _bar(x: float, y: float, width: float, height: float, fill: str, tip: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5" fill="{fill}">'
        f"<title>{escape(tip)}</title></rect>"
    )


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _round_up(value: float) -> float:
    return next(step for step in (5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0) if value <= step + 1e-9)


def _percent_ticks(top: float, scale: float) -> list[tuple[float, str]]:
    return [(share, f"{share * scale:g}") for share in (0, 0.25, 0.5, 0.75, 1)]
