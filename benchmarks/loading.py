# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of loading: stock SAM3, SAM3-I as a whole, and adapters alone onto a model in memory.

Every load is a fresh process; the repositories hold random weights in safetensors. At real size this needs 9 GB of
disk and 6 GB of memory.
Run: `python benchmarks/loading.py [--size tiny|middle|real] [--rounds 5]`.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from kept import add_options, finish, ratios
from models import SIZES, build_model
from safetensors import safe_open
from timing import Timing, in_fresh_process, peak_mib, table
from transformers import Sam3Model

from sam3i import Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.adapter_io import save_adapter
from sam3i.modeling_sam3i.peft.loading import load_instruction_adapter


def load(case: str, folder: Path) -> dict[str, float]:
    """Load one repository in this process; seconds and peak memory."""
    if case == "adapters":
        model = Sam3IForInstructionSegmentation.from_pretrained(folder / "whole")
        begin = time.perf_counter()
        load_instruction_adapter(model, folder / "adapters")
    else:
        begin = time.perf_counter()
        (Sam3Model if case == "stock" else Sam3IForInstructionSegmentation).from_pretrained(folder / case)
    return {"seconds": time.perf_counter() - begin, "MiB": peak_mib()}


def tensors_of(repository: Path) -> int:
    """How many tensors the safetensors files of a repository hold."""
    count = 0
    for file in repository.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            count += len(opened.keys())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--design", choices=("cascade", "selective"), default="cascade")
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser)
    parser.add_argument("--case", choices=("stock", "whole", "adapters"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(load(options.case, options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_model(options.size, adapter_design=options.design)
        model.save_pretrained(folder / "whole")
        save_adapter(model, folder / "adapters", base_model_name_or_path=str(folder / "stock"))
        tensors = {key: value for key, value in model.state_dict().items() if ".sam3i_adapter." not in key}
        model.__class__ = Sam3Model  # as stock saves itself: its names and its tensors
        model.config.model_type = "sam3"
        model.save_pretrained(folder / "stock", state_dict=tensors)
        config = json.loads((folder / "stock" / "config.json").read_text())
        (folder / "stock" / "config.json").write_text(json.dumps(config | {"model_type": "sam3"}))
        del model, tensors
        found = {case: [] for case in ("stock", "whole", "adapters")}
        for _ in range(options.rounds):
            for case, runs in found.items():
                runs.append(in_fresh_process(__file__, "--case", case, "--folder", folder))
        middle = {
            case: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "MiB")}
            for case, runs in found.items()
        }
        base = middle["stock"]
        rows = []
        for case, run in middle.items():
            tensors = tensors_of(folder / case)
            relative = [run[key] / base[key] if case != "adapters" else "-" for key in ("seconds", "MiB")]
            rows.append([case, run["seconds"], tensors, 1e3 * run["seconds"] / tensors, run["MiB"], *relative])
        header = ["load", "s", "tensors", "ms / tensor", "peak MiB", "s / stock", "MiB / stock"]
        table(f"loading, {options.size} size, {options.design} adapters, median of {options.rounds}", header, rows)
        timings = {case: Timing(cpu=[run["seconds"] for run in runs]) for case, runs in found.items()}
        finish("loading", options.size, ratios(timings, "stock"), options)


if __name__ == "__main__":
    main()
