# SPDX-License-Identifier: Apache-2.0
"""Predictions on disk while an evaluation runs: appended line by line, so that a killed run loses one batch at most.

Each process appends to a part file of its own; the main process merges the parts into `predictions.jsonl`. The first
line of every file holds the settings of the run, every other line one answered instruction (see `make_record`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from transformers.utils import logging

from ...processing.atomic import write_whole
from ...processing.masks import encode_mask
from ..evaluation.mask_scores import encode_reference

if TYPE_CHECKING:
    from ..baselines.segmenters import SegmentationResult
    from ..evaluation.protocols import Protocol

logger = logging.get_logger(__name__)

MERGED_NAME = "predictions.jsonl"
PART_PATTERN = "predictions.part-*.jsonl"


class PredictionLogError(ValueError):
    """A predictions file that does not belong to this run or cannot be read; the message names file and line."""


def make_record(
    row: Mapping[str, Any], place: list[int], level: str, text: str, result: SegmentationResult
) -> dict[str, Any]:
    """One answered instruction with its target, all that scoring needs (no pixels: masks are RLE counts).

    `place` is [row index, index of the level, index of the text]: unique in a run, and the order of the merged file.
    """
    return {
        "place": place,
        "row_id": row["row_id"],
        "file_name": row.get("file_name"),
        "image_id": row["image_id"],
        "dataset": row["dataset"],
        "level": level,
        "text": text,
        "answered_level": result.level,
        "predictions": [
            {"rle": encode_mask(mask), "score": float(score)}
            for mask, score in zip(result.masks, result.scores, strict=True)
        ],
        "cost": asdict(result.cost),
        "error": result.error,
        "target": {
            "height": row["height"],
            "width": row["width"],
            "masks": [None if mask is None else mask["counts"] for mask in row["masks"]],
            "is_crowd": list(row["is_crowd"]),
            "ignore_masks": [mask["counts"] for mask in row["ignore_masks"]],
            "target_kind": row["target_kind"],
            "annotation_ids": list(row["annotation_ids"]),
        },
    }


def record_samples(protocol: Protocol, record: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The (prediction, reference) pairs a record contributes: one, or one per instance where the protocol says so."""
    target = record["target"]
    height, width = target["height"], target["width"]
    prediction = {
        "masks": [entry["rle"]["counts"] for entry in record["predictions"]],
        "scores": [entry["score"] for entry in record["predictions"]],
        "failed": record["error"] is not None,
    }
    instances = [
        ({"size": [height, width], "counts": counts}, crowd)
        for counts, crowd in zip(target["masks"], target["is_crowd"], strict=True)
        if counts is not None
    ]
    group = f"{record['row_id']}|{record['level']}"
    name = "/".join(map(str, record["place"]))
    parts = [[instance] for instance in instances] if protocol.unit == "instance" else [instances]
    samples = []
    for index, part in enumerate(parts):
        reference = encode_reference(
            [mask for mask, _ in part],
            height=height,
            width=width,
            sample_id=f"{name}#{index}" if protocol.unit == "instance" else name,
            group=group,
            level=record["level"],
            target_kind=target["target_kind"],
            ignore_masks=[{"size": [height, width], "counts": counts} for counts in target["ignore_masks"]],
            is_crowd=[crowd for _, crowd in part],
        )
        samples.append((prediction, reference))
    return samples


class PredictionLog:
    """The part file of one process in the folder of a run.

    Args:
        settings: what decides the predictions, by fingerprint where it is large; a run only continues under equal
            settings, but for those named by `allow_changed`.
        resume: continue what is there; instructions that ended in an error are asked again. Without it, a folder with
            predictions is refused, not overwritten.

    Raises:
        PredictionLogError: predictions are there and `resume` is off, or they come from other settings.
    """

    def __init__(
        self,
        directory: str | Path,
        settings: Mapping[str, Any],
        *,
        process_index: int = 0,
        num_processes: int = 1,
        resume: bool = False,
        allow_changed: Collection[str] = (),
    ):
        unknown = sorted(set(allow_changed) - settings.keys())
        if unknown:
            raise PredictionLogError(
                f"Expected settings of this run ({', '.join(sorted(settings))}) as those that may have changed, found "
                f"{', '.join(unknown)}."
            )
        self.allow_changed = set(allow_changed)
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.settings = json.loads(json.dumps(settings))
        self.path = self.directory / f"predictions.part-{process_index:05d}-of-{num_processes:05d}.jsonl"
        self.done: set[tuple[int, ...]] = set()
        existing = self._existing()
        if existing and not resume:
            raise PredictionLogError(
                f"{self.directory} holds predictions already ({existing[0].name}); continue them with resume "
                "(--resume), or choose another folder."
            )
        for path in existing:
            self._check_settings(path)
        for path in existing:
            self.done |= {tuple(record["place"]) for record in read_records(path) if record["error"] is None}
        self._file: IO[bytes] | None = None

    def _existing(self) -> list[Path]:
        merged = self.directory / MERGED_NAME
        return ([merged] if merged.exists() else []) + sorted(self.directory.glob(PART_PATTERN))

    def _check_settings(self, path: Path) -> None:
        found = read_settings(path)
        if found is None:  # killed before its first line was complete
            return
        different = [
            key for key in sorted(found.keys() | self.settings.keys()) if found.get(key) != self.settings.get(key)
        ]
        changes = "; ".join(
            f"{key}: {_shown(found.get(key))} there, {_shown(self.settings.get(key))} now" for key in different
        )
        refused = [key for key in different if key not in self.allow_changed and key != "changed"]
        if refused:
            raise PredictionLogError(
                f"{path} was made with other settings ({changes}); choose another folder, or go on knowingly with "
                f"--allow-changed {','.join(refused)} (allow_changed)."
            )
        if changes:
            logger.warning("%s is continued though it was made with other settings (%s).", path, changes)
            self.settings["changed"] = sorted({*different, *found.get("changed", [])} - {"changed"})

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes records and waits until they are on disk."""
        if self._file is None:
            _drop_torn_line(self.path)
            self._file = open(self.path, "ab")
            if self._file.tell() == 0:
                self._file.write(_line({"settings": self.settings}))
        self._file.write(b"".join(_line(record) for record in records))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the part file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def merge(self, expected: int) -> Path:
        """Merges all parts into `predictions.jsonl`, ordered by place, whatever the number of processes was.

        Raises:
            PredictionLogError: when an expected record is missing.
        """
        records: dict[tuple[int, ...], dict[str, Any]] = {}
        for path in self._existing():
            for record in read_records(path):
                place = tuple(record["place"])
                if place not in records or records[place]["error"] is not None:
                    records[place] = record
        if len(records) != expected:
            raise PredictionLogError(
                f"{self.directory} holds {len(records)} of {expected} predictions: a process has not finished. Start "
                "the evaluation again with resume (--resume)."
            )
        target = self.directory / MERGED_NAME
        with write_whole(target) as partial, open(partial, "wb") as file:
            file.write(_line({"settings": self.settings}))
            file.writelines(_line(records[place]) for place in sorted(records))
        for path in self.directory.glob(PART_PATTERN):
            path.unlink()
        return target


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """The settings in the first line of a predictions file; None for a file without a complete first line."""
    with open(path, "rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)["settings"]
    except (ValueError, KeyError, TypeError):
        raise PredictionLogError(f"{path}: line 1: expected the settings of a run, found {line[:60]!r}.") from None


def read_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The complete records of a predictions file; a torn last line (a killed run) is left out."""
    if read_settings(path) is None:
        return
    with open(path, "rb") as file:
        next(file)
        for number, line in enumerate(file, start=2):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                record["place"], record["predictions"], record["target"], record["error"]
            except (ValueError, KeyError, TypeError) as error:
                raise PredictionLogError(f"{path}: line {number}: expected a prediction record ({error!r}).") from None
            yield record


def _shown(value: Any) -> str:
    """A setting as a message shows it; fingerprints by their beginning."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _drop_torn_line(path: Path) -> None:
    """Cuts the file behind its last line break, so that appending starts on a line of its own."""
    if path.exists():
        with open(path, "rb+") as file:
            whole = 0
            for line in file:
                whole += len(line) if line.endswith(b"\n") else 0
            file.truncate(whole)
