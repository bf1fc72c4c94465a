# SPDX-License-Identifier: Apache-2.0
"""Kept figures: what got slower beyond tolerance and noise is said, and nothing else."""

import argparse
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import kept

    return kept


def test_a_figure_is_the_median_of_rounds_and_half_their_range(kept):
    assert kept.Figure.of_rounds([1.0, 4.0, 2.0]) == kept.Figure(cost=2.0, noise=1.5)


def test_ratios_are_taken_round_by_round(kept):
    from timing import Timing

    timings = {"stock": Timing(cpu=[1.0, 2.0]), "own": Timing(cpu=[0.5, 1.0])}  # the machine was busy the second time
    assert kept.ratios(timings, "stock") == {"own": kept.Figure(0.5, 0.0)}


def test_only_growth_beyond_tolerance_and_noise_is_slower(kept):
    old = {"vision": kept.Figure(1.0, 0.1), "text": kept.Figure(1.0), "gone": kept.Figure(1.0)}
    quiet = {"vision": kept.Figure(1.2, 0.06), "text": kept.Figure(1.04), "new": kept.Figure(9.0)}
    assert kept.slower(quiet, old) == []
    assert kept.slower({"vision": kept.Figure(1.2, 0.04)}, old) == ["slower: vision: 1 -> 1.2 (+20%)"]


def test_a_run_is_held_against_the_last_one_that_was_kept(kept, tmp_path, capsys):
    options = argparse.Namespace(keep=True, results=tmp_path)
    kept.finish("speed", "tiny", {"step": kept.Figure(1.0)}, options, note="first")
    assert "No figures are kept for speed-tiny-" in capsys.readouterr().out
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["note"] == "first"
    options.keep = False
    kept.finish("speed", "tiny", {"step": kept.Figure(1.5)}, options)
    assert "slower: step: 1 -> 1.5 (+50%)" in capsys.readouterr().out
    kept.finish("speed", "tiny", {"other": kept.Figure(1.5)}, options)
    assert "Kept but not measured now: step" in capsys.readouterr().out
    assert json.loads(file.read_text())["figures"]["step"]["cost"] == 1.0  # not kept, not replaced


def test_keeping_a_part_leaves_the_rest(kept, tmp_path):
    options = argparse.Namespace(keep=True, results=tmp_path)
    kept.finish("speed", "tiny", {"a": kept.Figure(1.0), "b": kept.Figure(2.0)}, options, sizes={"a": 10, "b": 20})
    kept.finish("speed", "tiny", {"b": kept.Figure(3.0)}, options, sizes={"b": 30})
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert {name: figure["cost"] for name, figure in content["figures"].items()} == {"a": 1.0, "b": 3.0}
    assert all("date" in figure for figure in content["figures"].values()) and content["sizes"] == {"a": 10, "b": 30}
