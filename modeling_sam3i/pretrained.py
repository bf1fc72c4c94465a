# SPDX-License-Identifier: Apache-2.0
"""What every SAM3-I model needs beside its forward pass: first weights, loading, and which of them train."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from copy import deepcopy
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Sam3Model
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import logging

from ..compat import has_adapters_loaded, set_loaded_parameter, text_embeddings
from .adapter_io import AdapterSource, check_weights, find_instruction_adapter, load_with_base
from .adapters.base import LevelModules
from .adapters.cascade import MaskEmbedderLevels, adapter_sites
from .adapters.sites import Sam3ITextEmbeddings
from .configuration_sam3i import Sam3IConfig

logger = logging.get_logger(__name__)


FULL_PRECISION = [r".*sam3i_adapter", r"mask_decoder\.mask_embedder"]
"""What quantization leaves as it is, as the patterns of Transformers' skip lists."""


class CheckpointMismatchError(ValueError):
    """A checkpoint whose tensors are not those of the model; loading it in part would silently give wrong results."""

    def __init__(self, missing: set[str], unexpected: set[str]):
        parts = [
            f"{len(keys)} {kind} ({', '.join(sorted(keys)[:5])}{', ...' if len(keys) > 5 else ''})"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        super().__init__(
            f"The checkpoint does not hold the tensors of this model: {' and '.join(parts)}. Check that `config.json` "
            "belongs to the weights, and convert checkpoints of the authors with `sam3i convert`."
        )


class DamagedCheckpointError(ValueError):
    """A weight file that cannot be read, or holds other than weights; nothing of it was loaded."""


def _check_stored_types(files: Mapping[str, Any], names: set[str]) -> None:
    """Refuse integers and truth values among weights, which Transformers would cast to numbers that mean nothing.

    Tensors of other names are not cast: they are left over, which is refused where nobody asked for the list of them.
    """
    for path, file in files.items():
        ours = [name for name in file.keys() if name in names or name.removeprefix("detector_model.") in names]
        stored = {name: file.get_slice(name).get_dtype() for name in ours}
        wrong = [f"{name} is {kind}" for name, kind in stored.items() if kind not in ("F64", "F32", "F16", "BF16")]
        if wrong:
            raise DamagedCheckpointError(
                f"Expected weights in fp32, bf16 or fp16 in {path}, found {len(wrong)} others "
                f"({'; '.join(wrong[:3])}). Save the model in floating point; to quantize "
                "it, pass `quantization_config` while loading."
            )


def _read_apart(
    files: Iterable[Any], parameters: dict[str, nn.Parameter]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What Transformers shall load, not read yet, and what is the model's name for name.

    Transformers compiles regular expressions for every tensor that it is given, to find its name.
    """
    others, found = {}, {}
    for file in files:
        for name in file.keys():
            stored, ours = file.get_slice(name), parameters.get(name)
            if ours is not None and ours.is_meta and tuple(stored.get_shape()) == ours.shape:
                found[name] = stored[...].to(ours.dtype)
            else:
                others[name] = stored
    return others, found


def _leave_adapters_alone(config: Any) -> Any:
    """A quantization that passes over the adapters, and over the mask embedder, whose copies they start as."""
    config = AutoQuantizationConfig.from_dict(config) if isinstance(config, dict) else deepcopy(config)
    for name in ("modules_to_not_convert", "llm_int8_skip_modules"):
        if hasattr(config, name):
            setattr(config, name, [*(getattr(config, name) or []), *FULL_PRECISION])
    return config


class Sam3IPreTrainedModel(Sam3Model):
    """A stock SAM3 whose adapted layers have instruction adapters as `sam3i_adapter`; subclasses put them there."""

    config_class = Sam3IConfig
    config: Sam3IConfig
    adapter_source: AdapterSource | None = None
    _has_fresh_adapters = False
    supports_gradient_checkpointing = True
    card_writer: ClassVar[Callable[..., object] | None] = None
    """Writes the model card of a saved folder. The package provides it; code exported to the Hub has none."""

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialize what was not loaded: stock's modules as stock does, then the adapters as the identity."""
        super().initialize_weights()
        for adapter in self.level_modules():
            adapter.init_weights()
            if isinstance(adapter, MaskEmbedderLevels):
                adapter.copy_weights(self.mask_decoder.mask_embedder)
        embeddings = text_embeddings(self.text_encoder)
        if isinstance(embeddings, Sam3ITextEmbeddings) and (table := embeddings.long_positions()) is not None:
            embeddings.init_long_positions(table)

    def level_modules(self) -> Iterator[LevelModules]:
        """The adapters of all sites; none while stock's constructor runs."""
        for _, site in adapter_sites(self):
            adapter = getattr(site, "sam3i_adapter", None)
            if adapter is not None:
                yield adapter

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        """Called while loading: a checkpoint of SAM3 without any adapter, as stock's, is not said to miss them."""
        super()._adjust_missing_and_unexpected_keys(loading_info)
        adapters = set(self.adapter_parameters())
        has_adapters = not adapters <= loading_info.missing_keys or any(
            ".sam3i_adapter." in name for name in loading_info.unexpected_keys
        )
        if not has_adapters and not {name for name, _ in self.named_parameters()} <= loading_info.missing_keys:
            loading_info.missing_keys = loading_info.missing_keys - adapters
            self._has_fresh_adapters = True

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        """Called while loading, when the files are known and nothing is read."""
        found: dict[str, torch.Tensor] = {}
        with ExitStack() as opened:
            if checkpoint_files and checkpoint_files[0].endswith(".safetensors") and not load_config.is_quantized:
                weights = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
                files = {path: opened.enter_context(safe_open(path, framework="pt")) for path in checkpoint_files}
                _check_stored_types(files, weights)
                if load_config.device_map is None:
                    state_dict, found = _read_apart(files.values(), dict(model.named_parameters()))
            info, *rest = Sam3Model._load_pretrained_model(
                model, state_dict, checkpoint_files, load_config, *args, **kwargs
            )
        for name, tensor in found.items():
            set_loaded_parameter(model, name, tensor)
        info.missing_keys -= found.keys()
        return info, *rest

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        *args,
        base_model_name_or_path: str | None = None,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """Load stock SAM3 or SAM3-I weights, as every Transformers model does, but never a part of them.

        Args:
            pretrained_model_name_or_path: A SAM3-I repository (a whole model, or adapters alone: their base model is
                then loaded as well), or a stock SAM3 repository.
            base_model_name_or_path (`str`, *optional*): For adapters alone: where SAM3 is, instead of where the
                adapters say.
            output_loading_info (`bool`): Return the model and the report on the weights of SAM3.
            kwargs: As for every Transformers model.

        Raises:
            CheckpointMismatchError: when tensors are missing or left over. With `output_loading_info=True` the caller
                gets the two lists instead and decides.
            DamagedCheckpointError: when the weights cannot be read.
            AdapterFileError: when the adapters cannot be read or are not those of the model.
            BaseModelNotFoundError: when the adapters' base model cannot be loaded.
        """
        adapter = find_instruction_adapter(pretrained_model_name_or_path, kwargs)
        if adapter is not None:
            base = base_model_name_or_path or adapter.base_in_use
            model, info = load_with_base(cls._load, adapter, base, *args, **kwargs)
        elif base_model_name_or_path is not None:
            raise ValueError(
                f"`base_model_name_or_path` is for repositories of instruction adapters, and "
                f"{pretrained_model_name_or_path} is none."
            )
        else:
            model, info = cls._load(pretrained_model_name_or_path, *args, **kwargs)
            if model._has_fresh_adapters:
                logger.warning_once(
                    "The checkpoint holds no instruction adapters: simple and complex instructions run as concepts "
                    "until adapters are trained or loaded."
                )
        if output_loading_info:
            return model, info
        if info["missing_keys"] or info["unexpected_keys"]:
            raise CheckpointMismatchError(info["missing_keys"], info["unexpected_keys"])
        return model

    @classmethod
    def _load(cls, pretrained_model_name_or_path, *args, **kwargs) -> tuple[Self, dict]:
        """Load a whole model, and report on it; pickled weights are not read."""
        kwargs.setdefault("use_safetensors", True)
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = _leave_adapters_alone(kwargs["quantization_config"])
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise DamagedCheckpointError(
                f"The weights in {pretrained_model_name_or_path} are damaged or cut off ({error}). Fetch them again."
            ) from error
        model, info = loaded
        adapters = model.adapter_parameters() if not model._has_fresh_adapters else {}
        check_weights(adapters.items(), str(pretrained_model_name_or_path), DamagedCheckpointError)
        return model, info

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args, **kwargs):
        """Called by `push_to_hub` when all is saved: the card that stock has put there becomes the model's own."""
        if self.card_writer is not None and not has_adapters_loaded(self):  # a domain's adapters are not the model
            base = self.name_or_path if self.adapter_source is None else None  # adapters in a file name their own
            self.card_writer(working_dir, repo_id=repo_id, base_model=base or None)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that SAM3-I adds to SAM3, by name; all others are stock's and stay frozen in training."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if ".sam3i_adapter." in name or ".long_position_embedding." in name
        }

    def freeze_stock(self) -> None:
        """Let only the instruction adapters train, in float32, whatever the precision of the frozen rest.

        Steps of an optimizer are lost to rounding in half precision. The level router stays frozen: the loss of the
        model says nothing about it. `Sam3ITrainer` trains it.
        """
        adapters = {
            id(parameter)
            for name, parameter in self.adapter_parameters().items()
            if not name.startswith("text_encoder.sam3i_adapter.")
        }
        for parameter in self.parameters():
            trains = id(parameter) in adapters
            parameter.requires_grad_(trains)
            if trains and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()

    def start_complex_from_simple(self) -> None:
        """Hand-over between the first two stages: the complex path computes what the simple path has learned.

        With `decoder_c_adapter_skip=False` (converted checkpoints) the decoder's complex path starts without update,
        as in the authors' code.
        """
        for adapter in self.level_modules():
            adapter.start_complex_from_simple()
