# SPDX-License-Identifier: Apache-2.0
"""`load_instruction_dataset`: any supported file, folder or Hub repository as a `datasets` object of one schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from transformers.utils import logging

from .faults import DatasetFormatError, RecordFault
from .image_roots import ImageRoot
from .readers import coco as reader_coco
from .readers import jsonl as reader_jsonl
from .readers import mmr as reader_mmr
from .readers import official as reader_official
from .readers import reasonseg as reader_reasonseg
from .readers import refer as reader_refer
from .readers import refer_coco as reader_refer_coco
from .schema import ROW_FIELDS, InstructionRow, row_features

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


logger = logging.get_logger(__name__)

# In the order in which `format="auto"` asks them: the most telling first.
READERS: dict[str, ModuleType] = {
    "official": reader_official,
    "refer-coco": reader_refer_coco,
    "mmr": reader_mmr,
    "refer": reader_refer,
    "coco": reader_coco,
    "reasonseg": reader_reasonseg,
    "jsonl": reader_jsonl,
}
# Formats that `datasets` reads by itself.
TABLES = ("parquet", "arrow", "hub")
FORMATS = ("auto", *READERS, *TABLES)
# Part of the cache key of converted files: raise it when a reader's rows change.
READER_VERSION = 1
MAX_LOGGED_FAULTS = 20


def load_instruction_dataset(
    path_or_repo: str | Path,
    format: str = "auto",
    image_root: ImageRoot = None,
    split: str | None = None,
    streaming: bool = False,
    skip_faulty: bool = False,
) -> Dataset | IterableDataset:
    """Instruction rows of a file, a folder or a Hub repository.

    Args:
        path_or_repo: a path, or the id of a `datasets` repository with the columns of `schema.InstructionRow`.
        format: one of `FORMATS`; "auto" looks at the content.
        image_root: folder of the pictures, or a mapping from dataset names or leading folders to folders
            (see `image_roots.ImageRoots`); None looks beside the file. Pictures are opened when a row is read.
        split: keep the rows of one split; None keeps all.
        streaming: an `IterableDataset` that starts at once; otherwise rows are written to the cache of `datasets`
            and memory-mapped. Neither holds the file in memory.
        skip_faulty: leave out records with faults (they are logged) instead of raising.

    Raises:
        DatasetFormatError: unknown format, missing columns, or the first fault; `sam3i data validate` lists them all.
    """
    from datasets import Dataset, IterableDataset
    from datasets.exceptions import DatasetGenerationError

    name = detect_format(path_or_repo) if format == "auto" else format
    if name not in FORMATS:
        raise DatasetFormatError(f"format must be one of {', '.join(FORMATS)}, found {format!r}")
    if name in TABLES:
        return _load_table(str(path_or_repo), name, split, streaming)
    path = Path(path_or_repo)
    if not path.exists():
        raise DatasetFormatError(f"{path} does not exist")
    arguments = {
        "format": name,
        "path": str(path),
        "image_root": image_root,
        "split": split,
        "skip_faulty": skip_faulty,
    }
    if streaming:
        return IterableDataset.from_generator(iterate_rows, features=row_features(), gen_kwargs=arguments)
    arguments["stamp"] = _stamp(path)
    try:
        return Dataset.from_generator(iterate_rows, features=row_features(), gen_kwargs=arguments)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DatasetFormatError):
            raise error.__cause__ from None
        raise


def read_items(
    format: str, path: str | Path, image_root: ImageRoot = None, split: str | None = None, progress: bool = False
) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of a file in one of the formats of `READERS`."""
    return READERS[format].read(path, image_root=image_root, split=split, progress=progress)


def iterate_rows(
    format: str,
    path: str,
    image_root: ImageRoot = None,
    split: str | None = None,
    skip_faulty: bool = False,
    stamp: str | None = None,
) -> Iterator[InstructionRow]:
    """Rows of a file; `stamp` only tells the cache of `datasets` one state of the file from another.

    Raises:
        DatasetFormatError: at the first fault, unless faulty records are skipped; or no row at all.
    """
    faults, empty = 0, True
    for item in read_items(format, path, image_root, split):
        if not isinstance(item, RecordFault):
            empty = False
            yield item
            continue
        if not skip_faulty:
            raise DatasetFormatError(
                f"{item} (`sam3i data validate {path}` lists all faults; skip_faulty=True goes on)"
            )
        faults += 1
        if faults <= MAX_LOGGED_FAULTS:
            logger.warning(str(item))
    if faults:
        logger.warning(f"{path}: left out the records of {faults} faults")
    if empty:
        raise DatasetFormatError(f"{path}: no usable row{f' of split {split!r}' if split else ''} ({faults} faults)")


def detect_format(path_or_repo: str | Path) -> str:
    """The format of a path by its content; "hub" for what is no path.

    Raises:
        DatasetFormatError: an existing path that no reader knows.
    """
    path = Path(path_or_repo)
    if not path.exists():
        text = str(path_or_repo)
        if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.suffix:
            return "hub"
        raise DatasetFormatError(f"{path} does not exist, and is no repository id of the form owner/name")
    for name, reader in READERS.items():
        if reader.matches(path):
            return name
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        return "parquet"
    if path.is_dir() and (path / "dataset_info.json").is_file() and any(path.glob("*.arrow")):
        return "arrow"
    found = ", ".join(sorted(file.name for file in path.iterdir())[:10]) if path.is_dir() else f"a {path.suffix} file"
    raise DatasetFormatError(f"{path}: no known format (found {found}); pass format= one of {', '.join(FORMATS[1:])}")


def _load_table(source: str, name: str, split: str | None, streaming: bool) -> Dataset | IterableDataset:
    from datasets import DatasetDict, IterableDatasetDict, concatenate_datasets, load_dataset, load_from_disk

    if name == "arrow":
        data = load_from_disk(source)
    elif name == "parquet":
        files = [source] if Path(source).is_file() else sorted(str(file) for file in Path(source).rglob("*.parquet"))
        data = load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    else:
        data = load_dataset(source, streaming=streaming)
    if isinstance(data, (DatasetDict, IterableDatasetDict)):
        chosen = [data[split]] if split in data else list(data.values())
        data = concatenate_datasets(chosen)
    columns = data.column_names or []
    missing = [field for field in ROW_FIELDS if field not in columns]
    if missing:
        raise DatasetFormatError(
            f"{source}: lacks the columns {', '.join(missing)} (has {', '.join(columns)}); "
            "rename them, or convert the data with `sam3i data convert`"
        )
    extra = [column for column in columns if column not in ROW_FIELDS]
    data = data.remove_columns(extra) if extra else data
    data = data.select_columns(list(ROW_FIELDS)).cast(row_features())
    if split is not None:
        data = data.filter(_is_split, input_columns="split", fn_kwargs={"wanted": split})
    return data


def _is_split(value: str | None, wanted: str) -> bool:
    return value in (wanted, None)


def _stamp(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    files = sorted(file for pattern in ("*.json", "*.p", "*/*.json") for file in folder.glob(pattern))
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in {path, *files} if file.is_file()]
    # A string: `datasets` takes a list for shards and would run the reader once per entry.
    return repr([READER_VERSION, *sorted(states)])
