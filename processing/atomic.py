# SPDX-License-Identifier: Apache-2.0
"""Outputs that appear whole or not at all, never replace their own source, and have one writer per folder."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"
HOLDER_NAME = ".lock-holder"


class FolderInUseError(OSError):
    """Another process writes to the folder."""


@contextmanager
def write_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path`, with the same ending, that is renamed to it at the end; after an error it is removed.

    The caller makes a file or a folder there. A file replaces one of the same name, a folder only an empty one. Raises
    OSError: the folder cannot be written to, the disk is full, or a folder of that name already holds files.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    _remove(partial)
    try:
        yield partial
        if partial.is_file():
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_full(folder: str | os.PathLike[str]) -> None:
    """Refuse an output folder that holds files, before anything is made for it.

    Raises:
        FileExistsError: it is a file, or a folder that is not empty.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"Expected a new or empty folder to write to, found {path} in use. Name another folder.")


def refuse_same(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Refuse a target that is the source, or a file that already lies in the source folder.

    Raises:
        ValueError: writing `target` would replace what is read from `source`.
    """
    read, written = Path(source).resolve(), Path(target).resolve()
    inside = read.is_dir() and written.is_file() and read in written.parents
    same = read == written or (read.exists() and written.exists() and read.samefile(written))
    if same or inside:
        raise ValueError(f"Expected a target other than the source, found {written} as both; name another target")


@contextmanager
def folder_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder, made where it is missing, as its only writer.

    Raises:
        FolderInUseError: another process (named in the message) or another lock of this one holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / HOLDER_NAME
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        try:
            name = holder.read_text(encoding="utf-8")
        except OSError:
            name = "a process that left no name"
        raise FolderInUseError(
            f"Expected one writer in {folder}, found {name} writing there; wait until it ends, or name another folder"
        ) from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
