# SPDX-License-Identifier: Apache-2.0
"""What the pages say exists: links, names in code blocks, commands and their options."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "examples/*.md", "benchmarks/*.md", "docs/**/*.md")
    for page in ROOT.glob(pattern)
    if page.name not in ("CHANGELOG.md", "LICENSE.md")
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_public_name_has_a_place_in_the_documentation():
    import sam3i

    shown = {
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    listed = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for module, names in sam3i._PUBLIC.items():
        for name in names:
            assert f"`{name}`" in listed, name
            assert {f"sam3i.{module}", f"sam3i.{module}.{name}"} & shown, name


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_blocks_compile_and_import_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sam3i":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_their_options_exist(page):
    from sam3i.cli import app

    root = typer.main.get_command(app)
    text = page.read_text(encoding="utf-8")
    mentioned = [" ".join(span.split()) for span in re.findall(r"(?<!`)`(sam3i [^`]+)`(?!`)", text)]
    for block in [*blocks(page, "bash"), *blocks(page, "text"), *mentioned]:
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # a block in another language
                continue
            if words[:1] != ["sam3i"]:
                continue
            command, rest = root, words[1:]
            while rest and hasattr(command, "commands"):
                if rest[0].startswith("-"):
                    break
                assert rest[0] in command.commands, line
                command, rest = command.commands[rest[0]], rest[1:]
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            unknown = [word for word in rest if word.startswith("--") and word not in known | {"--help", "--version"}]
            assert not unknown, f"{line}: {unknown}"
