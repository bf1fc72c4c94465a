# SPDX-License-Identifier: Apache-2.0
"""`sam3i data build | status | merge | review | export | review-export | review-import`: the data engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..cli import Crowd, Roots, read_image_roots

if TYPE_CHECKING:
    from ..chat.endpoint import EndpointSpec
    from ..datasets.image_roots import ImageRoot
    from .engine import DataEngine, SessionSummary, Source
    from .run import RunDirectory

PATHS = ("run", "coco", "images", "prompts", "synonyms")  # arguments of `build` that are paths
RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.")]


def build(
    run: RunFolder,
    coco: Annotated[Path | None, typer.Option(help="COCO, LVIS or PACO instances file.")] = None,
    crowd: Crowd = None,
    rows: Annotated[str | None, typer.Option(help="Instruction data to write anew.")] = None,
    shapes: Annotated[int | None, typer.Option(min=1, help="So many scenes of the shapes world.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images alone; needs --concept and --sam3.")] = None,
    concept: Annotated[list[str] | None, typer.Option(help="A noun to look for in --images; may be repeated.")] = None,
    sam3: Annotated[str | None, typer.Option(help="SAM3 repository or folder that proposes masks.")] = None,
    grounder: Annotated[str | None, typer.Option(help="SAM3-I repository or folder for the grounding check.")] = None,
    device: Annotated[str | None, typer.Option(help="Where SAM3 runs; the first accelerator if not given.")] = None,
    image_root: Roots = None,
    split: Annotated[str, typer.Option(help="Only this split of --rows; the name of it for other sources.")] = "train",
    seed: Annotated[int, typer.Option(help="Of every choice.")] = 0,
    targets: Annotated[int, typer.Option(min=1, help="Targets tried per picture.")] = 6,
    kind: Annotated[list[str] | None, typer.Option(help="1-to-1, 1-to-N, 1-to-all or none; all if not given.")] = None,
    level: Annotated[list[str] | None, typer.Option(help="concept, simple or complex; all if not given.")] = None,
    simple: Annotated[int, typer.Option(min=0, help="Simple texts per target (chat writer).")] = 2,
    complex_: Annotated[int, typer.Option("--complex", min=0, help="Complex texts per target (chat writer).")] = 2,
    retries: Annotated[int, typer.Option(min=0, help="How often a chat writer is told why and writes again.")] = 10,
    writer: Annotated[str | None, typer.Option(help="URL#MODEL of the writer; templates write if not given.")] = None,
    checker: Annotated[str | None, typer.Option(help="URL#MODEL of the checker.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Folder with prompt files of your own.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="SAM3 repository or folder to count tokens with.")] = None,
    synonyms: Annotated[Path | None, typer.Option(help="JSON: {noun: [synonym, ...]}.")] = None,
    shard: Annotated[str, typer.Option(help="This run's share, as NUMBER/COUNT from 0/1.")] = "0/1",
    concurrency: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 4,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of a chat model.")] = 1024,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")] = 120.0,
    request_retries: Annotated[int, typer.Option(min=0, help="How often a refused request is sent again.")] = 5,
    resend: Annotated[bool, typer.Option(help="Send unanswered requests again; they may be paid for twice.")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the writer; the checker's is 0.")] = 0.0,
    requests_per_minute: Annotated[float | None, typer.Option(help="Ceiling per endpoint.")] = None,
    max_calls: Annotated[int | None, typer.Option(help="Cap on chat calls over all sessions.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Cap on chat tokens over all sessions.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Cap on money over all sessions; needs the prices.")] = None,
    prompt_price: Annotated[float, typer.Option(help="Per million prompt tokens.")] = 0.0,
    completion_price: Annotated[float, typer.Option(help="Per million completion tokens.")] = 0.0,
    max_pictures: Annotated[int | None, typer.Option(min=1, help="Stop after so many pictures.")] = None,
    executor: Annotated[str | None, typer.Option(help="Run --tasks shards by datatrove: local, slurm, ray.")] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Shards for --executor.")] = 4,
    executor_option: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for datatrove's executor.")] = None,
) -> None:
    """Write and check instructions for images.

    Run it again to go on after a stop of any kind.
    """
    arguments = {name: str(item) if isinstance(item, Path) else item for name, item in locals().items()}
    if executor is not None:
        _run_shards(arguments)
        return
    from ..chat.endpoint import EndpointSpec
    from ..pipeline.loading import load_pipeline
    from .calls import Budget
    from .engine import DataEngine, describe_prompts
    from .run import EngineConfig, RunDirectory
    from .scene.segmentation import PipelineGrounder
    from .writers.chat_writer import engine_prompts

    try:
        number, count = (int(part) for part in shard.split("/"))
    except ValueError as error:
        raise typer.BadParameter(f"expected NUMBER/COUNT, found {shard!r}", param_hint="--shard") from error
    if images is not None and not (concept and sam3):
        raise ValueError("--images needs at least one --concept, and --sam3 to find them.")
    limits: dict[str, Any] = {"max_tokens": answer_tokens, "timeout": timeout, "max_retries": request_retries}
    limits |= {"resend": resend, "requests_per_minute": requests_per_minute}
    specs: dict[str, EndpointSpec] = {}
    for role, value in (("writer", writer), ("checker", checker)):
        if value is not None:
            heat = temperature if role == "writer" else 0.0
            specs[role] = EndpointSpec(*_url_and_model(value), temperature=heat, **limits)
    texts = engine_prompts(prompts)
    proposing = None if images is None else (images, concept, sam3, device)
    roots = read_image_roots(image_root)
    source, description = _source(
        {"coco": coco, "rows": rows, "shapes": shapes, "images": proposing}, roots, split, seed, crowd
    )
    chosen: dict[str, Any] = {"kinds": tuple(kind)} if kind else {}
    chosen |= {"levels": tuple(level)} if level else {}
    config = EngineConfig(
        source=description,
        fingerprint=source.fingerprint,
        seed=seed,
        targets_per_image=targets,
        **chosen,
        simple_texts=simple,
        complex_texts=complex_,
        max_retries=retries,
        shard=number,
        num_shards=count,
        writer=specs["writer"].name if "writer" in specs else "templates",
        checker=specs["checker"].name if "checker" in specs else None,
        grounder=grounder,
        prompts=describe_prompts(texts) if specs else {},
    )
    specs = {role: _checked_endpoint(spec) for role, spec in specs.items()}
    engine = DataEngine(
        source,
        RunDirectory(run, config),
        writer=specs.get("writer"),
        checker=specs.get("checker"),
        grounder=None if grounder is None else PipelineGrounder(load_pipeline(grounder, device), grounder),
        prompts=texts,
        synonyms=None if synonyms is None else _read_synonyms(synonyms),
        budget=Budget(max_calls, max_tokens, max_cost, prompt_price, completion_price),
        concurrency=concurrency,
        **({"count_tokens": _token_counter(tokenizer)} if tokenizer else {}),
    )
    summary = engine.build(max_pictures)
    _report(engine, summary)


def _read_synonyms(path: Path) -> dict[str, list[str]]:
    fix = 'write {"cup": ["mug", "beaker"]}'
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}; {fix}") from error
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists):
        raise ValueError(f"{path}: expected an object with a list of words for each noun, found another; {fix}")
    return found


def _run_shards(arguments: dict[str, Any]) -> None:
    from .executor import run_shards

    name, tasks, options = (arguments.pop(key) for key in ("executor", "tasks", "executor_option"))
    if arguments["shard"] != "0/1":
        raise ValueError("--executor makes the shards itself: leave --shard out.")
    merged = run_shards(name, tasks, arguments, options or ())
    if merged is None:
        typer.echo(f"Handed in {tasks} tasks. When they are done: sam3i data merge SHARDS --to RUN", err=True)
        return
    _say_left_out(merged)
    typer.echo(f"merged {len(merged.store.finished_ids())} pictures of {tasks} shards", err=True)


def _report(engine: DataEngine, summary: SessionSummary) -> None:
    """Say what a session did, what it left out, and what it lacks; nothing done is an error."""
    rate = summary.accepted / summary.seconds if summary.seconds else 0.0
    levels = ", ".join(f"{level} {summary.levels.get(level, 0)}" for level in engine.run.config.levels)
    typer.echo(
        f"{summary.pictures} pictures, {summary.pairs} instructions: {summary.accepted} accepted ({levels}), "
        f"{summary.review} to review ({rate:.0f} accepted per second)",
        err=True,
    )
    left_out = _say_left_out(engine.run)
    if summary.unavailable:
        typer.echo(f"{summary.unavailable} pictures are left for later: {summary.why_unavailable}", err=True)
    if summary.pictures and summary.stopped is None:
        config = engine.run.config
        texts = {"simple": config.simple_texts, "complex": config.complex_texts}  # that a chat writer is asked for
        by_template = config.writer == "templates"
        for level in config.levels:
            if not summary.levels.get(level) and (by_template or texts.get(level) != 0):
                hint = "; templates have no words for it here, --writer has" * (by_template and level == "complex")
                typer.echo(f"No instruction of level {level} was accepted{hint}.", err=True)
    if summary.stopped is not None:
        raise ValueError(summary.stopped)
    if summary.unavailable and not summary.pictures:
        raise ValueError(f"No picture was finished: {summary.why_unavailable}")
    if engine.run.config.num_shards > 1 and not summary.pictures:
        return  # a share may be empty; the whole is judged when it is merged
    if not summary.accepted + summary.review and not _has_instructions(engine.run):
        reasons = [f"{count} x {reason}" for reason, (count, _) in left_out.items()]
        reasons += [f"{summary.pairs} instructions that failed the checks"] if summary.pairs else []
        raise ValueError(f"No instruction could be written: {', '.join(reasons) or 'no picture was found'}.")


def _say_left_out(run: RunDirectory) -> dict[str, tuple[int, str]]:
    left_out = run.store.left_out()
    for reason, (count, example) in left_out.items():
        shown = f", e.g. {example[:300]}" if example else ""
        typer.echo(f"left out: {count} x {reason}{shown}", err=True)
    return left_out


def _has_instructions(run: RunDirectory) -> bool:
    pairs = (pair for record in run.records() for target in record["targets"] for pair in target["pairs"])
    return any(pair["outcome"] != "dropped" for pair in pairs)


def status(run: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Count what a run wrote, accepted and spent.

    It may be at work.
    """
    from .run import RunDirectory
    from .status import run_status, status_lines

    found = run_status(RunDirectory(run))
    typer.echo(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(status_lines(found)))


def merge(
    shards: Annotated[list[Path], typer.Argument(help="Folders of all shards of one run.")],
    to: Annotated[Path, typer.Option(help="Folder of the merged run.")],
) -> None:
    """Put the shards of a run together."""
    from .run import merge_runs

    merged = merge_runs(list(shards), to)
    typer.echo(f"merged {len(merged.store.finished_ids())} pictures into {to}", err=True)


def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="Where to write the data and its card.")],
    to: Annotated[str, typer.Option("--to", help="jsonl, official or parquet.")] = "jsonl",
    name: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    push_to: Annotated[str | None, typer.Option(help="Upload the folder to this data set of the Hub, too.")] = None,
    private: Annotated[bool, typer.Option(help="Make an uploaded data set private.")] = False,
) -> None:
    """Write the accepted instructions, with a card.

    They are uploaded where asked.
    """
    from .export import export_run, push_export
    from .run import RunDirectory

    path = export_run(RunDirectory(run), folder, to, name or (push_to and push_to.rsplit("/", 1)[-1]))
    typer.echo(f"wrote {path}", err=True)
    if push_to is not None:
        typer.echo(f"uploaded to {push_export(path, push_to, private)}", err=True)


def review(
    run: RunFolder,
    reviewer: Annotated[str | None, typer.Option(help="Your name; the page asks for it if not given.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="The first free one from 7860 on, if not given.")] = None,
    second_looks: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pairs that two reviewers are asked about.")
    ] = 0.1,
    tokenizer: Annotated[str | None, typer.Option(help="SAM3 repository or folder to count tokens with.")] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Open a page on which people decide in doubt.

    They see what the checks disagree on; several may work on it at a time.
    """
    from .review.desk import EditChecks, ReviewDesk
    from .review.page import ReviewPage
    from .run import RunDirectory

    desk = ReviewDesk(RunDirectory(run), second_looks)
    checks = EditChecks(desk, _token_counter(tokenizer)) if tokenizer else None
    page = ReviewPage(desk, reviewer, checks)
    _, address, _ = page.launch(host, port, prevent_thread_lock=True, inbrowser=open_browser)
    typer.echo(f"{desk.progress()['left']} instructions wait. Open {address} (Ctrl+C to stop)", err=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        typer.echo(f"Anyone who can reach this machine can review (host {host}).", err=True)
    page.blocks.block_thread()


def review_export(
    run: RunFolder,
    file: Annotated[Path, typer.Argument(help="JSON file for Label Studio.")],
    image_url: Annotated[str | None, typer.Option(help="Address of a picture, with {file} in it.")] = None,
) -> None:
    """Write the review queue for Label Studio.

    The labeling configuration lies beside the tasks.
    """
    from .review.desk import ReviewDesk
    from .review.label_studio import export_tasks
    from .run import RunDirectory

    count = export_tasks(ReviewDesk(RunDirectory(run)), file, image_url)
    typer.echo(f"wrote {count} tasks to {file} and the configuration to {file.with_suffix('.xml')}", err=True)


def review_import(run: RunFolder, file: Annotated[Path, typer.Argument(help="Label Studio's JSON export.")]) -> None:
    """Take the decisions made in Label Studio."""
    from .review.desk import ReviewDesk
    from .review.label_studio import import_decisions
    from .run import RunDirectory

    count = import_decisions(ReviewDesk(RunDirectory(run)), file)
    typer.echo(f"took {count} new decisions", err=True)


def add_engine_commands(app: typer.Typer) -> None:
    """Mount the commands of this module on an app."""
    for function in (build, status, merge, review, export, review_export, review_import):
        app.command(function.__name__.replace("_", "-"))(function)


def _source(given: dict[str, Any], roots: ImageRoot, split: str, seed: int, crowd: str | None) -> tuple[Source, str]:
    """(source, its description) of the one option given."""
    from .scene.sources import CocoSource, RowSource, ShapesSource

    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(f"Expected one of --coco, --rows, --images and --shapes, found {len(named)} of them.")
    value = given[named[0]]
    if named == ["images"]:
        from ..pipeline.loading import load_pipeline
        from .scene.segmentation import ProposalSource

        folder, concepts, sam3, device = value
        proposals = ProposalSource(folder, concepts, load_pipeline(sam3, device), split=split)
        return proposals, f"pictures of {folder.name}, masks of {', '.join(proposals.nouns)} by {sam3}"
    if named == ["coco"]:
        suffix = "" if crowd == "skip" else ", crowds as instance"
        return CocoSource(value, roots, split=split, crowd=crowd), f"instances {value.name}{suffix}"
    if named == ["shapes"]:
        return ShapesSource(value, split, seed), f"shapes world, {value} scenes, split {split}, seed {seed}"
    from ..datasets.faults import RowAccount
    from ..datasets.image_roots import ReadOptions
    from ..datasets.loading import find_source, read_items

    account = RowAccount()
    rows = read_items(*find_source(value), ReadOptions(roots, split, crowd, account=account))
    return RowSource(rows, account), f"rows {Path(value).name}, split {split}"


def _url_and_model(value: str) -> tuple[str, str]:
    url, mark, name = value.rpartition("#")
    if not mark or not name or not url.startswith(("http://", "https://")):
        shown = value.rsplit("@", 1)[-1]  # what stands before it may be a password
        raise ValueError(f"A model is given as URL#MODEL, e.g. http://127.0.0.1:8000/v1#qwen; found {shown!r}.")
    return url, name


def _checked_endpoint(spec: EndpointSpec) -> EndpointSpec:
    """The endpoint, which has answered; one that refuses JSON schemas is told the form in words."""
    from dataclasses import replace

    from ..chat.client import ChatRequestError

    form = {"type": "object", "properties": {"answer": {"type": "string", "enum": ["yes"]}}, "required": ["answer"]}
    try:
        spec.connect_and_check(form)
    except ChatRequestError as error:
        if not any(word in str(error).lower() for word in ("response_format", "schema")):
            raise
        model = spec.connect_and_check()
        typer.echo(f"{model.base_url} takes no JSON schema; the form of an answer is asked for in words.", err=True)
        return replace(spec, native_json_schema=False)
    return spec


def _token_counter(repository: str) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(repository)
    return lambda text: len(tokenizer(text)["input_ids"])
