# SPDX-License-Identifier: Apache-2.0
"""Inference and training on an accelerator: milliseconds, images a second, steps a second and peak memory.

For each number of instructions on one image, precision and way of running: SAM3-I (`segment`, one pass for all
instructions), stock SAM3 called per pair, and stock with the vision encoder run once; all share the weight tensors and
run in turn. `compiled` is `torch.compile` of the vision encoder, whose first call is timed by itself. Training steps
are those of the joint stage with and without kept vision features. Random weights; a case that a device refuses (out
of memory, an operation it lacks) is printed and kept as its error.

Run: `python benchmarks/accelerator.py --keep`; without an accelerator only `--device cpu --size tiny` is of use, as a
dry run.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from kept import Figure, add_options, finish
from models import SIZES, build_model, image, instructions, stock_twin
from safetensors.torch import load_file
from timing import MIB, peak_mib, table
from training_step import Step

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = ("eager", "sdpa", "compiled")
THRESHOLD = 0.5


class Device:
    """Where the benchmark runs: waiting for it, and its peak memory."""

    def __init__(self, name: str):
        self.name = name
        self.is_cuda = torch.device(name).type == "cuda"
        if self.is_cuda and not torch.cuda.is_available():
            raise SystemExit("Expected a CUDA device, found none: give --device cpu --size tiny for a dry run.")

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.name)

    def reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.name)

    def peak_mib(self) -> float:
        """Since `reset_peak` on CUDA; of the process so far elsewhere."""
        return torch.cuda.max_memory_allocated(self.name) / MIB if self.is_cuda else peak_mib()

    def seconds(self, run: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start


def measure(systems: dict[str, Callable[[], object]], device: Device, rounds: int) -> Iterator[dict]:
    """First call, milliseconds of every round, and peak memory of each system; rounds of all systems in turn."""
    found = {name: {"system": name, "rounds_ms": []} for name in systems}
    for index in range(rounds + 1):
        for name, run in systems.items():
            if "error" in found[name]:
                continue
            try:
                device.reset_peak()
                milliseconds = 1e3 * device.seconds(run)
            except (RuntimeError, NotImplementedError) as error:  # the device's memory or operations
                found[name]["error"] = str(error).splitlines()[0]
                continue
            if index == 0:
                found[name] |= {"first_call_ms": milliseconds, "peak_mib": device.peak_mib()}
            else:
                found[name]["rounds_ms"].append(milliseconds)
    for case in found.values():
        if case["rounds_ms"] and "error" not in case:
            case["ms"] = Figure.of_rounds(case["rounds_ms"]).cost
        yield case


def inference_systems(model, stock, rows: int, device: Device) -> dict[str, Callable[[], object]]:
    """What answers `rows` complex instructions about one image."""
    pixels = image(model).to(device.name, model.dtype)
    together = {name: value.to(device.name) for name, value in instructions(model, rows).items()}
    single = [{name: value[row : row + 1] for name, value in together.items()} for row in range(rows)]
    together |= {
        "instruction_levels": torch.full((rows,), 2, device=device.name),
        "image_ids": torch.zeros(rows, dtype=torch.long, device=device.name),
    }

    def per_pair():
        for one in single:
            stock(pixel_values=pixels, **one)

    def vision_once():
        features = stock.get_vision_features(pixel_values=pixels)
        for one in single:
            stock(vision_embeds=features, **one)

    return {
        "stock, per pair": per_pair,
        "stock, vision once": vision_once,
        "sam3i": lambda: model.segment(THRESHOLD, pixel_values=pixels, **together),
    }


@torch.inference_mode()
def measure_inference(options: argparse.Namespace, device: Device) -> list[dict]:
    cases = []
    for dtype in options.dtypes:
        model = build_model(options.size, adapter_design=options.design).to(device.name, DTYPES[dtype])
        stock = stock_twin(model)
        for mode in options.modes:
            for each in (model, stock):
                each.set_attn_implementation("eager" if mode == "eager" else "sdpa")
                if mode == "compiled":
                    each.vision_encoder.compile()
            for rows in options.rows:
                systems = inference_systems(model, stock, rows, device)
                for case in measure(systems, device, options.rounds):
                    cases.append({"dtype": dtype, "mode": mode, "instructions": rows} | case)
        del model, stock, systems
    return cases


class DeviceStep(Step):
    """The training step of `training_step.py` on a device, under autocast where another precision is asked for."""

    def __init__(self, options: argparse.Namespace, folder: Path, device: Device, dtype: torch.dtype):
        super().__init__(options.size, options.design, 1, folder)
        self.device, self.dtype = device.name, dtype
        self.module.to(self.device)
        self.pixels = self.pixels.to(self.device)
        self.batch = {
            name: value.to(self.device) if torch.is_tensor(value) else value for name, value in self.batch.items()
        }
        self.batch["labels"] = [
            {name: value.to(self.device) for name, value in label.items()} for label in self.batch["labels"]
        ]

    def run(self, cached: bool) -> float:
        vision = load_file(self.file, device=self.device)["features"] if cached else self.pixels
        precise = self.dtype is torch.float32
        with nullcontext() if precise else torch.autocast(torch.device(self.device).type, self.dtype):
            loss = self.module(**self.batch, **{"vision_features" if cached else "pixel_values": vision})["loss"]
        return self._update(loss)


def measure_training(options: argparse.Namespace, device: Device) -> list[dict]:
    cases = []
    for dtype in (name for name in options.dtypes if name != "fp16"):  # fp16 needs a gradient scaler
        with tempfile.TemporaryDirectory() as folder:
            step = DeviceStep(options, Path(folder), device, DTYPES[dtype])
            step.keep_features()
            systems = {"from pixels": partial(step.run, False), "from kept features": partial(step.run, True)}
            for case in measure(systems, device, options.rounds):
                cases.append({"dtype": dtype, "mode": "training", "instructions": 2} | case)
            del step, systems
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="real")
    parser.add_argument("--design", choices=("cascade", "selective"), default="selective")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64], help="instructions on the image")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="compiled last")
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser)
    options = parser.parse_args()
    options.modes.sort(key=MODES.index)  # what is compiled stays so
    device = Device(options.device)
    cases = measure_inference(options, device) + measure_training(options, device)
    rows, figures = [], {}
    for case in cases:
        name = f"{case['dtype']}, {case['mode']}, {case['instructions']}: {case['system']}"
        if "ms" in case:
            figures[name] = Figure.of_rounds(case["rounds_ms"])
            rows.append([name, case["ms"], 1e3 / case["ms"], round(case["peak_mib"]), case["first_call_ms"]])
        else:
            rows.append([name, case["error"][:60], "-", "-", "-"])
    header = ["precision, way, instructions: system", "ms", "images (steps) / s", "peak MiB", "first call ms"]
    table(f"{options.size} size on {device.name}", header, rows)
    finish("accelerator", options.size, figures, options, device.name, cases=cases)


if __name__ == "__main__":
    main()
