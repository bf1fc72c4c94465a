# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that a reader of one file cannot see: rooms, names, words."""

import ast
import importlib
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("modeling_sam3i", "processing", "trainer", "hub")  # from the ground up; a room imports what lies below it
OUTSIDE = {"tests", "examples", "benchmarks", "docs", "build", "dist"}
LIBRARY = sorted(
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] not in OUTSIDE and not path.relative_to(ROOT).parts[0].startswith(".")
)
DOCUMENTED = {
    "sam3i",
    "sam3i.hub.conversion",
    "sam3i.hub.demo",
    "sam3i.hub.publish",
    "sam3i.processing.chat",
    "sam3i.processing.data_engine",
    "sam3i.processing.datasets",
    "sam3i.processing.language",
    "sam3i.processing.pictograms",
    "sam3i.processing.shapes",
    "sam3i.trainer",
    "sam3i.trainer.baselines",
    "sam3i.trainer.evaluation",
}
MAX_FILES = 16
BRITISH = re.compile(
    r"(colour|grey(?!hound)|centre|centring|neighbour|behaviour|favour|labelled|labelling|modelled|travell|cancell"
    r"|initialis|normalis|optimis|organis|recognis|serialis|tokenis|quantis|visualis|summaris|generalis|regularis"
    r"|analys(?!is|es\b|ts?\b)|honour|licence|catalogue|artefact|judgement|acknowledgement)",
    re.IGNORECASE,
)
# Words of files and of other people's interfaces: names of families in recorded questions, upstream's names.
FOREIGN = re.compile(r"[\w./:%{}*<>=-]*")


def imports_of(tree: ast.AST, path: Path | None = None) -> list[tuple[str, list[str]]]:
    """(module, names) of every absolute or resolved relative import of this package."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level and path is not None:
                parts = ["sam3i", *path.relative_to(ROOT).parts[:-1]]
                module = ".".join([*parts[: len(parts) - node.level + 1], *([module] if module else [])])
            found.append((module, [alias.name for alias in node.names]))
    return [(module, names) for module, names in found if module.split(".")[0] == "sam3i"]


def python_of(document: Path) -> list[str]:
    """The Python snippets of a Markdown file."""
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def users() -> list[tuple[str, str]]:
    """(name, source) of all code that is written for users to read and copy."""
    scripts = [(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in ROOT.glob("examples/*.py")]
    documents = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    return scripts + [(str(path.relative_to(ROOT)), code) for path in documents for code in python_of(path)]


def test_examples_and_documents_import_only_what_is_documented():
    deep = []
    for name, source in users():
        for module, _ in imports_of(ast.parse(source)):
            if module not in DOCUMENTED:
                deep.append(f"{name}: {module}")
    assert not deep


@pytest.mark.parametrize("package", sorted(DOCUMENTED))
def test_every_name_that_a_package_offers_is_there(package):
    module = importlib.import_module(package)
    assert module.__all__
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_imports_go_down_only():
    up = []
    for path in LIBRARY:
        room = path.relative_to(ROOT).parts[0]
        if room not in ROOMS or path.name == "cli.py":
            continue
        above = ROOMS[ROOMS.index(room) + 1 :]
        for module, _ in imports_of(ast.parse(path.read_text(encoding="utf-8")), path):
            parts = module.split(".")
            if len(parts) > 1 and parts[1] in above:
                up.append(f"{path.relative_to(ROOT)}: {module}")
    assert not up


def test_the_language_layer_imports_no_world():
    for path in (ROOT / "processing" / "language").glob("*.py"):
        for module, _ in imports_of(ast.parse(path.read_text(encoding="utf-8")), path):
            assert not re.match(r"sam3i\.processing\.(datasets|data_engine|shapes)", module), path.name


def test_class_names_are_unique():
    places = defaultdict(list)
    for path in LIBRARY:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_no_folder_is_too_full():
    sizes = defaultdict(int)
    for path in LIBRARY:
        if path.name != "__init__.py":
            sizes[str(path.parent.relative_to(ROOT))] += 1
    assert not {folder: size for folder, size in sizes.items() if size > MAX_FILES}


@pytest.mark.parametrize("room", sorted({path.relative_to(ROOT).parent.as_posix() for path in LIBRARY}))
def test_spelling_is_american(room):
    """Names, comments and sentences; a string of one word may be a key of a file or another package's name."""
    found = []
    for path in (path for path in LIBRARY if path.relative_to(ROOT).parent.as_posix() == room):
        source = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            is_key = token.type == tokenize.STRING and FOREIGN.fullmatch(token.string.strip("rbfu").strip("\"'"))
            is_key = is_key or (path.name == "levels.py" and token.type == tokenize.STRING)  # words that users write
            if is_key or token.type not in (tokenize.NAME, tokenize.COMMENT, tokenize.STRING):
                continue
            text = re.sub(r'"[\w+]+"|`[^`]*`', "", token.string)  # quoted keys and code
            found += [f"{path.relative_to(ROOT)}:{token.start[0]}: {word}" for word in BRITISH.findall(text)]
    assert not found


def test_the_library_does_not_print():
    printing = []
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                printing.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not printing
