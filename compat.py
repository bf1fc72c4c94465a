# SPDX-License-Identifier: Apache-2.0
"""Every private or version-dependent name of Transformers and PEFT that this package uses, and why.

The rest of the package imports them from here. `tests/smoke` runs all of them on the oldest, a middle and the newest
supported version; what a new version changes is mended in this file.
"""
# ruff: noqa: F401  # names are imported here for the others

import os
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

# First weights: unlike those of `torch.nn.init`, these functions leave alone what `from_pretrained` has loaded.
from transformers import initialization as init

# Attention masks of the decoders, which SAM3-I calls with its own queries.
from transformers.masking_utils import create_bidirectional_mask

# Adapted layers recompute their activations when the model is told to.
from transformers.modeling_layers import GradientCheckpointingLayer

# How attention is computed once its projections are: the blocks of stock look it up themselves.
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# The layers and blocks of the text encoder that have adapters, and how each calls what is in it.
from transformers.models.clip import modeling_clip
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPTextEmbeddings,
    CLIPTextModelWithProjection,
)

# The layers, blocks and outputs of SAM3 that SAM3-I extends or builds.
from transformers.models.sam3 import modeling_sam3
from transformers.models.sam3.modeling_sam3 import (
    Sam3Attention,
    Sam3DetrDecoder,
    Sam3DetrDecoderLayer,
    Sam3DETRDecoderOutput,
    Sam3DetrEncoderLayer,
    Sam3DotProductScoring,
    Sam3MaskDecoder,
    Sam3MaskDecoderOutput,
    Sam3MaskEmbedder,
    Sam3MLP,
    Sam3VisionEncoderOutput,
    box_cxcywh_to_xyxy,
    inverse_sigmoid,
)

# The text encoder of SAM3-LiteText, whose detector is SAM3's own.
from transformers.models.sam3_lite_text.modeling_sam3_lite_text import (
    Sam3LiteTextTextAttention,
    Sam3LiteTextTextEncoderLayer,
    Sam3LiteTextTextMLP,
    Sam3LiteTextTextModel,
)

# Decorators without which a sub-model's own `forward` returns no hidden states or attentions, and the registry of
# what a model can record, which only constructors fill.
from transformers.utils import output_capturing
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults

# Uploads of the trainer, in the background as Transformers' own.
from transformers.utils.hub import PushInProgress, hf_api
from transformers.utils.output_capturing import capture_outputs

# Where a repository keeps `adapter_config.json`, as the auto classes look for it.
from transformers.utils.peft_utils import find_adapter_config_file

try:
    # The commit that a revision means: `pipeline` hands the base model's to the adapters as well.
    from transformers.utils import resolve_revision
except ImportError:  # Transformers before 5.14

    def resolve_revision(  # type: ignore[misc]  # the arguments that it would ask the Hub with
        path_or_repo_id: str | os.PathLike | None, revision: str | None = None, **kwargs
    ) -> str | None:
        """The revision as it was named."""
        return revision


OVERRIDDEN = {
    "PreTrainedModel._adjust_missing_and_unexpected_keys": "the only place that can say that a stock checkpoint "
    "lacks adapters by right, before it is reported as damaged",
    "PreTrainedModel._load_pretrained_model": "the only place that knows the weight files before they are cast",
    "PreTrainedModel._upload_modified_files": "`push_to_hub` writes its card there, after everything else is saved",
    "Trainer._run_epoch": "the curriculum counts batches and samplers by stage",
    "Trainer._get_train_sampler": "rows of a stage are drawn level by level",
    "Trainer._prepare_inputs": "cached image features join the batch",
    "Trainer._save": "checkpoints hold adapters, not SAM3",
    "Trainer._save_checkpoint": "checkpoints are sealed when they are whole",
    "Trainer._load_from_checkpoint": "adapters alone are loaded",
    "Trainer._load_best_model": "adapters alone are loaded",
    "Trainer._push_from_checkpoint": "a run is one repository",
}
"""Private methods of Transformers that this package overrides, and why nothing public does."""


def text_layers(text_encoder: Any) -> str:
    """Where a text encoder keeps its layers: CLIP's, or that of SAM3-LiteText."""
    return "layers" if isinstance(text_encoder, Sam3LiteTextTextModel) else "text_model.encoder.layers"


def text_embeddings(text_encoder: Any) -> Any:
    """The token and position embeddings of a text encoder: CLIP's, or that of SAM3-LiteText."""
    return getattr(text_encoder, "text_model", text_encoder).embeddings


def clip_attention(config: Any) -> Callable:
    """How the text encoders of SAM3 and of SAM3-LiteText attend, by the implementation that was chosen."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(
        attention_of(config) or "eager", modeling_clip.eager_attention_forward
    )


def sam3_attention(config: Any, mask: torch.Tensor | None) -> Callable:
    """How the DETR layers attend; flash attention cannot add a bias to its logits, so stock takes another there."""
    if is_flash_attention_requested(config) and mask is not None and mask.dtype != torch.bool:
        return ALL_ATTENTION_FUNCTIONS["sdpa"]
    return ALL_ATTENTION_FUNCTIONS.get_interface(
        attention_of(config) or "eager", modeling_sam3.eager_attention_forward
    )


def exchange_class(module: torch.nn.Module, ours: type[torch.nn.Module]) -> None:
    """Give a module another class of the same weights, and tell those who keep books of classes and methods."""
    module.__class__ = ours
    if isinstance(module, PreTrainedModel):  # whose hidden states and attentions can be asked for, by class
        dict.__setitem__(output_capturing._CAN_RECORD_REGISTRY, str(ours), module._can_record_outputs)
    if "_old_forward" in vars(module):  # Accelerate, which places weights, calls the method that it found there
        vars(module)["_old_forward"] = MethodType(ours.forward, module)


def is_offloaded(module: torch.nn.Module) -> bool:
    """Whether Accelerate brings the weights of a module from elsewhere for each call, as those on the disk."""
    return hasattr(module, "_hf_hook") and any(weight.is_meta for weight in module.parameters(recurse=False))


def set_loaded_parameter(model: Any, name: str, tensor: torch.Tensor) -> None:
    """Put a weight in its place as `from_pretrained` does: initialization leaves alone what is marked."""
    place, _, attribute = name.rpartition(".")
    parameter = torch.nn.Parameter(tensor)
    parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    setattr(model.get_submodule(place), attribute, parameter)


def mark_adapters_loaded(model: Any, loaded: bool = True) -> None:
    """Tell Transformers' own `set_adapter`, `disable_adapters` and their like that PEFT has adapted the model."""
    model._hf_peft_config_loaded = loaded


def has_adapters_loaded(model: Any) -> bool:
    """Whether Transformers holds PEFT adapters of the model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def attention_of(config: Any) -> str | None:
    """The attention implementation that a configuration was loaded with; no public name tells it."""
    return config._attn_implementation
