# SPDX-License-Identifier: Apache-2.0
"""`sam3i train`: the curriculum on data files."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..processing.cli import Crowd, Roots, SkipFaulty, read_rows
from .defaults import EVAL_STEPS, EVAL_THRESHOLD, FEATURE_CACHE_GB, LOGGING_STEPS, SEED, STAGE_DEFAULTS

_STAGED = "One value, or three with commas: one per stage."


def _default(name: str) -> str:
    return ",".join(f"{value:g}" for value in STAGE_DEFAULTS[name])


class TrainingStoppedError(InterruptedError):
    """The training was stopped before its end; what it had is kept."""


def train(
    model: Annotated[str, typer.Option(help="Stock SAM3, or SAM3-I to go on with: repository or folder.")],
    data: Annotated[str, typer.Option(help="Instruction data to train on: file, folder or Hub repository.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for checkpoints and the result.")],
    eval_data: Annotated[str | None, typer.Option(help="Instruction data to evaluate on.")] = None,
    replay_data: Annotated[
        str | None, typer.Option(help="Rows of an old domain, on which the model shall answer as it did.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the training data; all of it if not given.")] = None,
    eval_split: Annotated[
        str | None, typer.Option(help="Split to evaluate on; of the training data if --eval-data is absent.")
    ] = None,
    image_root: Roots = None,
    crowd: Crowd = None,
    skip_faulty: SkipFaulty = False,
    stages: Annotated[str, typer.Option(help="Stages to run, with commas.")] = "simple,complex,joint",
    start_complex_from: Annotated[
        str,
        typer.Option(help="Complex stage: a copy of the simple path, its own, or auto: a copy where it is fresh."),
    ] = "auto",
    steps: Annotated[str | None, typer.Option(help=f"Optimizer steps instead of epochs. {_STAGED}")] = None,
    epochs: Annotated[str, typer.Option(help=f"Epochs. {_STAGED}")] = _default("num_train_epochs"),
    learning_rate: Annotated[str, typer.Option(help=f"Peak learning rate. {_STAGED}")] = _default("learning_rate"),
    text_learning_rate: Annotated[
        str | None, typer.Option(help=f"That of the text adapters; 1/16 of it if not given. {_STAGED}")
    ] = None,
    batch_size: Annotated[str, typer.Option(help=f"Targets per step and process. {_STAGED}")] = _default(
        "per_device_train_batch_size"
    ),
    gradient_accumulation: Annotated[int, typer.Option(min=1, help="Batches per optimizer step.")] = 1,
    selector_steps: Annotated[
        str, typer.Option(help=f"Steps in which the selector learns alone, 0 for none. {_STAGED}")
    ] = _default("selector_steps"),
    logging_steps: Annotated[int, typer.Option(min=1, help="Steps between log entries.")] = LOGGING_STEPS,
    eval_steps: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = EVAL_STEPS,
    eval_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Score an instance must exceed in evaluations.")
    ] = EVAL_THRESHOLD,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = EVAL_STEPS,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End a stage after so many evaluations without improvement.")
    ] = None,
    feature_cache: Annotated[
        Path | None, typer.Option(help="Folder to keep the frozen vision features in: every image is encoded once.")
    ] = None,
    feature_cache_gb: Annotated[float, typer.Option(help="Most disk space for it, in GB.")] = FEATURE_CACHE_GB,
    augment: Annotated[bool, typer.Option("--augment", help="Resize jitter and padding, as the paper's.")] = False,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Less memory, a third more time.")
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare data.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = SEED,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves for TensorBoard.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU even if there is a GPU.")] = False,
    whole_model: Annotated[
        bool, typer.Option("--whole-model", help="Write SAM3 and adapters together, not the adapters alone.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Repository (ORG/NAME) to push adapters, processor and model card to.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --output-dir.")] = False,
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(help="With --resume: what may differ from before, such as data or learning_rate; repeatable."),
    ] = None,
) -> None:
    """Train instruction adapters on a frozen SAM3.

    The stages are simple, complex, then both jointly. The plan (rows used and left out, steps, rates, memory) is
    checked and printed before the first step. SIGTERM ends the run after a step, saved; --resume goes on. Runs on as
    many processes as torchrun or accelerate start. The result in --output-dir loads with from_pretrained.
    """
    given: dict[str, Any] = {
        "max_steps": _staged("--steps", steps, int),
        "num_train_epochs": _staged("--epochs", epochs, float),
        "learning_rate": _staged("--learning-rate", learning_rate, float),
        "text_learning_rate": _staged("--text-learning-rate", text_learning_rate, float),
        "per_device_train_batch_size": _staged("--batch-size", batch_size, int),
        "gradient_accumulation_steps": gradient_accumulation,
        "selector_steps": _staged("--selector-steps", selector_steps, int),
        "start_complex_from": start_complex_from,
        "logging_steps": logging_steps,
        "eval_threshold": eval_threshold,
        "save_steps": save_steps,
        "early_stopping_patience": patience,
        "feature_cache": None if feature_cache is None else str(feature_cache),
        "feature_cache_limit_gb": feature_cache_gb,
        "activation_checkpointing": activation_checkpointing or None,
        "bf16": bf16,
        "dataloader_num_workers": workers,
        "seed": seed,
        "report_to": "tensorboard" if tensorboard else "none",
        "use_cpu": cpu,
        "stages": [name.strip() for name in stages.split(",")],
        "allow_changed": allow_changed,
        "enable_jit_checkpoint": True,
    }
    if eval_data is not None or eval_split is not None:
        given |= {"eval_strategy": "steps", "eval_steps": eval_steps, "load_best_model_at_end": True}
    elif patience is not None:
        raise typer.BadParameter("--patience needs --eval-data or --eval-split.")
    if push_to_hub is not None and whole_model:
        raise typer.BadParameter("--push-to-hub pushes adapters. Push the whole model afterwards: sam3i push.")
    import torch

    if bf16 and not (cpu or torch.accelerator.is_available()):
        raise typer.BadParameter("--bf16 found no GPU: leave it out, or train on the CPU (--cpu).")
    if push_to_hub is not None:
        given |= {"push_to_hub": True, "hub_model_id": push_to_hub, "hub_strategy": "end"}
    from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ..processing.processing_sam3i import Sam3IProcessor
    from .arguments import Sam3ITrainingArguments
    from .trainer_sam3i import Sam3ITrainer
    from .transforms import InstructionTransform

    logging.getLogger("sam3i").setLevel(logging.INFO)
    given = {name: value for name, value in given.items() if value is not None}
    args = Sam3ITrainingArguments(output_dir=str(output_dir), **given)
    read = partial(read_rows, image_root=image_root, crowd=crowd, skip_faulty=skip_faulty)
    with args.main_process_first(desc="reading the data"):
        rows, evaluated = read(data, split), eval_data is not None or eval_split is not None
        eval_rows = read(eval_data or data, eval_split) if evaluated else None
        replay = None if replay_data is None else read(replay_data, None)
    trainer = Sam3ITrainer(
        Sam3IForInstructionSegmentation.from_pretrained(model, dtype=torch.float32),
        args,
        rows,
        eval_rows,
        Sam3IProcessor.from_pretrained(model),
        transform=InstructionTransform() if augment else None,
        replay=replay,
    )
    output = trainer.train(resume_from_checkpoint=resume)
    by_stage: dict[str, Any] = output.metrics  # type: ignore[assignment]
    stopped = [name for name, metrics in by_stage.items() if not metrics["completed"]]
    if stopped:
        raise TrainingStoppedError(
            f"stage {stopped[0]} was stopped before its end; nothing but its checkpoints is written. Go on: --resume"
        )
    if not whole_model:
        trainer.save_model()
    elif trainer.is_world_process_zero():
        trainer.instruction_model.save_pretrained(output_dir)
        trainer.processing_class.save_pretrained(output_dir)
    if not args.push_to_hub:
        trainer.create_model_card()
    if trainer.is_world_process_zero():
        typer.echo(f"Written to {output_dir}")


def _staged(option: str, text: str | None, read: Callable[[str], Any]) -> Any:
    """One value or a tuple of three from "a" or "a,b,c"."""
    if text is None:
        return None
    values: tuple[Any, ...] = ()
    try:
        values = tuple(read(part) for part in text.split(","))
    except ValueError:
        pass
    if len(values) not in (1, 3):
        raise typer.BadParameter(f"{option} takes one number or three with commas, found {text!r}.")
    return values[0] if len(values) == 1 else values
