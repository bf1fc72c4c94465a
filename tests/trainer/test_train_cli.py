# SPDX-License-Identifier: Apache-2.0
import inspect

import pytest
import typer
from training_fixtures import tiny_dataset, tiny_model, tiny_processor
from typer.testing import CliRunner

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor, Sam3ITrainingArguments
from sam3i.trainer.cli import train

app = typer.Typer()
app.command()(train)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    tiny_model().save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    tiny_dataset().save_to_disk(root / "data")
    return {"model": str(root / "model"), "data": str(root / "data")}


def call(files, output, *options):
    arguments = ["--model", files["model"], "--data", files["data"], "--output-dir", str(output), "--cpu", *options]
    return CliRunner().invoke(app, arguments)


def test_adapters_are_trained_written_and_resumed(tmp_path, files):
    options = "--steps 2,1,1 --selector-steps 1 --batch-size 4 --learning-rate 1e-3 --eval-split train".split()
    options += ["--eval-steps", "1", "--save-steps", "1", "--feature-cache", str(tmp_path / "cache")]
    result = call(files, tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert f"Written to {tmp_path / 'run'}" in result.output
    assert "stage 1 of 3, simple: 12 rows (6 that denote nothing), 2 steps of 4" in result.output
    assert "stage 3 of 3, joint: from step 0 to 1" in result.output
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    assert len(list((tmp_path / "run").glob("stage-*/final/curriculum.json"))) == 3
    Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "run")
    Sam3IProcessor.from_pretrained(tmp_path / "run")
    again = call(files, tmp_path / "run", *options)
    assert again.exit_code == 1 and "holds another training" in str(again.exception)
    assert call(files, tmp_path / "run", *options, "--resume").exit_code == 0
    other = call(files, tmp_path / "run", *options, "--resume", "--seed", "1")
    assert other.exit_code == 1 and "seed 1 (was 42)" in str(other.exception)


def test_the_whole_model_is_written_when_asked(tmp_path, files):
    result = call(files, tmp_path, "--steps", "1", "--stages", "simple", "--whole-model", "--augment")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "adapter_model.safetensors").exists()
    Sam3IForInstructionSegmentation.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1,2"], "one number or three"),
        (["--learning-rate", "fast"], "one number or three"),
        (["--stages", "simple,final"], "Unknown training stage 'final'"),
        (["--patience", "2"], "--patience needs"),
        (["--augment", "--feature-cache", "cache", "--steps", "1"], "give the views rows of their own"),
        (["--learning-rate", "-1"], "above 0"),
    ],
)
def test_wrong_options_are_refused(tmp_path, files, options, message):
    result = call(files, tmp_path / "run", *options)
    assert result.exit_code != 0
    assert message in " ".join(f"{result.output} {result.exception}".replace("│", " ").split())
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_the_command_and_the_arguments_have_the_same_defaults(tmp_path):
    defaults = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    args = Sam3ITrainingArguments(output_dir=str(tmp_path))
    pairs = {"epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size", "feature_cache_gb": None}
    names = ["learning_rate", "selector_steps", "logging_steps", "eval_threshold", "seed", "start_complex_from"]
    for option, name in {**pairs, **dict.fromkeys(names)}.items():
        name = name or {"feature_cache_gb": "feature_cache_limit_gb"}.get(option, option)
        value, found = getattr(args, name), defaults[option]
        values = value if isinstance(value, tuple) else (value,)
        shown = ",".join(each if isinstance(each, str) else f"{each:g}" for each in values)
        assert (found if isinstance(found, str) else f"{found:g}") == shown, option
