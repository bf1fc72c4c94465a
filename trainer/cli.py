# SPDX-License-Identifier: Apache-2.0
"""`sam3i train`: the curriculum on data files."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

_STAGED = "One value, or three with commas: one per stage."


def train(
    model: Annotated[str, typer.Option(help="Stock SAM3, or SAM3-I to go on with: repository or folder.")],
    data: Annotated[str, typer.Option(help="Instruction data to train on: file, folder or Hub repository.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for checkpoints and the result.")],
    eval_data: Annotated[str | None, typer.Option(help="Instruction data to evaluate on.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the training data.")] = None,
    eval_split: Annotated[
        str | None, typer.Option(help="Split to evaluate on; of the training data if --eval-data is absent.")
    ] = None,
    image_root: Annotated[str | None, typer.Option(help="Folder of the images.")] = None,
    stages: Annotated[str, typer.Option(help="Stages to run, with commas.")] = "simple,complex,joint",
    steps: Annotated[str | None, typer.Option(help=f"Optimiser steps instead of epochs. {_STAGED}")] = None,
    epochs: Annotated[str | None, typer.Option(help=f"Epochs. {_STAGED}")] = None,
    learning_rate: Annotated[str | None, typer.Option(help=f"Peak learning rate. {_STAGED}")] = None,
    text_learning_rate: Annotated[str | None, typer.Option(help=f"That of the text adapters. {_STAGED}")] = None,
    batch_size: Annotated[str | None, typer.Option(help=f"Targets per step and process. {_STAGED}")] = None,
    gradient_accumulation: Annotated[int, typer.Option(min=1, help="Batches per optimiser step.")] = 1,
    eval_steps: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 500,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End a stage after so many evaluations without improvement.")
    ] = None,
    feature_cache: Annotated[
        Path | None, typer.Option(help="Folder to keep the frozen vision features in: every image is encoded once.")
    ] = None,
    feature_cache_gb: Annotated[float, typer.Option(help="Most disk space for it, in GB.")] = 100.0,
    augment: Annotated[bool, typer.Option("--augment", help="Resize jitter and padding, as the paper's.")] = False,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Less memory, a third more time.")
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare data.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 42,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves for TensorBoard.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU even if there is a GPU.")] = False,
    whole_model: Annotated[
        bool, typer.Option("--whole-model", help="Write SAM3 and adapters together, not the adapters alone.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Repository (ORG/NAME) to push adapters, processor and model card to.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --output-dir.")] = False,
) -> None:
    """Train instruction adapters on a frozen SAM3: simple, complex, then both jointly.

    Runs on as many processes as torchrun or accelerate start. The result in --output-dir loads with from_pretrained.
    """
    given = {
        "max_steps": _staged("--steps", steps, int),
        "num_train_epochs": _staged("--epochs", epochs, float),
        "learning_rate": _staged("--learning-rate", learning_rate, float),
        "text_learning_rate": _staged("--text-learning-rate", text_learning_rate, float),
        "per_device_train_batch_size": _staged("--batch-size", batch_size, int),
        "gradient_accumulation_steps": gradient_accumulation,
        "save_steps": save_steps,
        "early_stopping_patience": patience,
        "feature_cache": None if feature_cache is None else str(feature_cache),
        "feature_cache_limit_gb": feature_cache_gb,
        "activation_checkpointing": activation_checkpointing,
        "bf16": bf16,
        "dataloader_num_workers": workers,
        "seed": seed,
        "report_to": "tensorboard" if tensorboard else "none",
        "use_cpu": cpu,
        "stages": [name.strip() for name in stages.split(",")],
    }
    if eval_data is not None or eval_split is not None:
        given |= {"eval_strategy": "steps", "eval_steps": eval_steps, "load_best_model_at_end": True}
    elif patience is not None:
        raise typer.BadParameter("--patience needs --eval-data or --eval-split.")
    if push_to_hub is not None and whole_model:
        raise typer.BadParameter("--push-to-hub pushes adapters. Push the whole model afterwards: sam3i push.")
    if push_to_hub is not None:
        given |= {"push_to_hub": True, "hub_model_id": push_to_hub, "hub_strategy": "end"}
    try:
        _train(model, data, output_dir, eval_data, split, eval_split, image_root, augment, whole_model, resume, given)
    except (OSError, ValueError, ImportError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(code=1) from error


def _train(model, data, output_dir, eval_data, split, eval_split, image_root, augment, whole_model, resume, given):
    import torch

    from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ..processing.datasets.loading import load_instruction_dataset
    from ..processing.processing_sam3i import Sam3IProcessor
    from .arguments import Sam3ITrainingArguments
    from .trainer_sam3i import Sam3ITrainer
    from .transforms import InstructionTransform

    arguments = {name: value for name, value in given.items() if value is not None}
    args = Sam3ITrainingArguments(output_dir=str(output_dir), **arguments)
    if not resume and any(output_dir.glob("stage-*")):
        raise ValueError(f"{output_dir} holds another training. Go on with it (--resume) or name another folder.")
    with args.main_process_first(desc="reading the data"):
        rows = load_instruction_dataset(data, image_root=image_root, split=split)
        eval_rows = None
        if eval_data is not None or eval_split is not None:
            eval_rows = load_instruction_dataset(eval_data or data, image_root=image_root, split=eval_split)
    trainer = Sam3ITrainer(
        Sam3IForInstructionSegmentation.from_pretrained(model, dtype=torch.float32),
        args,
        rows,
        eval_rows,
        Sam3IProcessor.from_pretrained(model),
        InstructionTransform() if augment else None,
    )
    trainer.train(resume_from_checkpoint=resume)
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
    try:
        values = tuple(read(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise typer.BadParameter(f"{option} takes one number or three with commas, found {text!r}.")
    return values[0] if len(values) == 1 else values


__all__ = ["train"]
