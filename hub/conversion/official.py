# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the SAM3-I authors and of Meta (SAM 3, SAM 3.1) into repositories that `from_pretrained` loads.

The converted model computes what their code computes: its configuration keeps their conventions where they differ
from stock SAM3 or from newly trained models. A checkpoint without adapters becomes a stock repository, which
`Sam3Model` loads as well.
"""

import functools
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig, Sam3Config, Sam3Model, Sam3Processor
from transformers.utils import logging

from ...modeling_sam3i.configuration_sam3i import Sam3IConfig
from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from ...processing.atomic import refuse_full, write_whole
from ...processing.processing_sam3i import Sam3IProcessor
from .official_keys import (
    DETECTOR_PREFIX,
    NESTED_STATE,
    RELEASED_ADAPTER_HEADS,
    RELEASED_ADAPTER_SCALE,
    TRAINER_ENTRIES,
    find_drop_reason,
    find_family,
    find_target,
    last_level_of,
    strip_prefix,
)
from .report import ConversionReport, Setting


class CheckpointConversionError(ValueError):
    """A checkpoint that cannot be converted completely; nothing was written.

    Args:
        problems (`dict[str, list[str]]`, *optional*): Kind of problem to the names concerned.
    """

    shown = 8

    def __init__(self, message: str, problems: dict[str, list[str]] | None = None):
        self.problems = problems or {}
        lines = [message]
        for kind, names in self.problems.items():
            lines.append(f"{kind} ({len(names)}):")
            lines.extend(f"  {name}" for name in names[: self.shown])
            if len(names) > self.shown:
                lines.append(f"  and {len(names) - self.shown} more")
        super().__init__("\n".join(lines))


def read_official_checkpoint(checkpoint: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint without running code from it; tensors stay on disk until they are used.

    Returns:
        The weights by official name, and whatever lies beside them.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointConversionError: when it is damaged, holds Python objects, or is no dictionary of weights.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint file (.pt or .safetensors), found no file at {str(path)!r}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path), {}
    if not zipfile.is_zipfile(path):
        raise CheckpointConversionError(
            f"{path.name} is not a complete PyTorch checkpoint: truncated, or another kind of file. Download it again."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise CheckpointConversionError(
            f"{path.name} holds Python objects beside tensors, which can run code when loaded, and was refused. "
            "Save its state dict alone with `torch.save`."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointConversionError(f"{path.name} is damaged: {error}. Download it again.") from error
    if not isinstance(content, Mapping):
        raise CheckpointConversionError(f"Expected a dictionary in {path.name}, found {type(content).__name__}.")
    beside = {}
    if isinstance(content.get(NESTED_STATE), Mapping):
        beside = {name: value for name, value in content.items() if name != NESTED_STATE}
        content = content[NESTED_STATE]
    if not content:
        raise CheckpointConversionError(f"Expected weights in {path.name}, found none.")
    return dict(content), beside


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Weights by official name; the file is flat, so a nested state shows in the names."""
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise CheckpointConversionError(f"{path.name} is damaged or cut off ({error}). Download it again.") from error
    if not weights:
        raise CheckpointConversionError(f"Expected weights in {path.name}, found none.")
    nested = f"{NESTED_STATE}."
    if all(name.startswith(nested) for name in weights):
        return {name.removeprefix(nested): tensor for name, tensor in weights.items()}
    return weights


logger = logging.get_logger(__name__)

ADAPTER_MARK = ".sam3i_adapter."
PAD_TOKEN_ID = 0
UNREAD_LEVEL = "written as zeros: SAM 3.1 has no fourth image scale, and stock computes one that nothing reads"
FRESH_ADAPTER = "the checkpoint has no adapters: a fresh one, which starts as the identity"


def _account(weights: dict[str, Any], beside: dict[str, Any], report: ConversionReport) -> dict[str, torch.Tensor]:
    """Give every tensor its native name and enter it in the report.

    Raises:
        CheckpointConversionError: when something is unknown, ambiguous or of an impossible shape.
    """
    if family := find_family(weights):
        raise CheckpointConversionError(f"{report.checkpoint} holds {family}; nothing was converted.")
    native: dict[str, torch.Tensor] = {}
    unknown, twice, impossible = [], [], []
    for name in beside:
        if name in TRAINER_ENTRIES:
            report.dropped[name] = "state of the authors' trainer"
        else:
            unknown.append(str(name))
    for name, tensor in weights.items():
        bare = strip_prefix(str(name))
        target = find_target(bare)
        if target is None:
            reason = find_drop_reason(bare)
            if reason is None:
                unknown.append(str(name))
            else:
                report.dropped[name] = reason
            continue
        if not torch.is_tensor(tensor) or not tensor.is_floating_point():
            found = tensor.dtype if torch.is_tensor(tensor) else type(tensor).__name__
            impossible.append(f"{name}: expected a floating point tensor, found {found}")
            continue
        if any(key in native for key in target.names):
            twice.append(str(name))
            continue
        try:
            native.update(zip(target.names, target.transform.apply(tensor), strict=True))
        except ValueError as error:
            impossible.append(f"{name}: {error}")
        report.mapped[name] = list(target.names)
    problems = {"unknown names": unknown, "given twice": twice, "not usable": impossible}
    problems = {kind: names for kind, names in problems.items() if names}
    if problems:
        raise CheckpointConversionError(
            f"{report.checkpoint} holds entries that SAM3-I does not explain, so it was not converted. Expected a "
            "checkpoint of the authors' SAM3-I code, of SAM 3 or of SAM 3.1.",
            problems,
        )
    if not native:
        reasons = "; ".join(sorted(set(report.dropped.values())))
        raise CheckpointConversionError(f"{report.checkpoint} holds no weight of a detector, only what {reasons}.")
    return native


def _stock_config(
    config: PreTrainedConfig | dict[str, Any] | str | os.PathLike | None, base: str | os.PathLike | None
) -> dict[str, Any]:
    """The stock configuration to convert with, as a dictionary of ours; the released sizes by default."""
    source = config if config is not None else base
    if source is None:
        source = Sam3Config()
    if isinstance(source, PreTrainedConfig):
        return Sam3IConfig.lift_detector_config(source.to_dict())
    if isinstance(source, Mapping):
        return Sam3IConfig.lift_detector_config(dict(source))
    if Path(source).is_file():
        return Sam3IConfig.lift_detector_config(json.loads(Path(source).read_text(encoding="utf-8")))
    return Sam3IConfig.get_config_dict(source)[0]


def _adapter_settings(
    native: dict[str, torch.Tensor], stated: Any, config: dict[str, Any], adapter_heads: int | None
) -> dict[str, Setting]:
    """The adapters' hyper-parameters: from the argument, the checkpoint, its shapes, or the released values."""
    widths = {
        tensor.shape[0] for name, tensor in native.items() if name.endswith(".down_proj.weight") and tensor.ndim == 2
    }
    if len(widths) != 1:
        raise CheckpointConversionError(f"Expected adapters of one width, found widths {sorted(widths)}.")
    settings = {"adapter_dim": Setting(widths.pop(), "shapes in the checkpoint")}
    released = {"adapter_heads": RELEASED_ADAPTER_HEADS, "adapter_scale": RELEASED_ADAPTER_SCALE}
    stated = stated if isinstance(stated, Mapping) else {}
    for name, value in released.items():
        if name == "adapter_heads" and adapter_heads is not None:
            settings[name] = Setting(adapter_heads, "given")
        elif name in stated:
            settings[name] = Setting(stated[name], "adapter_config in the checkpoint")
        elif name in config:
            settings[name] = Setting(config[name], "given configuration")
        else:
            settings[name] = Setting(value, "the authors' training configuration; the weights do not tell")
    return settings


def _converted_config(config: dict[str, Any], settings: dict[str, Setting], has_adapters: bool) -> Sam3IConfig:
    """The configuration under which the model computes what the authors' code computes."""
    authors = "as in the authors' code"
    stock: Any = Sam3IConfig.from_dict(config)
    positions = stock.text_config.max_position_embeddings
    settings["max_instruction_length"] = Setting(positions, "length of the text encoder")
    settings["always_encode_geometry"] = Setting(True, f"{authors}: the geometry CLS token always joins the prompt")
    settings["clamp_presence_logits"] = Setting(False, authors)
    if has_adapters:
        settings["adapter_design"] = Setting("cascade", authors)
        settings["router_dim"] = Setting(0, f"{authors}: the user names the level")
        settings["decoder_c_adapter_skip"] = Setting(False, authors)
        settings["mask_padding_in_adapters"] = Setting(False, f"{authors}: adapters attend to padding")
    converted: Any = Sam3IConfig.from_dict(config | {name: setting.value for name, setting in settings.items()})
    converted.vision_config.backbone_config.layer_norm_eps = 1e-5
    settings["vision_config.backbone_config.layer_norm_eps"] = Setting(1e-5, authors)
    converted.text_config.pad_token_id = PAD_TOKEN_ID
    settings["text_config.pad_token_id"] = Setting(PAD_TOKEN_ID, authors)
    return converted


def _check_complete(native: dict[str, torch.Tensor], config: Sam3IConfig, report: ConversionReport) -> None:
    """Compare the mapped tensors with what the model holds; only adapters may be missing, and only all of them."""
    with torch.device("meta"):
        skeleton = Sam3IForInstructionSegmentation(config)
    stored = next(iter(native.values())).dtype
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    for name in last_level_of(set(expected), set(native)):
        native[name] = torch.zeros(expected[name], dtype=stored)
        report.missing[name] = UNREAD_LEVEL
    has_adapters = any(ADAPTER_MARK in name for name in native)
    missing = [name for name in expected if name not in native]
    by_design = [] if has_adapters else [name for name in missing if ADAPTER_MARK in name]
    report.missing |= dict.fromkeys(by_design, FRESH_ADAPTER)
    problems = {
        "missing": [name for name in missing if name not in report.missing],
        "not in a model of this configuration": [name for name in native if name not in expected],
        "of another shape": [
            f"{name}: expected {expected[name]}, found {tuple(tensor.shape)}"
            for name, tensor in native.items()
            if name in expected and tuple(tensor.shape) != expected[name]
        ],
    }
    problems = {kind: names for kind, names in problems.items() if names}
    if problems:
        raise CheckpointConversionError(
            f"{report.checkpoint} does not fit the configuration. For another size than the released one pass its "
            "stock configuration as `config`; a checkpoint that lacks weights cannot be converted.",
            problems,
        )


def _count_zeros(native: dict[str, torch.Tensor], report: ConversionReport) -> None:
    for name, tensor in native.items():
        if ADAPTER_MARK in name:
            zeros = tensor.numel() - int(tensor.count_nonzero())
            report.adapter_weights += tensor.numel()
            report.zero_adapter_weights += zeros
            if zeros == tensor.numel():
                report.zero_adapter_tensors.append(name)
    if report.zero_adapter_tensors:
        logger.warning(
            f"{len(report.zero_adapter_tensors)} adapter tensors of {report.checkpoint} are zero throughout: parts of "
            "the adapters were never trained. The conversion report names them."
        )


def _converted_processor(base: str | os.PathLike, config: Sam3IConfig) -> Sam3IProcessor:
    """The processor of a stock repository, made to pad as the authors do."""
    processor = Sam3IProcessor.from_pretrained(base)
    processor.max_instruction_length = config.max_instruction_length
    tokenizer = processor.tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD_TOKEN_ID)
    # The token of id 0 is "!". Without this, an exclamation mark in an instruction would be read as padding.
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True
    return processor


def _converted_model(
    native: dict[str, torch.Tensor], converted: Sam3IConfig, report: ConversionReport, has_adapters: bool
) -> Sam3Model:
    """A SAM3-I model; without adapters a stock one, whose configuration also holds what only SAM3-I follows."""
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in native.values()})
    if has_adapters:
        return Sam3IForInstructionSegmentation.from_pretrained(None, config=converted, state_dict=native, dtype=dtype)
    ours = set(converted.settings()) | {"loss_config"}
    values = {name: value for name, value in converted.to_dict().items() if name not in ours - set(report.settings)}
    config = Sam3Config.from_dict(values | {"model_type": Sam3Config.model_type})
    loaded: Any = Sam3Model.from_pretrained(
        None, config=config, state_dict=native, dtype=dtype, output_loading_info=True
    )
    model, info = loaded
    problems = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
    if problems:
        raise CheckpointConversionError(f"{report.checkpoint} is not that of a stock model.", problems)
    return model


def convert_official_checkpoint(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    config: PreTrainedConfig | dict[str, Any] | str | os.PathLike | None = None,
    base: str | os.PathLike | None = None,
    adapter_heads: int | None = None,
) -> ConversionReport:
    """Convert a checkpoint of the authors' code or of Meta's into a repository for `from_pretrained`.

    Plain names, names with the prefix `detector.` (with or without adapters) and what their trainer saves are all
    read, as are SAM 3 and SAM 3.1 as Meta releases them. Nothing is written unless every tensor of the checkpoint is
    explained and every weight of the model is provided. Without any adapters in the checkpoint the repository is a
    stock one, for `Sam3Model` and for SAM3-I, which puts fresh adapters on it.

    Args:
        checkpoint: Path of the `.pt` or `.safetensors` file.
        output_dir: Folder to create; it may exist if it is empty.
        config: Stock configuration (object, dictionary, file or repository) of a model of other than the released
            size. That of `base` by default, then the released size.
        base: Stock SAM3 repository to take the processor from. Without it none is written.
        adapter_heads (`int`, *optional*): Attention heads of the text adapters, which no shape tells. By default what
            the checkpoint or `config` says, then the released 4.

    Returns:
        [`ConversionReport`], which is also written to `conversion_report.json`.

    Raises:
        FileNotFoundError: when there is no checkpoint.
        FileExistsError: when `output_dir` holds files already.
        CheckpointConversionError: when the checkpoint is damaged, unsafe, unexplained or incomplete.
    """
    output_dir = Path(output_dir).absolute()
    refuse_full(output_dir)
    weights, beside = read_official_checkpoint(checkpoint)
    prefixed = any(str(name).startswith(DETECTOR_PREFIX) for name in weights)
    layout = f"prefix {DETECTOR_PREFIX!r}" if prefixed else "plain names"
    if any(".propagation_convs." in str(name) for name in weights):
        layout = "SAM 3.1"
    elif beside:
        layout = "trainer"
    report = ConversionReport(checkpoint=Path(checkpoint).name, layout=layout)
    native = _account(weights, beside, report)

    stock = _stock_config(config, base)
    has_adapters = any(ADAPTER_MARK in name for name in native)
    if has_adapters:
        report.settings = _adapter_settings(native, beside.get("adapter_config"), stock, adapter_heads)
    elif adapter_heads is not None:
        report.settings["adapter_heads"] = Setting(adapter_heads, "given")
    converted = _converted_config(stock, report.settings, has_adapters)
    _check_complete(native, converted, report)
    _count_zeros(native, report)
    processor: Sam3Processor | None = None
    report.processor = "none written; give `base`, a SAM3 repository, or load the processor from one and pad with id 0"
    if base is not None:
        processor = _converted_processor(base, converted)
        report.processor = f"from the base repository, padding with id {PAD_TOKEN_ID} as in the authors' code"
        if not has_adapters:
            processor = Sam3Processor(processor.image_processor, processor.tokenizer)
    model = _converted_model(native, converted, report, has_adapters)
    with write_whole(output_dir) as repository:
        repository.mkdir()
        model.save_pretrained(repository)
        if processor is not None:
            processor.save_pretrained(repository)
        report.save(repository)
    return report
