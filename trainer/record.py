# SPDX-License-Identifier: Apache-2.0
"""What a training is and leaves behind: its identity, and `training.json`, an entry per finished stage."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..processing.atomic import write_whole
from ..processing.fingerprint import (
    fingerprint_image,
    fingerprint_json,
    fingerprint_processor,
    fingerprint_tensors,
)
from .collator import named_parts
from .curriculum import TrainingStage
from .evaluation.protocols import get_protocol

if TYPE_CHECKING:
    from .trainer_sam3i import Sam3ITrainer

RECORD_NAME = "training.json"
STATE_NAME = "trainer_state.json"
CURVES = ("step", "loss", "learning_rate")
LOSSES = {
    "ce": ("classification", "classification_weight"),
    "presence": ("presence", "presence_weight"),
    "bbox": ("box L1", "box_l1_weight"),
    "giou": ("box GIoU", "box_giou_weight"),
    "mask": ("mask focal", "mask_focal_weight"),
    "dice": ("mask dice", "mask_dice_weight"),
    "semantic_seg": ("semantic focal", "semantic_focal_weight"),
    "semantic_dice": ("semantic dice", "semantic_dice_weight"),
    "kl": ("KL", "kl_weight"),
    "hard_region": ("hard region", "hard_region_weight"),
    "info_nce": ("InfoNCE", "info_nce_weight"),
    "margin": ("concept margin", "margin_weight"),
}
"""The losses by their names in the log: the name to show, and the weight that turns each on."""


IDENTITY_SETTINGS = (
    "seed",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "learning_rate",
    "text_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "bf16",
    "fp16",
    "selector_steps",
    "start_complex_from",
    "early_stopping_patience",
    "load_best_model_at_end",
    "metric_for_best_model",
)
"""The arguments of a stage that decide what it learns."""


class TrainingRecordError(ValueError):
    """A `training.json` that cannot be read."""


def shared_identity(trainer: Sam3ITrainer) -> dict[str, str]:
    """Fingerprints, by content, of what all stages share: weights of SAM3, data, processor."""
    model, processor, args = trainer.instruction_model, trainer.processing_class, trainer.curriculum_args
    adapters = model.adapter_parameters()
    stock = {name: tensor for name, tensor in model.state_dict().items() if name not in adapters}
    identity = {
        "weights": fingerprint_tensors(stock),
        "data": fingerprint_rows(trainer.all_rows),
        "processor": fingerprint_processor(processor),
    }
    if trainer.eval_dataset is not None and (args.load_best_model_at_end or args.calibrate):
        parts = named_parts(trainer.eval_dataset)
        identity["eval_data"] = fingerprint_json({name: fingerprint_rows(rows) for name, rows in parts.items()})
    if trainer.before is not None:
        identity["replay"] = fingerprint_rows(trainer.replay)
        identity["replay_weights"] = fingerprint_tensors(trainer.before.state_dict())
    return identity


def stage_identity(trainer: Sam3ITrainer, args: Any, shared: dict[str, str]) -> dict[str, Any]:
    """What decides the result of a stage, by name: fingerprints and settings."""
    settings = {name: getattr(args, name) for name in IDENTITY_SETTINGS}
    settings = {name: getattr(value, "value", value) for name, value in settings.items()}
    loss = trainer.instruction_model.criterion.config
    transform = trainer.transform
    more = {
        "loss_config": fingerprint_json(loss),
        "transform": None if transform is None else repr(sorted(vars(transform).items())),
        "replay_every": args.replay_every if trainer.replay is not None else None,
    }
    return shared | settings | more


def fingerprint_rows(rows: Any) -> str:
    """Fingerprint of a `datasets.Dataset` of instruction rows: all fields, images by the content of their files."""
    from datasets import Image

    columns = [name for name in rows.column_names if name != "image"]
    parts: list[str | None] = [fingerprint_json(batch) for batch in rows.select_columns(columns).iter(1000)]
    if "image" in rows.column_names:
        undecoded = rows.select_columns(["image"]).cast_column("image", Image(decode=False))
        for batch in undecoded.iter(100):
            parts += [None if image is None else fingerprint_image(image) for image in batch["image"]]
    return fingerprint_json(parts)


def record_stage(trainer: Sam3ITrainer) -> None:
    """Write what the stage that has just ended was, in place of what an earlier run left of it and later stages."""
    path = Path(str(trainer.curriculum_args.output_dir)) / RECORD_NAME
    record = read_record(path.parent) or {}
    stages = [entry for entry in record.get("stages", []) if TrainingStage(entry["stage"]).index < trainer.stage.index]
    model = trainer.instruction_model
    adapters = sum(parameter.numel() for parameter in model.adapter_parameters().values())
    record = {
        "base": _base_name(model),
        "base_parameters": model.num_parameters() - adapters,
        "stages": [*stages, _stage_entry(trainer)],
    }
    if trainer.plan is not None and trainer.plan.not_loaded:
        accounts = trainer.plan.not_loaded.items()
        record["not_loaded"] = {name: {"left_out": dict(a.left_out), "notes": dict(a.notes)} for name, a in accounts}
    if trainer.eval_dataset is not None:
        record["evaluation"] = {
            "protocol": str(get_protocol("default")),
            "threshold": trainer.args.eval_threshold,
            "rows": _rows(trainer.eval_dataset),
            "chose_checkpoints": bool(trainer.args.load_best_model_at_end),
        }
    with write_whole(path) as partial:
        partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The record of a training folder ("base", "stages"); None when nothing was trained here.

    Of an older training without one it is made from the checkpoints' `trainer_state.json`. Raises TrainingRecordError
    when the file is no record.
    """
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        stages = [entry for stage in TrainingStage if (entry := _from_checkpoints(Path(folder), stage)) is not None]
        return {"base": None, "stages": stages} if stages else None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for entry in record["stages"]:
            TrainingStage(entry["stage"])
            if not isinstance(entry["steps"], int) or not isinstance(entry["log"], list):
                raise ValueError(f"stage {entry['stage']} has no steps or no log")
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingRecordError(f"{path} is not the record of a training ({error!r}): delete it.") from error
    return record


def _stage_entry(trainer: Sam3ITrainer) -> dict[str, Any]:
    args, log = trainer.args, trainer.state.log_history
    logged = {name for entry in log if "loss" in entry for name in entry}
    weights = trainer.instruction_model.criterion.config
    trained = [value for value in trainer.instruction_model.parameters() if value.requires_grad]
    return {
        "stage": trainer.stage.value,
        "levels": [level.value for level in trainer.stage.levels],
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "text_learning_rate": args.text_learning_rate,
        "lr_scheduler_type": getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        "weight_decay": args.weight_decay,
        "seed": args.seed,
        "trained_parameters": sum(value.numel() for value in trained),
        "losses": [shown for name, (shown, weight) in LOSSES.items() if name in logged and getattr(weights, weight)],
        "rows": _rows(trainer.train_dataset),
        "rows_left_out": dict(trainer.plan.stage(trainer.stage).left_out) if trainer.plan is not None else {},
        "calibration": trainer.calibration,
        "ended_by": trainer.ended_by,
        "identity": trainer.identity,
        "log": _plain(log),
    }


def _rows(dataset: Any) -> dict[str, int]:
    """Rows by the name of the data set they are from, the largest first."""
    return dict(Counter(name for part in named_parts(dataset).values() for name in part["dataset"]).most_common())


def _base_name(model: Any) -> str | None:
    """The repository of the frozen SAM3; only the last part of a folder's path."""
    source = getattr(model, "adapter_source", None)
    name = str(model.name_or_path or "")
    if source is not None and source.base_in_use:
        name = source.base_in_use
    return (Path(name).name if Path(name).is_absolute() or Path(name).exists() else name) or None


def _plain(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves in log entries: step, loss, learning rate and evaluations, as finite numbers of six digits."""
    kept = []
    for entry in log:
        names = [name for name in entry if name in CURVES or name.startswith("eval_")]
        values = {name: float(entry[name]) for name in names if isinstance(entry[name], int | float)}
        if values.keys() - {"step"}:
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            kept.append({name: int(v) if v == int(v) else float(f"{v:.6g}") for name, v in finite.items()})
    return kept


def _from_checkpoints(folder: Path, stage: TrainingStage) -> dict[str, Any] | None:
    states = [json.loads(path.read_text()) for path in (folder / stage.folder).glob(f"checkpoint-*/{STATE_NAME}")]
    if not states:
        return None
    last = max(states, key=lambda state: state["global_step"])
    return {
        "stage": stage.value,
        "levels": [level.value for level in stage.levels],
        "steps": last["global_step"],
        "epochs": last["epoch"],
        "batch_size": last["train_batch_size"],
        "log": _plain(last["log_history"]),
    }
