# SPDX-License-Identifier: Apache-2.0
"""Any supported file, folder or Hub repository as a `datasets` object of one schema, or as the list of its faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock
from transformers.utils import logging

from ..atomic import write_whole
from ..fingerprint import fingerprint_files, fingerprint_json
from .faults import DatasetFormatError, RecordFault, RowAccount
from .image_roots import IMAGE_FAULT, IMAGE_NOT_FOUND, ImageChecks, ImageRoot, ReadOptions
from .json_stream import sample
from .readers import coco as reader_coco
from .readers import jsonl as reader_jsonl
from .readers import mmr as reader_mmr
from .readers import official as reader_official
from .readers import reasonseg as reader_reasonseg
from .readers import refer as reader_refer
from .readers import refer_coco as reader_refer_coco
from .readers import tables as reader_tables
from .schema import InstructionRow, row_features

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


logger = logging.get_logger(__name__)
Item = TypeVar("Item")

# In the order in which `format="auto"` asks them: the most telling first.
READERS: dict[str, ModuleType] = {
    "official": reader_official,
    "refer-coco": reader_refer_coco,
    "mmr": reader_mmr,
    "refer": reader_refer,
    "coco": reader_coco,
    "jsonl": reader_jsonl,
    "reasonseg": reader_reasonseg,
}
TABLES = reader_tables.FORMATS
FORMATS = ("auto", *READERS, *TABLES)
# Part of the cache key of converted files: raise it when a reader's rows change.
READER_VERSION = 5
MAX_LOGGED_FAULTS = 20
VOLATILE = {IMAGE_NOT_FOUND, IMAGE_FAULT}  # notes of rows whose image may be there or mended when they are read again

# Files that are not read, told by a part of their name or content, and what to do with them.
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz", ".zst")
FOREIGN = {
    (
        b'"from_name"',
        b'"to_name"',
    ): "Label Studio tasks; take decisions with `sam3i data review-import`, or export COCO",
    (b'"completed_by"', b'"was_cancelled"'): "Label Studio tasks; take decisions with `sam3i data review-import`",
    (b'"annotation_id"', b'"lead_time"'): "Label Studio JSON-MIN; export JSON or COCO instead",
    (b'"shapes"', b'"imagePath"'): "one labelme file; convert the folder with labelme2coco",
    (b'"items"', b'"label_categories"'): "datumaro JSON; export COCO instances (datum convert -f coco_instances)",
    (b'"items"', b'"categories"', b'"media_type"'): "datumaro JSON; export it as COCO instances",
    (b"<annotations>", b"<image "): "CVAT XML; export COCO 1.0 instead",
}


def load_instruction_dataset(
    path_or_repo: str | Path,
    format: str = "auto",
    image_root: ImageRoot = None,
    split: str | None = None,
    streaming: bool = False,
    skip_faulty: bool = False,
    *,
    crowd: str | None = None,
    check_images: bool = False,
    account: RowAccount | None = None,
) -> Dataset | IterableDataset:
    """Instruction rows of a file, a folder or a Hub repository.

    Args:
        path_or_repo: a path, or the id of a `datasets` repository with the columns of `schema.InstructionRow`.
        format: one of `FORMATS`; "auto" looks at the content.
        image_root: folder of the images, or a mapping from dataset names or leading folders to folders
            (see `image_roots.ImageRoots`); None looks beside the file. Images are opened when a row is read.
        split: keep the rows of one split; None keeps all.
        streaming: an `IterableDataset` that starts at once; otherwise rows are written to the cache of `datasets`
            and memory-mapped. Neither holds the file in memory.
        skip_faulty: leave out records with faults instead of raising; they are counted.
        crowd: "instance" or "skip", see `ReadOptions`.
        check_images: each row's image has to be there and of the row's size (its header is read).
        account: filled with what was kept and left out; `RowAccount.of(dataset)` gives it as well.

    Raises:
        DatasetFormatError: unknown format, missing columns, no row left, or faults (the first is named; `sam3i data
            validate` lists them all).
    """
    from datasets import Dataset, IterableDataset

    source, name = find_source(path_or_repo, format)
    account = RowAccount() if account is None else account
    options = ReadOptions(image_root, split, crowd, account=account)
    if streaming:
        arguments = {"source": source, "format": name, "options": options}
        arguments |= {"skip_faulty": skip_faulty, "check_images": check_images}
        return IterableDataset.from_generator(iterate_rows, features=row_features(), gen_kwargs=arguments)
    folder = _cache_folder(source, name, options, skip_faulty, check_images)
    with FileLock(f"{folder}.lock"):
        found = _cached_account(folder)
        if found is None:
            _write_cache(folder, iterate_rows(source, name, options, skip_faulty, check_images), account)
        else:
            vars(account).update(vars(found))
    _log(source, account)
    dataset = Dataset.from_file(str(folder / "rows.arrow"))
    dataset.info.description = account.to_json()
    return dataset


def find_source(path_or_repo: str | Path, format: str = "auto") -> tuple[str, str]:
    """(path or repository, format): as asked for or as the content shows; a folder's one data file stands for it.

    Raises:
        DatasetFormatError: an unknown format, or a path that does not exist or is of no known format.
    """
    path = Path(path_or_repo)
    if format not in FORMATS:
        raise DatasetFormatError(f"format must be one of {', '.join(FORMATS)}, found {format!r}")
    if format not in ("auto", "hub") and not path.exists():
        raise DatasetFormatError(f"{path_or_repo} does not exist")
    folders = ("auto", "coco", "official", "refer-coco", "mmr", "jsonl")
    if path.is_dir() and format in folders and not any(reader.matches(path) for reader in READERS.values()):
        files = [file for file in sorted(path.iterdir()) if _reader_of(file)]
        path_or_repo = files[0] if len(files) == 1 else path_or_repo
    return str(path_or_repo), detect_format(path_or_repo) if format == "auto" else format


def _reader_of(path: Path) -> str | None:
    return next((name for name, reader in READERS.items() if reader.matches(path)), None)


def read_items(source: str | Path, format: str, options: ReadOptions) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults of a source in one of the formats, as they come."""
    if format in TABLES:
        return reader_tables.read(str(source), format, options)
    return READERS[format].read(source, options)


def iterate_items(
    source: str | Path, format: str, options: ReadOptions, images: ImageChecks | None = None
) -> Iterator[InstructionRow | RecordFault]:
    """Rows and faults; `options.account` counts them, and `images` adds the faults of the rows' images."""
    account = options.account
    for item in _not_too_deep(source, read_items(source, format, options)):
        found = [item] if isinstance(item, RecordFault) else list(images.faults(str(source), item) if images else ())
        for fault in found:
            account.add_fault(fault)
            yield fault
        if found and not isinstance(item, RecordFault):
            account.left_out[IMAGE_FAULT] += 1
        elif not isinstance(item, RecordFault):
            account.kept += 1
            yield item


def _not_too_deep(source: str | Path, items: Iterator[Item]) -> Iterator[Item]:
    try:
        yield from items
    except RecursionError as error:
        raise DatasetFormatError(f"{source}: a record is nested too deeply") from error


def iterate_rows(
    source: str, format: str, options: ReadOptions, skip_faulty: bool = False, check_images: bool = False
) -> Iterator[InstructionRow]:
    """Rows of a source in one of the formats; what is left out is counted in `options.account`.

    Raises:
        DatasetFormatError: after the last row, if there were faults and they are not skipped; or no row at all.
    """
    account = options.account
    for item in iterate_items(source, format, options, ImageChecks(decode=False) if check_images else None):
        if not isinstance(item, RecordFault):
            yield item
        elif skip_faulty:
            account.left_out[f"record with a fault in {item.field.split('[')[0]}"] += 1
    if account.num_faults and not skip_faulty:
        raise DatasetFormatError(
            f"{account.faults[0]} ({account.num_faults} faults in all: `sam3i data validate {source}` lists them, "
            "skip_faulty=True (--skip-faulty) leaves their records out)"
        )
    if not account.kept:
        of_split = f" of split {options.split!r}" if options.split else ""
        raise DatasetFormatError(f"{source}: no usable row{of_split}: {account}")


def validate_dataset(
    source: str | Path, format: str = "auto", options: ReadOptions | None = None, check_images: bool = True
) -> Iterator[RecordFault]:
    """Faults of a file, folder or table; goes on after each and never raises for content.

    Args:
        options: how the source is read; `options.account` is filled while the generator is read.
        check_images: decode every image once and compare its size with the row's.
    """
    options = ReadOptions() if options is None else options
    account = options.account
    try:
        source, name = find_source(source, format)
        for item in iterate_items(source, name, options, ImageChecks(decode=True) if check_images else None):
            if isinstance(item, RecordFault):
                yield item
        if not account.kept and not account.num_faults:
            raise DatasetFormatError(f"no usable row: {account}")
    except (DatasetFormatError, OSError) as error:
        reason = str(error).removeprefix(f"{source}: ")
        fault = RecordFault(
            str(source), "(file)", "(format)", reason, "a data file that can be read", "see the message"
        )
        account.add_fault(fault)
        yield fault


def _write_cache(folder: Path, rows: Iterator[InstructionRow], account: RowAccount) -> None:
    from datasets.arrow_writer import ArrowWriter

    features = row_features()
    with write_whole(folder) as partial:
        partial.mkdir()
        with ArrowWriter(features=features, path=str(partial / "rows.arrow")) as writer:
            for row in rows:
                writer.write(features.encode_example(row))
            writer.finalize()
        (partial / "images.sha256").write_text(_fingerprint_of_images(partial), encoding="utf-8")
        (partial / "account.json").write_text(account.to_json(), encoding="utf-8")


def _cached_account(folder: Path) -> RowAccount | None:
    """The account of rows written before, or None where there are none or their images are other ones now."""
    import shutil

    path = folder / "account.json"
    account = RowAccount.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None
    if account is not None and not VOLATILE & (account.notes.keys() | account.left_out.keys()):
        if (folder / "images.sha256").read_text(encoding="utf-8") == _fingerprint_of_images(folder):
            return account
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _fingerprint_of_images(folder: Path) -> str:
    """Of the image files that the rows of a cache folder name: their paths, sizes in bytes and times, or absence."""
    import pyarrow.compute as pc
    from datasets import Dataset

    column = Dataset.from_file(str(folder / "rows.arrow")).data.column("image")
    states = []
    for path in pc.unique(pc.struct_field(column, "path")).to_pylist():
        stat = Path(path).stat() if path and Path(path).is_file() else None
        states.append([path, stat and [stat.st_size, stat.st_mtime_ns]])
    return fingerprint_json(states)


def _cache_folder(source: str, format: str, options: ReadOptions, skip_faulty: bool, check_images: bool) -> Path:
    """Where the rows are kept: named by the content of the data files and by everything that shapes the rows."""
    from datasets import config

    path = Path(source)
    reader = reader_tables if format in TABLES else READERS[format]
    files = getattr(reader, "files", lambda path: [path])  # that a reading depends on
    content = fingerprint_files(files(path)) if path.exists() else source
    root = options.image_root
    roots = {
        name: str(Path(f).resolve())
        for name, f in ({"": root} if isinstance(root, (str, Path)) else root or {}).items()
    }
    settings = [READER_VERSION, format, content, str(path.resolve()), roots, options.split, options.crowd]
    folder = Path(config.HF_DATASETS_CACHE) / "sam3i" / fingerprint_json([*settings, skip_faulty, check_images])[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _log(source: str, account: RowAccount) -> None:
    for fault in account.faults[:MAX_LOGGED_FAULTS]:
        logger.warning(str(fault))
    if account.left_out or account.notes:
        logger.warning(f"{source}: {account}")


def detect_format(path_or_repo: str | Path) -> str:
    """The format of a path by its content; "hub" for what is no path.

    Raises:
        DatasetFormatError: an existing path that no reader knows; files of other tools are refused by name.
    """
    path = Path(path_or_repo)
    if not path.exists():
        text = str(path_or_repo)
        if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.suffix:
            return "hub"
        raise DatasetFormatError(f"{path} does not exist, and is no repository id of the form owner/name")
    _refuse_foreign(path)
    if name := _reader_of(path):
        return name
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        return "parquet"
    if path.is_dir() and (path / "dataset_info.json").is_file() and any(path.glob("*.arrow")):
        return "arrow"
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        return "arrow"
    found = f"a {path.suffix} file"
    if path.is_dir():
        found = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "an empty folder"
    raise DatasetFormatError(f"{path}: no known format (found {found}); pass format= one of {', '.join(FORMATS[1:])}")


def _refuse_foreign(path: Path) -> None:
    if not path.is_file():
        return
    if path.name.lower().endswith(ARCHIVES) and not reader_jsonl.matches(path):
        raise DatasetFormatError(f"{path}: an archive; unpack it and name the data file or its folder")
    content = sample(path)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:2]:
        if path.suffix in (".json", ".jsonl", ".ndjson"):
            raise DatasetFormatError(f"{path}: the file is UTF-16, expected UTF-8; save it as UTF-8")
    if path.suffix in (".json", ".ndjson", ".xml"):
        for keys, advice in FOREIGN.items():
            if all(key in content for key in keys):
                raise DatasetFormatError(f"{path}: {advice}")
