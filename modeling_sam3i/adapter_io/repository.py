# SPDX-License-Identifier: Apache-2.0
"""Reading repositories of instruction adapters: `adapter_config.json` and `adapter_model.safetensors`.

One repository serves the native model and PEFT on a stock SAM3. Names differ by a prefix and by the container that
PEFT needs: native `<layer>.sam3i_adapter.<weight>` is, in the file,
`base_model.model.<layer>.level_adapters.sam3i_adapter.<weight>`. PEFT itself is not needed here.
"""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, cached_file

from ...compat import find_adapter_config_file, resolve_revision
from ..adapters.settings import AdapterSettings

PEFT_TYPE = "SAM3I"
CONTAINER = "level_adapters"
"""Where a layer keeps PEFT's adapters. PEFT passes over modules with "sam3i_", the method's prefix, in their name."""

FILE_PREFIX = "base_model.model."
DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
_NATIVE_TO_FILE = {
    ".sam3i_adapter.": f".{CONTAINER}.sam3i_adapter.",
    ".embeddings.long_position_embedding.": f".embeddings.{CONTAINER}.sam3i_adapter.",
}


class AdapterFileError(ValueError):
    """An adapter repository that cannot be read; nothing of it was loaded."""


class AdapterMismatchError(AdapterFileError):
    """An adapter whose tensors or settings are not those of the model; nothing of it was loaded."""

    @classmethod
    def check(cls, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
        """Compare the tensors of a file with those of a model, by name and shape.

        Raises:
            AdapterMismatchError: names some of the tensors that are missing, left over or of another shape.
        """
        problems = {
            "missing": sorted(expected.keys() - found.keys()),
            "unexpected": sorted(found.keys() - expected.keys()),
            "of another shape": [
                f"{name}: expected {tuple(expected[name].shape)}, found {tuple(found[name].shape)}"
                for name in sorted(expected.keys() & found.keys())
                if expected[name].shape != found[name].shape
            ],
        }
        parts = [
            f"{len(names)} {kind} ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})"
            for kind, names in problems.items()
            if names
        ]
        if parts:
            raise cls(
                f"The file does not hold the instruction adapters of this model: {' and '.join(parts)}. Check that "
                f"`{ADAPTER_CONFIG_NAME}` belongs to the weights and that the base model is the one it names."
            )


class BaseModelNotFoundError(OSError):
    """An adapter repository whose base model cannot be found or opened."""


def to_file_name(name: str) -> str:
    """The name in an adapter file of a parameter of the native model.

    Raises:
        KeyError: when the parameter is no adapter's.
    """
    for native, in_file in _NATIVE_TO_FILE.items():
        if native in name:
            return FILE_PREFIX + name.replace(native, in_file, 1)
    raise KeyError(f"Expected a parameter of an instruction adapter, found {name!r}.")


@dataclass
class AdapterDescription(AdapterSettings):
    """What `adapter_config.json` says: the settings, and what PEFT notes for every method."""

    task_type: str | None = None
    peft_type: str | None = None
    auto_mapping: dict | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False


@dataclass
class AdapterSource:
    """Where instruction adapters are.

    Args:
        repo (`str`): Folder or Hub repository.
        download (`dict`): Arguments of the download.
        base_in_use (`str`, *optional*): The base model that the auto classes have already turned to.
    """

    repo: str
    download: dict
    base_in_use: str | None


def find_instruction_adapter(repo: str | os.PathLike | None, kwargs: dict) -> AdapterSource | None:
    """Where the instruction adapters are that a call of `from_pretrained` asks for; `None` when it asks for none.

    Args:
        repo: What to load. The auto classes pass the base model here, and the adapters in `adapter_kwargs`.
        kwargs (`dict`): The arguments of the call.

    Raises:
        AdapterFileError: when `adapter_config.json` is unreadable.
    """
    download = {name: kwargs[name] for name in DOWNLOAD_ARGUMENTS if kwargs.get(name) is not None}
    adapter_kwargs = dict(kwargs.get("adapter_kwargs") or {})
    adapter_repo = adapter_kwargs.pop("_adapter_model_path", None)
    if adapter_repo is not None:
        download |= {name: value for name, value in adapter_kwargs.items() if value is not None}
    source = AdapterSource(str(adapter_repo or repo), download, None if adapter_repo is None else str(repo))
    if adapter_repo is None and repo is None:
        return None
    if "revision" in download:  # `pipeline` passes the commit of the base model
        places = {name: download[name] for name in ("token", "local_files_only", "cache_dir") if name in download}
        download["revision"] = resolve_revision(source.repo, download["revision"], **places)
    path = find_adapter_config_file(source.repo, **download)
    return source if path is not None and _read_json(path).get("peft_type") == PEFT_TYPE else None


def _read_json(path: str) -> dict:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterFileError(f"Expected JSON in {path}: {error}") from error
    if not isinstance(values, dict):
        raise AdapterFileError(f"Expected a JSON object in {path}, found {type(values).__name__}.")
    return values


def read_adapter_config(repo: str | os.PathLike, **download) -> AdapterDescription:
    """Read and check `adapter_config.json` of a folder or Hub repository.

    Raises:
        AdapterFileError: when it is absent, unreadable, of another method, or names settings unknown here.
    """
    path = find_adapter_config_file(str(repo), **download)
    if path is None:
        raise AdapterFileError(f"Expected an adapter repository, found no `{ADAPTER_CONFIG_NAME}` in {repo}.")
    values = _read_json(path)
    if values.get("peft_type") != PEFT_TYPE:
        raise AdapterFileError(
            f"Expected instruction adapters (peft_type {PEFT_TYPE!r}) in {repo}, found {values.get('peft_type')!r}. "
            "Load other PEFT methods with `peft.PeftModel.from_pretrained`."
        )
    unknown = sorted(values.keys() - {item.name for item in fields(AdapterDescription)})
    if unknown:
        raise AdapterFileError(
            f"{path} has settings that this version does not know ({', '.join(unknown)}) and would not follow. "
            "Update sam3i."
        )
    try:
        return AdapterDescription(**values)
    except ValueError as error:
        raise AdapterFileError(f"{path}: {error}") from error


def read_adapter_tensors(repo: str | os.PathLike, **download) -> dict[str, torch.Tensor]:
    """Read `adapter_model.safetensors` of a folder or Hub repository, by the names in the file.

    Raises:
        AdapterFileError: when it is absent or damaged.
    """
    if os.path.isdir(repo):
        path = Path(repo, download.get("subfolder") or "", ADAPTER_SAFE_WEIGHTS_NAME)
        path = path if path.is_file() else None
    else:
        path = cached_file(
            str(repo), ADAPTER_SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **download
        )
    if path is None:
        raise AdapterFileError(f"Expected `{ADAPTER_SAFE_WEIGHTS_NAME}` in {repo}; pickled weights are not read.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise AdapterFileError(f"{path} is damaged or cut off ({error}). Fetch it again.") from error


__all__ = [
    "CONTAINER",
    "PEFT_TYPE",
    "AdapterDescription",
    "AdapterFileError",
    "AdapterMismatchError",
    "AdapterSource",
    "BaseModelNotFoundError",
    "find_instruction_adapter",
    "read_adapter_config",
    "read_adapter_tensors",
    "to_file_name",
]
