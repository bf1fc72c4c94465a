# SPDX-License-Identifier: Apache-2.0
"""`sam3i data`: validate, inspect and convert instruction data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from datasets import Dataset

    from .datasets.faults import RowAccount

data_app = typer.Typer(help="Check, look at and convert instruction data.", no_args_is_help=True)

FORMAT_HELP = (
    "official, refer, refer-coco, reasonseg, mmr, coco, jsonl, parquet, arrow, hub; auto looks at the content"
)
ROOT_HELP = "Folder of the images, or NAME=FOLDER for a data set or a leading folder; may be given several times."
CROWD_HELP = (
    "What an annotation marked iscrowd is: instance takes it as one where its mask is one piece (the default, but for "
    "the authors' JSON, whose flags are meant), skip never does."
)

Source = Annotated[str, typer.Argument(help="A file, a folder, or a Hub repository (owner/name).")]
Format = Annotated[str, typer.Option("--format", help=FORMAT_HELP)]
Roots = Annotated[list[str] | None, typer.Option("--image-root", help=ROOT_HELP)]
Split = Annotated[str | None, typer.Option("--split", help="Only this split.")]
Crowd = Annotated[str | None, typer.Option("--crowd", help=CROWD_HELP)]
SkipFaulty = Annotated[bool, typer.Option("--skip-faulty", help="Leave out records with faults, and count them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_image_roots(values: list[str] | None) -> str | dict[str, str] | None:
    """`--image-root` values as `load_instruction_dataset` takes them."""
    if not values:
        return None
    pairs = [value.split("=", 1) if "=" in value and not Path(value).is_dir() else ["", value] for value in values]
    return pairs[0][1] if len(pairs) == 1 and not pairs[0][0] else {name: folder for name, folder in pairs}


def read_rows(
    data: str, split: str | None, image_root: list[str] | None, crowd: str | None, skip_faulty: bool
) -> Dataset:
    """Rows as training and evaluation read them: the files of images are there, and their sizes are right."""
    from .datasets.loading import load_instruction_dataset

    roots = read_image_roots(image_root)
    return load_instruction_dataset(
        data, "auto", roots, split, skip_faulty=skip_faulty, crowd=crowd, check_images=True
    )


def say_account(source: str, account: RowAccount) -> None:
    """Print what a reading kept and left out, and why, on the error stream."""
    first, *reasons = account.lines()
    typer.echo("\n".join([f"{source}: {first}", *reasons]), err=True)


@data_app.command()
def validate(
    path: Annotated[list[str], typer.Argument(help="Files, folders or Hub repositories.")],
    format: Format = "auto",
    image_root: Roots = None,
    split: Split = None,
    crowd: Crowd = None,
    pictures: Annotated[bool, typer.Option(help="Open every image and check its size.")] = True,
    limit: Annotated[int, typer.Option(help="Print at most this many faults of each file; 0 for all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Name file, record and field of every fault.

    Exit status 1 says that there is one.
    """
    from .datasets.image_roots import ReadOptions
    from .datasets.loading import validate_dataset

    faults = 0
    for source in path:
        options = ReadOptions(read_image_roots(image_root), split, crowd, progress=True)
        for number, fault in enumerate(validate_dataset(source, format, options, pictures)):
            if limit and number == limit:
                typer.echo(f"{source}: ... (more faults; --limit 0 prints all)", err=True)
            if not limit or number < limit:
                typer.echo(json.dumps(vars(fault)) if as_json else _printable(str(fault)))
        say_account(source, options.account)
        faults += options.account.num_faults
    if faults:
        raise typer.Exit(1)


@data_app.command()
def inspect(
    path: Source,
    format: Format = "auto",
    image_root: Roots = None,
    split: Split = None,
    crowd: Crowd = None,
    skip_faulty: SkipFaulty = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet to this PNG file.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Rows on the contact sheet.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Count what the rows hold, and draw a sample of them.

    Counts instructions per level, target kinds and sizes.
    """
    from datasets import Image as ImageFeature
    from tqdm.auto import tqdm

    from .datasets.faults import RowAccount
    from .datasets.inspection import draw_row, spread_rows, summarize
    from .datasets.loading import load_instruction_dataset
    from .drawing.sheet import contact_sheet
    from .images import read_image

    account = RowAccount()
    dataset = load_instruction_dataset(
        path, format, read_image_roots(image_root), split, skip_faulty=skip_faulty, crowd=crowd, account=account
    )
    raw = dataset.cast_column("image", ImageFeature(decode=False))
    summary = summarize(tqdm(raw.remove_columns("image"), desc="rows", leave=False))
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        for name, value in summary.items():
            shown = value if not isinstance(value, dict) else ", ".join(f"{k} {v}" for k, v in value.items())
            typer.echo(f"{name:<13} {shown}")
    say_account(path, account)
    if sheet is None:
        return
    chosen = [row for row in spread_rows(raw, count) if row["image"] is not None]
    if not chosen:
        raise typer.BadParameter("no row has an image: pass --image-root", param_hint="--sheet")
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([draw_row(row, read_image(row["image"])) for row in chosen], columns=4).save(sheet)
    typer.echo(f"wrote {sheet}", err=True)


@data_app.command()
def convert(
    path: Source,
    target: Annotated[str, typer.Argument(help="The file to write, or the Hub repository with --push.")],
    to: Annotated[
        str | None, typer.Option("--to", help="jsonl, official or parquet; else by the file's ending.")
    ] = None,
    format: Format = "auto",
    image_root: Roots = None,
    split: Split = None,
    crowd: Crowd = None,
    skip_faulty: SkipFaulty = False,
    push: Annotated[bool, typer.Option(help="Upload to the Hub instead, images included.")] = False,
    private: Annotated[bool, typer.Option(help="Make the uploaded repository private.")] = False,
) -> None:
    """Write data of any format in another, or upload it.

    Writes JSON Lines, the authors' JSON or parquet.
    """
    from .atomic import refuse_same
    from .datasets.conversion import convert_dataset, push_to_hub
    from .datasets.faults import RowAccount
    from .datasets.image_roots import ReadOptions
    from .datasets.loading import find_source, iterate_rows, load_instruction_dataset

    roots, account = read_image_roots(image_root), RowAccount()
    if push:
        dataset = load_instruction_dataset(
            path, format, roots, split, skip_faulty=skip_faulty, crowd=crowd, check_images=True, account=account
        )
        push_to_hub(dataset, target, private=private)
        say_account(path, account)
        typer.echo(f"pushed {target}", err=True)
        return
    endings = {".jsonl": "jsonl", ".json": "official", ".parquet": "parquet"}
    name = to or endings.get(Path(target).suffix)
    if name is None:
        raise typer.BadParameter(f"cannot tell the format of {target!r}; pass --to", param_hint="target")
    refuse_same(path, target)
    options = ReadOptions(roots, split, crowd, account=account)
    rows = convert_dataset(iterate_rows(*find_source(path, format), options, skip_faulty), target, name)
    say_account(path, account)
    typer.echo(f"wrote {rows} rows to {target}", err=True)


def _printable(text: str) -> str:
    """A line that every terminal can show."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", " ")
