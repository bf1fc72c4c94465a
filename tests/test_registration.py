# SPDX-License-Identifier: Apache-2.0
"""`import sam3i` teaches Transformers and PEFT its classes, whatever is imported in whatever order."""

import subprocess
import sys
from pathlib import Path

import pytest

ORDERS = [
    "from sam3i import *",
    "from sam3i import Sam3IForInstructionSegmentation",
    "import sam3i; from transformers import CLIPModel, AutoProcessor, AutoModel",
    "import peft; from transformers import pipeline, AutoModel, AutoProcessor; import sam3i, importlib; "
    "importlib.reload(sam3i)",
]
CHECK = """
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
folder = {folder!r}
print(type(AutoProcessor.from_pretrained(folder)).__name__)
print(type(pipeline("instruction-segmentation", model=folder).processor).__name__)
print(type(AutoConfig.from_pretrained(folder)).__name__, type(AutoModel.from_pretrained(folder)).__name__)
import sam3i
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
print(sum("SAM3I" in str(key) for key in PEFT_TYPE_TO_CONFIG_MAPPING))
"""


def run_python(code: str, folder: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def repository(tiny_model, tiny_stock_repos, tmp_path):
    from sam3i import Sam3IProcessor

    tiny_model.save_pretrained(tmp_path / "repository")
    Sam3IProcessor.from_pretrained(tiny_stock_repos["sam3"]).save_pretrained(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_imports(repository, order, tmp_path):
    found = run_python(order + CHECK.format(folder=str(repository)), tmp_path)
    assert found == ["Sam3IProcessor", "Sam3IProcessor", "Sam3IConfig", "Sam3IForInstructionSegmentation", "1"]


def test_our_model_first_then_the_auto_processor(repository, tmp_path):
    code = (
        "from sam3i import Sam3IForInstructionSegmentation, Sam3IConfig\n"
        "from transformers.models.auto.processing_auto import PROCESSOR_MAPPING\n"
        "print(PROCESSOR_MAPPING[Sam3IConfig].__name__)"
    )
    assert run_python(code, tmp_path) == ["Sam3IProcessor"]


@pytest.mark.parametrize(
    "started",
    [
        ["-m", "sam3i", "--help"],
        ["-c", "import sys; sys.argv = ['/usr/bin/sam3i', '--help']; from sam3i.cli import main; main()"],
    ],
)
def test_the_help_of_the_command_waits_for_no_heavy_import(tmp_path, started):
    command = [sys.executable, "-X", "importtime", *started]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "predict" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported and not imported & {"torch", "transformers", "peft", "PIL", "datasets"}


def test_what_upstream_names_are_overridden_exists():
    import transformers

    from sam3i.compat import OVERRIDDEN

    for name in OVERRIDDEN:
        owner, method = name.split(".")
        assert hasattr(getattr(transformers, owner), method), name
