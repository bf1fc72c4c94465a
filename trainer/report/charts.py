# SPDX-License-Identifier: Apache-2.0
"""The charts of a report: IoU histogram, precision over recall, gIoU over thresholds, bars per group."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ...processing.drawing.style import PALETTE

COLORS = tuple("#{:02x}{:02x}{:02x}".format(*color) for color in (PALETTE[6], PALETTE[5], PALETTE[2], *PALETTE[:2]))
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6e9",
    "axes.edgecolor": "#98a1ad",
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sam3i",  # the same picture twice is the same file
}
SIZE = (6.0, 3.0)  # inches


def color(index: int) -> str:
    """The color of the system at this place in the table."""
    return COLORS[index % len(COLORS)]


def iou_histogram(ious: Mapping[str, np.ndarray]) -> bytes:
    """Share of samples (percent) per IoU bin, systems side by side; IoUs in [0, 1], float [S] per system."""
    with rc_context(STYLE):
        figure, axes = _axes("IoU", "samples")
        values = [np.clip(values, 0, 1) for values in ious.values()]
        weights = [np.full(len(column), 100 / max(1, len(column))) for column in values]
        colors = [color(index) for index in range(len(ious))]
        axes.hist(values, bins=20, range=(0, 1), weights=weights, color=colors, label=list(ious))
        axes.yaxis.set_major_formatter(PercentFormatter())
        return _svg(figure, axes, len(ious) > 1)


def precision_recall(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Precision over recall at IoU .50; per system recall and precision, float [101] each, in [0, 1]."""
    with rc_context(STYLE):
        figure, axes = _axes("recall", "precision")
        for index, (name, (recall, precision)) in enumerate(curves.items()):
            reached = max(1, int((precision > 0).sum()))  # precision is 0 beyond the highest recall
            axes.plot(recall[:reached], np.maximum(precision[:reached], 0), color=color(index), label=name)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        return _svg(figure, axes, len(curves) > 1)


def threshold_curves(curves: Mapping[str, Mapping[float, float | None]], asked: float | None) -> bytes:
    """gIoU (percent) over the score threshold, a line per level; the asked threshold is marked."""
    with rc_context(STYLE):
        figure, axes = _axes("score threshold", "gIoU")
        for index, (name, curve) in enumerate(curves.items()):
            known = [(threshold, value) for threshold, value in curve.items() if value is not None]
            color_of_level = color(index + 2)  # no system's
            axes.plot(*zip(*known, strict=True), color=color_of_level, label=name, marker="o", markersize=3)
        if asked is not None:
            axes.axvline(asked, color="#6b7480", linestyle=":")
        axes.set(xlim=(0, 1), ylim=(0, 100))
        axes.yaxis.set_major_formatter(PercentFormatter())
        return _svg(figure, axes, True)


def group_bars(groups: Sequence[str], values: Mapping[str, Sequence[float | None]]) -> bytes:
    """One bar per group and system, percent; None leaves a gap."""
    with rc_context(STYLE):
        figure, axes = _axes("", "gIoU")
        width = min(0.3, 0.8 / max(1, len(values)))
        for index, (name, row) in enumerate(values.items()):
            places = np.arange(len(groups)) + (index - (len(values) - 1) / 2) * width
            heights = [0.0 if value is None else value for value in row]
            bars = axes.bar(places, heights, width * 0.94, color=color(index), label=name)
            texts = ["" if value is None else f"{value:.0f}" for value in row]
            axes.bar_label(bars, texts, padding=2, fontsize=8)
        axes.set_xticks(range(len(groups)), groups)
        axes.set(ylim=(0, 110), yticks=range(0, 101, 25))
        axes.yaxis.set_major_formatter(PercentFormatter())
        axes.grid(False, axis="x")
        return _svg(figure, axes, len(values) > 1)


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes


def _svg(figure: Figure, axes: Axes, legend: bool) -> bytes:
    if legend:
        for text in axes.legend(fontsize=8).get_texts():
            text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
