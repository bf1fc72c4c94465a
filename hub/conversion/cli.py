# SPDX-License-Identifier: Apache-2.0
"""`sam3i convert`: the authors' checkpoints on the command line."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the authors' code (.pt).")],
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
    """Convert an official SAM3-I checkpoint into a repository for from_pretrained, and report on every tensor."""
    from .official import convert_official_checkpoint

    report = convert_official_checkpoint(checkpoint, output_dir, config=config, base=base, adapter_heads=adapter_heads)
    typer.echo(report.summary())
    typer.echo(f"Written to {output_dir}")
