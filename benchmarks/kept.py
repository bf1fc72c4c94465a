# SPDX-License-Identifier: Apache-2.0
"""Results that stay: one JSON for each benchmark, size and kind of machine, and what got slower since it was kept.

A figure is a cost (seconds, or a ratio to a system of the same run) and its noise, half the range between its rounds.
Ratios are the better figures, as whatever else the machine did fell on both systems.
"""

import argparse
import json
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from timing import Timing

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 0.05
"""A figure is slower when it grew by more than this share and the noise of both runs."""


@dataclass(frozen=True)
class Figure:
    """A cost and half the range between its rounds."""

    cost: float
    noise: float = 0.0

    @classmethod
    def of_rounds(cls, rounds: Sequence[float]) -> "Figure":
        return cls(statistics.median(rounds), (max(rounds) - min(rounds)) / 2)


def ratios(timings: Mapping[str, Timing], base: str) -> dict[str, Figure]:
    """Processor time of every system relative to that of `base`, round by round."""
    return {
        name: Figure.of_rounds([own / other for own, other in zip(timing.cpu, timings[base].cpu, strict=True)])
        for name, timing in timings.items()
        if name != base
    }


def machine_kind(device: str = "cpu") -> str:
    """What decides how figures compare: the accelerator, or the processor's instructions and the threads in use."""
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def slower(new: Mapping[str, Figure], old: Mapping[str, Figure]) -> list[str]:
    """A line for each figure that both runs have and that grew beyond tolerance and noise."""
    lines = []
    for name in (name for name in new if name in old):
        before, now = old[name], new[name]
        if now.cost - before.cost > TOLERANCE * before.cost + before.noise + now.noise:
            growth = now.cost / before.cost - 1
            lines.append(f"slower: {name}: {before.cost:.3g} -> {now.cost:.3g} (+{growth:.0%})")
    return lines


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--keep` and `--results`, for `finish`."""
    parser.add_argument(
        "--keep", action="store_true", help="keep the figures as those that later runs are held against"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the kept figures")


def finish(
    benchmark: str,
    size: str,
    figures: Mapping[str, Figure],
    options: argparse.Namespace,
    device: str = "cpu",
    **details: Any,
) -> None:
    """Print what got slower than the kept figures of the same benchmark, size and kind of machine; keep the new ones
    if that is asked for, with `details` beside them. Kept figures that this run did not measure stay."""
    file = options.results / f"{benchmark}-{size}-{machine_kind(device)}.json"
    before = json.loads(file.read_text()) if file.exists() else {"figures": {}}
    if kept := {name: Figure(figure["cost"], figure["noise"]) for name, figure in before["figures"].items()}:
        found = slower(figures, kept)
        print("\n".join(found) or f"Nothing is slower than in {file.name} by more than {TOLERANCE:.0%} beyond noise.")
        if missing := kept.keys() - figures.keys():
            print(f"Kept but not measured now: {', '.join(sorted(missing))}")
    else:
        print(f"No figures are kept for {file.stem}; --keep keeps these.")
    if options.keep:
        file.parent.mkdir(parents=True, exist_ok=True)
        measured = {
            "date": datetime.now(UTC).date().isoformat(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        content = {
            "benchmark": benchmark,
            "size": size,
            "machine": machine_kind(device),
            "figures": before["figures"] | {name: asdict(figure) | measured for name, figure in figures.items()},
        }
        for name, detail in details.items():
            content[name] = before.get(name, {}) | detail if isinstance(detail, dict) else detail
        file.write_text(json.dumps(content, indent=1) + "\n")
        print(f"Kept in {file}")
