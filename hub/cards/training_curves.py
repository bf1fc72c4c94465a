# SPDX-License-Identifier: Apache-2.0
"""The curves of a training as one picture: loss and gIoU over the optimizer steps of all stages."""

import io
from collections.abc import Sequence
from typing import Any

from ...trainer.report.charts import COLORS, STYLE

CURVES_NAME = "training_curves.png"
PANEL_SIZE = (4.6, 2.8)  # inches
DPI = 150
EVALUATED = {"simple": "eval_simple_gIoU", "complex": "eval_complex_gIoU"}

Points = list[tuple[float, float]]


def draw_curves(stages: Sequence[dict[str, Any]]) -> bytes | None:
    """The picture of a training record's stages, as PNG; None when nothing was logged."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    starts, total = [], 0
    for stage in stages:
        starts.append(total)
        total += stage["steps"]
    placed = list(zip(stages, starts, strict=True))
    loss = {stage["stage"]: _series(stage, "loss", start) for stage, start in placed}
    scores = {
        level: [point for stage, start in placed for point in _series(stage, key, start)]
        for level, key in EVALUATED.items()
    }
    panels = [
        ("Training loss", {name: points for name, points in loss.items() if len(points) > 1}, None),
        ("gIoU on the evaluation data, %", {name: points for name, points in scores.items() if points}, 100.0),
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    with rc_context(STYLE):
        width, height = PANEL_SIZE
        figure = Figure(figsize=(width * len(panels), height), dpi=DPI, layout="constrained")
        for axes, (title, lines, top) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for index, (name, points) in enumerate(lines.items()):
                marker = "o" if len(points) < 40 else None
                axes.plot(*zip(*points, strict=True), label=name, color=COLORS[index], marker=marker, markersize=3)
            for stage, start in placed:
                axes.axvline(start, color="#98a1ad", linewidth=0.8, linestyle=":")
                axes.text(start, 1, f" {stage['stage']}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
            axes.set(title=title, xlabel="optimizer steps", xlim=(0, max(1, total)), ylim=(0, top))
            axes.legend(fontsize=8, loc="lower right" if top else "center right")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _series(stage: dict[str, Any], key: str, start: int) -> Points:
    return [(start + entry["step"], entry[key]) for entry in stage["log"] if key in entry and "step" in entry]
