# SPDX-License-Identifier: Apache-2.0
"""Rows to files: JSON Lines, the authors' JSON, parquet and the Hub; nothing is lost on the way back.

Where the authors' layout has no place for a field, the record carries it in an extra object `sam3i`, which their
loader ignores.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..masks import rle_area
from .faults import DatasetFormatError
from .readers.official import TEXT_KEYS
from .schema import LEVEL_FIELDS, ROW_FIELDS, InstructionRow, row_features

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


logger = logging.get_logger(__name__)

WRITERS = ("jsonl", "official", "parquet")


def convert_dataset(
    dataset: Dataset | IterableDataset | Iterable[InstructionRow], path: str | Path, format: str
) -> int:
    """Write rows to `path` in one of the formats of `WRITERS`; returns the number of rows.

    Pictures that are files stay where they are and are named relative to their image root; pictures held in the rows
    are written to `images/` beside the file. Parquet holds the pictures themselves.
    """
    if format not in WRITERS:
        raise DatasetFormatError(f"can write {', '.join(WRITERS)}, found {format!r}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = {"jsonl": write_jsonl, "official": write_official, "parquet": write_parquet}[format]
    return writer(dataset, path)


def write_jsonl(dataset: Iterable[InstructionRow], path: Path) -> int:
    """One row per line, every field, pictures by name."""
    pictures, count = _PictureFolder(path.parent / "images"), 0
    with open(path, "w", encoding="utf-8") as file:
        for row in tqdm(_raw_rows(dataset), desc=path.name, unit=" rows"):
            line = {name: row[name] for name in ROW_FIELDS if name != "image"}
            line["file_name"] = pictures.name(row)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_official(dataset: Iterable[InstructionRow], path: Path) -> int:
    """The authors' JSON: one record per row, one category, compressed RLE."""
    pictures, numbers, instance_numbers = _PictureFolder(path.parent / "images"), _Numbers(), _Numbers()
    count = incomplete = 0
    with open(path, "w", encoding="utf-8") as file, tempfile.TemporaryFile("w+", encoding="utf-8") as annotations:
        file.write('{"images": [')
        first = True
        for row in tqdm(_raw_rows(dataset), desc=path.name, unit=" rows"):
            number = numbers.assign(row["row_id"])
            file.write(("\n" if count == 0 else ",\n") + json.dumps(_record(row, number, pictures.name(row))))
            for annotation in _annotations(row, number, instance_numbers):
                annotations.write(("\n" if first else ",\n") + json.dumps(annotation))
                first = False
            count += 1
            incomplete += not all(row[level] for level in LEVEL_FIELDS)
        file.write('\n], "annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write('\n], "categories": [{"id": 1, "name": "object"}]}\n')
    if incomplete:
        logger.warning(f"{path}: {incomplete} of {count} records lack a level; the authors' trainer needs all three")
    return count


def write_parquet(dataset: Dataset | IterableDataset | Iterable[InstructionRow], path: Path) -> int:
    """Parquet with the pictures inside, written batch by batch."""
    import pyarrow
    import pyarrow.parquet
    from datasets.table import embed_table_storage, table_cast

    features, count = row_features(), 0
    schema = features.arrow_schema
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for batch in _batches(_raw_rows(dataset), 100):
            encoded = [features.encode_example(row) for row in tqdm(batch, desc=path.name, leave=False)]
            table = table_cast(pyarrow.Table.from_pylist(encoded, schema=schema), schema)
            writer.write_table(embed_table_storage(table))
            count += len(batch)
    return count


def push_to_hub(dataset: Dataset, repo_id: str, private: bool = False) -> None:
    """Upload rows with their pictures as a `datasets` repository, one split per value of `split`."""
    from datasets import DatasetDict

    names = sorted({name or "train" for name in dataset.with_format(None)["split"]})
    parts = {name: dataset.filter(_in_split, input_columns="split", fn_kwargs={"name": name}) for name in names}
    DatasetDict(parts).push_to_hub(repo_id, private=private)


def _in_split(value: str | None, name: str) -> bool:
    return (value or "train") == name


def _raw_rows(dataset: Any) -> Iterable[InstructionRow]:
    """Rows whose picture is a path, `{"path", "bytes"}` or a PIL image: encoded pictures are not decoded."""
    if hasattr(dataset, "cast_column"):
        from datasets import Image

        return dataset.cast_column("image", Image(decode=False))
    return dataset


def _batches(rows: Iterable[InstructionRow], size: int) -> Iterable[list[InstructionRow]]:
    batch: list[InstructionRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _record(row: InstructionRow, number: int, file_name: str | None) -> dict[str, Any]:
    kept = ("row_id", "image_id", "annotation_ids", "target_kind", "ignore_masks", "dataset", "split")
    return {
        "id": number,
        "file_name": file_name,
        "width": row["width"],
        "height": row["height"],
        "text_inst_input": {key: row[level] for level, key in TEXT_KEYS.items()},
        "sam3i": {name: row[name] for name in kept},
    }


def _annotations(row: InstructionRow, number: int, numbers: _Numbers) -> Iterable[dict[str, Any]]:
    ids = row["annotation_ids"] or [None] * len(row["masks"])
    for mask, box, crowd, source_id in zip(row["masks"], row["boxes"], row["is_crowd"], ids, strict=True):
        yield {
            "id": numbers.assign(source_id),
            "image_id": number,
            "category_id": 1,
            "bbox": box,
            "area": box[2] * box[3] if mask is None else rle_area(mask),
            "iscrowd": int(crowd),
            "segmentation": [] if mask is None else mask,
        }


class _Numbers:
    """Whole-number ids: the one asked for where it is free, else the next free one."""

    def __init__(self) -> None:
        self.used: set[int] = set()
        self.next = 1

    def assign(self, wanted: Any) -> int:
        number = int(wanted) if isinstance(wanted, int) or (isinstance(wanted, str) and wanted.isdecimal()) else None
        if number is None or number in self.used:
            while self.next in self.used:
                self.next += 1
            number = self.next
        self.used.add(number)
        return number


class _PictureFolder:
    """Names of pictures for a file; pictures without a file are written once per image id."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.written: dict[str, str] = {}

    def name(self, row: InstructionRow) -> str | None:
        picture = row["image"]
        if isinstance(picture, dict):
            if picture["bytes"] is None:
                picture = picture["path"]
        if picture is None or isinstance(picture, (str, Path)):
            return row["file_name"] if row["file_name"] is not None or picture is None else str(picture)
        key = f"{row['dataset']}/{row['image_id']}"
        if key not in self.written:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.written[key] = self._write(picture, len(self.written))
        return self.written[key]

    def _write(self, picture: Any, number: int) -> str:
        if isinstance(picture, dict):
            suffix = Path(picture["path"] or "").suffix or ".png"
            target = self.folder / f"{number:08d}{suffix}"
            target.write_bytes(picture["bytes"])
        else:
            target = self.folder / f"{number:08d}.png"
            picture.save(target)
        return f"{self.folder.name}/{target.name}"
