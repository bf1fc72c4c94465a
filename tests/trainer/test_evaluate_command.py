# SPDX-License-Identifier: Apache-2.0
"""The whole command: a tiny model and its baselines on shapes, one table."""

import json

import pytest
import torch
import typer
from scripted_chat import Answer, ScriptedChatServer
from typer.testing import CliRunner

from sam3i.processing.chat.client import ChatUnavailableError
from sam3i.processing.datasets.conversion import write_jsonl
from sam3i.processing.datasets.loading import load_instruction_dataset
from sam3i.processing.processing_sam3i import Sam3IProcessor
from sam3i.processing.shapes.dataset import shapes_rows
from sam3i.trainer.evaluation.cli import _folder_name, evaluate
from sam3i.trainer.evaluation.evaluate import evaluate_model
from sam3i.trainer.evaluation.result import NoAnswerError
from sam3i.trainer.predictions.log import PredictionLogError

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
    systems = ("--baselines", "sam3,sam3-concept,agent", "--chat-model", "oracle", "--output-dir", tmp_path / "run")
    table = invoke(*options, *systems, "--report", tmp_path / "report")
    again = json.loads(invoke(*options, *systems, "--resume", "--json"))
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


def test_resuming_after_the_weights_changed_is_refused_by_name(model_repo, data, tiny_model, tmp_path):
    options = ("--model", model_repo, "--data", data, "--level", "simple", "--output-dir", tmp_path / "run")
    invoke(*options)
    with torch.no_grad():
        next(iter(tiny_model.adapter_parameters().values())).add_(0.5)
    tiny_model.save_pretrained(model_repo)
    done = CliRunner().invoke(app, [*map(str, options), "--resume"])
    assert isinstance(done.exception, PredictionLogError) and "weights: " in str(done.exception)
    assert "not all predictions were made with the same weights" in invoke(
        *options, "--resume", "--allow-changed", "weights"
    )


def test_folders_of_two_models_with_one_name_differ(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
    names = {_folder_name(str(tmp_path / name / "model"), "data.jsonl", "default", None) for name in ("a", "b")}
    assert len(names) == 2 and all(name.startswith("model-data.jsonl-default-") for name in names)


def test_the_agent_that_never_answers_is_an_error_beside_the_scores_of_the_others(model_repo, data, tmp_path):
    script = lambda request, index: "yes" if len(request["messages"]) == 1 else Answer(status=500, body=b"down")  # noqa: E731
    options = ("--model", model_repo, "--data", data, "--level", "simple", "--max-rows", "2", "--baselines", "agent")
    with ScriptedChatServer(script) as server:
        chat = ("--chat-url", server.base_url, "--chat-model", "m", "--chat-retries", "0", "--chat-tokens", "77")
        done = CliRunner().invoke(app, [*map(str, options), *chat, "--output-dir", str(tmp_path / "run")])
        assert server.requests[1]["max_tokens"] == 77
    assert isinstance(done.exception, NoAnswerError) and "agent answered none of" in str(done.exception)
    assert (
        "sam3-i" in done.stdout
        and "rows beyond --max-rows" in done.stdout
        and "agent" not in done.stdout.split("Cost")[1]
    )


@pytest.mark.parametrize(("wish", "requests"), [((), 1), (("--resend",), 2)])
def test_an_unanswered_request_of_the_agent_is_sent_again_only_where_asked(wish, requests, model_repo, data, tmp_path):
    script = lambda request, index: "yes" if len(request["messages"]) == 1 else Answer("late", delay=1.5)  # noqa: E731
    options = ("--model", model_repo, "--data", data, "--level", "simple", "--max-rows", "1", "--baselines", "agent")
    with ScriptedChatServer(script) as server:
        chat = ("--chat-url", server.base_url, "--chat-model", "m", "--chat-retries", "1", "--chat-timeout", "0.5")
        done = CliRunner().invoke(app, [*map(str, options), *chat, *wish, "--output-dir", str(tmp_path / "run")])
        assert len(server.requests) == 1 + requests  # the preflight call comes first
    assert isinstance(done.exception, NoAnswerError) and "no whole answer within 0.5 s" in str(done.exception)


def test_an_endpoint_that_does_not_answer_is_told_at_once(model_repo, data):
    options = ("--model", model_repo, "--data", data, "--baselines", "agent", "--chat-model", "m")
    done = CliRunner().invoke(app, [*map(str, options), "--chat-url", "http://127.0.0.1:9/v1"])
    assert isinstance(done.exception, ChatUnavailableError) and "127.0.0.1:9" in str(done.exception)


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
