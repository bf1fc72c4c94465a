# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the curriculum: which stage and step they hold, and whether they were written to the end.

A process may be killed at any moment. A checkpoint counts only when its last file, a list of all others, is there and
they all have the sizes it names.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..modeling_sam3i.adapter_io import save_adapter
from ..modeling_sam3i.peft.loading import load_instruction_adapter
from .curriculum import TrainingStage

if TYPE_CHECKING:
    from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

MANIFEST_NAME = "curriculum.json"
FINAL_NAME = "final"
PROJECTOR_NAME = "projector.safetensors"


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


def _step(folder: Path) -> int | None:
    prefix, _, number = folder.name.rpartition("-")
    return int(number) if prefix == PREFIX_CHECKPOINT_DIR and number.isdigit() else None


def _order(checkpoint: StageCheckpoint) -> tuple[int, bool, int]:
    return checkpoint.stage.index, checkpoint.finished, _step(checkpoint.folder) or 0


def list_checkpoints(output_dir: str | Path, stages: Iterable[TrainingStage]) -> list[StageCheckpoint]:
    """The complete checkpoints of a run, furthest last: by stage, by step, the result of a stage after its steps."""
    found = []
    for stage in stages:
        folders = (path for path in (Path(output_dir) / stage.folder).glob("*") if path.is_dir())
        found += [read_checkpoint(path) for path in folders if path.name == FINAL_NAME or _step(path) is not None]
    return sorted((checkpoint for checkpoint in found if checkpoint is not None), key=_order)


def find_checkpoint(output_dir: str | Path, stages: Iterable[TrainingStage]) -> StageCheckpoint | None:
    """The furthest complete checkpoint of a run."""
    return next(reversed(list_checkpoints(output_dir, stages)), None)


def discard_later_checkpoints(output_dir: str | Path, start: StageCheckpoint | None) -> None:
    """Make the checkpoints beyond the one a run starts from count no more: an earlier run in this folder left them."""
    for checkpoint in list_checkpoints(output_dir, TrainingStage):
        if start is None or _order(checkpoint) > _order(start):
            (checkpoint.folder / MANIFEST_NAME).unlink()


def checkpoint_to_resume(
    resume: str | bool | None, output_dir: str | Path, stages: Iterable[TrainingStage]
) -> StageCheckpoint | None:
    """The checkpoint that `train(resume_from_checkpoint=resume)` means; `None` to start from the beginning.

    Raises:
        CheckpointNotFoundError: when a folder is named that holds no complete checkpoint of one of the stages.
    """
    if not resume:
        return None
    if resume is True:
        return find_checkpoint(output_dir, stages)
    checkpoint = read_checkpoint(Path(resume))
    if checkpoint is None or checkpoint.stage not in stages:
        found = "none" if checkpoint is None else f"one of stage {checkpoint.stage.value!r}"
        raise CheckpointNotFoundError(
            f"Expected a complete checkpoint of one of the stages to run in {resume}, found {found}. "
            "`resume_from_checkpoint=True` finds the last one of `output_dir`."
        )
    return checkpoint


def save_trained_weights(
    model: "Sam3IForInstructionSegmentation",
    projector: nn.Module | None,
    folder: Path,
    gathered: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapters as a repository and, beside them, the projector of the joint stage.

    Args:
        gathered: The weights by the names in `InstructionLearner`, where they are sharded over processes.
    """
    adapters = None
    if gathered is not None:
        adapters = {name.removeprefix("model."): tensor for name, tensor in gathered.items()}
    save_adapter(model, folder, state_dict=adapters)
    if projector is not None:
        tensors = projector.state_dict()
        if gathered is not None:
            tensors = {name: gathered[f"projector.{name}"] for name in tensors}
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / PROJECTOR_NAME)


def load_trained_weights(model: "Sam3IForInstructionSegmentation", projector: nn.Module | None, folder: Path) -> None:
    """Read what `save_trained_weights` wrote, all of it or an error."""
    load_instruction_adapter(model, folder)
    if projector is not None:
        projector.load_state_dict(load_file(folder / PROJECTOR_NAME))


__all__ = [
    "FINAL_NAME",
    "CheckpointNotFoundError",
    "StageCheckpoint",
    "checkpoint_to_resume",
    "discard_later_checkpoints",
    "find_checkpoint",
    "list_checkpoints",
    "load_trained_weights",
    "read_checkpoint",
    "save_trained_weights",
    "seal_checkpoint",
]
