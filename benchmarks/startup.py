# SPDX-License-Identifier: Apache-2.0
"""What a user waits for before anything happens: imports, help, the first prediction, the demo.

Every case is a fresh process; cases run in turn, in processor seconds (user and system; on an idle core it is the
wait). `stock imports` are what Transformers and PEFT need for SAM3 with adapters, `stock prediction` segments the same
picture with the SAM3 in the shipped model.
Run: `OMP_NUM_THREADS=1 python benchmarks/startup.py [--rounds 3] [--cases "import sam3i" ...]`.
"""

import argparse
import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kept import add_options, finish, ratios
from timing import Timing, ratio, table

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MODEL, IMAGE = str(EXAMPLES / "shapes_tiny"), str(EXAMPLES / "assets" / "coffee.jpg")
IMPORTS = "import peft; from transformers import AutoModel, Sam3Model, Sam3Processor, pipeline"
PREDICTION = f"""
{IMPORTS}
from PIL import Image
processor, model = Sam3Processor.from_pretrained({MODEL!r}), Sam3Model.from_pretrained({MODEL!r})
inputs = processor(images=Image.open({IMAGE!r}), text="star", return_tensors="pt")
processor.post_process_instance_segmentation(model(**inputs), target_sizes=[(400, 600)])
"""
DEMO = f"""
import sam3i
from sam3i.hub.demo.model import DemoModel
from sam3i.hub.demo.page import DemoPage
DemoPage(DemoModel.load({MODEL!r})).launch(prevent_thread_lock=True)
"""


def cases() -> dict[str, list[str]]:
    """Arguments of Python by case."""
    return {
        "stock imports": ["-c", IMPORTS],
        "import sam3i": ["-c", "import sam3i"],
        "sam3i --help": ["-m", "sam3i", "--help"],
        "sam3i data status": ["-m", "sam3i", "data", "status", "nothing"],
        "stock prediction": ["-c", PREDICTION],
        "sam3i predict": ["-m", "sam3i", "predict", "--model", MODEL, "--image", IMAGE, "--text", "star"],
        "demo until it answers": ["-c", DEMO],
    }


def run(arguments: list[str], timing: Timing, folder: str) -> None:
    """One fresh process in an empty folder; that there is no run in it is an error of `status`, others are none."""
    gc.collect()
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    timing.wall.append(time.perf_counter() - wall)
    timing.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    if done.returncode and "status" not in arguments:
        raise SystemExit(f"{' '.join(arguments[:3])} failed:\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=list(cases()), default=list(cases()))
    add_options(parser)
    options = parser.parse_args()
    timings = {name: Timing() for name in options.cases}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name in options.cases:
                run(cases()[name], timings[name], folder)
                print(f"{name}: {timings[name].cpu[-1]:.2f} s", flush=True)
    base = options.cases[0]
    rows = [[name, time.wall_s, time.cpu_s, ratio(time, timings[base])] for name, time in timings.items()]
    table("What a user waits for, a fresh process each", ["", "wall s", "cpu s", f"/ {base}"], rows)
    finish("startup", "shapes_tiny", ratios(timings, base), options)


if __name__ == "__main__":
    main()
