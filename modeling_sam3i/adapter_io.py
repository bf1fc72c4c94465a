# SPDX-License-Identifier: Apache-2.0
"""Instruction adapters as repositories: `adapter_config.json` and `adapter_model.safetensors`, as PEFT lays them out.

They are read whole or not at all, filled into a native model, and loaded with the base model that they name. One
repository serves the native model and PEFT on a stock SAM3. Names differ by a prefix and by the container that
PEFT needs: native `<layer>.sam3i_adapter.<weight>` is, in the file,
`base_model.model.<layer>.level_adapters.sam3i_adapter.<weight>`. PEFT itself is not needed here.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Sam3Model
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME, cached_file, logging

from ..compat import attention_of, find_adapter_config_file, resolve_revision
from .adapters.base import CONTAINER
from .adapters.calibration import ScoreCalibration
from .configuration_sam3i import AdapterSettings, Sam3IConfig

if TYPE_CHECKING:
    from .pretrained import Sam3IPreTrainedModel

logger = logging.get_logger(__name__)
ModelT = TypeVar("ModelT", bound="Sam3IPreTrainedModel")

PEFT_TYPE = "SAM3I"
STOCK_CLASS = {"base_model_class": Sam3Model.__name__, "parent_library": Sam3Model.__module__}
FILE_PREFIX = "base_model.model."
DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Dropout changes nothing that a trained adapter computes, so it may differ between model and file.
FREE_SETTINGS = ("adapter_dropout",)
# Belongs to the weights and goes where they go.
SETTINGS_OF_WEIGHTS = ("score_calibration",)
_NATIVE_TO_FILE = {
    ".sam3i_adapter.": f".{CONTAINER}.sam3i_adapter.",
    ".embeddings.long_position_embedding.": f".embeddings.{CONTAINER}.sam3i_adapter.",
}


class AdapterFileError(ValueError):
    """An adapter repository that cannot be read; nothing of it was loaded."""


class AdapterMismatchError(AdapterFileError):
    """An adapter whose tensors or settings are not those of the model; nothing of it was loaded."""

    @classmethod
    def check(cls, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
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


def check_weights(
    tensors: Iterable[tuple[str, torch.Tensor]], place: str, error: type[ValueError] = AdapterFileError
) -> None:
    """Check that weights of adapters are floating point numbers, all of them finite.

    Raises:
        AdapterFileError: names some that are not.
    """
    tensors = [(name, tensor) for name, tensor in tensors if not tensor.is_meta]
    wrong = [f"{name} is {tensor.dtype}" for name, tensor in tensors if tensor.dtype not in WEIGHT_DTYPES]
    if wrong:
        raise error(
            f"Expected adapter weights in fp32, bf16 or fp16 in {place}, found {len(wrong)} others "
            f"({'; '.join(wrong[:3])}). Casting would change what the adapters compute: save them in floating point."
        )
    # The extremes of a tensor show NaN and infinity without a copy of it.
    bad = [name for name, tensor in tensors if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all()]
    if bad:
        raise error(
            f"Expected finite adapter weights in {place}, found NaN or infinity in {len(bad)} tensors "
            f"({'; '.join(bad[:3])}). Training has diverged, or the file is damaged: use an earlier checkpoint."
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
    """Where instruction adapters are."""

    repo: str  # folder or Hub repository
    download: dict  # arguments of the download
    base_in_use: str | None  # the base model that the auto classes have already turned to


def find_instruction_adapter(repo: str | os.PathLike | None, kwargs: dict) -> AdapterSource | None:
    """Where the instruction adapters are that a call of `from_pretrained` asks for; `None` when it asks for none.

    Args:
        repo: What to load. The auto classes pass the base model here, and the adapters in `adapter_kwargs`.

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
    known = {item.name for item in fields(AdapterDescription)}
    unknown = sorted(name for name in values.keys() - known if values[name] is not None)
    if unknown:
        raise AdapterFileError(
            f"{path} has settings that this version does not know ({', '.join(unknown)}) and would not follow. "
            "Update sam3i."
        )
    try:
        description = AdapterDescription(**{name: value for name, value in values.items() if name in known})
        ScoreCalibration.of(description)
        return description
    except (ValueError, StrictDataclassError) as error:
        raise AdapterFileError(f"{path}: {' '.join(str(error).split())}") from error


def read_adapter_tensors(repo: str | os.PathLike, **download) -> dict[str, torch.Tensor]:
    """Read `adapter_model.safetensors` of a folder or Hub repository, by the names in the file.

    Raises:
        AdapterFileError: when it is absent or damaged, or holds other than finite floating point numbers.
    """
    if os.path.isdir(repo):
        file = Path(repo, download.get("subfolder") or "", ADAPTER_SAFE_WEIGHTS_NAME)
        path = str(file) if file.is_file() else None
    else:
        path = cached_file(
            str(repo), ADAPTER_SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **download
        )
    if path is None:
        raise AdapterFileError(f"Expected `{ADAPTER_SAFE_WEIGHTS_NAME}` in {repo}; pickled weights are not read.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise AdapterFileError(f"{path} is damaged or cut off ({error}). Fetch it again.") from error
    check_weights(tensors.items(), str(path))
    return tensors


def save_adapter(
    model: "Sam3IPreTrainedModel",
    save_directory: str | os.PathLike,
    base_model_name_or_path: str | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the instruction adapters of a native model, without SAM3 itself, as an adapter repository.

    Args:
        model ([`Sam3IForInstructionSegmentation`]): The model.
        save_directory: Folder to write to; made if need be.
        base_model_name_or_path (`str`, *optional*): The repository that holds the weights of SAM3; where the model was
            loaded from, if not given.
        state_dict (`dict[str, torch.Tensor]`, *optional*): The model's weights where they cannot be taken from it, as
            in sharded training.

    Raises:
        TypeError: when `model` is not a native SAM3-I model.
    """
    if not hasattr(model, "adapter_parameters"):
        raise TypeError(
            f"Expected a Sam3IForInstructionSegmentation, found {type(model).__name__}. A PEFT model saves its "
            "adapters with `save_pretrained`."
        )
    base = base_model_name_or_path or model.name_or_path or None
    if base is None:
        logger.warning(
            "The adapter names no base model, because the model was not loaded from a repository: whoever loads it "
            "must pass `base_model_name_or_path`."
        )
    description = AdapterDescription.from_model_config(
        model.config,
        peft_type=PEFT_TYPE,
        auto_mapping=STOCK_CLASS,
        peft_version=_peft_version(),
        base_model_name_or_path=None if base is None else str(base),
        inference_mode=True,
    )
    weights = model.state_dict() if state_dict is None else state_dict
    tensors = {to_file_name(name): weights[name].detach().cpu().contiguous() for name in model.adapter_parameters()}
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{ADAPTER_SAFE_WEIGHTS_NAME}.unfinished"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.replace(folder / ADAPTER_SAFE_WEIGHTS_NAME)
    text = json.dumps(asdict(description), indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG_NAME).write_text(text, encoding="utf-8")


def _peft_version() -> str | None:
    try:
        return version("peft")
    except PackageNotFoundError:
        return None


def fill_adapters(model: ModelT, repo: str | os.PathLike, **download) -> ModelT:
    """Overwrite the adapters of a native model with those of a repository.

    Returns:
        The model.

    Raises:
        AdapterFileError: when a file is absent, damaged or of another kind.
        AdapterMismatchError: when tensors or settings are not the model's.
    """
    description = read_adapter_config(repo, **download)
    tensors = read_adapter_tensors(repo, **download)
    differing = [
        f"{name} is {value!r} there and {getattr(model.config, name)!r} here"
        for name, value in description.settings().items()
        if value != getattr(model.config, name) and name not in FREE_SETTINGS + SETTINGS_OF_WEIGHTS
    ]
    if differing:
        raise AdapterMismatchError(
            f"The adapter of {repo} was trained with other settings than the model's: {'; '.join(differing)}. Load "
            f"both together with `{type(model).__name__}.from_pretrained({str(repo)!r})`."
        )
    parameters = {to_file_name(name): parameter for name, parameter in model.adapter_parameters().items()}
    AdapterMismatchError.check(tensors, parameters)
    elsewhere = [name for name, parameter in parameters.items() if parameter.is_meta]
    if elsewhere:
        raise AdapterFileError(
            f"Expected a model whose adapters are in memory, found {len(elsewhere)} on the disk (`device_map`), "
            f"{elsewhere[0]!r} among them. Load base and adapters without `device_map`, write the whole model once "
            "with `save_pretrained`, and load that one with `device_map`."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    for name in SETTINGS_OF_WEIGHTS:
        setattr(model.config, name, getattr(description, name))
    return model


def load_with_base(
    load: Callable[..., tuple[ModelT, dict]], source: AdapterSource, base: str | None, *args, **kwargs
) -> tuple[ModelT, dict]:
    """Load the base model that an adapter repository names, with the settings of the adapter, and the adapter.

    Returns:
        The model, which keeps where its adapters are from as `adapter_source`, and the report on the weights of its
        base.

    Raises:
        AdapterFileError: when the repository cannot be read.
        BaseModelNotFoundError: when the base model cannot be found.
    """
    repo = source.repo
    if os.path.isfile(os.path.join(repo, CONFIG_NAME)):
        raise AdapterFileError(
            f"{repo} holds a whole model (`{CONFIG_NAME}`) and an instruction adapter (`{ADAPTER_CONFIG_NAME}`), "
            "which would overwrite that model's own adapters. Keep them in two folders."
        )
    adapter = read_adapter_config(repo, **source.download)
    base = base or adapter.base_model_name_or_path
    if not base:
        raise BaseModelNotFoundError(
            f"The adapter in {repo} names no base model. Pass `base_model_name_or_path` with a repository of SAM3."
        )
    for name in ("adapter_kwargs", "subfolder"):
        kwargs.pop(name, None)
    if source.base_in_use is None:
        kwargs["revision"] = adapter.revision  # the one in `kwargs` is the adapter repository's
    config = kwargs.get("config")
    if config is None:
        kwargs = adapter.settings() | kwargs
    else:
        values = Sam3IConfig.lift_detector_config(config.to_dict()) | adapter.settings()
        kwargs["config"] = Sam3IConfig.from_dict(values, attn_implementation=attention_of(config))
    try:
        model, info = load(base, *args, **kwargs)
    except OSError as error:
        raise BaseModelNotFoundError(
            f"The adapter in {repo} works on {base}, which cannot be loaded: {error}\nIf it is gated, ask for access "
            "and log in; if it lies elsewhere, pass `base_model_name_or_path`."
        ) from error
    model.adapter_source = source
    return fill_adapters(model, repo, **source.download), info
