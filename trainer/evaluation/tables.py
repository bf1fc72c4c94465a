# SPDX-License-Identifier: Apache-2.0
"""Results as tables of text, the same for the terminal and the report, beside figures that were published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import EvaluationResult

UNLISTED = ("n", "failures", "gIoU-nothing")  # no figures of their own columns
COMPACT = ("gIoU", "AP50", "count_ratio", "exact", "n")
TITLES = {"kind": "kind of target", "size": "size of target"}
COSTS = {
    "seconds": "s/instruction",
    "passes": "passes",
    "vision_passes": "vision passes",
    "calls": "chat calls",
    "tokens": "tokens",
    "failures": "unusable replies",
}


@dataclass(frozen=True)
class PublishedFigures:
    """gIoU and P@0.5 in percent of one system on one data set; `kind` None stands for all kinds of target."""

    system: str
    dataset: str
    level: str | None
    kind: str | None
    giou: float
    p50: float


SOURCE = "SAM3-I (arXiv 2512.04585), the authors' protocol"
PROTOCOLS_OF_THE_AUTHORS = ("sam3i-1to1", "sam3i-multi")

_HMPL = "hmpl-instruct"
ALIASES = {"sam3ival": "hmplinstruct"}  # rows of the authors' file are named after it
PUBLISHED = (
    PublishedFigures("SAM3", _HMPL, "concept", None, 29.5, 31.9),
    PublishedFigures("SAM3-I", _HMPL, "concept", None, 29.5, 31.9),
    PublishedFigures("SAM3+Agent (Qwen3-VL-8B)", _HMPL, "simple", None, 28.4, 28.9),
    PublishedFigures("SAM3-I", _HMPL, "simple", None, 59.7, 65.3),
    PublishedFigures("SAM3-I", _HMPL, "simple", "1-to-1", 60.8, 66.7),
    PublishedFigures("SAM3-I", _HMPL, "simple", "1-to-N", 48.9, 50.0),
    PublishedFigures("SAM3-I", _HMPL, "simple", "1-to-all", 60.9, 67.8),
    PublishedFigures("SAM3+Agent (Qwen3-VL-8B)", _HMPL, "complex", None, 26.4, 27.4),
    PublishedFigures("SAM3-I", _HMPL, "complex", None, 49.0, 51.0),
    PublishedFigures("SAM3-I", _HMPL, "complex", "1-to-1", 48.1, 49.6),
    PublishedFigures("SAM3-I", _HMPL, "complex", "1-to-N", 39.9, 39.5),
    PublishedFigures("SAM3-I", _HMPL, "complex", "1-to-all", 54.7, 58.7),
    PublishedFigures("SAM3-I", "refcoco", None, None, 76.3, 85.5),
    PublishedFigures("SAM3-I", "ref-zom", None, None, 73.6, 80.0),
)


def published_for(protocol: str, datasets: Sequence[str], level: str | None) -> list[PublishedFigures]:
    """The published figures that may stand beside a run: the authors' protocol, a data set they report, its level."""
    if protocol not in PROTOCOLS_OF_THE_AUTHORS or len(datasets) != 1:
        return []
    name = ALIASES.get(_plain(datasets[0]), _plain(datasets[0]))
    levels = ("concept", "simple", "complex") if level in (None, "auto") else (level,)
    return [
        figures
        for figures in PUBLISHED
        if _plain(figures.dataset) == name and (figures.level is None or figures.level in levels)
    ]


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum() or character == "+")


@dataclass
class Table:
    """Rows of text under a title; the first cell names the row."""

    title: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    # for each row the place of its system among the results; None for figures from elsewhere
    systems: list[int | None] = field(default_factory=list)

    def add(self, system: int | None, *cells: str) -> None:
        """Adds a row."""
        self.rows.append(list(cells))
        self.systems.append(system)

    def best(self, row: int, column: int) -> bool:
        """Whether a cell holds the highest figure among the systems (of a table of scores); ratios have no highest."""
        if self.head[column] == "count_ratio":
            return False
        own = [cells[column] for cells, system in zip(self.rows, self.systems, strict=True) if system is not None]
        known = [float(cell) for cell in own if cell not in ("", "-")]
        cell = self.rows[row][column]
        return len(own) > 1 and self.systems[row] is not None and cell not in ("", "-") and float(cell) == max(known)

    def __str__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        cells = [
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
            for line in lines
        ]
        return "\n".join("  ".join(line).rstrip() for line in cells)


def format_results(results: Sequence[EvaluationResult]) -> str:
    """Everything for a terminal: protocol, what was left out or failed, tables of accuracy and cost."""
    first = results[0]
    parts = [f"Protocol {first.protocol_statement}", *notes(results), str(score_table(results))]
    if published_for(first.protocol, first.datasets, first.level):
        parts.append(f"Published: {SOURCE}.")
    tables = [*threshold_tables(results), *group_tables(results, compact=True), *cost_tables(results)]
    return "\n\n".join([*parts, *(f"{table.title}\n{table}" for table in tables)])


def notes(results: Sequence[EvaluationResult]) -> list[str]:
    """Sentences on what stands behind the figures: rows left out, failures, settings that were changed, levels."""
    lines = []
    first = results[0]
    if first.left_out:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(first.left_out.items()))
        lines.append(f"Left out, not evaluated: {reasons}.")
    for result in results:
        if result.errors:
            lines.append(
                f"{result.system}: {result.errors:,} of {result.instructions:,} instructions without an answer, each "
                f"scored as wrong. The first error: {result.first_error}"
            )
        if result.changed:
            lines.append(f"{result.system}: not all predictions were made with the same {', '.join(result.changed)}.")
        if result.level_accuracy is not None:
            lines.append(
                f"{result.system}: level chosen correctly in {result.level_accuracy:.1f} % of the instructions."
            )
    return lines


def score_table(results: Sequence[EvaluationResult]) -> Table:
    """Figures of the systems, of answering nothing, and those published for the same protocol and data."""
    first = results[0]
    names = [name for name in first.figures if name not in UNLISTED]
    above = {result.threshold for result in results if result.threshold is not None}
    title = f"Scores, instances above {', '.join(f'{value:g}' for value in sorted(above))}" if above else "Scores"
    table = Table(title, ["system", *names, "n"])
    for index, result in enumerate(results):
        table.add(index, result.system, *figure_cells(result.figures, names), f"{result.figures['n']:,}")
    nothing = [figure(first.figures["gIoU-nothing"]) if name == "gIoU" else "" for name in names]
    table.add(None, "answering nothing", *nothing, "")
    for published in published_for(first.protocol, first.datasets, first.level):
        name = " ".join(filter(None, (published.system, published.level, published.kind, "(published)")))
        known = {"gIoU": published.giou, "P@0.5": published.p50}
        table.add(None, name, *(figure(known[key]) if key in known else "" for key in names), "")
    return table


def threshold_tables(results: Sequence[EvaluationResult]) -> list[Table]:
    """What each level scores at its best threshold beside the asked one, and how calibrated its scores are."""
    names = COMPACT[:-1]
    table = Table("Best threshold per level", ["system, level", "threshold", *names, "gIoU asked", "ECE %"])
    for index, result in enumerate(results):
        for level, entry in result.thresholds.items():
            asked = result.breakdown["level"].get(level, {}).get("gIoU")
            cells = [f"{entry['best']:g}", *figure_cells(entry["figures"], names), figure(asked)]
            table.add(index, f"{result.system}, {level or 'any'}", *cells, figure(entry["calibration_error"]))
    return [table] if table.rows else []


def group_tables(results: Sequence[EvaluationResult], *, compact: bool = False) -> list[Table]:
    """Figures per level, kind and size of target; the compact ones only where there is more than one group."""
    tables = []
    for name, groups in results[0].breakdown.items():
        columns = [key for key in results[0].figures if key in COMPACT or (not compact and key not in UNLISTED)]
        title = f"Per {TITLES.get(name, name)}"
        table = Table(title, [f"{TITLES.get(name, name)}, system", *columns])
        for group in groups:
            for index, result in enumerate(results):
                if group in result.breakdown[name]:
                    cells = figure_cells(result.breakdown[name][group], columns)
                    table.add(index, f"{group}, {result.system}", *cells)
        if len(groups) > (1 if compact else 0):
            tables.append(table)
    return tables


def cost_tables(results: Sequence[EvaluationResult]) -> list[Table]:
    """What an instruction costs; empty for files of predictions, which do not tell."""
    if not any(result.cost for result in results):
        return []
    always = ("seconds", "passes", "vision_passes")
    used = [name for name in COSTS if name in always or any(result.cost.get(name) for result in results)]
    head = ["system", *(COSTS[name] for name in used), "parameters", "without answer"]
    table = Table("Cost, mean per instruction", head)
    for index, result in enumerate(results):
        cells = [f"{result.cost.get(name, 0):.3g}" for name in used]
        table.add(index, result.system, *cells, format_count(result.parameters), f"{result.errors:,}")
    return [table]


def figure_cells(figures: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Figures as cells of a table."""
    return [f"{figures[name]:,}" if name in ("n", "failures") else figure(figures.get(name)) for name in names]


def figure(value: float | None) -> str:
    """A figure with two digits, a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def format_count(number: int | None) -> str:
    """A count of parameters for people: 840.4 M, 12.3 k, 7, unknown."""
    if number is None:
        return "unknown"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:,.1f}{unit}"
    return str(number)
