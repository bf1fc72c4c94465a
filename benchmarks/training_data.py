# SPDX-License-Identifier: Apache-2.0
"""How many training samples a second one core prepares, from pictures of a usual size to inputs of the model.

A sample is one row: a JPEG of 1280 x 960 pixels, a simple and a complex instruction, and one to three instances as
run-length masks. `whole` is what training without a feature cache needs, `cached` what it needs with one; the parts
say what limits them; stock's preparation of the same pictures (equal to the last bit) stands beside ours. Only the
data side runs, no model.
Run: `python benchmarks/training_data.py [--side 1008] [--samples 64] [--rounds 5]`.
"""

import argparse
import io

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageFilter
from timing import alternate, table
from transformers import CLIPTokenizer, Sam3ImageProcessor

from sam3i import Sam3IProcessor
from sam3i.processing.datasets.schema import make_row, row_features
from sam3i.processing.masks import box_of_rle, decode_mask, encode_mask
from sam3i.trainer.collator import InstructionCollator

WIDTH, HEIGHT = 1280, 960


def picture(generator: np.random.Generator) -> Image.Image:
    """Noise at several scales, which JPEG files compress about as well as photographs."""
    layers = [generator.integers(0, 256, (HEIGHT >> k, WIDTH >> k, 3), dtype=np.uint8) for k in (3, 5, 7)]
    resized = [np.asarray(Image.fromarray(layer).resize((WIDTH, HEIGHT)), dtype=np.float32) for layer in layers]
    smooth = Image.fromarray(np.mean(resized, axis=0).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    file = io.BytesIO()
    smooth.save(file, "JPEG", quality=90)
    return Image.open(io.BytesIO(file.getvalue()))


def mask(generator: np.random.Generator) -> np.ndarray:
    """A bent disc somewhere in the picture."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    cy, cx, radius = generator.uniform(200, 760), generator.uniform(200, 1080), generator.uniform(60, 190)
    angle = np.arctan2(y - cy, x - cx)
    return np.hypot(y - cy, x - cx) < radius * (1 + 0.2 * np.sin(5 * angle))


def rows(samples: int) -> list[dict]:
    """So many rows, each of a picture of its own."""
    generator = np.random.default_rng(0)
    found = []
    for index in range(samples):
        masks = [encode_mask(mask(generator)) for _ in range(1 + index % 3)]
        found.append(
            make_row(
                image=picture(generator),
                width=WIDTH,
                height=HEIGHT,
                row_id=str(index),
                image_id=str(index),
                masks=masks,
                boxes=[box_of_rle(each) for each in masks],
                concept=["thing"],
                simple=["the one on the left"],
                complex=["what holds water"],
                target_kind="1-to-N" if len(masks) > 1 else "1-to-1",
                dataset="benchmark",
                split="train",
            )
        )
    return found


def processor(side: int) -> Sam3IProcessor:
    """The image processor of SAM3 and a tokenizer of letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=32)
    size = {"height": side, "width": side}
    return Sam3IProcessor(Sam3ImageProcessor(size=size, mask_size=size), tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1008, help="of the model's input, in pixels")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    dataset = Dataset.from_list(rows(options.samples), features=row_features())
    prepared = processor(options.side)
    whole = InstructionCollator(prepared, "joint")
    cached = InstructionCollator(prepared, "joint", load_images=False)
    without_pictures = dataset.remove_columns(["image"])
    small = InstructionCollator(prepared, "joint", load_images=False, mask_size=(options.side // 4,) * 2)
    stock = prepared.image_processor
    pictures = [row["image"].convert("RGB") for row in dataset]
    masks = [rle for row in without_pictures for rle in row["masks"]]
    batches = [range(start, start + 8) for start in range(0, options.samples, 8)]

    def collate(collator: InstructionCollator, data: Dataset):
        return lambda: [collator([data[index] for index in batch]) for batch in batches]

    def resize():
        return [prepared(images=picture, return_tensors="pt") for picture in pictures]

    systems = {
        "whole": collate(whole, dataset),
        "cached": collate(cached, without_pictures),
        "cached, masks of a quarter of the side": collate(small, without_pictures),
        "part: read and decode JPEG": lambda: [row["image"].convert("RGB") for row in dataset],
        "part: resize and normalise": resize,
        "part: resize and normalise, stock": lambda: [stock(images=p, return_tensors="pt") for p in pictures],
        "part: decode masks": lambda: [decode_mask(rle) for rle in masks],
    }
    torch.set_num_threads(1)
    timings = alternate(systems, options.rounds)
    table(
        f"samples of {WIDTH} x {HEIGHT} pixels for a model of {options.side} x {options.side}, one core",
        ["", "ms of cpu a sample", "samples a second"],
        [[name, 1e3 * time.cpu_s / options.samples, options.samples / time.cpu_s] for name, time in timings.items()],
    )


if __name__ == "__main__":
    main()
