# SPDX-License-Identifier: Apache-2.0
"""`sam3i convert`: checkpoints of the authors and of Meta on the command line."""

from pathlib import Path
from typing import Annotated

import typer


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
    from .official import convert_official_checkpoint

    report = convert_official_checkpoint(checkpoint, output_dir, config=config, base=base, adapter_heads=adapter_heads)
    typer.echo(report.summary())
    typer.echo(f"Written to {output_dir}")
