# SPDX-License-Identifier: Apache-2.0
"""What is going to be pushed, put together in a folder: as it was saved, or in another form."""

import json
import shutil
from enum import Enum
from pathlib import Path
from typing import Any

from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME, PROCESSOR_NAME

from ...modeling_sam3i.adapter_io import PEFT_TYPE, save_adapter
from ...trainer.hub_upload import repository_files
from ...trainer.record import RECORD_NAME
from ..cards.model_card import CARD_NAME, is_hub_id
from ..cards.scores import SCORES_NAME
from ..cards.training_curves import CURVES_NAME
from .remote_code import REQUIREMENTS, add_remote_code

MODEL_TYPES = ("sam3i", "sam3", "sam3_video")
RECORDS = (CARD_NAME, RECORD_NAME, SCORES_NAME, CURVES_NAME)
CODE_KEYS = ("auto_map", "custom_pipelines")


class RepositoryForm(str, Enum):
    """What a repository holds: a whole model, adapters for a base elsewhere, or a whole model with its code."""

    FULL = "full"
    ADAPTER = "adapter"
    REMOTE_CODE = "remote-code"


def foreign_content(config: dict[str, Any] | None, adapter_config: dict[str, Any] | None) -> str | None:
    """What configurations describe that is neither SAM3-I nor SAM3; None when there is nothing of that kind."""
    if config is not None and config.get("model_type") not in MODEL_TYPES:
        return f"a model of the type {config.get('model_type')!r}"
    if adapter_config is not None and adapter_config.get("peft_type") != PEFT_TYPE:
        return f"adapters of the method {adapter_config.get('peft_type')!r}"
    return None


def find_form(folder: Path) -> RepositoryForm:
    """What a folder holds. Raises ValueError when it is not exactly one model that can be pushed."""
    config, adapter_config = _read_json(folder / CONFIG_NAME), _read_json(folder / ADAPTER_CONFIG_NAME)
    if config is None and adapter_config is None:
        hint = " The training has not come to its end." if any(folder.glob("stage-*")) else ""
        raise ValueError(
            f"Expected a saved model in {folder}, found neither {CONFIG_NAME} nor {ADAPTER_CONFIG_NAME}.{hint}"
        )
    foreign = foreign_content(config, adapter_config)
    if foreign is not None:
        raise ValueError(f"Expected SAM3-I in {folder}, found {foreign}: push it with its own `push_to_hub`.")
    if config is not None and adapter_config is not None:
        raise ValueError(f"Expected a model or adapters in {folder}, found both. Keep them in two folders.")
    pattern = "model*.safetensors" if config is not None else ADAPTER_SAFE_WEIGHTS_NAME
    if not any(folder.glob(pattern)):
        raise ValueError(f"Expected weights ({pattern}) in {folder}, found none. Pickled weights are not pushed.")
    if adapter_config is not None:
        return RepositoryForm.ADAPTER
    return RepositoryForm.REMOTE_CODE if "auto_map" in (config or {}) else RepositoryForm.FULL


def stage_repository(folder: Path, form: RepositoryForm, base_model: str | None, target: Path) -> None:
    """Put the files of a repository into a new folder; the folder they come from is not changed.

    Args:
        base_model (`str`, *optional*): Repository of SAM3 that adapters are to name.

    Raises:
        ValueError: when the folder cannot give that.
    """
    found, files = find_form(folder), repository_files(folder)
    target.mkdir(parents=True)
    if form is RepositoryForm.ADAPTER:
        base_model = _base_for_others(folder, found, base_model)
    is_ours = (_read_json(folder / CONFIG_NAME) or {}).get("model_type") == "sam3i"
    if found is form or (is_ours and form is not RepositoryForm.ADAPTER):
        for name, path in files.items():
            _place(path, target / name)
    else:
        _convert(folder, form, base_model, target)
        for name in RECORDS:
            if name in files:
                _place(files[name], target / name)
    if form is not RepositoryForm.ADAPTER and not (target / PROCESSOR_NAME).is_file():
        _save_processor(folder, base_model, target)  # adapters without one have their base's
    if form is RepositoryForm.REMOTE_CODE:
        add_remote_code(target)
    elif found is RepositoryForm.REMOTE_CODE:
        _remove_code(target)
    if form is RepositoryForm.ADAPTER and found is form:
        _edit_json(target / ADAPTER_CONFIG_NAME, {"base_model_name_or_path": base_model})


def _place(source: Path, target: Path) -> None:
    """Weights are linked, since nothing changes them; the rest is copied."""
    try:
        if source.suffix == ".safetensors":
            target.symlink_to(source.resolve())
            return
    except OSError:  # no links on this file system
        target.unlink(missing_ok=True)
    shutil.copyfile(source, target)


def _convert(folder: Path, form: RepositoryForm, base_model: str | None, target: Path) -> None:
    from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

    base: dict[str, Any] = {}
    if base_model and form is not RepositoryForm.ADAPTER:
        base["base_model_name_or_path"] = base_model
    model = Sam3IForInstructionSegmentation.from_pretrained(folder, **base)
    if form is not RepositoryForm.ADAPTER:
        model.save_pretrained(target)
    elif model._has_fresh_adapters:
        raise ValueError(f"Expected instruction adapters in {folder}, found a SAM3 without any.")
    else:
        save_adapter(model, target, base_model)


def _base_for_others(folder: Path, found: RepositoryForm, base_model: str | None) -> str:
    named = (_read_json(folder / ADAPTER_CONFIG_NAME) or {}).get("base_model_name_or_path")
    base_model = base_model or named
    if base_model is not None and is_hub_id(base_model):
        return base_model
    what = f"name {base_model!r}, which others do not have" if base_model else "name none"
    raise ValueError(
        f"Adapters need the SAM3 that they work on; those in {folder} {what}. Name its repository on the Hub (--base "
        f"ORG/NAME); if it has none yet, push it first: sam3i push {base_model or 'FOLDER'} ORG/NAME"
        + ("." if found is RepositoryForm.ADAPTER else ", or push the whole model (--as full).")
    )


def _save_processor(folder: Path, base_model: str | None, target: Path) -> None:
    from ...processing.processing_sam3i import Sam3IProcessor

    try:
        Sam3IProcessor.from_pretrained(folder, base_model_name_or_path=base_model).save_pretrained(target)
    except OSError as error:
        raise ValueError(
            f"Expected a processor beside the model in {folder}: {error}\nSave it there (`processor.save_pretrained`)."
        ) from error


def _remove_code(folder: Path) -> None:
    for path in [*folder.glob("*.py"), folder / REQUIREMENTS]:
        path.unlink(missing_ok=True)
    for name in (CONFIG_NAME, PROCESSOR_NAME):
        if (folder / name).is_file():
            _edit_json(folder / name, {}, without=CODE_KEYS)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"Expected a JSON object in {path}, found {type(values).__name__}.")
    return values


def _edit_json(path: Path, changes: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    values = {name: value for name, value in ((_read_json(path) or {}) | changes).items() if name not in without}
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
