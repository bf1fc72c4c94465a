# SPDX-License-Identifier: Apache-2.0
"""Tables with the columns of the schema: parquet files, saved `datasets`, and `datasets` repositories on the Hub.

The rows are checked like all others, and no more columns are needed than JSON Lines need fields. Bytes of an image in
the table are the image; a path in the table is looked for under the image roots or beside the table.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..faults import DatasetFormatError, RecordFault, RecordReader, closest
from ..image_roots import ReadOptions
from ..schema import LEVEL_FIELDS, ROW_FIELDS, InstructionRow
from .jsonl import rows_of_records

FORMATS = ("parquet", "arrow", "hub")


def files(path: Path) -> list[Path]:
    """The data files that a reading depends on."""
    endings = ("*.parquet", "*.arrow")
    return [path] if path.is_file() else sorted(file for ending in endings for file in path.rglob(ending))


def read(source: str, format: str, options: ReadOptions) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults in the order of the table.

    Raises:
        DatasetFormatError: no such columns, or a table that cannot be read.
    """
    from datasets import Image

    path = Path(source)
    folder = path if path.is_dir() else path.parent
    roots = options.roots(folder, folder / "images") if path.exists() else options.roots()
    for split, data in _parts(source, format).items():
        columns = data.column_names or []
        extra = _check_columns(source, columns, options)
        if "image" in columns and isinstance((data.features or {}).get("image"), Image):
            data = data.cast_column("image", Image(decode=False))
        records = _records(source, data.remove_columns(extra) if extra else data, split)
        yield from rows_of_records(records, roots, options, path.stem)


def _parts(source: str, format: str) -> dict[str | None, Any]:
    from datasets import DatasetDict, load_dataset, load_from_disk

    try:
        if format == "arrow":
            data = load_from_disk(source)
        elif format == "parquet":
            names = [str(file) for file in files(Path(source)) if file.suffix == ".parquet"]
            data = load_dataset("parquet", data_files=names, split="train", streaming=True)
        else:
            data = load_dataset(source, streaming=False)
    except Exception as error:  # Arrow and the Hub's client each raise their own
        raise _unreadable(source, error) from error
    return dict(data) if isinstance(data, DatasetDict) else {None: data}


def _check_columns(source: str, columns: list[str], options: ReadOptions) -> list[str]:
    """The columns that are not the schema's; each is noted, a misspelled one refused."""
    if not any(level in columns for level in LEVEL_FIELDS):
        missing = ", ".join(name for name in ROW_FIELDS if name not in columns)
        raise DatasetFormatError(
            f"{source}: lacks the columns {missing} (has {', '.join(columns)}); "
            "rename them, or convert the data with `sam3i data convert`"
        )
    extra = [column for column in columns if column not in ROW_FIELDS]
    for column in extra:
        meant = closest(column, ROW_FIELDS)
        if meant is not None and meant not in columns:
            raise DatasetFormatError(f"{source}: column {column!r}: did you mean {meant!r}? Rename or remove it.")
        options.account.notes[f"column {column!r} is not used"] += 1
    return extra


def _unreadable(source: str, error: Exception) -> DatasetFormatError:
    reason = " ".join(str(error).split())[:300]
    return DatasetFormatError(f"{source}: no readable table ({type(error).__name__}: {reason})")


def _records(source: str, data: Any, split: str | None) -> Iterator[RecordReader]:
    try:
        for number, row in enumerate(data):
            record = {name: value for name, value in row.items() if value is not None}
            if split is not None:
                record.setdefault("split", split)
            if isinstance(record.get("masks"), list):
                record["masks"] = [
                    None if isinstance(mask, dict) and mask.get("counts") is None else mask for mask in record["masks"]
                ]
            yield RecordReader(source, f"row {number}", record)
    except Exception as error:  # as above: a table that breaks off, or columns of other types
        raise _unreadable(source, error) from error
