# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks measure: systems in turn, medians, processor time, peak memory of a fresh process, one table."""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1024**2


@dataclass
class Timing:
    """Seconds of one system, one entry per round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def wall_s(self) -> float:
        return statistics.median(self.wall)

    @property
    def cpu_s(self) -> float:
        return statistics.median(self.cpu)


@contextmanager
def clock(timing: Timing) -> Iterator[None]:
    """Add one round to `timing`; garbage of earlier rounds is collected before it starts."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    timing.wall.append(time.perf_counter() - wall)
    timing.cpu.append(time.process_time() - cpu)


def alternate(systems: Mapping[str, Callable[[], Any]], rounds: int = 5, warmup: int = 1) -> dict[str, Timing]:
    """Time systems in turn, round by round, so that whatever else the machine does falls on all of them.

    Args:
        systems: What to run, by name; results are dropped.
        rounds (`int`): Timed rounds.
        warmup (`int`): Rounds before them.
    """
    timings = {name: Timing() for name in systems}
    for index in range(warmup + rounds):
        for name, run in systems.items():
            with clock(Timing() if index < warmup else timings[name]):
                run()
    return timings


def ratio(timing: Timing, base: Timing) -> float:
    """Processor time relative to `base`: the median over rounds of the ratio within a round.

    Processor time is disturbed less than wall time by other programs; with OMP_NUM_THREADS=1 they hardly differ.
    """
    return statistics.median(own / other for own, other in zip(timing.cpu, base.cpu, strict=True))


def peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def in_fresh_process(script: str | Path, *arguments: Any) -> dict[str, Any]:
    """Run `python script arguments` and return the JSON object that is the last line it prints.

    Peak memory never falls within a process, so every case of it needs one of its own.
    """
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in columns; floats get three significant digits."""
    cells = [list(header)]
    cells += [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        aligned = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *aligned[1:]]), flush=True)
