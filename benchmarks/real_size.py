# SPDX-License-Identifier: Apache-2.0
"""Time and memory at real size: stock SAM3 against SAM3-I at each level, on random weights.

One image of 1008x1008 and one instruction; all models share the same weight tensors and are timed in turn. Ratios are
of processor time, which other programs disturb less; with OMP_NUM_THREADS=1 they hardly do.
Run: `python benchmarks/real_size.py [--design cascade] [--runs 3] [--load]`; needs 8 GB of memory (and 5 GB of disk
with --load).
"""

import argparse
import tempfile
import time

import torch
from models import build_config, image, instructions, stock_twin
from timing import Timing, clock, peak_mib, ratio, table

from sam3i import Sam3IForInstructionSegmentation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--design", choices=("cascade", "selective"), default="cascade")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--load", action="store_true", help="also save and load a repository of this size")
    arguments = parser.parse_args()
    start = time.perf_counter()
    model = Sam3IForInstructionSegmentation(build_config("real", adapter_design=arguments.design)).eval()
    size = sum(parameter.numel() for parameter in model.parameters())
    adapters = sum(parameter.numel() for parameter in model.adapter_parameters().values())
    bytes_gb = size * 4 / 1024**3
    print(f"{size / 1e6:.1f} M parameters, {adapters / 1e6:.1f} M of them adapters, {bytes_gb:.2f} GB in float32")
    print(f"built in {time.perf_counter() - start:.1f} s, peak memory {peak_mib():.0f} MiB")

    stock = stock_twin(model)
    inputs = instructions(model, 1) | {"pixel_values": image(model)}
    systems = {
        "stock": lambda: stock(**inputs),
        "concept": lambda: model(**inputs, instruction_levels=torch.tensor([0])),
        "complex": lambda: model(**inputs, instruction_levels=torch.tensor([2])),
    }
    timings, peaks = {name: Timing() for name in systems}, {}
    with torch.no_grad():
        for _ in range(arguments.runs):
            for name, run in systems.items():
                with clock(timings[name]):
                    output = run()
                peaks.setdefault(name, round(peak_mib()))
                if name == "stock":
                    expected = output.pred_masks
                elif name == "concept":
                    print(f"concept masks equal to stock's, bit for bit: {torch.equal(output.pred_masks, expected)}")
                del output
    rows = [
        [name, timing.wall_s, timing.cpu_s, f"{ratio(timing, timings['stock']):.3f}", peaks[name]]
        for name, timing in timings.items()
    ]
    table("One instruction on one image", ["", "wall s", "cpu s", "cpu / stock", "peak MiB so far"], rows)

    if arguments.load:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            del model, stock, systems
            start = time.perf_counter()
            Sam3IForInstructionSegmentation.from_pretrained(folder)
            print(f"from_pretrained: {time.perf_counter() - start:.1f} s, peak memory {peak_mib():.0f} MiB")


if __name__ == "__main__":
    main()
