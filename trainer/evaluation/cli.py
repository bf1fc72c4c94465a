# SPDX-License-Identifier: Apache-2.0
"""`sam3i evaluate`: a model and its baselines on data, or prediction files alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .protocols import PROTOCOLS, get_protocol

if TYPE_CHECKING:
    from .result import EvaluationResult
    from .segmenter import Segmenter


BASELINES = ("sam3", "sam3-concept", "agent")
ORACLE = "oracle"
DEFAULT_FOLDER = Path("evaluations")


def evaluate(
    model: Annotated[str | None, typer.Option(help="SAM3-I repository or folder (stock SAM3 works too).")] = None,
    data: Annotated[str | None, typer.Option(help="Instruction data: file, folder or Hub repository.")] = None,
    protocol: Annotated[str, typer.Option(help=f"One of {', '.join(PROTOCOLS)}.")] = "default",
    level: Annotated[
        str | None, typer.Option(help="concept, simple, complex or auto; all levels when absent.")
    ] = None,
    baselines: Annotated[str, typer.Option(help=f"Systems to compare with, of {','.join(BASELINES)}.")] = "",
    predictions: Annotated[
        Path | None, typer.Option(help="Score this file: the authors' JSON, or a run's JSONL.")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="Annotations of --predictions (COCO-style JSON).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Instructions per forward pass.")] = 8,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Score an instance must exceed.")] = 0.5,
    split: Annotated[str | None, typer.Option(help="Split of the data.")] = None,
    image_root: Annotated[str | None, typer.Option(help="Folder of the images.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Evaluate the first rows only.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where predictions are kept, a folder per system.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the predictions in the output folder.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page and PNGs to this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    chat_url: Annotated[str | None, typer.Option(help="Agent: address of an OpenAI-compatible API.")] = None,
    chat_model: Annotated[
        str | None,
        typer.Option(help="Agent: name at --chat-url, local model, or oracle."),
    ] = None,
    chat_workers: Annotated[int, typer.Option(min=1, help="Agent: instructions under way at a time.")] = 1,
) -> None:
    """Score a model on data, compare it with baselines, or score prediction files alone.

    Runs on as many processes as torchrun or accelerate start, and continues after a kill with --resume. The protocol
    is printed beside the figures; all figures are percent.
    """
    try:
        chosen = get_protocol(protocol)
        if predictions is not None:
            _check_unused("--predictions", model=model, data=data, baselines=baselines or None)
            results, entries, dataset = _score_files(predictions, references, chosen)
        else:
            if model is None or data is None:
                _fail("Give --model and --data to run a model, or --predictions (and --references) to score files.")
            _check_unused("--model", references=references)
            dataset = _load_data(data, split, image_root, max_rows)
            folder = output_dir or DEFAULT_FOLDER / _folder_name(model, data, protocol, level)
            with ExitStack() as stack:
                if chat_model == ORACLE and chat_url is None:
                    chat_url = stack.enter_context(_oracle_server(dataset)).base_url
                chat = (chat_url, chat_model, chat_workers)
                systems = _systems(model, baselines, batch_size, threshold, chat)
                results = _run(systems, dataset, chosen, level, batch_size, threshold, folder, resume)
            entries = None
    except (ValueError, OSError, ImportError) as error:
        _fail(str(error))
    if not _is_main_process():
        return
    page = _write_report(results, entries, dataset, report) if report is not None else None
    if as_json:
        typer.echo(json.dumps(_json_object(results, files=predictions is not None)))
    else:
        typer.echo(format_results(results))
        if page is not None:
            typer.echo(f"Report: {page}")


def format_results(results: Sequence[EvaluationResult]) -> str:
    """Tables of accuracy and cost for a terminal, the protocol and published figures beside them."""
    from ..report.published_figures import SOURCE, published_for
    from ..report.report import format_count

    first = results[0]
    names = [name for name in first.figures if name not in ("n", "gIoU-nothing")]
    rows = [["system", *names, "n"]]
    for result in results:
        rows.append([result.system, *(_cell(result.figures[name]) for name in names), str(result.figures["n"])])
    rows.append(["answering nothing", _cell(first.figures["gIoU-nothing"]), *[""] * len(names)])
    for figures in published_for(first.protocol, first.datasets, first.level):
        name = " ".join(filter(None, (figures.system, figures.level, figures.kind, "(published)")))
        known = {"gIoU": figures.giou, "P@0.5": figures.p50}
        rows.append([name, *(_cell(known[key]) if key in known else "" for key in names), ""])
    parts = [f"Protocol {first.protocol_statement}", _aligned(rows)]
    if any("(published)" in row[0] for row in rows):
        parts.append(f"Published: {SOURCE}.")
    for name, groups in first.breakdown.items():
        if len(groups) > 1:
            head = [f"gIoU per {name}", *groups]
            body = [[r.system, *(_cell(r.breakdown[name].get(g, {}).get("gIoU")) for g in groups)] for r in results]
            parts.append(_aligned([head, *body]))
    if any(result.cost for result in results):
        rows = [
            ["system", "s/instruction", "passes", "vision passes", "chat calls", "tokens", "failures", "parameters"]
        ]
        for result in results:
            cost = [
                f"{result.cost[n]:.3g}" for n in ("seconds", "passes", "vision_passes", "calls", "tokens", "failures")
            ]
            rows.append([result.system, *cost, format_count(result.parameters)])
        parts.append(_aligned(rows))
    for result in results:
        if result.level_accuracy is not None:
            parts.append(
                f"{result.system}: level chosen rightly in {result.level_accuracy:.1f} % of the instructions."
            )
    return "\n\n".join(parts)


def _run(systems, dataset, protocol, level, batch_size, threshold, folder, resume) -> list[EvaluationResult]:
    from .evaluate import evaluate_segmenter

    return [
        evaluate_segmenter(
            system,
            dataset,
            protocol,
            level=level,
            batch_size=batch_size,
            output_dir=folder / system.name,
            resume=resume,
            settings={"threshold": threshold},
        )
        for system in systems
    ]


def _systems(
    model: str, baselines: str, batch_size: int, threshold: float, chat: tuple[str | None, str | None, int]
) -> list[Segmenter]:
    from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ...processing.processing_sam3i import Sam3IProcessor
    from ..baselines.agent.agent import AgentSegmenter
    from ..baselines.phrase_detector import PhraseDetector
    from ..baselines.sam3i import Sam3ISegmenter
    from ..baselines.stock import StockSam3Segmenter
    from ..processes import process_state

    names = [name.strip() for name in baselines.split(",") if name.strip()]
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise ValueError(f"--baselines takes {', '.join(BASELINES)}, found {', '.join(unknown)}.")
    *address, workers = chat
    chat_model = _chat_model(*address) if "agent" in names else None
    loaded = Sam3IForInstructionSegmentation.from_pretrained(model).to(process_state().device)
    processor = Sam3IProcessor.from_pretrained(model)
    systems: list[Segmenter] = [Sam3ISegmenter(loaded, processor, threshold=threshold, batch_size=batch_size)]
    # at the concept level SAM3-I computes exactly what stock SAM3 does: no second copy is loaded
    detector = PhraseDetector(loaded, processor, threshold=threshold, batch_size=batch_size)
    makers = {
        "sam3": lambda: StockSam3Segmenter(detector),
        "sam3-concept": lambda: StockSam3Segmenter(detector, text_source="concept"),
        "agent": lambda: AgentSegmenter(detector, chat_model, workers=workers),
    }
    return systems + [makers[name]() for name in dict.fromkeys(names)]


def _oracle_server(dataset: Any):
    """A chat endpoint on this machine that knows the targets; it bounds from above what a chat model can do."""
    from ..baselines.agent.oracle_server import OracleChat

    return OracleChat.from_rows(dataset).serve()


def _chat_model(chat_url: str | None, chat_model: str | None) -> Any:
    if chat_model is None:
        raise ValueError("The agent needs --chat-model: a name at --chat-url, or a local image-text-to-text model.")
    if chat_url is not None:
        from ...processing.chat.endpoint import EndpointChatModel

        return EndpointChatModel(chat_url, chat_model)
    from ...processing.chat.client import LocalChatModel

    return LocalChatModel.from_pretrained(chat_model)


def _load_data(data: str, split: str | None, image_root: str | None, max_rows: int | None) -> Any:
    from ...processing.datasets.loading import load_instruction_dataset

    dataset = load_instruction_dataset(data, split=split, image_root=image_root)
    return dataset if max_rows is None else dataset.select(range(min(max_rows, len(dataset))))


def _score_files(predictions: Path, references: Path | None, protocol) -> tuple[list[EvaluationResult], Any, None]:
    from ..predictions.files import read_annotations, read_predictions
    from ..predictions.pairs import pair_files
    from ..report.report import ReportEntry, load_entry
    from .mask_scores import score_masks
    from .result import EvaluationResult, score_run

    if predictions.suffix == ".jsonl":
        if references is not None:
            raise ValueError("A run's predictions.jsonl holds its targets: leave --references out.")
        result = score_run(predictions, protocol)
        return [result], [load_entry(result)], None
    if references is None:
        raise ValueError("Give the annotations of the predictions with --references.")
    records = read_predictions(predictions)
    annotations = read_annotations(references)
    scores = score_masks(*pair_files(protocol, records, annotations, str(predictions)), check=False)
    result = EvaluationResult(
        system=predictions.stem,
        protocol=protocol.name,
        protocol_statement=str(protocol),
        level=None,
        figures=protocol.compute(scores),
        breakdown=protocol.compute_breakdown(scores),
        cost={},
        parameters=None,
        instructions=len(records),
        images=len({record.image_id for record in records}),
        datasets=sorted(annotations.datasets),
    )
    return [result], [ReportEntry(result, scores)], None


def _write_report(results, entries, dataset, directory: Path) -> Path:
    from ..report.report import load_entry, write_report

    return write_report(entries or [load_entry(result) for result in results], directory, dataset)


def _json_object(results: Sequence[EvaluationResult], *, files: bool) -> dict[str, Any]:
    first = results[0]
    if files:
        return {**first.figures, "protocol": first.protocol}
    objects = {}
    for result in results:
        content = result.to_dict()
        breakdown = {f"per_{name}": groups for name, groups in content.pop("breakdown").items()}
        objects[result.system] = {**content.pop("figures"), **content, **breakdown}
    return objects[first.system] if len(objects) == 1 else {"protocol": first.protocol, "systems": objects}


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _folder_name(*parts: str | None) -> str:
    named = [Path(part).name for part in parts if part]
    return "-".join(re.sub(r"[^\w.+]+", "_", part) for part in named)


def _check_unused(option: str, **others: Any) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"{option} does not go together with {', '.join(given)}.")


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


__all__ = ["evaluate", "format_results"]
