# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: every error is one line, and starting is quick."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from sam3i import __version__
from sam3i.cli import app, describe_error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Expected a, found b."), "Expected a, found b."),
        (ValueError("Expected a:\n  b\n  and 3 more"), "Expected a: b; and 3 more"),
        (KeyError("levels"), "KeyError: 'levels'"),
        (RuntimeError("shape mismatch\nmore lines"), "RuntimeError: shape mismatch."),
        (RecursionError(), "RecursionError: no message."),
    ],
)
def test_an_error_is_one_line(error, said, monkeypatch):
    def fails(model):
        raise error

    monkeypatch.setattr("sam3i.hub.repo_info.repo_info", fails)
    done = CliRunner().invoke(app, ["info", "anything"])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {said}") and len(done.output.strip().splitlines()) == 1
    assert describe_error(error) in done.output


def test_usage_errors_keep_their_status():
    assert CliRunner().invoke(app, ["info"]).exit_code == 2
    assert CliRunner().invoke(app, ["--version"]).output == f"sam3i {__version__}\n"


def test_help_says_everything():
    assert "[synonym, ...]" in CliRunner().invoke(app, ["data", "build", "--help"]).output
    for group in ([], ["data"]):
        listed = CliRunner().invoke(app, [*group, "--help"]).output.partition("Commands:")[2]
        assert listed and "..." not in listed  # each command's first sentence fits its line


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m sam3i train --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd="/")
    assert done.stdout.startswith("Usage") and not done.stderr


def test_a_traceback_is_shown_when_asked_for(monkeypatch):
    monkeypatch.setenv("SAM3I_TRACEBACK", "1")
    monkeypatch.setattr("sam3i.hub.repo_info.repo_info", lambda model: 1 / 0)
    assert isinstance(CliRunner().invoke(app, ["info", "anything"]).exception, ZeroDivisionError)


@pytest.mark.parametrize("arguments", [["--help"], ["data", "status", "--help"]])
def test_help_does_not_wait_for_torch(arguments):
    code = "import runpy, sys; sys.argv = ['-m', *{!r}]\ntry:\n    from sam3i.cli import main; main()\n"
    code += "finally:\n    sys.stderr.write(str('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code.format(arguments)], capture_output=True, text=True)
    assert "Usage" in done.stdout and done.stderr.endswith("False")


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "sam3i", "--version"], capture_output=True, text=True)
    assert done.stdout == f"sam3i {__version__}\n"


@pytest.mark.slow
def test_commands_find_models_in_a_process_of_their_own(tmp_path):
    model = Path(__file__).resolve().parents[1] / "examples" / "shapes_tiny"
    Image.new("RGB", (40, 40)).save(tmp_path / "gray.png")
    command = [sys.executable, "-m", "sam3i", "predict", "--model", str(model), "--image", str(tmp_path / "gray.png")]
    command += ["--text", "star", "--output", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
