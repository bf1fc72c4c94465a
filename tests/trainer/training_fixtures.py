# SPDX-License-Identifier: Apache-2.0
"""A model, a processor and rows that train in a second, here or in a process of their own."""

import functools
import json
import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from made_once import made_once
from PIL import Image
from transformers import CLIPTokenizer, Sam3ImageProcessor

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor, Sam3ITrainer, Sam3ITrainingArguments
from sam3i.modeling_sam3i.configuration_sam3i import Sam3IConfig
from sam3i.processing.datasets.schema import make_row, row_features
from sam3i.processing.masks import box_of_rle, encode_mask
from sam3i.trainer.curriculum import TrainingStage, freeze_for_stage
from sam3i.trainer.heads import calibration, selector
from sam3i.trainer.plan import make_plan

SIDE = 56
COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}
NOUNS = ("square", "bar")
STOPPED = 3  # the exit status of a training that was asked to stop
WORDS = "the a on left right red green blue square bar thing with four corners that is long and not".split()


def tiny_config(dropout: float = 0.0, **changes) -> Sam3IConfig:
    """A `Sam3IConfig` of about 0.1 M parameters, one layer of each kind but two of the decoder.

    `dropout` is that of the text adapters' attention.
    """
    detr = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_layers": 1,
        "dropout": dropout,
    }
    return Sam3IConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": SIDE,
                "patch_size": 14,
                "window_size": 2,
                "global_attn_indexes": [0],
                "pretrain_image_size": 28,
            },
            "fpn_hidden_size": 32,
            "scale_factors": [2.0, 1.0, 0.5],
            "backbone_feature_sizes": [[8, 8], [4, 4], [2, 2]],
        },
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "projection_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "hidden_act": "gelu",
            "bos_token_id": 62,
            "eos_token_id": 63,
            "pad_token_id": 63,
        },
        geometry_encoder_config=detr,
        detr_encoder_config=detr,
        detr_decoder_config=detr | {"num_layers": 2, "num_queries": 6},  # earlier layers are matched as well
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4, "num_upsampling_stages": 1},
        adapter_dim=8,
        adapter_heads=4,
        adapter_dropout=dropout,
        **{"adapter_design": "cascade"} | changes,
    )


def tiny_model(dropout: float = 0.0, **changes) -> Sam3IForInstructionSegmentation:
    """Random weights, the same in every process."""

    def make():
        torch.manual_seed(0)
        return Sam3IForInstructionSegmentation(tiny_config(dropout, **changes)).eval()

    return made_once(("training", json.dumps([dropout, changes], sort_keys=True)), make)


def tiny_processor() -> Sam3IProcessor:
    vocab = {"<|startoftext|>": 62, "<|endoftext|>": 63}
    vocab |= {f"{word}</w>": index for index, word in enumerate(WORDS, start=1)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=32)
    size = {"height": SIDE, "width": SIDE}
    return Sam3IProcessor(Sam3ImageProcessor(size=size, mask_size=size), tokenizer)


def tiny_rows(images: int = 6, split: str = "train") -> list[dict]:
    """Two rows per image: a colored thing on one side, and one that is not there."""
    rows = []
    for index in range(images):
        color, noun = list(COLORS)[index % 3], NOUNS[index % 2]
        left = index % 4 < 2
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        x = 6 if left else 34
        mask[12:28, x : x + (16 if noun == "square" else 8)] = True
        pixels = np.full((SIDE, SIDE, 3), 90 + 10 * index, dtype=np.uint8)
        pixels[mask] = COLORS[color]
        rle = encode_mask(mask)
        side, absent = ("left", "right")[not left], NOUNS[1 - index % 2]
        shared = {
            "image": Image.fromarray(pixels),
            "width": SIDE,
            "height": SIDE,
            "image_id": index,
            "dataset": "tiny",
            "split": split,
        }
        rows.append(
            make_row(
                **shared,
                row_id=f"{index}-there",
                masks=[rle],
                boxes=[box_of_rle(rle)],
                concept=[noun],
                simple=[f"the {color} {noun}", f"the {noun} on the {side}"],
                complex=[f"the {color} thing", f"a thing that is on the {side}"],
                target_kind="1-to-1",
            )
        )
        rows.append(
            make_row(
                **shared,
                row_id=f"{index}-absent",
                masks=[],
                boxes=[],
                concept=[absent],
                simple=[f"the {absent} on the {side}"],
                complex=["the thing that is not long and not red"],
                target_kind="none",
            )
        )
    return rows


@functools.cache
def tiny_dataset(images: int = 6, split: str = "train") -> Dataset:
    return Dataset.from_list(tiny_rows(images, split), features=row_features())


def tiny_arguments(folder, **changes) -> Sam3ITrainingArguments:
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-3,
        "text_learning_rate": 2e-3,
        "max_grad_norm": 5.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return Sam3ITrainingArguments(**(settings | changes))


def tiny_trainer(
    folder, model=None, eval_dataset=None, callbacks=None, transform=None, options=None, rows=None, **changes
) -> Sam3ITrainer:
    return Sam3ITrainer(
        tiny_model() if model is None else model,
        tiny_arguments(folder, **changes),
        tiny_dataset() if rows is None else rows,
        eval_dataset,
        tiny_processor(),
        transform=transform,
        **(options or {}),
        callbacks=callbacks,
    )


def at_stage(trainer: Sam3ITrainer, stage: TrainingStage) -> Sam3ITrainer:
    """The trainer as it is when a stage has its rows and has not taken a step."""
    trainer.plan = make_plan(trainer)
    trainer.stage, trainer.args = stage, trainer.curriculum_args.for_stage(stage)
    freeze_for_stage(trainer.instruction_model, stage)
    trainer.prepare_data(trainer.stage.sampling)
    return trainer


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


CONTEXT = multiprocessing.get_context("forkserver")


def _keep_loaded_code() -> None:
    """Start the server whose copies the processes of [`start`] are: what they need is loaded in it, once."""
    CONTEXT.set_forkserver_preload(["training_fixtures"])
    before = os.environ.copy()
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True)
class Group:
    """The place of a process among those that work together."""

    rank: int
    world: int
    port: int


def start(folder, target, *args, group: Group | None = None):
    """Run a function in a process of its own; what it says goes to `output-RANK.txt` in the folder."""
    _keep_loaded_code()
    os.makedirs(folder, exist_ok=True)
    process = CONTEXT.Process(target=_run, args=(str(folder), group, target, args))
    process.start()
    return process


def _run(folder: str, group: Group | None, target, args) -> None:
    rank = 0 if group is None else group.rank
    written = os.open(os.path.join(folder, f"output-{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(written, stream)
    torch.set_num_threads(1)
    if group is not None:
        place = {"RANK": group.rank, "LOCAL_RANK": group.rank, "WORLD_SIZE": group.world}
        place |= {"LOCAL_WORLD_SIZE": group.world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": group.port}
        os.environ.update({name: str(value) for name, value in place.items()})
    target(*args)


def finish(process, folder, rank: int = 0, timeout: float = 600) -> int:
    """Wait for a training's end, which has to be a good one, or one that a signal made."""
    process.join(timeout)
    said = (Path(folder) / f"output-{rank}.txt").read_text()
    assert process.exitcode in (0, STOPPED, -signal.SIGKILL, -signal.SIGTERM), said[-3000:]
    return process.exitcode


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_training(folder: str, options: dict) -> None:
    """Train, resuming what is in the folder."""
    options = dict(options)
    dropout, design = options.pop("dropout", 0.0), options.pop("adapter_design", "cascade")
    selector.LEAST_IOU = options.pop("least_iou", selector.LEAST_IOU)
    signaled = options.pop("signaled", None)
    evaluation = tiny_dataset(3, "validation") if options.pop("evaluate", False) else None
    more = {"replay": tiny_dataset(3, "old")} if options.pop("replay", False) else None
    calibration.LEAST_ROWS = 4
    model = tiny_model(dropout, adapter_design=design)
    trainer = tiny_trainer(folder, model, evaluation, options=more, **options)
    if signaled is not None:
        _signal_inside(*signaled)
    output = trainer.train(resume_from_checkpoint=True)
    if not all(metrics["completed"] for metrics in output.metrics.values()):
        sys.exit(STOPPED)
    trainer.save_model()
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        with open(os.path.join(folder, "losses.json"), "w") as file:
            json.dump([[entry["stage"], entry["step"], entry["loss"]] for entry in logs], file)


def _signal_inside(name: str | None, calls: int, number: int) -> None:
    """Send this process a signal at the n-th call that a function of that name makes, or that anything makes."""
    inside, left = [name is None], [calls]

    def watch(frame, event, argument):
        if frame.f_code.co_name == name and event in ("call", "return"):
            inside[0] = event == "call"
        elif inside[0] and event in ("call", "c_call"):
            left[0] -= 1
            if not left[0]:
                sys.setprofile(None)
                os.kill(os.getpid(), number)

    sys.setprofile(watch)
