# SPDX-License-Identifier: Apache-2.0
"""`sam3i export`: a repository that runs without this package, on the command line."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[str, typer.Argument(help="SAM3-I or stock SAM3 repository or folder.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder to create.")],
) -> None:
    """Write weights, processor and code to a folder that works with trust_remote_code=True."""
    from .remote_code import export_repository

    try:
        folder = export_repository(model, output_dir)
    except (OSError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(code=1) from error
    typer.echo(f"Written to {folder}")
