# SPDX-License-Identifier: Apache-2.0
"""Repositories that run without this package: weights, processor and the code they need, flat beside each other."""

import ast
import json
import re
import tempfile
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
CODE_FOLDERS = ("modeling_sam3i", "processing")
TASK = "instruction-segmentation"

MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_sam3i.Sam3IConfig",
    "AutoModel": "modeling_sam3i.Sam3IForInstructionSegmentation",
    "AutoProcessor": "processing_sam3i.Sam3IProcessor",
}
PROCESSOR_AUTO_MAP = {"AutoProcessor": MODEL_AUTO_MAP["AutoProcessor"]}
CUSTOM_PIPELINES = {
    TASK: {"impl": "pipeline_sam3i.InstructionSegmentationPipeline", "pt": ["AutoModel"], "type": "multimodal"}
}
ENTRY_FILES = ("configuration_sam3i", "modeling_sam3i", "processing_sam3i", "pipeline_sam3i")


def _sources() -> dict[str, Path]:
    """Every module that may be exported, by its flat name."""
    return {path.stem: path for folder in CODE_FOLDERS for path in (PACKAGE / folder).glob("*.py")}


def _relative_imports(path: Path) -> set[str]:
    """The flat names of this package's modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            names |= {node.module.rsplit(".", 1)[-1]} if node.module else {alias.name for alias in node.names}
    return names


def remote_code_files() -> dict[str, str]:
    """The code of the model, processor and pipeline as flat files that import each other by `from .name import`.

    Returns:
        `dict[str, str]`: file name to text.

    Raises:
        ValueError: when a module imports something of this package that lies outside the exported folders.
    """
    sources, found, waiting = _sources(), {}, list(ENTRY_FILES)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if name not in sources:
            raise ValueError(
                f"Expected exported code to import only modules of {', '.join(CODE_FOLDERS)}, found {name!r}."
            )
        text = sources[name].read_text()
        found[name] = re.sub(r"(?m)^(\s*from )\.+(?:\w+\.)*(\w+)( import )", r"\1.\2\3", text)
        waiting.extend(_relative_imports(sources[name]))
    return {f"{name}.py": found[name] for name in sorted(found)}


def _update_json(path: Path, values: dict) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | values, indent=2, sort_keys=True) + "\n")


def add_remote_code(folder: str | Path) -> list[str]:
    """Add the code to a repository saved by `save_pretrained`, and say in its configurations where it is.

    Afterwards `pipeline("instruction-segmentation", model=folder, trust_remote_code=True)` and the auto classes work
    where this package is not installed.

    Args:
        folder: Repository with `config.json`.

    Returns:
        `list[str]`: Names of the code files.

    Raises:
        FileNotFoundError: when the folder holds no `config.json`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"Expected a saved model with config.json in {folder}, found none. Save the model there."
        )
    files = remote_code_files()
    for name, text in files.items():
        (folder / name).write_text(text)
    _update_json(folder / "config.json", {"auto_map": MODEL_AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES})
    if (folder / "processor_config.json").is_file():
        _update_json(folder / "processor_config.json", {"auto_map": PROCESSOR_AUTO_MAP})
    return sorted(files)


def export_repository(source: str | Path, output_dir: str | Path) -> Path:
    """Write a full repository with code from any repository that SAM3-I loads (full, adapter-only or stock SAM3).

    Args:
        source: Folder or Hub id.
        output_dir: Folder to create; it must not exist yet or be empty.

    Returns:
        `Path`: The written folder.

    Raises:
        FileExistsError: when `output_dir` holds files already.
    """
    from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ..processing.processing_sam3i import Sam3IProcessor

    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"Expected a new or empty folder, found files in {output_dir}. Name another folder.")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=".export-") as parent:
        folder = Path(parent) / "repository"
        Sam3IForInstructionSegmentation.from_pretrained(source).save_pretrained(folder)
        Sam3IProcessor.from_pretrained(source).save_pretrained(folder)
        add_remote_code(folder)
        if output_dir.exists():
            output_dir.rmdir()
        folder.rename(output_dir)
    logger.info("Exported %s with code to %s", source, output_dir)
    return output_dir


__all__ = ["add_remote_code", "export_repository", "remote_code_files"]
