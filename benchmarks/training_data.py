# SPDX-License-Identifier: Apache-2.0
"""How many training samples a second one core prepares, from pictures of a usual size to inputs of the model.

A sample is one row: a JPEG of 1280 x 960 pixels, a simple and a complex instruction, and one to three instances as
run-length masks. `whole` is what training without a feature cache needs, `cached` what it needs with one; the parts
say what limits them; `stock` is a row with its picture prepared by stock's image processor, and the largest difference
between the two batches is printed (0 is expected). At last a DataLoader runs with one and with two workers, timed by
the clock on the wall: it needs two idle cores to show anything. Only the data side runs, no model.
Run: `python benchmarks/training_data.py [--side 1008] [--samples 64] [--rounds 5]`.
"""

import argparse
import io

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from kept import add_options, finish, ratios
from PIL import Image, ImageFilter
from timing import alternate, table
from torch.utils.data import DataLoader
from transformers import CLIPTokenizer, Sam3ImageProcessor

from sam3i import Sam3IProcessor
from sam3i.processing.datasets.schema import make_row, row_features
from sam3i.processing.masks import box_of_rle, decode_mask, encode_mask
from sam3i.trainer.collator import InstructionCollator
from sam3i.trainer.transforms import Placement

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


class StockCollator(InstructionCollator):
    """The same rows with pictures prepared by stock's image processor."""

    def _encode(self, images, texts, levels):
        stock = self.processor.image_processor
        self.load_images = False
        encoded = super()._encode([], texts, levels)
        self.load_images = True
        return encoded | {"pixel_values": stock(images=images, return_tensors="pt")["pixel_values"]}


def resize_whole(rle: dict, side: int) -> torch.Tensor:
    """A mask on the canvas by PyTorch's resizing of the whole picture, as `Placement.place_masks` once had it."""
    pixels = torch.from_numpy(decode_mask(rle)).float()[None, None]
    return F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)[0, 0] > 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1008, help="of the model's input, in pixels")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = Dataset.from_list(rows(options.samples), features=row_features())
    without_pictures = dataset.remove_columns(["image"])
    prepared = processor(options.side)
    whole, stock = InstructionCollator(prepared, "joint"), StockCollator(prepared, "joint")
    cached = InstructionCollator(prepared, "joint", load_images=False)
    pictures = [row["image"].convert("RGB") for row in dataset]
    masks = [rle for row in without_pictures for rle in row["masks"]]
    placement = Placement((options.side,) * 2, (options.side,) * 2)
    differ = sum(int((placement.place_masks([rle])[0] != resize_whole(rle, options.side)).sum()) for rle in masks)
    batches = [range(start, min(start + 8, options.samples)) for start in range(0, options.samples, 8)]

    def collate(collator: InstructionCollator, data: Dataset):
        def run() -> None:
            for batch in batches:
                collator([data[index] for index in batch])

        return run

    def each(function, items):
        def run() -> None:
            for item in items:
                function(item)

        return run

    first = [dataset[index] for index in batches[0]]
    own, other = whole(first)["pixel_values"], stock(first)["pixel_values"]
    print(f"largest difference from stock's pixels: {float((own - other).abs().max()):g}, of a range of 2")
    print(f"pixels of {len(masks)} masks that differ from those of masks resized whole: {differ}")
    systems = {
        "stock": collate(stock, dataset),
        "whole": collate(whole, dataset),
        "cached": collate(cached, without_pictures),
        "part: read and decode JPEG": each(lambda index: dataset[index]["image"].convert("RGB"), range(len(dataset))),
        "part: resize and normalise": each(lambda picture: prepared(images=picture, return_tensors="pt"), pictures),
        "part: the same, stock": each(
            lambda picture: prepared.image_processor(images=picture, return_tensors="pt"), pictures
        ),
        "part: masks": each(lambda rle: placement.place_masks([rle]), masks),
        "part: masks, each resized whole": each(lambda rle: resize_whole(rle, options.side), masks),
    }
    timings = alternate(systems, options.rounds)
    table(
        f"samples of {WIDTH} x {HEIGHT} pixels for a model of {options.side} x {options.side}, one core",
        ["", "ms of cpu a sample", "samples a second"],
        [[name, 1e3 * time.cpu_s / options.samples, options.samples / time.cpu_s] for name, time in timings.items()],
    )
    loaders = {
        f"{workers} worker(s)": DataLoader(
            dataset, 8, collate_fn=whole, num_workers=workers, persistent_workers=True, worker_init_fn=one_thread
        )
        for workers in (1, 2)
    }
    walls = alternate({name: lambda loader=loader: list(loader) for name, loader in loaders.items()}, options.rounds)
    table(
        "the whole through a DataLoader, by the clock on the wall",
        ["", "ms a sample", "samples a second"],
        [[name, 1e3 * time.wall_s / options.samples, options.samples / time.wall_s] for name, time in walls.items()],
    )
    finish("training_data", str(options.side), ratios(timings, "stock"), options)


def one_thread(worker: int) -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
