# SPDX-License-Identifier: Apache-2.0
"""What a training of the paper's size costs, from operations counted on this code.

Operations of the real model are counted on one picture and one pair of instructions; everything else follows from
them by the formulas in benchmarks/README.md: the paper's data (44,109 pictures, 849,792 instructions), its epochs
(8, 8, 4), and a machine given by its speed, the share of it that is reached, and its memory.
Run: `python benchmarks/scale_on_paper.py [--size real] [--tflops 989] [--utilisation 0.35] [--gpus 16]`; at real size
it needs 24 GB of memory and some minutes.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from models import SIZES
from timing import table
from torch.utils.flop_counter import FlopCounterMode
from training_step import Step

PICTURES, INSTRUCTIONS = 44_109, 849_792
EPOCHS = {"simple": 8, "complex": 8, "joint": 4}
TEXTS_PER_STEP = {"simple": 1, "complex": 1, "joint": 2}


def count(step: Step) -> dict[str, float]:
    """Operations (two per multiplication) of one picture: vision, and training the two instructions of a pair."""
    with FlopCounterMode(display=False) as vision, torch.no_grad():
        step.model.get_vision_features(step.pixels)
    step.keep_features()
    with FlopCounterMode(display=False) as pair:
        step.cached()
    return {"vision": float(vision.get_total_flops()), "pair": float(pair.get_total_flops())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--design", choices=("cascade", "selective"), default="selective")
    parser.add_argument("--tflops", type=float, default=989.0, help="peak of one device in bf16 (H100: 989)")
    parser.add_argument("--utilisation", type=float, default=0.35, help="share of the peak that is reached")
    parser.add_argument("--gpus", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        step = Step(options.size, options.design, 1, Path(folder))
        found = count(step)
        kept = step.file.stat().st_size // 2  # bytes in bf16
    weights = sum(parameter.numel() for parameter in step.model.parameters())
    adapters = sum(parameter.numel() for parameter in step.model.adapter_parameters().values())
    print(
        f"{options.size} size, {options.design}: {weights / 1e6:.1f} M weights, {adapters / 1e6:.2f} M of them train; "
        f"{found['vision'] / 1e12:.3f} Tflop to encode a picture, {found['pair'] / 1e12:.3f} to train a pair of "
        f"instructions on it; {kept / 1e6:.1f} MB of features a picture in bf16"
    )
    speed = options.tflops * 1e12 * options.utilisation
    rows, totals = [], [0.0, 0.0]
    for stage, epochs in EPOCHS.items():
        texts = epochs * INSTRUCTIONS / (1 if TEXTS_PER_STEP[stage] == 2 else 2)  # a level has half the instructions
        training = texts * found["pair"] / 2
        encoded = texts / TEXTS_PER_STEP[stage] * found["vision"]  # once for every row of a batch
        plain, cached = (encoded + training) / speed / 3600, training / speed / 3600
        totals = [totals[0] + plain, totals[1] + cached]
        rows.append([stage, f"{texts:,.0f}", plain, plain / options.gpus, cached, cached / options.gpus])
    once = PICTURES * found["vision"] / speed / 3600
    rows.append(["encoding once", f"{PICTURES:,}", "-", "-", once, once / options.gpus])
    total = totals[1] + once
    rows.append(["all", "", totals[0], totals[0] / options.gpus, total, total / options.gpus])
    header = ["stage", "texts", "GPU h", "h", "GPU h, cached", "h, cached"]
    table(f"{options.gpus} devices at {options.utilisation:.0%} of {options.tflops:.0f} Tflop/s", header, rows)
    print(f"\nThe cache of all pictures takes {PICTURES * kept / 1e9:,.0f} GB in bf16.")
    state = adapters * (4 + 4 + 8) / 1e9  # float32 weights, gradients, two moments
    print(
        f"In memory: weights {weights * 2 / 1e9:.2f} GB in bf16; adapters with gradients and moments {state:.2f} GB."
    )


if __name__ == "__main__":
    main()
