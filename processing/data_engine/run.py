# SPDX-License-Identifier: Apache-2.0
"""A run of the data engine as a folder: what it was asked, what it wrote, what people decided.

config.json     what makes the run what it is; it never changes
calls.jsonl     every call to a chat model, written down before and after
records.jsonl   one line per finished picture, in order of completion
decisions.jsonl what people decided
images/         pictures that are no files elsewhere
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..datasets.schema import LEVEL_FIELDS, TARGET_KINDS
from .append_log import read_log

FORMAT = 1  # of the folder


class RunConfigError(ValueError):
    """A folder that cannot take this run, or a configuration that makes no sense."""


@dataclass(frozen=True)
class EngineConfig:
    """What makes a run what it is: two runs of one configuration and source write the same.

    Attributes:
        source: a description of the source, for people and for telling runs apart.
        seed: of every choice.
        targets_per_image: targets tried per picture.
        kinds: target kinds, drawn equally often.
        levels: levels to write.
        simple_texts, complex_texts: texts per target that a chat writer is asked for.
        max_retries: how often a chat writer hears why and writes again (the paper: 10).
        max_tokens: of an instruction.
        min_grounding_iou: least IoU of target and grounded mask.
        shard, num_shards: this run takes the pictures of one of several shards.
        writer, checker, grounder: names of the models.
        prompts: version and fingerprint by prompt.
    """

    source: str
    seed: int = 0
    targets_per_image: int = 6
    kinds: tuple[str, ...] = TARGET_KINDS
    levels: tuple[str, ...] = LEVEL_FIELDS
    simple_texts: int = 2
    complex_texts: int = 2
    max_retries: int = 10
    max_tokens: int = 32
    min_grounding_iou: float = 0.5
    shard: int = 0
    num_shards: int = 1
    writer: str = "templates"
    checker: str | None = None
    grounder: str | None = None
    prompts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        unknown = [kind for kind in self.kinds if kind not in TARGET_KINDS]
        unknown += [level for level in self.levels if level not in LEVEL_FIELDS]
        if unknown or not self.kinds or not self.levels:
            raise RunConfigError(
                f"kinds are some of {', '.join(TARGET_KINDS)} and levels some of {', '.join(LEVEL_FIELDS)}; "
                f"received {self.kinds} and {self.levels}."
            )
        if not 0 <= self.shard < self.num_shards:
            raise RunConfigError(f"`shard` is 0 to num_shards - 1, received {self.shard} of {self.num_shards}.")
        for name in ("targets_per_image", "max_tokens"):
            if getattr(self, name) < 1:
                raise RunConfigError(f"`{name}` must be 1 or more, received {getattr(self, name)}.")
        for name in ("simple_texts", "complex_texts", "max_retries"):
            if getattr(self, name) < 0:
                raise RunConfigError(f"`{name}` must be 0 or more, received {getattr(self, name)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values as JSON gives them back."""
        return json.loads(json.dumps(asdict(self)))

    def takes(self, image_id: str) -> bool:
        """Whether a picture belongs to this run's shard; a matter of its id alone."""
        number = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big")
        return number % self.num_shards == self.shard


class RunDirectory:
    """The folder of a run; made where there is none.

    Args:
        path: the folder.
        config: what the run is to be; None opens an existing one.

    Raises:
        RunConfigError: the folder holds another run, or none where one was asked for.
    """

    def __init__(self, path: str | Path, config: EngineConfig | None = None):
        self.path = Path(path)
        stored = self.path / "config.json"
        if stored.is_file():
            found = json.loads(stored.read_text(encoding="utf-8"))
            if found.get("format") != FORMAT:
                raise RunConfigError(f"{stored}: expected format {FORMAT}, found {found.get('format')!r}.")
            values = found["config"]
            if config is not None:
                wanted = config.to_dict()
                changed = [name for name in wanted if wanted[name] != values.get(name)]
                if changed:
                    shown = ", ".join(f"{name} {values.get(name)!r} -> {wanted[name]!r}" for name in changed)
                    raise RunConfigError(f"{self.path} holds another run ({shown}); choose a new folder.")
            self.config = EngineConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        elif config is None:
            raise RunConfigError(f"{self.path}: no run of the data engine here (config.json is missing).")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            self.config = config
            draft = stored.with_suffix(".tmp")
            draft.write_text(json.dumps({"format": FORMAT, "config": config.to_dict()}, indent=1), encoding="utf-8")
            os.replace(draft, stored)

    @property
    def calls_path(self) -> Path:
        return self.path / "calls.jsonl"

    @property
    def records_path(self) -> Path:
        return self.path / "records.jsonl"

    @property
    def decisions_path(self) -> Path:
        return self.path / "decisions.jsonl"

    def records(self) -> Iterator[dict[str, Any]]:
        """Finished pictures in order of completion."""
        return read_log(self.records_path)

    def finished_ids(self) -> set[str]:
        """Ids of the finished pictures."""
        return {record["image_id"] for record in self.records()}

    def ordered_records(self) -> list[dict[str, Any]]:
        """Finished pictures in the order of the source."""
        return sorted(self.records(), key=lambda record: record["order"])


def merge_runs(folders: list[str | Path], target: str | Path) -> RunDirectory:
    """Put the shards of one run together; decisions and calls come along.

    Raises:
        RunConfigError: shards of different runs, a shard twice or missing, or a target that exists.
    """
    runs = [RunDirectory(folder) for folder in folders]
    if not runs:
        raise RunConfigError("There are no runs to merge.")
    plain = [{**run.config.to_dict(), "shard": 0} for run in runs]
    if any(config != plain[0] for config in plain):
        raise RunConfigError(
            "The folders hold runs of different configurations; only shards of one run can be merged."
        )
    shards = sorted(run.config.shard for run in runs)
    if shards != list(range(runs[0].config.num_shards)):
        raise RunConfigError(f"Expected shards 0 to {runs[0].config.num_shards - 1} once each, found {shards}.")
    if (Path(target) / "config.json").exists():
        raise RunConfigError(f"{target} holds a run already; choose a new folder.")
    values = plain[0] | {"num_shards": 1}
    merged = RunDirectory(
        target, EngineConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    )
    records = sorted((record for run in runs for record in run.records()), key=lambda record: record["order"])
    for name, lines in (
        ("records_path", records),
        ("calls_path", [line for run in runs for line in read_log(run.calls_path)]),
        ("decisions_path", [line for run in runs for line in read_log(run.decisions_path)]),
    ):
        with open(getattr(merged, name), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    for run in runs:
        for picture in sorted((run.path / "images").glob("*")):
            (merged.path / "images").mkdir(exist_ok=True)
            (merged.path / "images" / picture.name).write_bytes(picture.read_bytes())
    return merged
