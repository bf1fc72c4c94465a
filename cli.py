# SPDX-License-Identifier: Apache-2.0
"""The `sam3i` command: mounts each folder's commands, and is the one place where errors become a line."""

import functools
import logging
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__
from .hub.cli import card, convert, demo, export, push
from .processing.cli import data_app
from .processing.data_engine.cli import add_engine_commands
from .processing.predict import predict
from .trainer.cli import train
from .trainer.evaluation.cli import evaluate

_TRACEBACK = "SAM3I_TRACEBACK"
_SPEAK_FOR_THEMSELVES = (OSError, ValueError, TypeError, ImportError)
"""Errors whose message is a sentence; others are told with their kind."""


class _ErrorsInOneLine(TyperGroup):
    """Whatever goes wrong in a command becomes `Error: ...` and exit status 1; SAM3I_TRACEBACK=1 shows where."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            for_typer = isinstance(error, typer.Abort) or hasattr(error, "exit_code")  # usage errors and early exits
            reader_left = isinstance(error, BrokenPipeError)  # `sam3i ... | head`: typer ends quietly
            if for_typer or reader_left or os.environ.get(_TRACEBACK):
                raise
            typer.echo(f"Error: {describe_error(error)}", err=True)
            raise typer.Exit(code=1) from error


def describe_error(error: Exception) -> str:
    """An error as a person reads it: its message, with its kind where that says more."""
    if isinstance(error, KeyError):  # its text is the repr of the key
        return f"{type(error).__name__}: {error}. {_TRACEBACK}=1 shows where."
    text = str(error).strip()
    if text and isinstance(error, _SPEAK_FOR_THEMSELVES):
        lines = "; ".join(line.strip() for line in text.splitlines() if line.strip())
        return lines.replace(":; ", ": ").replace(".; ", ". ")
    first = text.splitlines()[0] if text else "no message"
    return f"{type(error).__name__}: {first}. {_TRACEBACK}=1 shows where."


app = typer.Typer(
    name="sam3i",
    cls=_ErrorsInOneLine,
    help="Segment images by instruction with SAM3-I: predict, train, evaluate, convert, build data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help texts are meant
)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sam3i {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def _with_models(command: Callable) -> Callable:
    """The command, for which Transformers has been taught about SAM3-I; its help does not wait for that."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from .registration import register

        register()
        return command(*args, **kwargs)

    return run


@app.command()
def info(model: Annotated[str, typer.Argument(help="Repository or folder.")]) -> None:
    """Say what a repository holds.

    Levels, adapters, sizes and base are read without loading weights.
    """
    from .hub.repo_info import repo_info

    typer.echo(str(repo_info(model)))


for command in (predict, train, evaluate, convert, export, push, card, demo):
    app.command()(_with_models(command))
add_engine_commands(data_app)
for entry in data_app.registered_commands:
    if entry.callback is not None and entry.callback.__name__ == "build":  # may segment with a model
        entry.callback = _with_models(entry.callback)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    app()


if __name__ == "__main__":
    main()
