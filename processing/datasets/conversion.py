# SPDX-License-Identifier: Apache-2.0
"""Rows to files: JSON Lines, the authors' JSON, parquet and the Hub; nothing is lost on the way back.

Where the authors' layout has no place for a field, the record carries it in an extra object `sam3i`, which their
loader ignores.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..atomic import write_whole
from ..images import image_size, read_image
from ..masks import rle_area
from .faults import DatasetFormatError
from .json_stream import in_batches
from .readers.official import EXTRA_FIELDS, TEXT_KEYS
from .schema import LEVEL_FIELDS, InstructionRow, row_features

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


logger = logging.get_logger(__name__)

WRITERS = ("jsonl", "official", "parquet")


def convert_dataset(
    dataset: Dataset | IterableDataset | Iterable[InstructionRow], path: str | Path, format: str
) -> int:
    """Write rows to `path` in one of the formats of `WRITERS`; returns the number of rows.

    The file appears whole or not at all, and is read back where it lies: images that lie elsewhere get a hard link (on
    another disk a copy) in `images/` beside the file, and images held in the rows are written there. Parquet holds
    the images themselves, after they were decoded once.

    Raises:
        DatasetFormatError: an unknown format.
        ImageError: what should be an image is none.
    """
    if format not in WRITERS:
        raise DatasetFormatError(f"can write {', '.join(WRITERS)}, found {format!r}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = {"jsonl": write_jsonl, "official": write_official, "parquet": write_parquet}[format]
    with write_whole(path) as partial:
        return writer(dataset, partial)


def write_jsonl(dataset: Iterable[InstructionRow], path: Path) -> int:
    """One row per line, every field, images by name."""
    images, count = _ImageFolder(path.parent / "images"), 0
    with open(path, "w", encoding="utf-8") as file:
        for row in tqdm(_raw_rows(dataset), desc="writing", unit=" rows"):
            line: dict[str, Any] = {name: value for name, value in row.items() if name != "image"}
            line["file_name"] = images.name(row)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_official(dataset: Iterable[InstructionRow], path: Path) -> int:
    """The authors' JSON: one record per row, one category, compressed RLE."""
    images, numbers, instance_numbers = _ImageFolder(path.parent / "images"), _Numbering(), _Numbering()
    count = incomplete = 0
    with open(path, "w", encoding="utf-8") as file, tempfile.TemporaryFile("w+", encoding="utf-8") as annotations:
        file.write('{"images": [')
        first = True
        for row in tqdm(_raw_rows(dataset), desc="writing", unit=" rows"):
            number = numbers.assign(row["row_id"])
            file.write(("\n" if count == 0 else ",\n") + json.dumps(_record(row, number, images.name(row))))
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
        logger.warning(f"{incomplete} of {count} records lack a level; the authors' trainer needs all three")
    return count


def write_parquet(dataset: Dataset | IterableDataset | Iterable[InstructionRow], path: Path) -> int:
    """Parquet with the images inside, written batch by batch."""
    import pyarrow
    import pyarrow.parquet
    from datasets.table import embed_table_storage, table_cast

    features, count = row_features(), 0
    schema = features.arrow_schema
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for batch in in_batches(_raw_rows(dataset), 100):
            for row in tqdm(batch, desc="writing", leave=False):
                if row["image"] is not None:
                    read_image(row["image"])
            encoded = [features.encode_example(row) for row in batch]
            table = table_cast(pyarrow.Table.from_pylist(encoded, schema=schema), schema)
            writer.write_table(embed_table_storage(table))
            count += len(batch)
    return count


def push_to_hub(dataset: Dataset, repo_id: str, private: bool = False) -> None:
    """Upload rows with their images as a `datasets` repository, one split per value of `split`."""
    from datasets import DatasetDict

    names = sorted({name or "train" for name in dataset.with_format(None)["split"]})
    parts = {name: dataset.filter(_in_split, input_columns="split", fn_kwargs={"name": name}) for name in names}
    DatasetDict(parts).push_to_hub(repo_id, private=private)


def _in_split(value: str | None, name: str) -> bool:
    return (value or "train") == name


def _raw_rows(dataset: Any) -> Iterable[InstructionRow]:
    """Rows whose image is a path, `{"path", "bytes"}` or a PIL image: encoded images are not decoded."""
    if hasattr(dataset, "cast_column"):
        from datasets import Image

        return dataset.cast_column("image", Image(decode=False))
    return dataset


def _record(row: InstructionRow, number: int, file_name: str | None) -> dict[str, Any]:
    fields: Mapping[str, Any] = {**row}
    return {
        "id": number,
        "file_name": file_name,
        "width": row["width"],
        "height": row["height"],
        "text_inst_input": {key: fields[level] for level, key in TEXT_KEYS.items()},
        "sam3i": {name: fields[name] for name in EXTRA_FIELDS},
    }


def _annotations(row: InstructionRow, number: int, numbers: _Numbering) -> Iterable[dict[str, Any]]:
    ids: Sequence[int | None] = row["annotation_ids"] or [None] * len(row["masks"])
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


class _Numbering:
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


class _ImageFolder:
    """Names of images for a data file, under which its readers find them beside it.

    An image that lies elsewhere gets a hard link (a copy on another disk) in `images/`; one held in its row is
    written there, named by its content. Nothing is carried along that is no image.
    """

    def __init__(self, folder: Path):
        self.home, self.folder = folder.parent, folder
        self.names: dict[str, str] = {}

    def name(self, row: InstructionRow) -> str | None:
        image, file_name = row["image"], row["file_name"]
        if isinstance(image, dict) and image["bytes"] is None:
            image = image["path"]
        if image is None:
            return file_name
        if isinstance(image, (str, Path)):
            key = str(image)
            if key not in self.names:
                self.names[key] = self._link(Path(image), file_name)
            return self.names[key]
        if isinstance(image, dict):
            read_image(image["bytes"])
            content, suffix = image["bytes"], Path(image["path"] or "").suffix or ".png"
        else:
            buffer = io.BytesIO()
            image.save(buffer, "png")
            content, suffix = buffer.getvalue(), ".png"
        target = self.folder / f"{hashlib.sha256(content).hexdigest()[:20]}{suffix}"
        if not target.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return f"{self.folder.name}/{target.name}"

    def _link(self, image: Path, file_name: str | None) -> str:
        parts = PurePosixPath(file_name or "").parts
        name = file_name if parts and parts[0] != "/" and not {"..", "\\"} & {*parts, *(file_name or "")} else None
        for folder in (self.home, self.folder) if name else ():
            if (folder / str(name)).is_file() and (folder / str(name)).samefile(image):
                return str(name)
        image_size(image)
        target = self.folder / (name or image.name)
        if target.exists() or (self.home / (name or image.name)).exists():
            target = self.folder / f"{hashlib.sha256(image.read_bytes()).hexdigest()[:20]}{image.suffix}"
            name = f"{self.folder.name}/{target.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            try:
                os.link(image.resolve(), target)
            except OSError:
                shutil.copyfile(image, target)
        return name or target.name
