# SPDX-License-Identifier: Apache-2.0
"""Run every workflow as it is, and check its targets and its time.

python examples/run_all.py [--only finetune_lora video] [--limit 900]

A script fails when it exits with an error, prints that a target is MISSED, or takes longer than the limit.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent
SCRIPTS = (
    "inference",
    "many_instructions",
    "finetune_domain",
    "finetune_lora",
    "combine_adapters",
    "evaluation",
    "convert_checkpoint",
    "video",
    "export_onnx",
)


def run(name: str, limit: float) -> tuple[str, float]:
    """What went wrong with a script (nothing, if nothing did), and its seconds; its output is passed on."""
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | os.environ
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], env=environment, capture_output=True, text=True
    )
    seconds = time.monotonic() - started
    print(f"\n== {name} ({seconds:.0f} s)\n{result.stdout}", flush=True)
    if result.returncode:
        return f"exit status {result.returncode}: {result.stderr.strip().splitlines()[-1:]}", seconds
    missed = [line for line in result.stdout.splitlines() if line.endswith("MISSED")]
    if missed:
        return "; ".join(missed), seconds
    return f"slower than {limit:.0f} s" if seconds > limit else "", seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    parser.add_argument("--limit", type=float, default=900, help="seconds for each, after which it counts as hanging")
    options = parser.parse_args()
    outcomes = {name: run(name, options.limit) for name in options.only}
    print(f"\n{'script':<20}{'seconds':>8}  outcome")
    for name, (fault, seconds) in outcomes.items():
        print(f"{name:<20}{seconds:>8.0f}  {fault or 'ok'}")
    if any(fault for fault, _ in outcomes.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
