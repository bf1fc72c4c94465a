# SPDX-License-Identifier: Apache-2.0
"""`sam3i evaluate`: a model and its baselines on data, or prediction files alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...processing.cli import Crowd, Roots, SkipFaulty, read_rows
from .protocols import PROTOCOLS, Protocol, get_protocol

if TYPE_CHECKING:
    from ..baselines.segmenters import Segmenter
    from ..report.report import ReportEntry
    from .result import EvaluationResult

BASELINES = ("sam3", "sam3-concept", "agent")
ORACLE = "oracle"
DEFAULT_FOLDER = Path("evaluations")
DEFAULT_THRESHOLD = 0.5


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
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help=f"Score an instance must exceed, {DEFAULT_THRESHOLD} or a run's own."),
    ] = None,
    max_overlap: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of instances with masks of a larger IoU keep the best; all when absent."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data.")] = None,
    image_root: Roots = None,
    crowd: Crowd = None,
    skip_faulty: SkipFaulty = False,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Evaluate the first rows only.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where predictions are kept, a folder per system.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the predictions in the output folder, errors asked again.")
    ] = False,
    allow_changed: Annotated[
        str, typer.Option(help="With --resume: what may differ from before, e.g. weights,data,images,threshold.")
    ] = "",
    report: Annotated[Path | None, typer.Option(help="Write an HTML page and PNGs to this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    chat_url: Annotated[str | None, typer.Option(help="Agent: address of an OpenAI-compatible API.")] = None,
    chat_model: Annotated[str | None, typer.Option(help="Agent: name at --chat-url, local model, or oracle.")] = None,
    chat_workers: Annotated[int, typer.Option(min=1, help="Agent: instructions under way at a time.")] = 1,
    chat_timeout: Annotated[float, typer.Option(min=0.1, help="Agent: seconds to wait for an answer.")] = 120.0,
    chat_retries: Annotated[int, typer.Option(min=0, help="Agent: times a refused request is sent again.")] = 5,
    resend: Annotated[bool, typer.Option(help="Agent: send unanswered requests again; may be paid twice.")] = False,
    chat_tokens: Annotated[int, typer.Option(min=1, help="Agent: longest answer, in tokens.")] = 4096,
    agent_tokens: Annotated[
        int | None, typer.Option(min=1, help="Agent: most tokens per instruction; no limit when absent.")
    ] = None,
) -> None:
    """Score a model, baselines or prediction files on data.

    Runs on as many processes as torchrun or accelerate start, and continues after a kill with --resume. The protocol
    is printed beside the figures; all figures are percent, count_ratio is a ratio. Besides the figures at --threshold
    the best threshold of each level is printed. On a CPU the model runs in float32, whatever it is stored in.
    """
    chosen = get_protocol(protocol)
    entries: Sequence[ReportEntry] | None = None
    dataset, failure = None, None
    if predictions is not None:
        _check_unused("--predictions", model=model, data=data, baselines=baselines or None)
        entries = [_score_files(predictions, references, chosen, threshold)]
        results = [entry.result for entry in entries]
    else:
        if model is None or data is None:
            raise ValueError(
                "Give --model and --data to run a model, or --predictions (and --references) to score files."
            )
        _check_unused("--model", references=references)
        dataset = read_rows(data, split, image_root, crowd, skip_faulty)
        left_out = _left_out(dataset, max_rows)
        dataset = dataset if max_rows is None else dataset.select(range(min(max_rows, len(dataset))))
        options: dict[str, Any] = {
            "level": level,
            "batch_size": batch_size,
            "threshold": DEFAULT_THRESHOLD if threshold is None else threshold,
            "resume": resume,
            "allow_changed": [name.strip() for name in allow_changed.split(",") if name.strip()],
            "left_out": left_out,
        }
        folder = output_dir or DEFAULT_FOLDER / _folder_name(model, data, protocol, level)
        names = _named(baselines)
        chat = None  # for the oracle, which bounds from above what a chat model can do
        if "agent" in names and not (chat_model == ORACLE and chat_url is None):
            limits = {"timeout": chat_timeout, "max_retries": chat_retries, "resend": resend}
            chat = _chat_model(chat_url, chat_model, chat_tokens, limits)
        budget = {"max_tokens": agent_tokens, "workers": chat_workers}
        answering = {name: options[name] for name in ("threshold", "batch_size")} | {"max_overlap": max_overlap}
        systems = _systems(model, names, chat, budget, dataset, answering)
        results, failure = _run(systems, dataset, chosen, folder, options)
    if int(os.environ.get("RANK", "0")):  # the first process speaks for all
        return
    page = None
    if report is not None and results:
        from ..report.report import load_entry, write_report

        page = write_report(entries or [load_entry(result) for result in results], report, dataset)
    if results and as_json:
        typer.echo(json.dumps(_json_object(results, files=predictions is not None)))
    elif results:
        from .tables import format_results

        typer.echo(format_results(results) + (f"\nReport: {page}" if page is not None else ""))
    if failure is not None:
        raise failure


def _run(
    systems: Sequence[Segmenter], dataset: Any, protocol: Protocol, folder: Path, options: Mapping[str, Any]
) -> tuple[list[EvaluationResult], Exception | None]:
    """The results of the model and its baselines; a system that answers nothing does not hide those of the others."""
    from .evaluate import evaluate_segmenter
    from .result import NoAnswerError

    results: list[EvaluationResult] = []
    failure = None
    for system in systems:
        try:
            results.append(evaluate_segmenter(system, dataset, protocol, output_dir=folder / system.name, **options))
        except NoAnswerError as error:
            failure = failure or error
    return results, failure


def _systems(
    model: str,
    baselines: Sequence[str],
    chat: Any,
    budget: Mapping[str, Any],
    dataset: Any,
    answering: Mapping[str, Any],
) -> list[Segmenter]:
    """The model and the baselines.

    `chat` (None for the oracle) and `budget` are the agent's, `answering` the options of `PhraseDetector`.
    """
    from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ...processing.pipeline.loading import precision_on
    from ...processing.processing_sam3i import Sam3IProcessor
    from ..baselines.agent.agent import AgentSegmenter
    from ..baselines.agent.oracle import OracleAgent
    from ..baselines.segmenters import PhraseDetector, Sam3ISegmenter, StockSam3Segmenter
    from ..processes import process_state
    from .result import LOWEST_SCORE

    device = process_state().device
    loaded = Sam3IForInstructionSegmentation.from_pretrained(model, dtype=precision_on(device)).to(device)
    processor = Sam3IProcessor.from_pretrained(model)
    swept = {**answering, "threshold": min(LOWEST_SCORE, answering["threshold"])}
    systems: list[Segmenter] = [Sam3ISegmenter(loaded, processor, **swept)]
    # at the concept level SAM3-I computes exactly what stock SAM3 does: no second copy is loaded
    detector = PhraseDetector(loaded, processor, **swept)
    for name in baselines:
        if name == "agent":
            used = PhraseDetector(loaded, processor, **answering)
            if chat is None:
                systems.append(OracleAgent.from_rows(used, dataset, **budget))
            else:
                systems.append(AgentSegmenter(used, chat, **budget))
        else:
            source = "concept" if name == "sam3-concept" else "instruction"
            systems.append(StockSam3Segmenter(detector, text_source=source))
    return systems


def _named(baselines: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in baselines.split(",") if name.strip()))
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise ValueError(f"--baselines takes {', '.join(BASELINES)}, found {', '.join(unknown)}.")
    return names


def _chat_model(url: str | None, name: str | None, max_tokens: int, limits: dict[str, Any]) -> Any:
    if name is None:
        raise ValueError("The agent needs --chat-model: a name at --chat-url, or a local image-text-to-text model.")
    if url is not None:
        from ...processing.chat.endpoint import EndpointSpec

        return EndpointSpec(url, name, max_tokens, **limits).connect_and_check()
    from ...processing.chat.client import LocalChatModel

    return LocalChatModel.from_pretrained(name, max_tokens=max_tokens)


def _left_out(dataset: Any, max_rows: int | None) -> dict[str, int]:
    """How many rows of the data are not evaluated, by reason."""
    from ...processing.datasets.faults import RowAccount

    account = RowAccount.of(dataset)
    left_out = {} if account is None else {f"x {reason}": number for reason, number in account.left_out.items()}
    if max_rows is not None and max_rows < len(dataset):
        left_out["rows beyond --max-rows"] = len(dataset) - max_rows
    return left_out


def _score_files(
    predictions: Path, references: Path | None, protocol: Protocol, threshold: float | None
) -> ReportEntry:
    from ..predictions.files import pair_files, read_annotations, read_predictions
    from ..report.report import ReportEntry, load_entry
    from .mask_scores import sweep_masks
    from .result import EvaluationResult, score_run

    if predictions.suffix == ".jsonl":
        if references is not None:
            raise ValueError("A run's predictions.jsonl holds its targets: leave --references out.")
        return load_entry(score_run(predictions, protocol, threshold=threshold))
    if references is None:
        raise ValueError("Give the annotations of the predictions with --references.")
    records = read_predictions(predictions)
    annotations = read_annotations(references)
    answers, targets, unknown = pair_files(protocol, records, annotations, str(predictions))
    (scores,) = sweep_masks(answers, targets, (threshold,), check=False)
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
        threshold=threshold,
        left_out={"predictions of no annotated target": unknown} if unknown else {},
    )
    return ReportEntry(result, scores)


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


def _folder_name(model: str, data: str, *others: str | None) -> str:
    """Readable, and another one for every model and data, whatever their base names."""
    places = [str(Path(part).resolve()) if Path(part).exists() else part for part in (model, data)]
    named = [Path(part).name for part in (*places, *others) if part]
    readable = "-".join(re.sub(r"[^\w.+]+", "_", part) for part in named)
    return f"{readable}-{hashlib.sha256(json.dumps(places).encode()).hexdigest()[:8]}"


def _check_unused(option: str, **others: Any) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None]
    if given:
        raise ValueError(f"{option} does not go together with {', '.join(given)}.")
