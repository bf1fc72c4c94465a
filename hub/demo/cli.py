# SPDX-License-Identifier: Apache-2.0
"""`sam3i demo`: try a model in a browser, on the command line."""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer


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
        from .space import export_demo_space

        typer.echo(f"Written to {export_demo_space(model, export_space)}")
        return
    from .model import DemoModel
    from .page import LOOPBACK, DemoPage

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
