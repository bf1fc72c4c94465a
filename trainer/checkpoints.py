# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the curriculum: which stage and step they hold, what they were made with, and whether they are whole.

A process may be killed at any moment. A checkpoint counts only when its last file, a list of all others with their
checksums, is there and they are as it says.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..modeling_sam3i.adapter_io import save_adapter
from ..modeling_sam3i.peft.loading import load_instruction_adapter
from ..processing.atomic import write_whole
from .curriculum import TrainingStage

if TYPE_CHECKING:
    from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

logger = logging.get_logger(__name__)

MANIFEST_NAME = "curriculum.json"
FINAL_NAME = "final"
PROJECTOR_NAME = "projector.safetensors"
SET_ASIDE = ".replaced"


class CheckpointNotFoundError(FileNotFoundError):
    """There is no complete checkpoint where one was asked for."""


class OtherTrainingError(ValueError):
    """A folder holds a training that this one would overwrite, or goes on from under other conditions."""


@dataclass(frozen=True)
class StageCheckpoint:
    """A checkpoint with a manifest; an older version gave neither step nor identity, and sizes alone."""

    folder: Path
    stage: TrainingStage
    finished: bool  # the result of the stage, not a step on the way
    step: int | None = None
    identity: dict[str, Any] = field(default_factory=dict)  # what it was made with, by name
    files: dict[str, Any] = field(default_factory=dict)  # size and SHA-256 of each

    @property
    def order(self) -> tuple[int, bool, int]:
        """By stage, by step, the result of a stage after its steps."""
        return self.stage.index, self.finished, _step(self.folder) or 0

    def damage(self) -> str | None:
        """What is wrong with its files, or None; all of them are read."""
        for name, expected in self.files.items():
            path = self.folder / name
            size, digest = (expected, None) if isinstance(expected, int) else expected
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if digest is not None and _sha256(path) != digest:
                return f"the content of {name} has changed"
        return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_checkpoint(
    folder: Path, stage: TrainingStage, finished: bool, step: int | None = None, identity: dict[str, Any] | None = None
) -> None:
    """Write the manifest of a checkpoint whose other files are all there."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST_NAME:
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _sha256(path)]
    manifest = {"stage": stage.value, "finished": finished, "step": step, "identity": identity or {}, "files": files}
    with write_whole(folder / MANIFEST_NAME) as partial:
        partial.write_text(json.dumps(manifest, indent=1))


def read_manifest(folder: Path) -> StageCheckpoint | None:
    """The checkpoint in a folder as its manifest has it, its files unread; None without a readable manifest."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        stage, more = TrainingStage(manifest["stage"]), (manifest.get("step"), manifest.get("identity") or {})
        return StageCheckpoint(folder, stage, manifest["finished"], *more, manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_checkpoint(folder: Path) -> StageCheckpoint | None:
    """The checkpoint in a folder; `None` when there is none or it is not whole."""
    checkpoint = read_manifest(folder)
    return None if checkpoint is None or checkpoint.damage() else checkpoint


def _step(folder: Path) -> int | None:
    prefix, _, number = folder.name.rpartition("-")
    return int(number) if prefix == PREFIX_CHECKPOINT_DIR and number.isdigit() else None


def list_checkpoints(output_dir: str | Path, stages: Iterable[TrainingStage]) -> list[StageCheckpoint]:
    """The checkpoints of a run that have a manifest, furthest last; their files are not read."""
    found = []
    for stage in stages:
        folders = (path for path in (Path(output_dir) / stage.folder).glob("*") if path.is_dir())
        found += [read_manifest(path) for path in folders if path.name == FINAL_NAME or _step(path) is not None]
    return sorted((checkpoint for checkpoint in found if checkpoint is not None), key=lambda item: item.order)


def find_checkpoint(output_dir: str | Path, stages: Iterable[TrainingStage]) -> StageCheckpoint | None:
    """The furthest complete checkpoint of a run; what lies beyond it and is damaged or was cut off is named."""
    stages = list(stages)
    chosen, passed = None, {}
    for checkpoint in reversed(list_checkpoints(output_dir, stages)):
        damage = checkpoint.damage()
        if damage is None:
            chosen = checkpoint
            break
        passed[checkpoint.folder] = damage
    for stage in stages:
        for path in (Path(output_dir) / stage.folder).glob("*"):
            cut_off = _step(path) is not None and not (path / MANIFEST_NAME).is_file()
            if cut_off and (chosen is None or (stage.index, False, _step(path) or 0) > chosen.order):
                passed[path] = "it was cut off while it was written"
    place = "the beginning" if chosen is None else str(chosen.folder)
    for folder, damage in passed.items():
        logger.warning(f"{folder} is not used: {damage}. Training goes on from {place}.")
    return chosen


def set_aside_later(output_dir: str | Path, start: StageCheckpoint) -> None:
    """Rename the checkpoints beyond the named one that a run starts from; an earlier run left them."""
    moved = []
    for checkpoint in list_checkpoints(output_dir, TrainingStage):
        if checkpoint.order > start.order:
            target = checkpoint.folder.with_name(checkpoint.folder.name + SET_ASIDE)
            if target.exists():
                raise OtherTrainingError(
                    f"Expected room to set {checkpoint.folder} aside, found {target}: remove one of the two."
                )
            os.replace(checkpoint.folder, target)
            moved.append(f"{checkpoint.folder.parent.name}/{checkpoint.folder.name}")
    if moved:
        logger.warning(
            f"{', '.join(moved)} lie beyond {start.folder}, where this run begins: they are now called *{SET_ASIDE}."
        )


def rotate_checkpoints(folder: Path, limit: int | None, keep: str | None) -> None:
    """Delete the oldest sealed checkpoints of a stage, by step, until `limit` are left; `keep` (the best) stays."""
    if not limit or limit < 0:
        return
    found = sorted((path for path in folder.glob("*") if _step(path) is not None), key=lambda path: _step(path) or 0)
    best = None if keep is None else Path(keep).resolve()
    free = [path for path in found if path.resolve() != best]
    # The last one is what a run goes on from, so with a best one before it there are two, whatever the limit.
    room = max(1, limit - (len(found) - len(free)))
    for path in free[: max(0, len(free) - room)]:
        (path / MANIFEST_NAME).unlink(missing_ok=True)  # a kill while it is deleted leaves no half checkpoint
        shutil.rmtree(path)


def checkpoint_to_resume(
    resume: str | bool | None, output_dir: str | Path, stages: Iterable[TrainingStage]
) -> StageCheckpoint | None:
    """The checkpoint that `train(resume_from_checkpoint=resume)` means; `None` to start from the beginning.

    With `True` a run whose first stage has left nothing yet goes on from the finished stage before it in the folder.

    Raises:
        CheckpointNotFoundError: a named folder is no complete checkpoint of one of the stages; or the stage before the
            first one was begun in `output_dir` and not finished.
        OtherTrainingError: nothing is to be resumed, and `output_dir` holds checkpoints of these or of later stages.
    """
    stages = tuple(stages)
    if not resume:
        later = [stage for stage in TrainingStage if stage.index >= stages[0].index]
        found = list_checkpoints(output_dir, later)
        if found:
            raise OtherTrainingError(
                f"{output_dir} holds another training, up to {found[-1].folder}, which would be overwritten. Go on "
                "with it (`--resume`, `resume_from_checkpoint=True`), or name another folder."
            )
        finished = [item for item in list_checkpoints(output_dir, TrainingStage) if item.finished]
        if finished:
            logger.warning(
                f"{finished[-1].folder} is not used: stage {stages[0].value!r} starts from the model as it was given "
                "(`--resume` starts from the folder)."
            )
        return None
    if resume is True:
        checkpoint = find_checkpoint(output_dir, stages)
        if checkpoint is None and stages[0].index:
            before = [stage for stage in TrainingStage if stage.index < stages[0].index]
            checkpoint = find_checkpoint(output_dir, before)
            if checkpoint is not None and not (checkpoint.finished and checkpoint.stage is before[-1]):
                reached = "is finished" if checkpoint.finished else f"has reached {checkpoint.folder.name}"
                raise CheckpointNotFoundError(
                    f"Expected stage {before[-1].value!r} finished in {output_dir} to begin {stages[0].value!r}, "
                    f"found that {checkpoint.stage.value!r} {reached}. Name the stages between, too (`--stages`)."
                )
        return checkpoint
    checkpoint = read_checkpoint(Path(resume))
    if checkpoint is None or checkpoint.stage not in stages:
        what = "none" if checkpoint is None else f"one of stage {checkpoint.stage.value!r}"
        raise CheckpointNotFoundError(
            f"Expected a complete checkpoint of one of the stages to run in {resume}, found {what}. "
            "`resume_from_checkpoint=True` finds the last one of `output_dir`."
        )
    return checkpoint


def check_identity(checkpoint: StageCheckpoint, now: dict[str, Any], allowed: Iterable[str]) -> list[str]:
    """Hold what a checkpoint was made with against what the run that goes on from it has; names what may differ.

    Raises:
        OtherTrainingError: naming every difference that is not allowed.
    """
    if not checkpoint.identity:
        logger.warning(f"{checkpoint.folder} does not say with which data, weights and settings it was made.")
        return []
    plain = json.loads(json.dumps(now))
    names = [name for name in now if name in checkpoint.identity and checkpoint.identity[name] != plain[name]]
    allowed, changes = set(allowed), {}
    for name in names:
        was = checkpoint.identity[name]
        hashed = isinstance(was, str) and len(was) == 64
        changes[name] = f"other {name}" if hashed else f"{name} {now[name]!r} (was {was!r})"
    refused = [name for name in names if name not in allowed]
    if refused:
        listed = ", ".join(changes[name] for name in refused)
        option = " ".join(f"--allow-changed {name}" for name in refused)
        raise OtherTrainingError(
            f"Expected to go on with {checkpoint.folder} as it was begun, found {listed}. Take it knowingly "
            f"(`{option}`, `allow_changed={refused!r}`), or start in another folder."
        )
    for name in names:
        logger.warning(f"Training goes on with {changes[name]}, as allowed.")
    return names


def save_trained_weights(
    model: "Sam3IForInstructionSegmentation",
    projector: nn.Module | None,
    folder: Path,
    gathered: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapters as a repository and, beside them, the projector of the joint stage.

    Where weights are sharded over processes, `gathered` holds them by their names in `StageModule`.
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
