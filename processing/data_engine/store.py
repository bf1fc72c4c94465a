# SPDX-License-Identifier: Apache-2.0
"""What a run knows, in one SQLite file (WAL mode): pictures, what was left out, paid calls, people's decisions.

Several processes read and write it at a time, and a kill at any moment loses nothing that was committed. WAL needs a
disk of this machine's own; every shard of a run has a folder, and so a file, of its own.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STORE_NAME = "run.sqlite"
ANSWERED, FAILED = "answered", "failed"  # states of a call; before it is "sent"
RESERVE_NAME, RESERVE_BYTES = (
    "reserve.bin",
    4 << 20,
)  # for answers on their way when the disk is full

_DECISION = ("pair_id", "decision", "author", "time", "text")
_TABLES = """
CREATE TABLE IF NOT EXISTS pictures (number INTEGER PRIMARY KEY, image_id TEXT UNIQUE, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS left_out (image_id TEXT, reason TEXT, count INTEGER, example TEXT,
  PRIMARY KEY (image_id, reason));
CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, request TEXT, state TEXT, text TEXT, error TEXT,
  status INTEGER, calls INTEGER DEFAULT 0, retries INTEGER DEFAULT 0, prompt_tokens INTEGER DEFAULT 0,
  completion_tokens INTEGER DEFAULT 0, seconds REAL DEFAULT 0);
CREATE TABLE IF NOT EXISTS decisions (number INTEGER PRIMARY KEY, pair_id TEXT, decision TEXT, author TEXT, time REAL,
  text TEXT NOT NULL DEFAULT '', UNIQUE (pair_id, decision, author, time, text));
"""


class StoreError(OSError):
    """The run's file cannot be written or read: a full disk, a lost folder, a file that is none of ours."""


class RunStore:
    """The file of a run; threads may share it."""

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / STORE_NAME
        self._reserve = Path(folder) / RESERVE_NAME
        self._lock = threading.RLock()
        with self._explained():
            self._db = sqlite3.connect(self.path, timeout=120, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # Pictures

    def add_picture(self, record: Mapping[str, Any], left_out: Mapping[str, tuple[int, str]]) -> None:
        """Keep a finished picture and what was left out of it."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO pictures (image_id, record) VALUES (?, ?)",
                (record["image_id"], json.dumps(record)),
            )
            self._note(record["image_id"], left_out)

    def note_left_out(self, image_id: str, left_out: Mapping[str, tuple[int, str]]) -> None:
        """Replace what was left out of a picture ("" for the file) and why: {reason: (count, an example)}."""
        with self._transaction():
            self._note(image_id, left_out)

    def _note(self, image_id: str, left_out: Mapping[str, tuple[int, str]]) -> None:
        self._db.execute("DELETE FROM left_out WHERE image_id = ?", (image_id,))
        rows = [(image_id, reason, count, _encodable(example)) for reason, (count, example) in left_out.items()]
        self._db.executemany("INSERT INTO left_out VALUES (?, ?, ?, ?)", rows)

    def pictures(self, after: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, record) of finished pictures in order of completion, those after a number."""
        query = "SELECT number, record FROM pictures WHERE number > ? ORDER BY number LIMIT 200"
        while rows := self._rows(query, after):
            for row in rows:
                yield row["number"], json.loads(row["record"])
            after = rows[-1]["number"]

    def finished_ids(self) -> set[str]:
        """Ids of the finished pictures."""
        return {row["image_id"] for row in self._rows("SELECT image_id FROM pictures")}

    def left_out(self) -> dict[str, tuple[int, str]]:
        """What was left out of the whole run: {reason: (count, an example)}, the most frequent first."""
        query = "SELECT reason, SUM(count) AS total, MIN(example) AS example FROM left_out GROUP BY reason"
        rows = self._rows(f"{query} ORDER BY total DESC, reason")
        return {row["reason"]: (row["total"], row["example"]) for row in rows}

    # Calls

    def call(self, key: str) -> sqlite3.Row | None:
        """A call by its key; None where it was never made."""
        return next(iter(self._rows("SELECT * FROM calls WHERE key = ?", key)), None)

    def note_sent(self, key: str, request: str) -> None:
        """Write down a call before it is made. One that was sent before and has no outcome stays on the bill."""
        if not self._reserve.exists():
            raise StoreError(f"{self.path.parent}: the disk is full; free space and run again, nothing is lost.")
        self._write(
            "INSERT INTO calls (key, request, state) VALUES (?, ?, 'sent') ON CONFLICT (key) DO UPDATE "
            "SET calls = calls + (state = 'sent'), request = excluded.request, state = 'sent'",
            key,
            request,
        )

    def note_outcome(self, key: str, usage: Any, text: str | None, error: str | None, status: int | None) -> None:
        """Write down what became of a call (`usage`: a `ChatUsage`); on a full disk, in the room set aside."""
        query = (
            "UPDATE calls SET state = ?, text = ?, error = ?, status = ?, calls = calls + ?, retries = retries + ?, "
            "prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?, seconds = seconds + ? "
            "WHERE key = ?"
        )
        calls = usage.calls + usage.unanswered
        spent = (calls, usage.retries, usage.prompt_tokens, usage.completion_tokens, round(usage.seconds, 3))
        values = (FAILED if text is None else ANSWERED, _encodable(text), _encodable(error), status, *spent, key)
        try:
            self._write(query, *values)
        except StoreError:
            self._reserve.unlink(missing_ok=True)  # no further call is made without it
            self._write(query, *values)

    def set_room_aside(self, wanted: bool) -> None:
        """Take or free the room for answers that are on their way when the disk is full."""
        if not wanted:
            self._reserve.unlink(missing_ok=True)
            return
        try:
            self._reserve.write_bytes(b"\1" * RESERVE_BYTES)
        except OSError as error:
            self._reserve.unlink(missing_ok=True)
            raise StoreError(f"{self.path.parent}: expected {RESERVE_BYTES >> 20} MiB of room ({error})") from error

    def call_counts(self) -> dict[str, int]:
        """Answered and failed calls, and tokens.

        `in_doubt` were on their way when a process died, and have no outcome; `maybe_paid` counts these and every
        other request that brought nothing back: the endpoint's bill may hold so many more than `answered`.
        """
        row = self._rows(
            "SELECT TOTAL(state = 'answered') AS answered, TOTAL(state = 'failed') AS failed, TOTAL(prompt_tokens) AS "
            "prompt_tokens, TOTAL(completion_tokens) AS completion_tokens, TOTAL(state = 'sent') AS in_doubt, "
            "TOTAL(calls) AS calls, TOTAL(calls) - TOTAL(state = 'answered') + TOTAL(state = 'sent') AS maybe_paid "
            "FROM calls"
        )[0]
        return {name: int(row[name]) for name in row.keys()}  # noqa: SIM118 (a row's iterator gives its values)

    # Decisions

    def add_decisions(self, decisions: Iterable[Mapping[str, Any]]) -> int:
        """Keep decisions that are not on file yet; returns how many were new."""
        with self._transaction():
            before = self._db.total_changes
            for item in decisions:
                self._db.execute(
                    "INSERT OR IGNORE INTO decisions (pair_id, decision, author, time, text) VALUES (?, ?, ?, ?, ?)",
                    [_encodable(item[name] or "") if name == "text" else item[name] for name in _DECISION],
                )
            return self._db.total_changes - before

    def decisions(self, after: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, decision) in the order in which they were made, those after a number."""
        for row in self._rows("SELECT * FROM decisions WHERE number > ? ORDER BY number", after):
            yield row["number"], {name: row[name] for name in _DECISION} | {"text": row["text"] or None}

    # Merging, and folders of version 0.1

    def take_from(self, others: Iterable[RunStore]) -> None:
        """Copy all of other runs; pictures in the order of the source."""
        stores = list(others)
        pictures = sorted(
            (record["order"], i, number) for i, store in enumerate(stores) for number, record in store.pictures()
        )
        with self._transaction():
            for _, i, number in pictures:
                (row,) = stores[i]._rows("SELECT image_id, record FROM pictures WHERE number = ?", number)
                self._db.execute("INSERT INTO pictures (image_id, record) VALUES (?, ?)", tuple(row))
            for table in ("left_out", "calls"):
                for row in (row for store in stores for row in store._rows(f"SELECT * FROM {table}")):
                    self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(row))})", tuple(row))
        self.add_decisions(item for store in stores for _, item in store.decisions())

    def take_old_files(self, folder: Path) -> None:
        """Read the JSON Lines in which version 0.1 kept a run; a line that a kill cut short is no record."""
        fields = ("calls", "retries", "prompt_tokens", "completion_tokens", "seconds")
        with self._transaction():
            for record in _old_lines(folder / "records.jsonl"):
                values = (record["image_id"], json.dumps(record))
                self._db.execute("INSERT OR REPLACE INTO pictures (image_id, record) VALUES (?, ?)", values)
            for line in _old_lines(folder / "calls.jsonl"):
                said = (line["key"], line["request"], line["event"], line.get("text"), line.get("error"))
                values = (*said, line.get("status"), *(line.get(name, 0) for name in fields))
                self._db.execute(f"INSERT OR REPLACE INTO calls VALUES ({','.join('?' * len(values))})", values)
        self.add_decisions(_old_lines(folder / "decisions.jsonl"))

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, self._explained():
            return self._db.execute(query, values).fetchall()

    def _write(self, query: str, *values: Any) -> None:
        with self._transaction():
            self._db.execute(query, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, one writer at a time."""
        with self._lock, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path}: expected a run's file that can be written, found: {error}. Free space on the disk, or "
                "mend the folder, and run again; what was written before is kept."
            ) from error


def _encodable(text: str | None) -> str | None:
    """A text that UTF-8 can hold: halves of surrogate pairs, which models do send, are replaced."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _old_lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with open(path, "rb") as file:
            yield from (json.loads(line) for line in file if line.endswith(b"\n"))
