# SPDX-License-Identifier: Apache-2.0
"""How PEFT's adapters sit on a stock SAM3: a container per adapted layer, and hooks that bring it the levels.

The layers are those of the native model ([`layers_sam3i`]); only where they find their adapter differs. Stock classes
are exchanged in place and restored by [`restore_stock`].
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import Sam3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPTextEmbeddings
from transformers.models.sam3.modeling_sam3 import (
    Sam3DetrDecoder,
    Sam3DetrDecoderLayer,
    Sam3DetrEncoderLayer,
    Sam3MaskDecoder,
    Sam3MaskEmbedder,
    Sam3VisionEncoderOutput,
)

from .decoder_sam3i import Sam3IMaskDecoder
from .inputs_sam3i import resolve_levels, row_images, text_encoder_inputs
from .layers_sam3i import (
    Sam3IDetrDecoderLayer,
    Sam3IDetrEncoderLayer,
    Sam3IMaskEmbedder,
    Sam3ITextEmbeddings,
    Sam3ITextLayer,
)
from .routing_sam3i import LevelRouting

if TYPE_CHECKING:
    from .tuner_sam3i import InstructionAdapterConfig

CONTAINER = "level_adapters"
"""Name of the container in its layer. PEFT looks for the method's prefix in names, so it must not contain "sam3i_"."""


class AdapterNotMergeableError(NotImplementedError):
    """Instruction adapters are non-linear and depend on the level of each row; no weight can absorb them."""

    def __init__(self):
        super().__init__(
            "Instruction adapters cannot be merged into the weights of SAM3: what they compute depends on the level "
            "of each row. Keep them as adapters, or call `unload()` to get the stock model back."
        )


class InstructionAdapterLayer(nn.Module, BaseTunerLayer):
    """The instruction adapters of one layer, by name; at most one is active.

    It is a child of the layer and not a wrapper around it, so that LoRA still reaches the layer's own projections.

    Args:
        site (`nn.Module`): The layer that the adapters belong to.
    """

    adapter_layer_names = ("sam3i_adapter",)
    other_param_names = ("settings",)

    def __init__(self, site: nn.Module):
        super().__init__()
        self.sam3i_adapter = nn.ModuleDict()
        self.settings: dict[str, InstructionAdapterConfig] = {}
        self.merged_adapters = []
        self.__dict__["site"] = site  # known, but not a child: the layer already owns this container

    def get_base_layer(self) -> nn.Module:
        """The layer that the adapters belong to."""
        return self.site

    def add(self, adapter_name: str, settings: "InstructionAdapterConfig", adapter: nn.Module) -> None:
        """Take one more adapter, placed where the layer is."""
        self.sam3i_adapter[adapter_name] = adapter
        self.settings[adapter_name] = settings
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def current(self) -> str | None:
        """The name of the adapter in force; `None` when there is none or PEFT has disabled it."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.sam3i_adapter), None)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make one of the adapters active; names of other PEFT methods may stand beside it.

        Raises:
            ValueError: for two instruction adapters at once.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        own = [name for name in names if name in self.sam3i_adapter]
        if len(own) > 1:
            raise ValueError(f"Expected one active instruction adapter, found {own}. Choose one with `set_adapter`.")
        super().set_adapter(names, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        if adapter_name not in self.sam3i_adapter:
            return
        adapter = self.sam3i_adapter[adapter_name]
        stock = next(self.site.parameters())
        if not any(parameter.is_meta for parameter in adapter.parameters()):
            adapter.to(device=device or stock.device, dtype=stock.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible.

        Raises:
            AdapterNotMergeableError: always.
        """
        raise AdapterNotMergeableError

    def forward(self, hidden_states: torch.Tensor, routing: LevelRouting, *context) -> torch.Tensor:
        """Apply the active adapter in its own precision; `(rows, tokens, hidden_size)` to the same shape and dtype."""
        adapter = self.sam3i_adapter[self.current()]
        given, own = hidden_states.dtype, next(adapter.parameters()).dtype

        def convert(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
            return lambda states: function(states.to(given)).to(own)

        context = [convert(item) if callable(item) else item for item in context]
        return adapter(hidden_states.to(own), routing, *context).to(given)


class TunedSite:
    """Mixin of the layers that PEFT has adapted: their adapter is the active one of the container."""

    def instruction_adapter(self) -> nn.Module | None:
        return self.level_adapters if self.level_adapters.current() is not None else None


class TunedTextLayer(TunedSite, Sam3ITextLayer):
    """A text encoder layer with PEFT's instruction adapters."""


class TunedDetrEncoderLayer(TunedSite, Sam3IDetrEncoderLayer):
    """A DETR encoder layer with PEFT's instruction adapters."""


class TunedDetrDecoderLayer(TunedSite, Sam3IDetrDecoderLayer):
    """A DETR decoder layer with PEFT's instruction adapters."""


class TunedMaskEmbedder(TunedSite, Sam3IMaskEmbedder):
    """The mask embedder with PEFT's instruction adapters."""


class TunedTextEmbeddings(Sam3ITextEmbeddings):
    """Text embeddings whose table of long positions belongs to an adapter."""

    @property
    def long_position_embedding(self) -> nn.Embedding:
        name = self.level_adapters.current()
        if name is None:
            raise AttributeError("no active adapter has long positions")
        return self.level_adapters.sam3i_adapter[name]

    def forward(self, *args, **kwargs) -> torch.Tensor:
        """As without PEFT, in the precision of the stock tables."""
        return super().forward(*args, **kwargs).to(self.token_embedding.weight.dtype)


class TunedDetrDecoder(Sam3DetrDecoder):
    """The stock DETR decoder, clamping presence logits unless the active adapter says otherwise."""

    @property
    def clamp_presence_logit_max_val(self) -> float:
        settings = active_settings(self.layers[0])
        if settings is not None and not settings.clamp_presence_logits:
            return float("inf")
        return self.__dict__["clamp_presence_logit_max_val"]


TUNED_CLASSES = {
    CLIPEncoderLayer: TunedTextLayer,
    CLIPTextEmbeddings: TunedTextEmbeddings,
    Sam3DetrEncoderLayer: TunedDetrEncoderLayer,
    Sam3DetrDecoderLayer: TunedDetrDecoderLayer,
    Sam3DetrDecoder: TunedDetrDecoder,
    Sam3MaskEmbedder: TunedMaskEmbedder,
    Sam3MaskDecoder: Sam3IMaskDecoder,
}
STOCK_CLASSES = {tuned: stock for stock, tuned in TUNED_CLASSES.items()}
HOOKS = "_sam3i_hooks"


def tune(module: nn.Module) -> nn.Module:
    """Turn a stock module in place into the one that PEFT's adapters need, if it is not one already."""
    if type(module) not in STOCK_CLASSES:
        module.__class__ = TUNED_CLASSES[type(module)]
    return module


def prepare_stock(model: Sam3Model) -> None:
    """Exchange what is not a layer and register the hooks; doing it again changes nothing."""
    tune(model.detr_decoder)
    tune(model.mask_decoder)
    if HOOKS not in model.__dict__:
        model.__dict__[HOOKS] = [
            model.register_forward_pre_hook(route_rows, with_kwargs=True),
            model.text_encoder.register_forward_pre_hook(route_text, with_kwargs=True),
        ]


def restore_stock(model: Sam3Model) -> None:
    """Undo everything: stock classes, no container, no hook."""
    for module in model.modules():
        if hasattr(module, CONTAINER):
            delattr(module, CONTAINER)
        if type(module) in STOCK_CLASSES:
            module.__class__ = STOCK_CLASSES[type(module)]
    for handle in model.__dict__.pop(HOOKS, []):
        handle.remove()


def active_settings(site: nn.Module) -> "InstructionAdapterConfig | None":
    """The settings of the adapter in force at a layer; `None` leaves the model as stock has it."""
    container = getattr(site, CONTAINER, None)
    name = None if container is None else container.current()
    return None if name is None else container.settings[name]


FORWARD_ARGUMENTS = tuple(inspect.signature(Sam3Model.forward).parameters)[1:-1]
TEXT_ARGUMENTS = ("input_ids", "attention_mask", "position_ids")


def route_rows(model: Sam3Model, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Before the model runs: encode the text at the levels of its rows and hand the routing to the layers.

    `instruction_levels` and `image_ids` mean what they mean to [`Sam3IForInstructionSegmentation`], and images are
    encoded before rows are matched with them, as there. Stock's own forward does the rest.
    """
    inputs = dict(zip(FORWARD_ARGUMENTS, args, strict=False)) | kwargs
    levels, image_ids = inputs.pop("instruction_levels", None), inputs.pop("image_ids", None)
    given = {name for name in FORWARD_ARGUMENTS if inputs.get(name) is not None}
    if len(given & {"pixel_values", "vision_embeds"}) != 1 or len(given & {"input_ids", "text_embeds"}) != 1:
        return (), inputs  # stock says what is wrong
    settings = active_settings(model.mask_decoder.mask_embedder)

    text = inputs.get("text_embeds")
    if text is None:
        text = model.get_text_features(
            input_ids=inputs.pop("input_ids"),
            attention_mask=inputs.get("attention_mask"),
            instruction_levels=levels,
            return_dict=True,
        )
    text = getattr(text, "pooler_output", text)  # (text rows, tokens, width)
    vision = inputs.get("vision_embeds")
    if vision is None:
        others = {name: value for name, value in inputs.items() if name not in FORWARD_ARGUMENTS}
        vision = model.get_vision_features(pixel_values=inputs.pop("pixel_values"), **others)
    boxes = inputs.get("input_boxes")
    rows, image_ids = row_images(image_ids, text.shape[0], vision.fpn_hidden_states[0].shape[0], boxes)
    if image_ids is not None:
        vision = Sam3VisionEncoderOutput(
            fpn_hidden_states=tuple(states[image_ids] for states in vision.fpn_hidden_states),
            fpn_position_encoding=tuple(states[image_ids] for states in vision.fpn_position_encoding),
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
        )
    inputs["vision_embeds"] = vision
    inputs["text_embeds"] = BaseModelOutputWithPooling(pooler_output=text.expand(rows, -1, -1))
    if inputs.get("attention_mask") is not None:
        inputs["attention_mask"] = inputs["attention_mask"].expand(rows, -1)
    if settings is None:
        return (), inputs
    if levels is not None:
        inputs["level_routing"] = LevelRouting(resolve_levels(levels, text.shape[0], text.device).expand(rows))
    if settings.always_encode_geometry and (boxes is None or boxes.numel() == 0):
        # A box that is only padding leaves the geometry CLS token alone.
        inputs["input_boxes"] = torch.zeros(rows, 1, 4, dtype=text.dtype, device=text.device)
        inputs["input_boxes_labels"] = torch.full((rows, 1), -10, dtype=torch.long, device=text.device)
    return (), inputs


def route_text(text_encoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Before the text encoder runs: turn `instruction_levels` into routing, and see to padding and positions."""
    inputs = dict(zip(TEXT_ARGUMENTS, args, strict=False)) | kwargs
    levels = inputs.pop("instruction_levels", None)
    settings = active_settings(text_encoder.text_model.encoder.layers[0])
    if settings is None:
        return (), inputs
    input_ids = inputs["input_ids"]
    embeddings = text_encoder.text_model.embeddings
    inputs |= text_encoder_inputs(embeddings, settings, input_ids, inputs.get("attention_mask"))
    if levels is not None:
        inputs["level_routing"] = LevelRouting(resolve_levels(levels, input_ids.shape[0], input_ids.device))
    return (), inputs
