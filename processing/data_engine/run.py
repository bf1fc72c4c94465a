# SPDX-License-Identifier: Apache-2.0
"""A run of the data engine as a folder: what it was asked, what it wrote, what people decided.

config.json     what makes the run what it is; it never changes
run.sqlite      finished pictures, what was left out, paid calls, decisions; see `store`
images/         images that are no files elsewhere
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import write_whole
from ..datasets.schema import LEVEL_FIELDS, TARGET_KINDS
from ..fingerprint import fingerprint_files
from .store import STORE_NAME, RunStore

FORMAT = 2  # of the folder; 1 kept JSON Lines and is read, but not gone on with


class RunConfigError(ValueError):
    """A folder that cannot take this run, or a configuration that makes no sense."""


@dataclass(frozen=True)
class EngineConfig:
    """What makes a run what it is: two runs of one configuration and source write the same."""

    source: str  # a description of the source, for people and for telling runs apart
    fingerprint: str | None = None  # of the source's data, by content; None where the description says all
    seed: int = 0  # of every choice
    targets_per_image: int = 6  # targets tried per picture
    kinds: tuple[str, ...] = TARGET_KINDS  # target kinds, drawn equally often
    levels: tuple[str, ...] = LEVEL_FIELDS  # levels to write
    simple_texts: int = 2  # texts per target that a chat writer is asked for
    complex_texts: int = 2
    max_retries: int = 10  # how often a chat writer hears why and writes again (the paper: 10)
    max_tokens: int = 32  # of an instruction
    min_grounding_iou: float = 0.5  # least IoU of target and grounded mask
    shard: int = 0  # this run takes the pictures of one of `num_shards`
    num_shards: int = 1
    writer: str = "templates"  # the model's name, as of the next two
    checker: str | None = None
    grounder: str | None = None
    prompts: dict[str, str] = field(default_factory=dict)  # version and fingerprint by prompt

    def __post_init__(self) -> None:
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
        config: what the run is to be; None opens an existing one.

    Raises:
        RunConfigError: the folder holds another run, or none where one was asked for.
    """

    def __init__(self, path: str | Path, config: EngineConfig | None = None):
        self.path = Path(path)
        stored = self.path / "config.json"
        if stored.is_file():
            self.config = self._stored_config(stored, config)
        elif config is None:
            raise RunConfigError(f"{self.path}: no run of the data engine here (config.json is missing).")
        else:
            self.config = config
            self._keep(config)
        is_old = not (self.path / STORE_NAME).exists() and (self.path / "records.jsonl").exists()
        self.store = RunStore(self.path)
        if is_old:
            self.store.take_old_files(self.path)

    def _stored_config(self, path: Path, wanted: EngineConfig | None) -> EngineConfig:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version, values = found["format"], found["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunConfigError(f"{path}: expected the configuration of a run, found {error!r}.") from error
        if version not in (1, FORMAT):
            raise RunConfigError(f"{path}: expected format {FORMAT}, found {version!r}; update sam3i.")
        if wanted is not None and version == 1:
            raise RunConfigError(
                f"{self.path} holds a run of sam3i 0.1, which does not know its data by content: "
                "review and export it as it is, and choose a new folder for a new run."
            )
        if wanted is not None:
            asked = wanted.to_dict()
            changed = [name for name in asked if asked[name] != values.get(name)]
            if changed == ["fingerprint"]:
                raise RunConfigError(
                    f"The data of {values['source']} have changed since {self.path} was begun; choose a new folder or "
                    "put the old data back."
                )
            if changed:
                shown = ", ".join(f"{name} {values.get(name)!r} -> {asked[name]!r}" for name in changed)
                raise RunConfigError(f"{self.path} holds another run ({shown}); choose a new folder.")
        return _config_of(values)

    def _keep(self, config: EngineConfig) -> None:
        with write_whole(self.path / "config.json") as draft:
            draft.write_text(json.dumps({"format": FORMAT, "config": config.to_dict()}, indent=1), encoding="utf-8")

    def records(self) -> Iterator[dict[str, Any]]:
        """Finished pictures in order of completion."""
        return (record for _, record in self.store.pictures())

    def ordered_records(self) -> list[dict[str, Any]]:
        """Finished pictures in the order of the source."""
        return sorted(self.records(), key=lambda record: record["order"])

    def check_images(self) -> None:
        """Compare the images of up to 200 finished pictures, evenly spread, with what they were.

        Raises:
            RunConfigError: one has changed or is gone.
        """
        known = [record for record in self.records() if record.get("image_digest")]
        for record in known[:: max(1, len(known) // 200)]:
            if digest_of_image(record["image"]) != record["image_digest"]:
                raise RunConfigError(
                    f"{record['image']} is not the image that {self.path} was made from; choose a new folder, or put "
                    "the old image back."
                )


def digest_of_image(path: str) -> str | None:
    """Fingerprint of an image file; None where there is none."""
    return fingerprint_files([path]) if Path(path).is_file() else None


def _config_of(values: dict[str, Any]) -> EngineConfig:
    plain: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in values.items()}
    return EngineConfig(**plain)


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
    merged = RunDirectory(target, _config_of(plain[0] | {"num_shards": 1}))
    merged.store.take_from(run.store for run in runs)
    for run in runs:
        for image in sorted((run.path / "images").glob("*")):
            (merged.path / "images").mkdir(exist_ok=True)
            shutil.copyfile(image, merged.path / "images" / image.name)
    return merged
