# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run at their smallest size and print the ratios they promise."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_shared_image():
    printed = run("shared_image.py", "--size", "tiny", "--rounds", "1", "--rows", "1", "3")
    rows = {line.split("  ")[0]: line.split() for line in printed.splitlines()}
    assert float(rows["N=64"][-1]) > 1  # faster than one pair after the other, even where vision is cheap
    assert "segment, complex" in rows


@pytest.mark.slow
def test_post_processing():
    printed = run("post_processing.py", "--size", "tiny", "--rounds", "1")
    assert "masks equal: True" in printed
    own = next(line for line in printed.splitlines() if line.startswith("sam3i")).split()
    assert float(own[-1]) < 1 / 3  # of stock's memory
