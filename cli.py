# SPDX-License-Identifier: Apache-2.0
"""The `sam3i` command."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from .hub.conversion.cli import convert
from .hub.demo.cli import demo
from .hub.publish.export_cli import export
from .hub.publish.push_cli import card, push
from .processing.cli import data_app
from .processing.data_engine.cli import add_engine_commands
from .trainer.cli import train
from .trainer.evaluation.cli import evaluate

app = typer.Typer(
    name="sam3i",
    help="Segment images by instruction with SAM3-I: predict, train, evaluate, convert, build data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"Error: {error}", err=True)
    return typer.Exit(code=1)


@app.command()
def predict(
    model: Annotated[str, typer.Option(help="SAM3-I or stock SAM3 repository or folder.")],
    image: Annotated[str, typer.Option(help="Path or URL of the image.")],
    text: Annotated[list[str], typer.Option(help="An instruction; give it again for several.")],
    level: Annotated[str, typer.Option(help="concept, simple, complex, or auto to decide by the text.")] = "auto",
    output: Annotated[Path, typer.Option(help="Folder for the overlay PNG and the JSON.")] = Path("predictions"),
    threshold: Annotated[float, typer.Option(help="Instances need a higher score.")] = 0.5,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; the first accelerator if not given.")] = None,
) -> None:
    """Segment an image by instructions; write the masks over the picture, and as JSON."""
    from .processing.predict import predict as run

    try:
        prediction = run(model, image, text, level, output, threshold, device=device)
    except (OSError, ValueError, TypeError) as error:
        raise _fail(error) from error
    for instruction, followed, count in prediction.found:
        typer.echo(f"{count} instance{'' if count == 1 else 's'} ({followed}): {instruction}")
    typer.echo(f"{prediction.overlay}\n{prediction.results}")


@app.command()
def info(model: Annotated[str, typer.Argument(help="Repository or folder.")]) -> None:
    """Say what a repository holds: levels, adapters, sizes, base. No weights are loaded."""
    from .hub.repo_info import repo_info

    try:
        typer.echo(str(repo_info(model)))
    except (OSError, ValueError) as error:
        raise _fail(error) from error


for command in (train, evaluate, convert, export, push, card, demo):
    app.command()(command)
add_engine_commands(data_app)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    app()


if __name__ == "__main__":
    main()
