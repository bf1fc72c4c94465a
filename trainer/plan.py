# SPDX-License-Identifier: Apache-2.0
"""What a training is going to do, and whether it can: checked and said before the first step of its first stage."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..modeling_sam3i.configuration_sam3i import InstructionLevel
from ..processing.datasets.faults import RowAccount
from ..processing.datasets.schema import ROW_FIELDS
from ..processing.images import read_image
from .collator import named_parts, usable_rows
from .curriculum import TrainingStage, is_trained, rate_group, steps_with_replay
from .heads.selector import HEAD_STEPS_PER_STAGE_STEP, trains_selectors
from .heads.selector import LEARNING_RATE as SELECTOR_RATE

if TYPE_CHECKING:
    from .trainer_sam3i import Sam3ITrainer

SAMPLED_IMAGES = 16
ADAM_BYTES = 8  # two float32 moments of each trained parameter


class PlanError(ValueError):
    """A training that cannot be run to its end as asked."""


@dataclass
class StagePlan:
    """One stage: rows used and left out by reason, steps, rates and trained parameters by group."""

    stage: TrainingStage
    rows: int
    with_target: int
    left_out: Counter[str]
    small_instances: int
    steps: int
    epochs: float
    batch: int
    rates: dict[str, float]
    parameters: dict[str, int]
    selector_steps: int
    replay_rows: int = 0
    replay_every: int = 2

    def __str__(self) -> str:
        nothing = self.rows - self.with_target
        lines = [
            f"stage {self.stage.index + 1} of {len(TrainingStage)}, {self.stage.value}: {self.rows:,} rows"
            f"{f' ({nothing:,} that denote nothing)' if nothing else ''}, {self.steps:,} steps of {self.batch:,} "
            f"({self.epochs:.3g} epochs)"
        ]
        lines += [f"  left out: {count:,} rows: {reason}" for reason, count in self.left_out.most_common()]
        if self.small_instances:
            lines.append(f"  no targets: {self.small_instances:,} crowds and instances smaller than a pixel")
        if self.replay_rows:
            lines.append(
                f"  replay: {self.replay_rows:,} rows to answer as before, in one of {self.replay_every} steps"
            )
        groups = [f"{name} {count:,} at {self.rates[name]:.3g}" for name, count in self.parameters.items()]
        lines.append(f"  trains {', '.join(groups)}")
        if self.selector_steps:
            when = "both selectors alone, at the end" if len(self.stage.levels) > 1 else "the selector alone, before"
            lines.append(f"  {when}: {self.selector_steps:,} steps at {SELECTOR_RATE:.3g}")
        return "\n".join(lines)


@dataclass
class TrainingPlan:
    """All stages, and what they need."""

    stages: list[StagePlan]
    memory_bytes: int  # weights, gradients and optimizer, without activations
    disk_bytes: int  # checkpoints and results; the feature cache has a limit of its own
    images_opened: int  # as a sample
    not_loaded: dict[str, RowAccount]  # what the loader of each data set left out, as it says
    notes: list[str]  # what one might not expect

    def stage(self, stage: TrainingStage) -> StagePlan:
        """The plan of one stage."""
        return next(item for item in self.stages if item.stage is stage)

    def __str__(self) -> str:
        lines = ["The plan:"]
        for name, account in self.not_loaded.items():
            lines += [f"{name} as it was loaded: {account.lines()[0]}", *account.lines()[1:]]
        lines += map(str, self.stages)
        lines.append(
            f"memory {self.memory_bytes / 1e9:.2f} GB and activations, disk at most {self.disk_bytes / 1e9:.2f} GB; "
            f"{self.images_opened} images opened as a sample"
        )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def make_plan(trainer: Sam3ITrainer) -> TrainingPlan:
    """Check everything that a training needs, and say what it will do.

    Raises:
        PlanError: naming the stage, the rows or the setting that would stop it later.
    """
    used: set[int] = set()
    stages = [_plan_stage(trainer, stage, used) for stage in trainer.stages]
    parts = named_parts(trainer.eval_dataset, "eval_dataset")
    for name, part in parts.items():
        _check_evaluation(trainer, name, part)
    _check_metric(trainer, list(parts))
    opened = _open_sample("train_dataset", trainer.all_rows, sorted(used))
    for name, part in {"replay": trainer.replay, **parts}.items():
        if part is not None:
            opened += _open_sample(name, part, list(range(len(part))))
    model = trainer.instruction_model
    most = max(sum(plan.parameters.values()) for plan in stages)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    disk = _check_disk(trainer, stages)
    loaded = {"train_dataset": trainer.all_rows, "replay": trainer.replay, **parts}
    accounts = {name: account for name, rows in loaded.items() if (account := RowAccount.of(rows)) is not None}
    return TrainingPlan(
        stages=stages,
        memory_bytes=weights + most * (4 + ADAM_BYTES),
        disk_bytes=disk,
        images_opened=opened,
        not_loaded={name: account for name, account in accounts.items() if account.left_out or account.notes},
        notes=_notes(trainer, stages, parts),
    )


def _plan_stage(trainer: Sam3ITrainer, stage: TrainingStage, used: set[int]) -> StagePlan:
    args, rows = trainer.curriculum_args.for_stage(stage), trainer.all_rows
    found = usable_rows(rows, stage.sampling)
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in found.left_out.most_common())
    if not found.indices:
        raise PlanError(
            f"None of the {len(rows)} rows has what stage {stage.value!r} trains: "
            f"{' and '.join(level.value for level in stage.levels)} instructions, with masks ({reasons}). Add such "
            "rows, or leave the stage out (`stages`, `--stages`)."
        )
    if not found.with_target:
        raise PlanError(
            f"None of the {len(found.indices)} rows of stage {stage.value!r} has a target: it could only learn to "
            f"answer nothing{f' (left out: {reasons})' if reasons else ''}. Add rows with masks."
        )
    used.update(found.indices)
    replay = 0
    if trainer.replay is not None:
        sampling = {level.value: 1.0 for level in stage.levels}
        replay = len(usable_rows(trainer.replay, sampling, labels=False).indices)
        if not replay:
            raise PlanError(
                f"None of the {len(trainer.replay)} rows of `replay` has an instruction of the levels that stage "
                f"{stage.value!r} trains ({', '.join(sampling)})."
            )
    batch = args.train_batch_size * args.world_size
    per_epoch = math.ceil(math.ceil(len(found.indices) / batch) / args.gradient_accumulation_steps)
    if replay:
        per_epoch = steps_with_replay(per_epoch, args.replay_every)
    steps = int(args.max_steps) if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    parameters: Counter[str] = Counter()
    rates: dict[str, float] = {}
    for name, parameter in trainer.instruction_model.named_parameters():
        if is_trained(name, stage):
            group, rate = rate_group(name, args.learning_rate, args.text_learning_rate)
            rates[group] = rate
            parameters[group] += parameter.numel()
    return StagePlan(
        stage=stage,
        rows=len(found.indices),
        with_target=found.with_target,
        left_out=found.left_out,
        small_instances=found.small_instances,
        steps=steps,
        epochs=steps / per_epoch,
        batch=batch * args.gradient_accumulation_steps,
        rates=rates,
        parameters=dict(parameters),
        selector_steps=min(args.selector_steps, HEAD_STEPS_PER_STAGE_STEP * steps) if trains_selectors(trainer) else 0,
        replay_rows=replay,
        replay_every=args.replay_every,
    )


def check_rows(name: str, rows: Any) -> None:
    """Check that something is a `datasets.Dataset` with the columns of instruction rows.

    Raises:
        PlanError: when it is something else, or a stream.
    """
    if not hasattr(rows, "select_columns"):
        raise PlanError(
            f"Expected `{name}` as a datasets.Dataset of instruction rows, found {type(rows).__name__}: see "
            "`load_instruction_dataset`, or `Dataset.from_list(rows, features=row_features())`."
        )
    if not hasattr(rows, "__len__"):
        raise PlanError(f"Expected `{name}` of known length, found a stream: load it without streaming.")
    missing = [column for column in ROW_FIELDS if column not in (rows.column_names or [])]
    if missing:
        raise PlanError(
            f"Expected the columns of `InstructionRow` in {name}, found none named {', '.join(missing)}: read the "
            "data with `load_instruction_dataset`."
        )


def _check_evaluation(trainer: Sam3ITrainer, name: str, rows: Any) -> None:
    if trainer.args.eval_strategy == IntervalStrategy.NO:
        return
    for level in sorted({level.value for stage in trainer.stages for level in stage.levels}):
        if not any(rows[level]):
            raise PlanError(f"Expected instructions of the level {level} in {name}, found none in {len(rows)} rows.")


def _check_metric(trainer: Sam3ITrainer, parts: list[str]) -> None:
    if trainer.args.eval_strategy == IntervalStrategy.NO or trainer.compute_metrics is not None:
        return
    metric = str(trainer.args.metric_for_best_model).removeprefix("eval_")
    known: tuple[str, ...] = ("stage_", *(f"{level.value}_" for level in InstructionLevel))
    if isinstance(trainer.eval_dataset, dict):
        known = ("stage_", *(f"{part}_{begin}" for part in parts for begin in known))
    if not metric.startswith(known):
        raise PlanError(f"Expected `metric_for_best_model` to begin with one of {', '.join(known)}, found {metric!r}.")


def _open_sample(name: str, rows: Any, places: list[int]) -> int:
    """Open some images, evenly spread; all that fail are named."""
    sampled = places[:: max(1, len(places) // SAMPLED_IMAGES)][:SAMPLED_IMAGES]
    faults = []
    for place in sampled:
        try:
            row = rows[place]
            if row["image"] is None:
                faults.append(f"row {row['row_id']!r} has no image (load the data with its image folder)")
                continue
            image = read_image(row["image"])
            if image.size != (row["width"], row["height"]):
                size = f"{image.width} x {image.height}"
                faults.append(f"row {row['row_id']!r} says {row['width']} x {row['height']}, its image has {size}")
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for files that are no images
            faults.append(f"row {place}: {error}")
    if faults:
        raise PlanError(
            f"{len(faults)} of {len(sampled)} sampled images of {name} cannot be used: {'; '.join(faults)}"
        )
    return len(sampled)


def _check_disk(trainer: Sam3ITrainer, stages: list[StagePlan]) -> int:
    args = trainer.args
    size = sum(
        value.numel() * value.element_size() for value in trainer.instruction_model.adapter_parameters().values()
    )
    needed = 0
    for plan in stages:
        kept = 0
        if args.save_strategy != SaveStrategy.NO:
            every = plan.steps / max(1.0, plan.epochs)  # steps between checkpoints, by epoch
            if args.save_strategy == SaveStrategy.STEPS:
                every = args.save_steps if args.save_steps >= 1 else max(1.0, plan.steps * args.save_steps)
            kept = math.ceil(plan.steps / max(1.0, every))
            limit = trainer.curriculum_args.save_total_limit
            kept = kept if not limit else min(kept, limit + 1)  # the oldest goes when the newest is whole
        needed += size + kept * (size + sum(plan.parameters.values()) * ADAM_BYTES)
    place = Path(str(trainer.curriculum_args.output_dir)).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise PlanError(
            f"The checkpoints need {needed / 1e9:.2f} GB, {place} has {free / 1e9:.2f} GB left: keep fewer "
            "(`save_total_limit`), or name another folder."
        )
    return needed


def _notes(trainer: Sam3ITrainer, stages: list[StagePlan], evaluated: dict[str, Any]) -> list[str]:
    notes = []
    if not evaluated:
        notes.append("no evaluation data: nothing is scored, and scores stay as they are (no calibration)")
    elif trainer.args.eval_strategy == IntervalStrategy.NO:
        notes.append("nothing is scored while training (`eval_strategy='no'`)")
    trained = {level.value for plan in stages for level in plan.stage.levels}
    kept = [level for level in trainer.instruction_model.config.score_calibration or {} if level in trained]
    if kept and trainer.calibrating_rows is None:
        notes.append(
            f"scores of {' and '.join(kept)} instructions keep the calibration of the model before this training, "
            "which 0.5 need not fit any more: give held-out rows (`eval_dataset`, --eval-data)"
        )
    if trainer.calibrating_rows is not None and trainer.args.load_best_model_at_end:
        chosen_by, calibrated_by = (
            sum(map(len, named_parts(half).values())) for half in (trainer.choosing_rows, trainer.calibrating_rows)
        )
        notes.append(f"{chosen_by:,} validation rows choose checkpoints, {calibrated_by:,} others calibrate scores")
    if trainer.args.save_strategy == SaveStrategy.NO:
        notes.append("no checkpoints within a stage: a run that is killed begins its stage anew")
    if trainer.replay is not None and trainer.instruction_model.selects_instances:
        notes.append("no selector learns alone (`selector_steps`): on new rows it would forget those of `replay`")
    short = [plan.stage.value for plan in stages if plan.steps < 1]
    if short:
        notes.append(f"no steps in {', '.join(short)}")
    return notes
