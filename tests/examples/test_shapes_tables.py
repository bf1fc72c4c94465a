# SPDX-License-Identifier: Apache-2.0
"""The tables of the shapes examples hold what `sam3i evaluate` says."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sam3i import InstructionLevel, Sam3IForInstructionSegmentation, Sam3IProcessor, ShapesInstructionDataset
from sam3i.cli import app
from sam3i.processing.datasets.conversion import convert_dataset

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = str(EXAMPLES / "shapes_tiny")
COMPLEX = InstructionLevel.COMPLEX


@pytest.fixture(scope="module")
def dataset():
    return ShapesInstructionDataset.evaluation("test", 3, 5, [COMPLEX])


@pytest.fixture(scope="module")
def evaluated(dataset, tmp_path_factory):
    """What the command says of the cases, read from a file."""
    folder = tmp_path_factory.mktemp("cases")
    convert_dataset(dataset.rows(), folder / "cases.jsonl", "jsonl")
    command = [
        "evaluate",
        "--model",
        MODEL,
        "--data",
        str(folder / "cases.jsonl"),
        "--output-dir",
        str(folder / "out"),
    ]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_the_table_has_the_figures_of_the_command(dataset, evaluated, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import shapes_tables

    model = Sam3IForInstructionSegmentation.from_pretrained(MODEL, dtype=torch.float32)
    processor = Sam3IProcessor.from_pretrained(MODEL)
    result = shapes_tables.evaluate_cases(model, processor, dataset)
    for name in shapes_tables.FIGURES.values():
        assert result.figures[name] == evaluated[name]
    kinds = {kind: of_kind["gIoU"] for kind, of_kind in evaluated["per_kind"].items()}
    assert shapes_tables.giou_by_kind(result) == {"all": evaluated["gIoU"], **kinds}
    assert shapes_tables.best_threshold(result) == evaluated["thresholds"]["complex"]["best"]
    cells = shapes_tables.system_line("SAM3-I", result)[38:].split()
    assert cells[0] == f"{evaluated['gIoU']:.1f}" and cells[-1] == f"{evaluated['exact']:.1f}"
    assert dict(zip(shapes_tables.COLUMNS, cells, strict=True))["inst/true"] == f"{evaluated['count_ratio']:.2f}"


def test_shapes_score_prints_the_figures_of_the_command(evaluated, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", f"x --model {MODEL} --seed 5 --cases 3 --levels complex".split())
    runpy.run_path(str(EXAMPLES / "shapes_score.py"), run_name="__main__")
    (cells,) = re.findall(r"^all +12 +\S+ +(\S+) +(\S+) +(\S+) +(\S+)", capsys.readouterr().out, re.MULTILINE)
    names = ("gIoU", "AP50", "count_ratio", "exact")
    assert list(cells) == [f"{evaluated[name]:.2f}" for name in names]


def test_a_case_can_be_asked_at_another_level(dataset):
    rows = dataset.rows(InstructionLevel.CONCEPT)
    assert [row["concept"] for row in rows] == [[case.text] for case in dataset.cases]
    assert not any(row["simple"] or row["complex"] for row in rows)
