# SPDX-License-Identifier: Apache-2.0
"""The pages run as they are: the how-tos from top to bottom, the README's Python, each in a folder of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))


IN_SMALL = {  # what the README shows with gated weights and hours, with the shipped model and one step a stage
    "facebook/sam3": "examples/shapes_tiny",
    "max_steps=(1000, 1000, 300)": "max_steps=(1, 1, 1), selector_steps=2, use_cpu=True",
    '"train.jsonl", image_root="images"': '"data/sam3i_test.json"',
}


def run(command: list[str], folder: Path) -> None:
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, arguments in {"sam3i": "-m sam3i", "python": ""}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (commands / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_runs_from_top_to_bottom(page, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for language, block in blocks(page):
        if language == "bash":
            run(["bash", "-euc", block], tmp_path)
    run([sys.executable, "-c", "\n".join(block for language, block in blocks(page) if language == "python")], tmp_path)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run(["bash", "-euc", "python examples/shapes_data.py --output data --split test --scenes 10"], tmp_path)
    (tmp_path / "quickstart").mkdir()
    shutil.copy(min((tmp_path / "data").rglob("*.png")), tmp_path / "quickstart" / "scene.png")
    shown = "\n".join(block for language, block in blocks(ROOT / "README.md") if language == "python")
    for real, small in IN_SMALL.items():
        assert real in shown
        shown = shown.replace(real, small)
    run([sys.executable, "-c", shown], tmp_path)
    assert (tmp_path / "runs" / "mine" / "adapter_model.safetensors").is_file()
