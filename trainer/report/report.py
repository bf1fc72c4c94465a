# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: one self-contained HTML page, and its pictures as PNGs beside it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...processing.atomic import write_whole
from ...processing.drawing.sheet import contact_sheet, draw_comparison
from ...processing.images import data_url
from ...processing.masks import decode_masks
from ..evaluation.evaluate import row_image
from ..evaluation.mask_scores import MaskScores, average_precision
from ..evaluation.protocols import get_protocol
from ..evaluation.result import EvaluationResult, run_records, score_records
from ..evaluation.tables import TITLES, cost_tables, group_tables, notes, score_table, threshold_tables
from ..predictions.log import read_settings
from . import charts

TEMPLATE = Path(__file__).with_name("report.html.jinja")
PANELS = 6  # of the best and of random answers
PANELS_PER_REASON = 3
TILE = 480  # pixels, the longer side of a picture, and less where several stand beside each other
PAGE = 1100  # pixels that they have on the page


@dataclass
class ReportEntry:
    """One system in a report: its result, its sample scores, and the records behind them (absent for bare files)."""

    result: EvaluationResult
    scores: MaskScores
    records: list[dict[str, Any]] | None = None
    origins: list[int] | None = None


@dataclass
class Panel:
    """Truth and answers to one instruction, side by side."""

    text: str
    facts: str
    picture: Image.Image

    @property
    def source(self) -> str:
        """The picture as a data URL."""
        buffer = io.BytesIO()
        self.picture.save(buffer, "JPEG", quality=88)
        return data_url(buffer.getvalue(), "jpeg")


@dataclass
class Section:
    """Panels under a title; `name` is that of their PNG."""

    name: str
    title: str
    panels: list[Panel]


def load_entry(result: EvaluationResult) -> ReportEntry:
    """The entry of a result, whose predictions must have been kept."""
    if result.predictions is None:
        raise ValueError("A report needs the predictions: evaluate with output_dir.")
    protocol = get_protocol(result.protocol)
    records = run_records(result.predictions, protocol)
    final = (read_settings(result.predictions) or {}).get("lowest_score") is None
    scores, origins = score_records(records, protocol, None if final else result.threshold)
    return ReportEntry(result, scores, records, origins)


def write_report(entries: Sequence[ReportEntry], directory: str | Path, dataset: Any = None, *, seed: int = 0) -> Path:
    """Writes `report.html` (self-contained) and, where the rows are given, a PNG of each section of pictures.

    The system to look at most closely comes first; `seed` is that of the random panels. Returns the path of the page.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    results = [entry.result for entry in entries]
    first = results[0]
    sections = []
    if dataset is not None and entries[0].records:
        sections = _sections(entries, dataset, seed)
    for section in sections:
        captions = [f"{panel.text}\n{panel.facts}" for panel in section.panels]
        pictures = [panel.picture for panel in section.panels]
        sheet = contact_sheet(pictures, 2, captions=captions, title=section.title, cell=pictures[0].width)
        sheet.save(directory / f"{section.name}.png")
    page = _template().render(
        title=f"{first.system} under {first.protocol}",
        systems=[result.system for result in results],
        subject=_subject(first),
        statement=first.protocol_statement,
        notes=notes(results),
        scores=score_table(results),
        tables=[*threshold_tables(results), *cost_tables(results)],
        charts=[(caption, data_url(content, "svg+xml")) for caption, content in _charts(entries)],
        sections=sections,
        groups=group_tables(results),
        color=charts.color,
    )
    path = directory / "report.html"
    with write_whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _subject(result: EvaluationResult) -> str:
    known = {None: "all levels", "auto": "all levels, the system choosing the path"}
    level = known.get(result.level, f"level {result.level}")
    data = ", ".join(name for name in result.datasets if name) or "unnamed data"
    return f"{result.instructions:,} instructions on {result.images:,} images of {data}; {level}; figures in percent"


def _charts(entries: Sequence[ReportEntry]) -> list[tuple[str, bytes]]:
    protocol = get_protocol(entries[0].result.protocol)
    ious = {entry.result.system: protocol.sample_iou(entry.scores) for entry in entries}
    found = [("IoU of the samples", charts.iou_histogram(ious))]
    merged = protocol.detections == "merged"
    curves = {}
    for entry in entries:
        precision = average_precision(entry.scores, merged=merged)
        if precision["precision"] is not None:
            curves[entry.result.system] = (precision["recall"], precision["precision"])
    if curves:
        what = "merged answers" if merged else "single instances"
        found.append((f"Precision over recall, {what} at IoU 0.5", charts.precision_recall(curves)))
    first = entries[0].result
    if first.thresholds:
        levels = {level or "any level": entry["curve"] for level, entry in first.thresholds.items()}
        caption = f"gIoU of {first.system} over the score threshold"
        found.append((caption, charts.threshold_curves(levels, first.threshold)))
    for name, groups in first.breakdown.items():
        if len(groups) > 1:
            values = {
                entry.result.system: [entry.result.breakdown[name].get(group, {}).get("gIoU") for group in groups]
                for entry in entries
            }
            found.append((f"gIoU per {TITLES.get(name, name)}", charts.group_bars(list(groups), values)))
    return found


def failure_reason(scores: MaskScores, sample: int, iou: float) -> str | None:
    """In words, what is wrong with an answer; None for one that is correct."""
    found, instances = int(scores.found[sample]), int(scores.instances[sample])
    if scores.failed[sample]:
        return "no usable answer"
    if scores.no_target[sample]:
        return "something found where nothing was asked for" if scores.predicted_area[sample] else None
    if not scores.predicted_area[sample]:
        return "nothing found"
    if iou < 0.1:
        return "another thing found"
    if found > instances:
        return "more found than asked for, or one thing twice"
    if found < instances:
        return "instances missing"
    return "as many found as asked for, but other pixels" if iou < 0.75 else None


def _sections(entries: Sequence[ReportEntry], dataset: Any, seed: int) -> list[Section]:
    """The best answers, the worst for each reason, and random ones; one per row in each section."""
    main = entries[0]
    assert main.records is not None and main.origins is not None
    ious = get_protocol(main.result.protocol).sample_iou(main.scores)
    rows = [main.records[origin]["row_id"] for origin in main.origins]
    order = [int(index) for index in np.argsort(ious, kind="stable")]
    wanted: dict[str, tuple[str, list[int]]] = {
        # among those with a target, since silence is easily correct
        "best": ("Best answers", _one_per_row([i for i in order[::-1] if not main.scores.no_target[i]], rows, PANELS))
    }
    reasons: dict[str, list[int]] = {}
    for sample in order:
        reason = failure_reason(main.scores, sample, float(ious[sample]))
        if reason is not None and sample not in wanted["best"][1]:
            reasons.setdefault(reason, []).append(sample)
    for place, (reason, samples) in enumerate(sorted(reasons.items(), key=lambda entry: -len(entry[1]))):
        title = f"Worst answers: {reason} ({len(samples):,} of {len(order):,})"
        wanted[f"worst-{place + 1}"] = title, _one_per_row(samples, rows, PANELS_PER_REASON)
    shuffled = [int(index) for index in np.random.default_rng(seed).permutation(len(ious))]
    wanted["random"] = "Random answers", _one_per_row(shuffled, rows, PANELS)
    answers = dict(map(_answers_by_place, entries))
    sections = []
    for name, (title, samples) in wanted.items():
        panels = [_panel(main, answers, sample, float(ious[sample]), dataset) for sample in samples]
        if panels:
            sections.append(Section(name, f"{title} of {main.result.system}", panels))
    return sections


def _one_per_row(samples: Sequence[int], rows: Sequence[str], count: int) -> list[int]:
    first = {rows[sample]: sample for sample in reversed(samples)}
    return [sample for sample in samples if first[rows[sample]] == sample][:count]


def _answers_by_place(entry: ReportEntry) -> tuple[str, dict[tuple, Mapping[str, Any]]]:
    records, origins = entry.records or [], entry.origins or []
    places = [tuple(records[origin]["place"]) for origin in origins]
    return entry.result.system, dict(zip(places, entry.scores.predictions, strict=True))


def _panel(
    main: ReportEntry,
    answers: Mapping[str, Mapping[tuple, Mapping[str, Any]]],
    sample: int,
    iou: float,
    dataset: Any,
) -> Panel:
    assert main.records is not None and main.origins is not None
    record = main.records[main.origins[sample]]
    target, image = record["target"], row_image(dataset[record["place"][0]])
    size = (target["height"], target["width"])
    truth = _masks([counts for counts in target["masks"] if counts is not None], size)
    given = {system: predictions[tuple(record["place"])] for system, predictions in answers.items()}
    found = {system: (_masks(answer["masks"], size), answer["scores"]) for system, answer in given.items()}
    file_name = record.get("file_name") or f"image {record['image_id']}"
    facts = [f"IoU {iou * 100:.1f}", record["level"], target["target_kind"], file_name, f"row {record['row_id']}"]
    if record["error"]:
        facts.append(record["error"])
    picture = draw_comparison(image, truth, found, side=min(TILE, PAGE // (1 + len(found))))
    return Panel(_printable(record["text"]), _printable(", ".join(filter(None, facts))), picture)


def _masks(counts: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    return decode_masks([{"size": list(size), "counts": text} for text in counts], *size)


def _printable(text: str) -> str:
    """Text without control characters, at most as long as a caption can be."""
    return "".join(character if character.isprintable() else " " for character in text[:300])
