# SPDX-License-Identifier: Apache-2.0
"""The files of the model import each other in one direction, and nothing of the rooms above them."""

import ast
import graphlib
from pathlib import Path

from sam3i.modeling_sam3i import pretrained

ROOM = Path(pretrained.__file__).parent
PACKAGE = ROOM.parent


def imports(path: Path, nodes) -> set[tuple[str, ...]]:
    """The modules of the package that a file imports, as paths from the package's root."""
    folder = path.relative_to(PACKAGE).parent.parts
    return {
        (*folder[: len(folder) - node.level + 1], *(node.module.split(".") if node.module else ()))
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.level
    }


def test_there_is_no_circle():
    files = list(ROOM.rglob("*.py"))
    graph = {
        path.relative_to(PACKAGE).with_suffix("").parts: imports(path, ast.parse(path.read_text()).body)
        for path in files
    }
    assert ("compat",) in graph["modeling_sam3i", "pretrained"]
    assert list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_the_model_imports_no_room_above_it():
    for path in ROOM.rglob("*.py"):
        rooms = {module[0] for module in imports(path, ast.walk(ast.parse(path.read_text())))}
        assert rooms <= {"modeling_sam3i", "compat"}, path.name
