# SPDX-License-Identifier: Apache-2.0
"""Run every workflow as it is, and check its targets and its time.

python examples/run_all.py [--only finetune_lora video] [--limit 900]

A script fails when it exits with an error, prints that a target is MISSED, or takes longer than the limit.
"""

import argparse
import os
import subprocess
import sys
import tempfile
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


def run(name: str, limit: float) -> tuple[str, float, float]:
    """Run a script and print its output: what went wrong (nothing, if nothing did), its seconds, the processor's."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, str(EXAMPLES / f"{name}.py")]
        process = subprocess.Popen(command, env=quiet | os.environ, stdout=output, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds, processor = time.monotonic() - started, used.ru_utime + used.ru_stime
        output.seek(0)
        errors.seek(0)
        printed, complaint = output.read(), errors.read()
    print(f"\n== {name} ({seconds:.0f} s)\n{printed}", flush=True)
    missed = [line for line in printed.splitlines() if line.endswith("MISSED")]
    if process.returncode:
        fault = f"exit status {process.returncode}: {complaint.strip().splitlines()[-1:]}"
    else:
        fault = "; ".join(missed) or (f"slower than {limit:.0f} s" if seconds > limit else "")
    return fault, seconds, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    parser.add_argument("--limit", type=float, default=900, help="seconds for each, after which it counts as hanging")
    options = parser.parse_args()
    outcomes = {name: run(name, options.limit) for name in options.only}
    print(f"\n{'script':<20}{'seconds':>8}{'of processor':>14}  outcome")
    for name, (fault, seconds, processor) in outcomes.items():
        print(f"{name:<20}{seconds:>8.0f}{processor:>14.0f}  {fault or 'ok'}")
    if any(outcome[0] for outcome in outcomes.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
