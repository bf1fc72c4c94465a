# SPDX-License-Identifier: Apache-2.0
"""A model, a processor and rows that train in a second; run as a script, a whole training in a process of its own."""

import json
import os
import sys

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPTokenizer, Sam3ImageProcessor

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor, Sam3ITrainer, Sam3ITrainingArguments
from sam3i.modeling_sam3i.configuration_sam3i import Sam3IConfig
from sam3i.processing.datasets.schema import make_row, row_features
from sam3i.processing.masks import box_of_rle, encode_mask
from sam3i.trainer.curriculum import TrainingStage, freeze_for_stage
from sam3i.trainer.heads import calibration, selector

SIDE = 56
COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}
NOUNS = ("square", "bar")
WORDS = "the a on left right red green blue square bar thing with four corners that is long and not".split()


def tiny_config(dropout: float = 0.0, **changes) -> Sam3IConfig:
    """A `Sam3IConfig` of about 0.2 M parameters; `dropout` is that of the text adapters' attention."""
    detr = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_layers": 2,
        "dropout": dropout,
    }
    return Sam3IConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": SIDE,
                "patch_size": 14,
                "window_size": 2,
                "global_attn_indexes": [1],
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
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "hidden_act": "gelu",
            "bos_token_id": 62,
            "eos_token_id": 63,
            "pad_token_id": 63,
        },
        geometry_encoder_config=detr,
        detr_encoder_config=detr,
        detr_decoder_config=detr | {"num_queries": 6},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4, "num_upsampling_stages": 1},
        adapter_dim=8,
        adapter_heads=4,
        adapter_dropout=dropout,
        **{"adapter_design": "cascade"} | changes,
    )


def tiny_model(dropout: float = 0.0, **changes) -> Sam3IForInstructionSegmentation:
    """Random weights, the same in every process."""
    torch.manual_seed(0)
    return Sam3IForInstructionSegmentation(tiny_config(dropout, **changes)).eval()


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
    folder, model=None, eval_dataset=None, callbacks=None, transform=None, options=None, **changes
) -> Sam3ITrainer:
    return Sam3ITrainer(
        tiny_model() if model is None else model,
        tiny_arguments(folder, **changes),
        tiny_dataset(),
        eval_dataset,
        tiny_processor(),
        transform=transform,
        **(options or {}),
        callbacks=callbacks,
    )


def at_stage(trainer: Sam3ITrainer, stage: TrainingStage) -> Sam3ITrainer:
    """The trainer as it is when a stage has its rows and has not taken a step."""
    trainer.stage, trainer.args = stage, trainer.curriculum_args.for_stage(stage)
    freeze_for_stage(trainer.instruction_model, stage)
    trainer.prepare_data(trainer.stage.sampling)
    return trainer


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def main() -> None:
    """`training_fixtures.py FOLDER JSON`: train (resuming what is in FOLDER) with the arguments in JSON."""
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    dropout, design = options.pop("dropout", 0.0), options.pop("adapter_design", "cascade")
    selector.LEAST_IOU = options.pop("least_iou", selector.LEAST_IOU)
    evaluation = tiny_dataset(3, "validation") if options.pop("evaluate", False) else None
    calibration.LEAST_ROWS = 4
    trainer = tiny_trainer(folder, tiny_model(dropout, adapter_design=design), evaluation, **options)
    os.makedirs(folder, exist_ok=True)  # this process may be here before the first one has made it
    with open(os.path.join(folder, f"started-{os.getpid()}"), "w"):
        output = trainer.train(resume_from_checkpoint=True)
    if not all(metrics["completed"] for metrics in output.metrics.values()):
        sys.exit(3)
    trainer.save_model()
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        with open(os.path.join(folder, "losses.json"), "w") as file:
            json.dump([[entry["stage"], entry["step"], entry["loss"]] for entry in logs], file)


if __name__ == "__main__":
    main()
