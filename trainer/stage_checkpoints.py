# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the curriculum: which stage and step they hold, and whether they were written to the end.

A process may be killed at any moment. A checkpoint counts only when its last file, a list of all others, is there and
they all have the sizes it names.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .curriculum import TrainingStage

MANIFEST_NAME = "curriculum.json"
FINAL_NAME = "final"


class CheckpointNotFoundError(FileNotFoundError):
    """There is no complete checkpoint where one was asked for."""


@dataclass(frozen=True)
class StageCheckpoint:
    """A complete checkpoint.

    Attributes:
        folder: where it is.
        stage: the stage it belongs to.
        finished: whether it is the result of the stage, not a step on the way.
    """

    folder: Path
    stage: TrainingStage
    finished: bool


def seal_checkpoint(folder: Path, stage: TrainingStage, finished: bool) -> None:
    """Write the manifest of a checkpoint whose other files are all there."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    files.pop(MANIFEST_NAME, None)
    unfinished = folder / f"{MANIFEST_NAME}.unfinished"
    unfinished.write_text(json.dumps({"stage": stage.value, "finished": finished, "files": files}, indent=1))
    unfinished.replace(folder / MANIFEST_NAME)


def read_checkpoint(folder: Path) -> StageCheckpoint | None:
    """The checkpoint in a folder; `None` when there is none or it was not written to the end."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
    except (OSError, ValueError):
        return None
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return None
    return StageCheckpoint(folder, TrainingStage(manifest["stage"]), manifest["finished"])


def find_checkpoint(output_dir: str | Path, stages: Iterable[TrainingStage]) -> StageCheckpoint | None:
    """The furthest complete checkpoint of a run: of its last stage that has one, the result or the last step."""
    for stage in sorted(stages, key=lambda each: each.index, reverse=True):
        folder = Path(output_dir) / stage.folder
        numbered = sorted(
            (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()),
            key=lambda path: int(path.name.split("-")[-1]),
            reverse=True,
        )
        for candidate in (folder / FINAL_NAME, *numbered):
            checkpoint = read_checkpoint(candidate)
            if checkpoint is not None:
                return checkpoint
    return None


__all__ = [
    "FINAL_NAME",
    "CheckpointNotFoundError",
    "StageCheckpoint",
    "find_checkpoint",
    "read_checkpoint",
    "seal_checkpoint",
]
