# SPDX-License-Identifier: Apache-2.0
"""JSON Lines that only grow, and survive being killed at any moment; one writer per folder."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class RunBusyError(RuntimeError):
    """Another process is at work in the folder."""


class AppendLog:
    """An append-only file of JSON objects, one per line; safe for threads.

    A line that a kill cut short is no record: opening the file for writing removes it, readers skip it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._file = open(self.path, "ab")
        self._drop_torn_line()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; it is on the disk when this returns."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _drop_torn_line(self) -> None:
        size = self.path.stat().st_size
        if not size:
            return
        with open(self.path, "rb") as file:
            end = size
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                place = file.read(end - start).rfind(b"\n")
                if place >= 0:
                    end = start + place + 1
                    break
                end = start
        if end < size:
            os.truncate(self.path, end)


def read_log(path: str | Path) -> Iterator[dict[str, Any]]:
    """The complete records of a file in order; nothing where there is no file."""
    path = Path(path)
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


class LogReader:
    """Reads a file that others append to: a call of [`read`] gives the records that came since the last."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._place = 0

    def read(self) -> list[dict[str, Any]]:
        """The records since the last call."""
        if not self.path.exists():
            return []
        found = []
        with open(self.path, "rb") as file:
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                found.append(json.loads(line))
                self._place += len(line)
        return found


@contextmanager
def shared_log(path: str | Path) -> Iterator[AppendLog]:
    """A file that several processes and threads append to, one at a time: waits until the others are done."""
    with open(path, "ab") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        log = AppendLog(path)
        try:
            yield log
        finally:
            log.close()


class FolderLock:
    """Keeps a second writer out of a folder; the system releases it when the process ends, however it ends."""

    def __init__(self, folder: str | Path):
        self._file = open(Path(folder) / "lock", "a")

    def __enter__(self) -> FolderLock:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunBusyError(
                f"{Path(self._file.name).parent}: another process writes to this run; wait for it, or stop it."
            ) from error
        return self

    def __exit__(self, *error) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
