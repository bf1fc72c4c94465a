# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run at their smallest size and print the ratios they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    assert float(rows["N=3"][-1]) > 1  # faster than one pair after the other, even where vision is cheap
    assert "segment, complex" in rows


@pytest.mark.slow
def test_post_processing():
    printed = run("post_processing.py", "--size", "tiny", "--rounds", "1")
    assert float(printed.partition("pixels that differ: ")[2].partition("%")[0]) < 1
    own = next(line for line in printed.splitlines() if line.startswith("sam3i")).split()
    assert float(own[-1]) < 1 / 3  # of stock's memory


@pytest.mark.slow
def test_accelerator_runs_dry_on_the_cpu(tmp_path):
    small = ("--size", "tiny", "--rows", "1", "2", "--rounds", "1", "--dtypes", "fp32", "--modes", "eager", "sdpa")
    printed = run("accelerator.py", "--device", "cpu", *small, "--keep", "--results", str(tmp_path))
    kept = json.loads(next(tmp_path.iterdir()).read_text())
    systems = {case["system"] for case in kept["cases"] if "ms" in case}
    assert systems == {"stock, per pair", "stock, vision once", "sam3i", "from pixels", "from kept features"}
    assert "fp32, sdpa, 2: sam3i" in printed and len(kept["figures"]) == 2 * 2 * 3 + 2


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_accelerator_without_one_says_so_in_a_line():
    command = [sys.executable, str(FOLDER / "accelerator.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.strip() == "Expected a CUDA device, found none: give --device cpu --size tiny for a dry run."


@pytest.mark.slow
def test_cpu_compares_ways_and_sides_with_stock():
    printed = run("cpu.py", "--size", "tiny", "--ways", "fp32", "fast", "--sides", "112", "56")
    rows = {line.split("  ")[0]: line.split() for line in printed.splitlines() if "%" in line}
    assert rows["fp32 112"][-1] == "100.0000%" and rows["fp32 112"][-2] == "0"  # the very same masks
    assert float(rows["fast 112"][-3]) > 0.9 and float(rows["fast 112"][-2]) > 0
    assert "fast 56" in rows


@pytest.mark.slow
def test_the_host_waits_as_often_for_many_rows_as_for_few():
    lines = [line.rsplit(maxsplit=2) for line in run("waits.py").splitlines() if line.endswith(tuple("0123456789"))]
    counts = [(name, int(few), int(many)) for name, few, many in lines if few.isdigit()]
    assert len(counts) == 2 * 6 and all(few == many for _, few, many in counts)
    assert max(many for name, _, many in counts if name.startswith("post-processing")) <= 3


def test_startup_measures_commands_in_turn(tmp_path):
    printed = run(
        "startup.py", "--cases", "sam3i --help", "sam3i data status", "--rounds", "1", "--results", str(tmp_path)
    )
    rows = {line.split("  ")[0]: line.split() for line in printed.splitlines()}
    assert float(rows["sam3i --help"][-1]) == 1 and float(rows["sam3i data status"][-1]) > 0
