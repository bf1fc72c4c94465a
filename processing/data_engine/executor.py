# SPDX-License-Identifier: Apache-2.0
"""The shards of a build on an existing engine: datatrove's executors run them here, on Slurm or on Ray.

Each task is `sam3i data build --shard i/n` in a folder of its own below `RUN/shards`, in a process of its own, so that
a task that is killed is one failed task and no more. Logs, completion markers and retries are datatrove's, in
`RUN/executor`; running the same command again runs what is not complete.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .run import RunDirectory, merge_runs

EXECUTORS = ("local", "slurm", "ray")
CAPS = ("max_calls", "max_tokens", "max_cost", "requests_per_minute")


@dataclass
class ShardTask:
    """One task: builds a shard; `arguments` are those of the command."""

    arguments: dict[str, Any]

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        shard = {"run": str(shard_folder(Path(self.arguments["run"]), rank)), "shard": f"{rank}/{world_size}"}
        process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, text=True)
        assert process.stdin is not None  # as asked for
        process.stdin.write(json.dumps(self.arguments | shard) + "\n")
        process.stdin.flush()  # it stays open: its end tells the process that its task is gone
        if process.wait():
            raise RuntimeError(f"Shard {rank} of {world_size} failed with status {process.returncode}; see its log.")


def shard_folder(run: Path, rank: int) -> Path:
    """Where a shard of a run is built."""
    return run / "shards" / f"{rank:05d}"


def run_shards(name: str, tasks: int, arguments: dict[str, Any], options: Sequence[str] = ()) -> RunDirectory | None:
    """Build all shards and merge them into the run; None where the executor only hands them in (Slurm).

    Args:
        arguments: of `sam3i data build`, as plain values; caps and rates are for all tasks together.
        options: KEY=VALUE, of datatrove's executor (`workers`, `time`, `partition`, ...).

    Raises:
        ImportError: datatrove (or ray) is missing.
        ValueError: an unknown executor or option, a password in an address, or a run that is complete.
    """
    if name not in EXECUTORS or tasks < 1:
        raise ValueError(
            f"Expected --executor {', '.join(EXECUTORS)} and --tasks of 1 or more; found {name}, {tasks}."
        )
    run = Path(arguments["run"])
    if (run / "config.json").exists():
        raise ValueError(f"{run} is complete; its shards lie in {run / 'shards'}. Choose a new folder.")
    if any(urlsplit(arguments.get(role) or "").username for role in ("writer", "checker")):
        raise ValueError(
            "datatrove writes the arguments of its tasks down: give a key as SAM3I_CHAT_API_KEY, not in the address."
        )
    pairs = [option.partition("=") for option in options]
    if any(not mark for _, mark, _ in pairs):
        raise ValueError(f"Expected --executor-option KEY=VALUE, found {', '.join(options)}.")
    chosen = {key: _plain(value) for key, _, value in pairs}
    shared = {cap: arguments[cap] / tasks for cap in CAPS if arguments.get(cap)}
    shared |= {cap: max(1, int(value)) for cap, value in shared.items() if cap in ("max_calls", "max_tokens")}
    executor = _executor_class(name)(
        pipeline=[ShardTask(arguments | shared)], tasks=tasks, logging_dir=str(run / "executor"), **chosen
    )
    executor.run()
    if name == "slurm":
        return None
    left = executor.get_incomplete_ranks(skip_completed=True)
    if left:
        raise ValueError(f"{len(left)} of {tasks} shards are not complete ({left[:10]}); run the command again.")
    return merge_runs([shard_folder(run, rank) for rank in range(tasks)], run)


def _executor_class(name: str) -> Any:
    try:
        if name == "ray":
            from datatrove.executor.ray import RayPipelineExecutor

            return RayPipelineExecutor
        from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
    except ImportError as error:
        raise ImportError(f'--executor {name} needs datatrove: pip install "sam3i[scale]" ({error})') from error
    return LocalPipelineExecutor if name == "local" else SlurmPipelineExecutor


def _plain(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def main() -> None:
    """Build one shard as standard input says; end when the task that started this is gone."""
    from .cli import PATHS, build

    arguments: dict[str, Any] = json.loads(sys.stdin.readline())
    arguments |= {name: Path(arguments[name]) for name in PATHS if arguments.get(name) is not None}

    def wait_for_the_end() -> None:
        sys.stdin.read()
        os._exit(1)  # nothing is lost: what is written is committed

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    try:
        build(**arguments)
    except Exception as error:
        sys.stderr.write(f"Error: {error}\n")
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
