# SPDX-License-Identifier: Apache-2.0
"""Post-processing of many masks for a large picture, against stock's: time, memory and how far the masks differ.

Run: `python benchmarks/post_processing.py [--size tiny|middle|real]`; stock needs 10 GB of memory at real size.
"""

import argparse
import json
from types import SimpleNamespace

import torch
from kept import add_options, finish, ratios
from timing import alternate, in_fresh_process, peak_mib, ratio, table
from transformers import Sam3ImageProcessor

from sam3i.processing.post_processing import segment_rows

CASES = {"tiny": (24, 32, (512, 512)), "middle": (50, 144, (1500, 2000)), "real": (50, 288, (3000, 4000))}
"""Kept masks, side of the logits, height and width of the picture."""


def make_outputs(masks: int, side: int, seed: int = 0) -> SimpleNamespace:
    """Outputs of one row: four queries for each kept one; soft discs from a hundredth to a tenth of the picture."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.arange(side) / side
    x, y, radius = torch.rand(3, 4 * masks, 1, 1, generator=generator)
    radius = 0.06 + 0.12 * radius
    distance = ((grid[None, None] - x) ** 2 + (grid[None, :, None] - y) ** 2).sqrt()
    logits = torch.full((4 * masks,), -5.0)
    logits[:masks] = torch.linspace(1, 5, masks)
    boxes = torch.cat([x - radius, y - radius, x + radius, y + radius], dim=1)[..., 0]
    noise = torch.randn(distance.shape, generator=generator)
    return SimpleNamespace(
        pred_masks=(60 * (radius - distance) + noise)[None],
        pred_boxes=boxes[None],
        pred_logits=logits[None],
        presence_logits=torch.tensor([[10.0]]),
        instruction_levels=torch.zeros(1, dtype=torch.long),
    )


def systems(outputs: SimpleNamespace, size: tuple[int, int]):
    processor = Sam3ImageProcessor()
    return {
        "stock": lambda: processor.post_process_instance_segmentation(outputs, 0.5, 0.5, [size])[0]["masks"],
        "sam3i": lambda: segment_rows(outputs, 0.5, 0.5, [size])[0]["masks"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CASES, default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser)
    parser.add_argument("--peak-of", help="only run this system once and print what it adds to the peak memory")
    arguments = parser.parse_args()
    masks, side, size = CASES[arguments.size]
    outputs = make_outputs(masks, side)
    runs = systems(outputs, size)
    if arguments.peak_of:
        before = peak_mib()
        runs[arguments.peak_of]()
        print(json.dumps({"mib": peak_mib() - before}))
        return
    expected, found = runs["stock"](), runs["sam3i"]()
    # Stock leaves the masks in the order of the queries, which here is the other way round.
    differ = sum(int((one.bool() ^ other).sum()) for one, other in zip(expected, found.flip(0), strict=True))
    differ /= sum(int(one.sum()) for one in expected)  # stock takes the sigmoid before it resizes
    del expected, found
    timings = alternate(runs, arguments.rounds, warmup=0)
    stock, own = timings["stock"], timings["sam3i"]
    peaks = {name: in_fresh_process(__file__, "--size", arguments.size, "--peak-of", name)["mib"] for name in runs}
    table(
        f"{masks} masks of {side}x{side} for {size[1]}x{size[0]} pixels; pixels that differ: {differ:.2%}",
        ["", "cpu s", "wall s", "peak MiB", "stock's time / own", "memory / stock's"],
        [
            ["stock", stock.cpu_s, stock.wall_s, round(peaks["stock"]), 1.0, 1.0],
            [
                "sam3i",
                own.cpu_s,
                own.wall_s,
                round(peaks["sam3i"]),
                ratio(stock, own),
                peaks["sam3i"] / peaks["stock"],
            ],
        ],
    )
    finish("post_processing", arguments.size, ratios(timings, "stock"), arguments)


if __name__ == "__main__":
    main()
