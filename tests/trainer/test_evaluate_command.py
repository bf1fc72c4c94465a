# SPDX-License-Identifier: Apache-2.0
"""The whole command: a tiny model and its baselines on shapes, one table."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from sam3i.processing.datasets.conversion import write_jsonl
from sam3i.processing.datasets.loading import load_instruction_dataset
from sam3i.processing.processing_sam3i import Sam3IProcessor
from sam3i.processing.shapes.dataset import shapes_rows
from sam3i.trainer.baselines.agent.oracle_server import OracleChat
from sam3i.trainer.evaluation.cli import evaluate
from sam3i.trainer.evaluation.evaluate import evaluate_model

THRESHOLD = 0.2  # low enough that a random model finds something
app = typer.Typer()
app.command()(evaluate)


@pytest.fixture
def model_repo(tiny_model, tiny_stock_repos, train_adapters, tmp_path):
    train_adapters(tiny_model)
    with torch.no_grad():  # a random model is sure that nothing is there
        tiny_model.detr_decoder.presence_head.layer3.bias.fill_(10.0)
    tiny_model.save_pretrained(tmp_path / "model")
    Sam3IProcessor.from_pretrained(tiny_stock_repos["sam3"]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def rows():
    return list(shapes_rows("validation", 3))


@pytest.fixture
def data(rows, tmp_path):
    path = tmp_path / "data" / "shapes.jsonl"
    path.parent.mkdir()
    write_jsonl(rows, path)
    return path


def invoke(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.stdout


def test_one_command_compares_all_systems(model_repo, data, rows, tmp_path):
    options = ("--model", model_repo, "--data", data, "--level", "simple", "--threshold", THRESHOLD)
    with OracleChat.from_rows(rows).serve() as server:
        chat = ("--chat-url", server.base_url, "--chat-model", "oracle")
        baselines = ("--baselines", "sam3,sam3-concept,agent")
        folders = ("--output-dir", tmp_path / "run", "--report", tmp_path / "report")
        table = invoke(*options, *baselines, *chat, *folders)
        again = json.loads(invoke(*options, *baselines, *chat, "--output-dir", tmp_path / "run", "--resume", "--json"))
    for name in ("Protocol default", "sam3-i", "sam3-concept", "agent", "answering nothing", "passes", "parameters"):
        assert name in table
    systems = again["systems"]
    assert list(systems) == ["sam3-i", "sam3", "sam3-concept", "agent"]
    count = sum(len(row["simple"]) for row in rows)
    for figures in systems.values():
        assert figures["instructions"] == figures["n"] == count
        assert 0 <= figures["gIoU"] <= 100
    assert systems["sam3-i"]["cost"]["passes"] == 1
    assert systems["sam3-i"]["cost"]["vision_passes"] == pytest.approx(3 / count)
    assert systems["agent"]["cost"]["calls"] >= 1
    assert systems["sam3-i"]["parameters"] > systems["sam3"]["parameters"]
    assert (tmp_path / "report" / "report.html").exists()


def test_model_with_its_own_levels_or_chosen_ones(model_repo, data, tmp_path):
    options = ("--model", model_repo, "--data", data, "--threshold", THRESHOLD, "--json", "--protocol", "grefcoco")
    own = json.loads(invoke(*options, "--output-dir", tmp_path / "own"))
    auto = json.loads(invoke(*options, "--level", "auto", "--output-dir", tmp_path / "auto"))
    assert own["level_accuracy"] is None and 0 <= auto["level_accuracy"] <= 100
    assert set(own["per_level"]) == {"simple", "complex"}
    assert own["gIoU"] == pytest.approx(sum(part["gIoU"] * part["n"] for part in own["per_level"].values()) / own["n"])


def test_evaluating_does_not_depend_on_the_batch_and_leaves_training_mode(model_repo, data, tiny_model):
    processor = Sam3IProcessor.from_pretrained(model_repo)
    dataset = load_instruction_dataset(data)
    tiny_model.train()
    found = [
        evaluate_model(tiny_model, processor, dataset, batch_size=size, threshold=THRESHOLD, progress=False)
        for size in (1, 7)
    ]
    assert tiny_model.training
    assert found[0].figures["gIoU"] == pytest.approx(found[1].figures["gIoU"], abs=0.05)
    assert found[0].figures["gIoU"] != pytest.approx(found[0].figures["gIoU-nothing"])
