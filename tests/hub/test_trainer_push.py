# SPDX-License-Identifier: Apache-2.0
"""A training is one repository on the Hub: pushed while it runs and at its end, with a card written from the run."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "trainer"))

from training_fixtures import tiny_dataset, tiny_model, tiny_processor, tiny_trainer

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor
from sam3i.hub.publish.push import push_folder
from sam3i.trainer.checkpoints import OtherTrainingError
from sam3i.trainer.record import TrainingRecordError, read_record

ADAPTERS = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def base(hub_here, tmp_path):
    """The model of the training fixtures as org/base."""
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_processor().save_pretrained(tmp_path / "base")
    hub_here.seed("org/base", tmp_path / "base")
    return "org/base"


def trainer_on(base, folder, eval_dataset=None, **options):
    model = Sam3IForInstructionSegmentation.from_pretrained(base)
    return tiny_trainer(folder, model, eval_dataset, **{"max_steps": 2} | options)


def titles(hub, name):
    return [commit.title for commit in hub.repositories["model", name].branches["main"]]


def test_pushed_while_it_runs_and_at_its_end(hub_here, base, tmp_path):
    options = {"push_to_hub": True, "hub_model_id": "org/run", "hub_always_push": True}
    trainer = trainer_on(base, tmp_path / "run", save_strategy="steps", save_steps=1, stages="simple", **options)
    assert set(hub_here.files("org/run")) == {".gitattributes"}
    trainer.train()
    assert titles(hub_here, "org/run")[-1] == "Training in progress, stage simple, step 2"
    assert ADAPTERS <= set(hub_here.files("org/run"))
    trainer.save_model()
    assert titles(hub_here, "org/run")[-1] == "Model save"
    files = hub_here.files("org/run")
    assert not [name for name in files if "/" in name or name.endswith((".pt", ".bin", ".pth"))]
    assert {"README.md", "training.json", "training_curves.png", "processor_config.json"} <= set(files)
    again = Sam3IForInstructionSegmentation.from_pretrained("org/run")
    for name, value in trainer.instruction_model.adapter_parameters().items():
        assert torch.equal(again.get_parameter(name), value), name
    assert Sam3IProcessor.from_pretrained("org/run")
    card = ModelCard.load("org/run")
    assert card.data.base_model == "org/base" and "tiny (12)" in card.text and "| simple | 2 |" in card.text


def test_push_without_arguments(hub_here, base, tmp_path):
    trainer = trainer_on(base, tmp_path / "my-run")
    trainer.train()
    commit = trainer.push_to_hub(license="apache-2.0", private=True)
    assert commit.repo_url.repo_id == "ann/my-run"
    assert hub_here.repositories["model", "ann/my-run"].private
    card = ModelCard.load("ann/my-run")
    assert card.data.license == "apache-2.0" and 'model="ann/my-run"' in card.text and "| joint | 2 |" in card.text
    assert trainer.push_to_hub(blocking=False, commit_message="Again").result().oid
    assert "license: apache-2.0" in hub_here.files("ann/my-run")["README.md"].decode()


def test_local_base_is_warned_of(hub_here, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("sam3i"), "propagate", True)
    tiny_model().save_pretrained(tmp_path / "base")
    trainer = trainer_on(tmp_path / "base", tmp_path / "run", stages="simple", max_steps=1)
    trainer.train()
    trainer.push_to_hub()
    assert "others do not have" in caplog.text
    assert str(tmp_path) not in hub_here.files("ann/run")["README.md"].decode()


def test_checkpoints_to_go_on_with(hub_here, base, tmp_path):
    options = {"push_to_hub": True, "hub_model_id": "org/run", "hub_strategy": "checkpoint"}
    trainer = trainer_on(base, tmp_path / "run", save_strategy="steps", save_steps=2, stages="simple", **options)
    trainer.train()
    files = set(hub_here.files("org/run"))
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/adapter_model.safetensors"} <= files
    assert ADAPTERS <= files


def test_nothing_is_pushed_unless_asked(hub_here, base, tmp_path):
    trainer = trainer_on(base, tmp_path / "run", save_strategy="steps", save_steps=1, stages="simple")
    trainer.train()
    trainer.save_model()
    assert [name for kind, name in hub_here.repositories] == ["org/base"]


def test_card_and_record_of_a_run(base, tmp_path):
    trainer = trainer_on(base, tmp_path / "run", tiny_dataset(2, "test"), eval_strategy="steps", eval_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(license="mit")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "license: mit" in card and "Evaluated on tiny (4) during training" in card and "KL" in card
    record = read_record(tmp_path / "run")
    assert [stage["stage"] for stage in record["stages"]] == ["simple", "complex", "joint"]
    joint = record["stages"][2]
    assert joint["steps"] == 2 and joint["batch_size"] == 4 and joint["learning_rate"] == 2e-3
    assert "concept margin" in joint["losses"] and joint["rows"] == {"tiny": 12}
    assert [entry["step"] for entry in joint["log"] if "loss" in entry] == [1, 2]
    assert [entry["step"] for entry in joint["log"] if "eval_simple_gIoU" in entry] == [1, 2]
    router = "text_encoder.sam3i_adapter."  # trained before the steps that the record counts
    adapters = trainer.instruction_model.adapter_parameters().items()
    steps_train = sum(value.numel() for name, value in adapters if not name.startswith(router))
    assert joint["trained_parameters"] == steps_train > 0
    assert record["base"] == "org/base" and record["base_parameters"] == 211_302
    assert str(tmp_path) not in (tmp_path / "run" / "training.json").read_text()


def test_a_new_run_does_not_start_over_a_finished_one(base, tmp_path):
    trainer_on(base, tmp_path / "run", stages=["simple", "complex"], max_steps=1).train()
    with pytest.raises(OtherTrainingError, match="holds another training"):
        trainer_on(base, tmp_path / "run", stages="simple", max_steps=1).train()
    record = read_record(tmp_path / "run")
    assert [(stage["stage"], stage["steps"]) for stage in record["stages"]] == [("simple", 1), ("complex", 1)]


def test_record_from_checkpoints_alone(base, tmp_path):
    trainer_on(base, tmp_path / "run", save_strategy="steps", save_steps=1, stages=["simple", "complex"]).train()
    (tmp_path / "run" / "training.json").unlink()
    record = read_record(tmp_path / "run")
    assert [(stage["stage"], stage["steps"], stage["batch_size"]) for stage in record["stages"]] == [
        ("simple", 2, 4),
        ("complex", 2, 4),
    ]
    assert record["stages"][0]["log"] and read_record(tmp_path) is None


def test_broken_record(tmp_path):
    for content in ("[]", '{"stages": [{"stage": "simple", "steps": "2", "log": []}]}', "{"):
        (tmp_path / "training.json").write_text(content)
        with pytest.raises(TrainingRecordError, match="not the record of a training"):
            read_record(tmp_path)


def test_result_of_a_training_is_pushed_by_hand(hub_here, base, tmp_path):
    trainer = trainer_on(base, tmp_path / "run", save_strategy="steps", save_steps=1, stages="simple")
    trainer.train()
    trainer.save_model()
    push_folder(tmp_path / "run", "org/by-hand")
    assert {"training.json", "training_curves.png"} <= set(hub_here.files("org/by-hand"))
    assert not [name for name in hub_here.files("org/by-hand") if "/" in name]
    assert Sam3IForInstructionSegmentation.from_pretrained("org/by-hand")


def test_command_line(hub_here, base, tmp_path):
    from sam3i.cli import app

    tiny_dataset().to_parquet(tmp_path / "train.parquet")
    options = [
        "--model",
        base,
        "--data",
        str(tmp_path / "train.parquet"),
        "--stages",
        "simple",
        "--steps",
        "1",
        "--cpu",
    ]
    done = CliRunner().invoke(
        app, ["train", *options, "--output-dir", str(tmp_path / "run"), "--push-to-hub", "org/run"]
    )
    assert done.exit_code == 0, done.output
    assert ADAPTERS | {"README.md"} <= set(hub_here.files("org/run"))
    assert json.loads(hub_here.files("org/run")["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    done = CliRunner().invoke(app, ["train", *options, "--output-dir", str(tmp_path / "other")])
    assert done.exit_code == 0 and (tmp_path / "other" / "README.md").is_file(), done.output
    refused = ["--output-dir", str(tmp_path / "third"), "--push-to-hub", "org/run", "--whole-model"]
    done = CliRunner().invoke(app, ["train", *options, *refused])
    assert done.exit_code == 2 and "sam3i push" in done.output
