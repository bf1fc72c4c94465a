# SPDX-License-Identifier: Apache-2.0
"""What `torch.compile` gains, what its first call costs, and where graphs break: stock SAM3, and SAM3-I at one level.

Random weights that both share, one instruction on one image, systems in turn. The recipe is that of
docs/howto/compile.md: `model.set_level("simple")`, then `torch.compile(model, fullgraph=True)`; stock is compiled as
far as it goes. First calls are measured without caches, in processor seconds of this process and of the compilers
that it starts.
Run: `OMP_NUM_THREADS=1 python benchmarks/compiled.py [--size tiny|middle|real] [--level simple] [--rounds 5]`.
"""

import argparse
import os
import resource
import time

import torch
from kept import add_options, finish, ratios
from models import SIZES, build_model, image, instructions, stock_twin
from timing import alternate, ratio, table

from sam3i import InstructionLevel


def processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--design", choices=("cascade", "selective"), default="selective")
    parser.add_argument("--level", choices=[level.value for level in InstructionLevel], default="simple")
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser)
    options = parser.parse_args()
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # compilers are waited for, and so counted
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    model = build_model(options.size, adapter_design=options.design)
    model.set_level(options.level)
    stock = stock_twin(model)
    inputs = instructions(model, 1) | {"pixel_values": image(model)}
    with torch.no_grad():
        rows = []
        for name, module in (("stock", stock), ("SAM3-I", model)):
            found = torch._dynamo.explain(module)(**inputs)
            rows.append([name, found.graph_count, found.graph_break_count])
            torch._dynamo.reset()
        table(f"Graphs of a forward pass, {options.size} size, {options.design}", ["", "graphs", "breaks"], rows)
        compiled = {"stock, compiled": torch.compile(stock), "SAM3-I, compiled": torch.compile(model, fullgraph=True)}
        expected, firsts = model(**inputs), []
        for name, module in compiled.items():
            wall, used = time.perf_counter(), processor_seconds()
            outputs = module(**inputs)
            firsts.append([name, time.perf_counter() - wall, processor_seconds() - used])
        masks = outputs.pred_masks
        table("First call, nothing cached", ["", "wall s", "cpu s"], firsts)
        largest = (masks - expected.pred_masks).abs().max() / expected.pred_masks.abs().max()
        print(f"mask logits, compiled against not: largest difference / largest value {float(largest):.2g}")
        systems = {"stock": stock, "SAM3-I": model} | compiled
        runs = {name: lambda module=module: module(**inputs) for name, module in systems.items()}
        timings = alternate(runs, options.rounds)
    own = {name: ratio(timing, timings[name.partition(",")[0]]) for name, timing in timings.items()}
    rows = [[name, 1e3 * timing.cpu_s, ratio(timing, timings["stock"]), own[name]] for name, timing in timings.items()]
    table(f"One {options.level} instruction on one image", ["", "cpu ms", "/ stock", "/ not compiled"], rows)
    finish("compiled", options.size, ratios(timings, "stock"), options, first_calls=firsts)


if __name__ == "__main__":
    main()
