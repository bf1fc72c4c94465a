# SPDX-License-Identifier: Apache-2.0
"""Repositories that run without this package: weights, processor and the code they need, flat beside each other."""

import ast
import json
import re
from pathlib import Path

from transformers.utils import logging

from ...processing.atomic import refuse_full, write_whole

logger = logging.get_logger(__name__)

PACKAGE = Path(__file__).resolve().parents[2]
CODE_ROOMS = ("compat", "modeling_sam3i", "processing")
"""Modules and folders at the root of the package whose code may be exported."""

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
ENTRY_MODULES = (
    ("modeling_sam3i", "configuration_sam3i"),
    ("modeling_sam3i", "modeling_sam3i"),
    ("processing", "processing_sam3i"),
    ("processing", "pipeline", "pipeline_sam3i"),
)

HANDLER = "handler.py"
REQUIREMENTS = "requirements.txt"
SERVING_REQUIREMENTS = ("pillow>=10.1", "scipy", "torch>=2.6", "torchvision", "transformers>=5.12")
"""What the code of a repository imports; an Inference Endpoint installs it before it runs `handler.py`."""


def _source(module: tuple[str, ...]) -> Path:
    """The file of a module, or of a package's `__init__`; it need not exist."""
    path = PACKAGE.joinpath(*module)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _flat_name(module: tuple[str, ...]) -> str:
    """`modeling_sam3i/adapters/cascade` is `adapters_cascade`; a name ending in `_sam3i` stands for itself."""
    return module[-1] if module[-1].endswith("_sam3i") or len(module) == 1 else "_".join(module[1:])


def _flatten(module: tuple[str, ...], text: str) -> tuple[str, list[tuple[str, ...]]]:
    """A module's text with flat relative imports, and the modules that it imports, inside functions too."""
    package = module if _source(module).name == "__init__.py" else module[:-1]
    lines, imported = text.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        target = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
        found = ".".join(target)
        if not target or target[0] not in CODE_ROOMS or not _source(target).is_file():
            raise ValueError(
                f"Expected exported code to import only modules of {', '.join(CODE_ROOMS)}, found {found!r} in "
                f"{'.'.join(module)}."
            )
        if any(_source((*target, alias.name)).is_file() for alias in node.names):
            raise ValueError(
                f"Expected names from modules in exported code, found a module taken from {found!r} in "
                f"{'.'.join(module)}: Transformers does not follow such an import."
            )
        line = node.lineno - 1
        lines[line] = re.sub(r"from \.[.\w]* import", f"from .{_flat_name(target)} import", lines[line], count=1)
        imported.append(target)
    return "".join(lines), imported


def remote_code_files() -> dict[str, str]:
    """The code of the model, processor and pipeline as flat files that import each other by `from .name import`.

    Raises:
        ValueError: when a module imports something of this package that lies outside the exported rooms, or when two
            modules would get one name.
    """
    files: dict[str, str] = {}
    origins: dict[str, tuple[str, ...]] = {}
    waiting: list[tuple[str, ...]] = list(ENTRY_MODULES)
    while waiting:
        module = waiting.pop()
        name = f"{_flat_name(module)}.py"
        if origins.setdefault(name, module) != module:
            raise ValueError(f"Both {'.'.join(module)} and {'.'.join(origins[name])} would be exported as {name}.")
        if name not in files:
            files[name], imported = _flatten(module, _source(module).read_text(encoding="utf-8"))
            waiting.extend(imported)
    return dict(sorted(files.items()))


def serving_files() -> dict[str, str]:
    """The handler of an Inference Endpoint and what it requires, by file name."""
    handler = Path(__file__).with_name(HANDLER).read_text(encoding="utf-8")
    return {HANDLER: handler, REQUIREMENTS: "\n".join(SERVING_REQUIREMENTS) + "\n"}


def _update_json(path: Path, values: dict) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | values, indent=2, sort_keys=True) + "\n")


def add_remote_code(folder: str | Path) -> list[str]:
    """Add the code to a repository saved by `save_pretrained`, and say in its configurations where it is.

    Afterwards `pipeline("instruction-segmentation", model=folder, trust_remote_code=True)` and the auto classes work
    where this package is not installed, and the repository can be deployed as an Inference Endpoint. Raises
    FileNotFoundError when the folder holds no `config.json`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"Expected a saved model with config.json in {folder}, found none. Save the model there."
        )
    files = remote_code_files() | serving_files()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    _update_json(folder / "config.json", {"auto_map": MODEL_AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES})
    if (folder / "processor_config.json").is_file():
        _update_json(folder / "processor_config.json", {"auto_map": PROCESSOR_AUTO_MAP})
    return sorted(files)


def export_repository(source: str | Path, output_dir: str | Path) -> Path:
    """Write a full repository with code from any repository that SAM3-I loads (full, adapter-only or stock SAM3).

    A README says how to load it; that of a folder given as `source` keeps its text, as a push does. Raises
    FileExistsError when `output_dir` holds files already.
    """
    from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ...processing.processing_sam3i import Sam3IProcessor
    from ..cards.model_card import CARD_NAME, is_hub_id, write_model_card

    output_dir = Path(output_dir)
    card = Path(source) / CARD_NAME
    refuse_full(output_dir)
    with write_whole(output_dir) as folder:
        Sam3IForInstructionSegmentation.from_pretrained(source).save_pretrained(folder)
        Sam3IProcessor.from_pretrained(source).save_pretrained(folder)
        add_remote_code(folder)
        write_model_card(
            folder,
            base_model=str(source) if is_hub_id(str(source)) else None,
            model_name=output_dir.name,
            existing=card.read_text(encoding="utf-8") if card.is_file() else None,
        )
    logger.info("Exported %s with code to %s", source, output_dir)
    return output_dir
