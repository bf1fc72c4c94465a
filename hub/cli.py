# SPDX-License-Identifier: Apache-2.0
"""`sam3i convert`, `export`, `push`, `card` and `demo`: a model from others, for others, and to look at."""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

TARGETS = ("repository", "onnx", "openvino", "pt2")
FORMS = ("full", "adapter", "remote-code")


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the authors or of Meta (.pt, .safetensors).")],
    output_dir: Annotated[Path, typer.Argument(help="Folder to create.")],
    config: Annotated[
        str | None,
        typer.Option(help="Stock SAM3 configuration (file or repository) of another than the released size."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Stock SAM3 repository to take the processor from.")] = None,
    adapter_heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads of the text adapters, if not the released 4.")
    ] = None,
) -> None:
    """Make a repository of a SAM3-I, SAM 3 or SAM 3.1 file.

    Every tensor is accounted for and reported.
    """
    from .conversion.official import convert_official_checkpoint

    report = convert_official_checkpoint(checkpoint, output_dir, config=config, base=base, adapter_heads=adapter_heads)
    typer.echo(report.summary())
    typer.echo(f"Written to {output_dir}")


def export(
    model: Annotated[str, typer.Argument(help="SAM3-I or stock SAM3 repository or folder.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder to create.")],
    to: Annotated[
        str, typer.Option(help="repository (weights, processor and code), or graphs: onnx, openvino, pt2.")
    ] = "repository",
    levels: Annotated[str, typer.Option(help="Levels of the graphs.")] = "concept,simple,complex",
    int8: Annotated[
        bool,
        typer.Option("--int8", help="8-bit weights for graphs; prints what they cost on the shapes world."),
    ] = False,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes of the shapes world, for --int8.")] = 25,
) -> None:
    """Write a folder or graphs that run without this package.

    A folder works with trust_remote_code=True; graphs for other runtimes are held against the model.
    """
    if to not in TARGETS:
        raise ValueError(f"--to takes {', '.join(TARGETS)}, found {to!r}.")
    if to == TARGETS[0]:
        if int8:
            raise ValueError(f"--int8 is for graphs: expected --to onnx or openvino, found {to}.")
        from .publish.remote_code import export_repository

        typer.echo(f"Written to {export_repository(model, output_dir)}")
        return
    import torch

    from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ..processing.processing_sam3i import Sam3IProcessor
    from .publish.exported import export_graphs

    report = export_graphs(
        Sam3IForInstructionSegmentation.from_pretrained(model, dtype=torch.float32),
        output_dir,
        to,
        [level.strip() for level in levels.split(",") if level.strip()],
        int8=int8,
        processor=Sam3IProcessor.from_pretrained(model) if int8 else None,
        scenes=scenes if int8 else 0,
    )
    typer.echo(str(report))


def push(
    folder: Annotated[Path, typer.Argument(help="Saved model, adapters, or the output folder of a training.")],
    repo_id: Annotated[str, typer.Argument(help="Repository: ORG/NAME.")],
    form: Annotated[
        str | None, typer.Option("--as", help=f"{', '.join(FORMS)}; what the folder holds if not given.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Repository of SAM3 that the adapters work on.")] = None,
    license: Annotated[str | None, typer.Option(help="License for the card, such as apache-2.0.")] = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="Output of `sam3i evaluate --json` for the card; again for more.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made if need be.")] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
) -> None:
    """Upload a model with its processor and card to the Hub.

    All of it is one commit.
    """
    if form not in (None, *FORMS):
        raise typer.BadParameter(f"--as takes {', '.join(FORMS)}, found {form!r}.")
    from .publish.push import push_folder

    commit = push_folder(
        folder,
        repo_id,
        form=form,
        base_model=base,
        license=license,
        results=results or (),
        private=True if private else None,
        revision=revision,
        message=message,
    )
    typer.echo(f"Pushed to {commit.repo_url}\n{commit.commit_url}")


def card(
    folder: Annotated[Path, typer.Argument(help="Saved model, adapters, or the output folder of a training.")],
    base: Annotated[str | None, typer.Option(help="Repository of SAM3 that the model was made from.")] = None,
    license: Annotated[str | None, typer.Option(help="License, such as apache-2.0.")] = None,
    name: Annotated[str | None, typer.Option(help="Title; the folder's name if not given.")] = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="Output of `sam3i evaluate --json`, kept as evaluation.json.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="Output folder of the training, if it is another; kept as training.json.")
    ] = None,
) -> None:
    """Write the model card of a folder, or renew it.

    It is made from what lies in the folder; edited text stays.
    """
    from .cards.model_card import keep_records, write_model_card

    keep_records(folder, results or (), training)
    path = write_model_card(folder, base_model=base, license=license, model_name=name)
    typer.echo(f"Written to {path}")


def _check_address(host: str, port: int | None) -> None:
    """Raise `OSError` when nothing can listen there: Gradio would wait for ever, or say so after loading the model."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()
    except OSError as error:
        where = host if port is None else f"{host}, port {port}"
        raise OSError(f"cannot listen on {where}: it is taken, or not of this machine ({error})") from error


def demo(
    model: Annotated[str, typer.Option(help="SAM3-I or stock SAM3 repository or folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The first free one from 7860 on, if not given.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; the first accelerator if not given.")] = None,
    threshold: Annotated[float, typer.Option(help="Where the slider of scores stands at first.")] = 0.5,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Also serve the tool `segment` to agents, by the Model Context Protocol.")
    ] = False,
    export_space: Annotated[
        Path | None, typer.Option(help="Write a folder for a Hub Space instead of serving the page.")
    ] = None,
) -> None:
    """Open a page on which to try a model.

    It has instructions, levels, thresholds and boxes.
    """
    if export_space is not None:
        from .demo.space import export_demo_space

        typer.echo(f"Written to {export_demo_space(model, export_space)}")
        return
    from .demo.model import DemoModel
    from .demo.page import LOOPBACK, DemoPage

    if mcp and find_spec("mcp") is None:
        raise ImportError('--mcp needs the package mcp: pip install "gradio[mcp]"')
    _check_address(host, port)
    typer.echo(f"Loading {model} ...")
    try:
        loaded = DemoModel.load(model, device)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"cannot load {model}: {error}") from error
    typer.echo(f"{loaded.parameters / 1e6:.1f} M parameters on {loaded.device}")
    page = DemoPage(loaded, threshold, for_agents=mcp)
    _, address, _ = page.launch(host, port, prevent_thread_lock=True)
    if host not in LOOPBACK:
        typer.echo(f"Anyone who can reach this machine can use the page (host {host}).")
    typer.echo(f"Open {address} (Ctrl+C to stop)")
    if mcp:
        typer.echo(f"Agents: the tool `segment` at {address.rstrip('/')}/gradio_api/mcp/")
    page.blocks.block_thread()
