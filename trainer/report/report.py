# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: one self-contained HTML page, and the panels as PNGs beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ...processing.images import read_image
from ...processing.masks import decode_mask
from ..evaluation.mask_scores import MaskScores, average_precision
from ..evaluation.protocols import get_protocol
from ..evaluation.result import EvaluationResult, score_records
from ..predictions.log import read_records
from .charts import colour, group_bars, iou_histogram, precision_recall
from .panels import TARGET_COLOUR, contact_sheet, draw_masks, panel
from .published_figures import SOURCE, published_for
from .style import STYLE

PANELS = 6
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SECTIONS = {
    "best": "Best answers",
    "worst": "Worst answers",
    "random": "Random answers",
}
COST_COLUMNS = {
    "seconds": "s / instr.",
    "passes": "passes / instr.",
    "vision_passes": "vision passes / instr.",
    "calls": "chat calls / instr.",
    "tokens": "tokens / instr.",
    "failures": "failures / instr.",
}


@dataclass
class ReportEntry:
    """One system in a report: its result, its sample scores, and the records behind them (absent for bare files)."""

    result: EvaluationResult
    scores: MaskScores
    records: list[Mapping[str, Any]] | None = None
    origins: list[int] | None = None


def load_entry(result: EvaluationResult) -> ReportEntry:
    """The entry of a result whose predictions were kept.

    Raises:
        ValueError: when they were not.
    """
    if result.predictions is None:
        raise ValueError("A report needs the predictions: evaluate with output_dir.")
    protocol = get_protocol(result.protocol)
    records = list(read_records(result.predictions))
    if protocol.texts == "first":
        records = [record for record in records if record["place"][2] == 0]
    return ReportEntry(result, *_with_records(records, protocol))


def _with_records(records, protocol):
    scores, origins = score_records(records, protocol)
    return scores, records, origins


def write_report(entries: Sequence[ReportEntry], directory: str | Path, dataset: Any = None, *, seed: int = 0) -> Path:
    """Writes `report.html` (self-contained) and, when images are there, `best.png`, `worst.png` and `random.png`.

    Args:
        entries: the systems, the one to look at most closely first.
        directory: created when absent.
        dataset: the rows that were evaluated, for the pictures.
        seed: of the random panels.

    Returns:
        The path of the page.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    results = [entry.result for entry in entries]
    first = results[0]
    body = [
        f"<h1>{escape(', '.join(result.system for result in results))}</h1>",
        f'<p class="lead">{escape(_subject(first))}</p>',
        f'<div class="protocol"><b>Protocol</b> {escape(first.protocol_statement)}</div>',
        "<h2>Scores</h2>",
        _figures_table(results),
        *(["<h2>Cost</h2>", _cost_table(results)] if first.cost else []),
        "<h2>Where it works</h2>",
        _charts(entries),
        _breakdown_tables(results),
    ]
    if dataset is not None and entries[0].records:
        body += _panel_sections(entries, directory, dataset, seed)
    title = escape(f"{first.system} under {first.protocol}")
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _subject(result: EvaluationResult) -> str:
    level = {None: "all levels", "auto": "all levels, the system choosing the path"}.get(
        result.level, f"level {result.level}"
    )
    data = ", ".join(name for name in result.datasets if name) or "unnamed data"
    return f"{result.instructions:,} instructions on {result.images:,} images of {data}; {level}; figures in percent"


def _figures_table(results: Sequence[EvaluationResult]) -> str:
    names = [name for name in results[0].figures if name not in ("n", "gIoU-nothing")]
    rows = []
    for index, result in enumerate(results):
        cells = [_number(result.figures[name]) for name in names]
        top = [_is_top(result.figures[name], [other.figures[name] for other in results]) for name in names]
        rows.append(_row(_dotted(result.system, index), [*cells, f"{result.figures['n']:,}"], best=top))
    nothing = [_number(results[0].figures["gIoU-nothing"]) if name == "gIoU" else "" for name in names]
    rows.append(_row("answering nothing", [*nothing, ""], quiet=True))
    for figures in published_for(results[0].protocol, results[0].datasets, results[0].level):
        name = " ".join(filter(None, (figures.system, figures.level, figures.kind)))
        cells = {"gIoU": _number(figures.giou), "P@0.5": _number(figures.p50)}
        rows.append(
            _row(f"{escape(name)} ({escape(SOURCE)})", [*(cells.get(key, "") for key in names), ""], quiet=True)
        )
    return _table(["system", *names, "n"], rows)


def _cost_table(results: Sequence[EvaluationResult]) -> str:
    used = [
        name
        for name in COST_COLUMNS
        if name in ("seconds", "passes", "vision_passes") or any(r.cost[name] for r in results)
    ]
    rows = []
    for index, result in enumerate(results):
        cells = [f"{result.cost[name]:,.3g}" if name != "tokens" else f"{result.cost[name]:,.0f}" for name in used]
        parameters = format_count(result.parameters)
        routed = [] if result.level_accuracy is None else [f"{result.level_accuracy:.1f}"]
        rows.append(_row(_dotted(result.system, index), [*cells, parameters, str(result.errors), *routed]))
    routed = [] if results[0].level_accuracy is None else ["level chosen rightly %"]
    return _table(["system", *(COST_COLUMNS[name] for name in used), "parameters", "without answer", *routed], rows)


def _charts(entries: Sequence[ReportEntry]) -> str:
    protocol = get_protocol(entries[0].result.protocol)
    ious = {entry.result.system: protocol.sample_iou(entry.scores) for entry in entries}
    figures = [_figure("IoU of the samples", iou_histogram(ious))]
    curves = {}
    for entry in entries:
        precision = average_precision(entry.scores, merged=protocol.detections == "merged")
        if precision["precision"] is not None:
            curves[entry.result.system] = (precision["recall"], precision["precision"])
    if curves:
        what = "merged answers" if protocol.detections == "merged" else "single instances"
        figures.append(_figure(f"Precision over recall, {what} at IoU 0.5", precision_recall(curves)))
    for name, groups in entries[0].result.breakdown.items():
        if len(groups) > 1:
            values = {
                entry.result.system: [entry.result.breakdown[name].get(group, {}).get("gIoU") for group in groups]
                for entry in entries
            }
            figures.append(_figure(f"gIoU per {_title(name)}", group_bars(list(groups), values)))
    return f'<div class="charts">{"".join(figures)}</div>'


def _breakdown_tables(results: Sequence[EvaluationResult]) -> str:
    parts = []
    for name, groups in results[0].breakdown.items():
        if not groups:
            continue
        columns = [key for key in results[0].figures if key not in ("gIoU-nothing",)]
        rows = []
        for group in groups:
            for index, result in enumerate(results):
                figures = result.breakdown[name].get(group)
                if figures:
                    cells = [_number(figures[key]) if key != "n" else f"{figures[key]:,}" for key in columns]
                    rows.append(_row(_dotted(f"{group}, {result.system}", index), cells))
        parts.append(f"<h2>Per {escape(_title(name))}</h2>" + _table([_title(name), *columns], rows))
    return "".join(parts)


def _panel_sections(entries: Sequence[ReportEntry], directory: Path, dataset: Any, seed: int) -> list[str]:
    protocol = get_protocol(entries[0].result.protocol)
    main = entries[0]
    ious = protocol.sample_iou(main.scores)
    body = []
    for name, samples in _chosen(main, ious, seed).items():
        if not samples:
            continue
        captioned, figures = [], []
        for sample in samples:
            record = main.records[main.origins[sample]]
            picture = _panel(entries, record, dataset)
            facts = ", ".join(
                filter(None, (record["level"], record["target"]["target_kind"], f"row {record['row_id']}"))
            )
            text = f"IoU {ious[sample] * 100:.1f}: {record['text']}"
            captioned.append((f"{text}\n{facts}", picture))
            caption = f"<b>{escape(record['text'])}</b><br>IoU {ious[sample] * 100:.1f}, {escape(facts)}"
            image = f'<img alt="{escape(record["text"], quote=True)}" src="{_data_uri(picture)}">'
            figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
        title = f"{SECTIONS[name]} of {main.result.system}"
        contact_sheet(title, captioned).save(directory / f"{name}.png")
        body.append(f'<h2>{escape(title)}</h2><div class="panels">{"".join(figures)}</div>')
    return body


def _chosen(entry: ReportEntry, ious: np.ndarray, seed: int) -> dict[str, list[int]]:
    """Samples of each section, one per row; the best among those with a target, since silence is easily right."""
    rows = [entry.records[origin]["row_id"] for origin in entry.origins]
    order = [int(index) for index in np.argsort(ious, kind="stable")]
    shuffled = [int(index) for index in np.random.default_rng(seed).permutation(len(ious))]
    best = _one_per_row([index for index in order[::-1] if not entry.scores.no_target[index]], rows)
    worst = _one_per_row([index for index in order if ious[index] < 1 and index not in best], rows)
    return {"best": best, "worst": worst, "random": _one_per_row(shuffled, rows)}


def _one_per_row(samples: Sequence[int], rows: Sequence[str]) -> list[int]:
    chosen: dict[str, int] = {}
    for sample in samples:
        chosen.setdefault(rows[sample], sample)
        if len(chosen) == PANELS:
            break
    return list(chosen.values())


def _panel(entries: Sequence[ReportEntry], record: Mapping[str, Any], dataset: Any):
    from PIL import ImageColor

    image = read_image(dataset[record["place"][0]]["image"])
    target = record["target"]
    size = [target["height"], target["width"]]
    truth = [decode_mask({"size": size, "counts": counts}) for counts in target["masks"] if counts is not None]
    tiles = [("target" if truth else "target: nothing", draw_masks(image, truth, TARGET_COLOUR))]
    for index, entry in enumerate(entries):
        answer = next(other for other in entry.records if other["place"] == record["place"])
        masks = [decode_mask(found["rle"]) for found in answer["predictions"]]
        title = entry.result.system if masks else f"{entry.result.system}: nothing"
        tiles.append((title, draw_masks(image, masks, ImageColor.getrgb(colour(index)))))
    return panel(tiles)


def _data_uri(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _title(name: str) -> str:
    return {"kind": "kind of target", "size": "size of target"}.get(name, name)


def format_count(number: int | None) -> str:
    """A count of parameters for people: 840.4 M, 12.3 k, 7, unknown."""
    if number is None:
        return "unknown"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:,.1f}{unit}"
    return str(number)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _is_top(value: float | None, values: Sequence[float | None]) -> bool:
    known = [other for other in values if other is not None]
    return len(values) > 1 and value is not None and value == max(known)


def _dotted(name: str, index: int) -> str:
    return f'<span class="dot" style="background:{colour(index)}"></span>{escape(name)}'


def _row(head: str, cells: Sequence[str], *, best: Sequence[bool] = (), quiet: bool = False) -> str:
    flags = list(best) + [False] * (len(cells) - len(best))
    data = "".join(
        f'<td class="best">{c}</td>' if flag else f"<td>{c}</td>" for c, flag in zip(cells, flags, strict=True)
    )
    return f"<tr{' class=' + chr(34) + 'quiet' + chr(34) if quiet else ''}><td>{head}</td>{data}</tr>"


def _table(columns: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _figure(caption: str, content: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"
