# SPDX-License-Identifier: Apache-2.0
"""`sam3i data`: validate, inspect and convert instruction data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(help="Check, look at and convert instruction data.", no_args_is_help=True)

FORMAT_HELP = (
    "official, refer, refer-coco, reasonseg, mmr, coco, jsonl, parquet, arrow, hub; auto looks at the content"
)
ROOT_HELP = "Folder of the pictures, or NAME=FOLDER for a data set or a leading folder; may be given several times."

Source = Annotated[str, typer.Argument(help="A file, a folder, or a Hub repository (owner/name).")]
Format = Annotated[str, typer.Option("--format", help=FORMAT_HELP)]
Roots = Annotated[list[str] | None, typer.Option("--image-root", help=ROOT_HELP)]
Split = Annotated[str | None, typer.Option("--split", help="Only this split.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_image_roots(values: list[str] | None) -> str | dict[str, str] | None:
    """`--image-root` values as `load_instruction_dataset` takes them."""
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return values[0]
    pairs = [value.split("=", 1) if "=" in value else ["", value] for value in values]
    return dict(pairs)


@data_app.command()
def validate(
    path: Annotated[list[str], typer.Argument(help="Files, folders or Hub repositories.")],
    format: Format = "auto",
    image_root: Roots = None,
    split: Split = None,
    pictures: Annotated[bool, typer.Option(help="Open every picture and check its size.")] = True,
    limit: Annotated[int, typer.Option(help="Print at most this many faults of each file; 0 for all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Name file, record and field of every fault; exit with 1 when there is one."""
    from .datasets.validation import ValidationCount, validate_dataset

    total = ValidationCount()
    for source in path:
        count = ValidationCount()
        faults = validate_dataset(
            source, format, read_image_roots(image_root), split, check_pictures=pictures, count=count, progress=True
        )
        for number, fault in enumerate(faults):
            if limit and number == limit:
                typer.echo(f"{source}: ... (more faults; --limit 0 prints all)", err=True)
            if not limit or number < limit:
                typer.echo(json.dumps(vars(fault), ensure_ascii=False) if as_json else str(fault))
        total.rows += count.rows
        total.faults += count.faults
        typer.echo(f"{source}: {count.rows} usable rows, {count.faults} faults", err=True)
    if total.faults:
        raise typer.Exit(1)


@data_app.command()
def inspect(
    path: Source,
    format: Format = "auto",
    image_root: Roots = None,
    split: Split = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet to this PNG file.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Rows on the contact sheet.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Count rows, instructions per level, target kinds and sizes; draw a sample of the rows."""
    from datasets import Image as ImageFeature

    from .datasets.inspection import contact_sheet_of, spread_rows, summarize

    dataset = _load(path, format, image_root, split)
    raw = dataset.cast_column("image", ImageFeature(decode=False))
    from tqdm.auto import tqdm

    summary = summarize(tqdm(raw.remove_columns("image"), desc="rows", leave=False)).to_dict()
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False))
    else:
        for name, value in summary.items():
            shown = value if not isinstance(value, dict) else ", ".join(f"{k} {v}" for k, v in value.items())
            typer.echo(f"{name:<13} {shown}")
    if sheet is None:
        return
    chosen = [row for row in spread_rows(raw, count) if row["image"] is not None]
    if not chosen:
        raise typer.BadParameter("no row has a picture: pass --image-root", param_hint="--sheet")
    decoder = ImageFeature()
    pictures = [decoder.decode_example(row["image"]) for row in chosen]
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet_of(chosen, pictures).save(sheet)
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
    skip_faulty: Annotated[bool, typer.Option(help="Leave out records with faults.")] = False,
    push: Annotated[bool, typer.Option(help="Upload to the Hub instead, pictures included.")] = False,
    private: Annotated[bool, typer.Option(help="Make the uploaded repository private.")] = False,
) -> None:
    """Read any format and write JSON Lines, the authors' JSON or parquet, or upload."""
    from .datasets.conversion import convert_dataset, push_to_hub

    if push:
        push_to_hub(_load(path, format, image_root, split, skip_faulty), target, private=private)
        typer.echo(f"pushed {target}", err=True)
        return
    endings = {".jsonl": "jsonl", ".json": "official", ".parquet": "parquet"}
    name = to or endings.get(Path(target).suffix)
    if name is None:
        raise typer.BadParameter(f"cannot tell the format of {target!r}; pass --to", param_hint="target")
    dataset = _load(path, format, image_root, split, skip_faulty, streaming=True)
    try:
        rows = convert_dataset(dataset, target, name)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"wrote {rows} rows to {target}", err=True)


def _load(path, format, image_root, split, skip_faulty=False, streaming=False):
    from .datasets.loading import load_instruction_dataset

    try:
        return load_instruction_dataset(
            path, format, read_image_roots(image_root), split, streaming=streaming, skip_faulty=skip_faulty
        )
    except (ValueError, KeyError, OSError) as error:
        raise typer.BadParameter(str(error.args[0]) if isinstance(error, KeyError) else str(error)) from error
