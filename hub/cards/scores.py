# SPDX-License-Identifier: Apache-2.0
"""Scores for a model card: what `sam3i evaluate --json` printed, kept beside the weights as `evaluation.json`."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ...processing.atomic import write_whole
from .text import plain_text

SCORES_NAME = "evaluation.json"
TASK = "image-segmentation"
REPORTED = ("gIoU", "cIoU", "P@0.5", "AP50", "count_ratio", "exact", "N-acc")
RATIOS = ("count_ratio",)  # the others are percent
_FIGURE = re.compile(r"gIoU(-nothing)?|cIoU|P@0\.\d|AP(50)?|count_ratio|exact|[NT]-acc|Acc|n")


class ScoresFileError(ValueError):
    """A file of scores that cannot be read."""


@dataclass
class Scores:
    """What one system scored under one protocol, in percent."""

    system: str
    own: bool  # whether it is the model of the card, not a baseline
    protocol: str
    statement: str  # what the protocol does
    level: str | None  # that was asked at; None each instruction at its own, "auto" as the system chose
    figures: dict[str, float | None]  # over all instructions
    levels: dict[str, dict[str, float | None]]  # by level of the instruction
    kinds: dict[str, dict[str, float | None]]  # by kind of target
    instructions: int
    images: int
    datasets: list[str]
    level_accuracy: float | None = None  # with "auto", percent of the instructions whose level was chosen rightly
    threshold: float | None = None  # score that an instance had to exceed; None where it is not known
    best_thresholds: dict[str, dict[str, float]] = field(default_factory=dict)  # of highest gIoU, per level
    failures: int = 0  # instructions without an answer, scored as wrong

    @property
    def setting(self) -> tuple[str, str, int, str, float]:
        """What scores must share to stand in one table."""
        datasets, threshold = ", ".join(self.datasets), -1.0 if self.threshold is None else self.threshold
        return datasets, self.protocol, self.instructions, self.level or "", threshold


def read_scores(path: str | Path) -> list[Scores]:
    """Scores from a file: `sam3i evaluate --json`, or `evaluation.json` beside a model.

    Raises:
        ScoresFileError: when the file is neither.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if "results" in content:
            return [Scores(**entry) for entry in content["results"]]
        systems = content.get("systems") or {content["system"]: content}
        return [_from_evaluation(values, index == 0) for index, values in enumerate(systems.values())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoresFileError(
            f"Expected scores as `sam3i evaluate --model ... --json` prints them in {path}, found {error!r}."
        ) from error


def _from_evaluation(values: dict[str, Any], own: bool) -> Scores:
    named = {item.name: values[item.name] for item in fields(Scores) if item.name in values}
    named["failures"] = values.get("errors", 0)
    named["best_thresholds"] = {
        level: {"threshold": entry["best"], "gIoU": round(entry["figures"]["gIoU"], 2)}
        for level, entry in (values.get("thresholds") or {}).items()
        if entry["figures"].get("gIoU") is not None
    }
    return Scores(
        **named,
        own=own,
        statement=values["protocol_statement"],
        figures=_figures(values),
        levels={level: _figures(figures) for level, figures in values["per_level"].items()},
        kinds={kind: _figures(figures) for kind, figures in values["per_kind"].items()},
    )


def _figures(values: dict[str, Any]) -> dict[str, float | None]:
    rounded = {name: value for name, value in values.items() if _FIGURE.fullmatch(name)}
    return {name: None if value is None else round(value, 2) for name, value in rounded.items()}


def write_scores(path: str | Path, scores: Iterable[Scores]) -> None:
    """Keep scores as `evaluation.json`; later ones replace earlier ones of the same system and setting."""
    latest = {(entry.system, *entry.setting): entry for entry in scores}
    content = {"results": [asdict(entry) for entry in latest.values()]}
    with write_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def score_tables(scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """What the card says of each data set and protocol; `rows` are of text, the header first."""
    tables = []
    ordered = sorted(scores, key=lambda entry: entry.setting)
    for _, group in groupby(ordered, key=lambda entry: entry.setting):
        entries = sorted(group, key=lambda entry: not entry.own)
        first = entries[0]
        levels = [level for level in first.levels if len(first.levels) > 1]
        reported = [name for name in REPORTED if first.figures.get(name) is not None]
        rows = [
            [entry.system, *(_cell(entry.figures.get(name), name in RATIOS) for name in reported)]
            + [_cell(entry.levels.get(level, {}).get("gIoU")) for level in levels]
            for entry in entries
        ]
        nothing = [_cell(first.figures.get("gIoU-nothing")) if name == "gIoU" else "" for name in reported]
        by_level = [_cell(first.levels[level].get("gIoU-nothing")) for level in levels]
        rows.append(["answering nothing", *nothing, *by_level])
        asked = {"": "each instruction at its own level", "auto": "the model chose the level"}
        tables.append(
            {
                "data": ", ".join(first.datasets),
                "statement": first.statement,
                "instructions": first.instructions,
                "images": first.images,
                "asked": asked.get(first.level or "", f"all at the level {first.level}"),
                "rows": [["system", *reported, *(f"gIoU, {level}" for level in levels)], *rows],
                "level_accuracy": first.level_accuracy,
                "threshold": first.threshold,
                "best_thresholds": first.best_thresholds,
                "failures": {entry.system: entry.failures for entry in entries if entry.failures},
            }
        )
    return tables


def eval_results(scores: Sequence[Scores]) -> list[EvalResult]:
    """The model's own scores as metadata, per data set, protocol and level."""
    results = []
    for entry in scores:
        if not entry.own:
            continue
        name = plain_text(", ".join(entry.datasets)) or "unnamed"
        where: dict[str, Any] = {
            "task_type": TASK,
            "task_name": "Instruction segmentation",
            "dataset_type": re.sub(r"[^\w./-]+", "-", name).strip("-.") or "unnamed",
            "dataset_name": name,
            "dataset_config": f"{entry.protocol}, level {entry.level or 'own'}",
        }
        groups = {"": entry.figures} | (entry.levels if len(entry.levels) > 1 else {})
        for level, figures in groups.items():
            for metric in REPORTED if not level else ("gIoU",):
                if figures.get(metric) is not None:
                    shown = f"{metric} ({level})" if level else metric
                    results.append(
                        EvalResult(**where, metric_type=metric, metric_name=shown, metric_value=figures[metric])
                    )
    return results


def _cell(value: float | None, ratio: bool = False) -> str:
    return "–" if value is None else f"{value:.2f}" if ratio else f"{value:.1f}"
