# SPDX-License-Identifier: Apache-2.0
"""The files of the model import each other in one direction, and PEFT only where it is used."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from sam3i.modeling_sam3i import pretrained as pretrained_sam3i

FOLDER = Path(pretrained_sam3i.__file__).parent
USES = """
import sys
from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor
from sam3i.modeling_sam3i.adapter_io import files as adapter_files_sam3i
if sys.argv[1:]:
    Sam3IForInstructionSegmentation.from_pretrained(sys.argv[1])
    Sam3IProcessor.from_pretrained(sys.argv[1])
print([name for name in sys.modules if name.split(".")[0] == "peft"])
"""


def imports(path: Path) -> set[str]:
    """The files of the folder that a file imports, also within functions and for annotations."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {node.module for node in nodes if node.level == 1}


def test_there_is_no_circle():
    graph = {path.stem: imports(path) for path in FOLDER.glob("*.py")}
    assert "adapter_loading_sam3i" in graph["pretrained_sam3i"]
    assert list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def uses_of_peft(*args: str) -> str:
    done = subprocess.run([sys.executable, "-c", USES, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_importing_needs_no_peft():
    assert uses_of_peft() == "[]"


@pytest.mark.slow
def test_loading_a_whole_model_needs_no_peft(tiny_stock_repos):
    assert uses_of_peft(str(tiny_stock_repos["sam3"])) == "[]"
