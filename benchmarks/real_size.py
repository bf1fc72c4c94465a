# SPDX-License-Identifier: Apache-2.0
"""Time and memory at real size: stock SAM3 against SAM3-I at each level, on random weights.

One image of 1008x1008 and one instruction; all models share the same weight tensors and are timed in turn. Ratios are
of processor time, which other programs disturb less; with OMP_NUM_THREADS=1 they hardly do.
Run: `python benchmarks/real_size.py [--runs 3] [--load]`; needs 8 GB of memory (and 5 GB of disk with --load).
"""

import argparse
import resource
import statistics
import tempfile
import time

import torch
from transformers import Sam3Model
from transformers.initialization import no_init_weights

from sam3i import Sam3IConfig, Sam3IForInstructionSegmentation


def peak_gb() -> float:
    """Peak resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def stock_twin(model: Sam3IForInstructionSegmentation) -> Sam3Model:
    """Stock SAM3 on the very same tensors: no second copy in memory."""
    with no_init_weights(), torch.device("meta"):
        stock = Sam3Model(model.config)
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if "sam3i" not in k}, assign=True)
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(stock.get_submodule(owner), leaf, buffer)
    return stock.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--load", action="store_true", help="also save and load a repository of this size")
    arguments = parser.parse_args()
    start = time.perf_counter()
    model = Sam3IForInstructionSegmentation(Sam3IConfig()).eval()
    size = sum(parameter.numel() for parameter in model.parameters())
    adapters = sum(parameter.numel() for parameter in model.adapter_parameters().values())
    bytes_gb = size * 4 / 1024**3
    print(f"{size / 1e6:.1f} M parameters, {adapters / 1e6:.1f} M of them adapters, {bytes_gb:.2f} GB in float32")
    print(f"built in {time.perf_counter() - start:.1f} s, peak memory {peak_gb():.2f} GB")

    stock = stock_twin(model)
    inputs = {
        "pixel_values": torch.randn(1, 3, 1008, 1008, generator=torch.Generator().manual_seed(1)),
        "input_ids": torch.randint(1, 49000, (1, 32), generator=torch.Generator().manual_seed(2)),
        "attention_mask": torch.ones(1, 32, dtype=torch.long),
    }
    systems = {
        "stock": lambda: stock(**inputs),
        "concept": lambda: model(**inputs, instruction_levels=torch.tensor([0])),
        "complex": lambda: model(**inputs, instruction_levels=torch.tensor([2])),
    }
    wall, cpu = ({name: [] for name in systems} for _ in range(2))
    peaks = {}
    with torch.no_grad():
        for _ in range(arguments.runs):
            for name, run in systems.items():
                start, start_cpu = time.perf_counter(), time.process_time()
                output = run()
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
                peaks.setdefault(name, peak_gb())
                if name == "stock":
                    expected = output.pred_masks
                elif name == "concept":
                    print(f"concept masks equal to stock's, bit for bit: {torch.equal(output.pred_masks, expected)}")
                del output
    print(f"{'system':<9} {'wall s':>8} {'cpu s':>8} {'cpu / stock':>12} {'peak GB so far':>15}")
    for name in systems:
        ratio = statistics.median(one / base for one, base in zip(cpu[name], cpu["stock"], strict=True))
        wall_s, cpu_s = statistics.median(wall[name]), statistics.median(cpu[name])
        print(f"{name:<9} {wall_s:8.2f} {cpu_s:8.2f} {ratio:12.3f} {peaks[name]:15.2f}")

    if arguments.load:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            del model, stock, systems
            start = time.perf_counter()
            Sam3IForInstructionSegmentation.from_pretrained(folder)
            print(f"from_pretrained: {time.perf_counter() - start:.1f} s, peak memory {peak_gb():.2f} GB")


if __name__ == "__main__":
    main()
