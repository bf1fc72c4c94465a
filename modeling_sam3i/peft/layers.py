# SPDX-License-Identifier: Apache-2.0
"""The layers of a stock SAM3 that PEFT has adapted, each with a container of named adapters.

They are the native model's layers; only where they find their adapter differs.
"""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...compat import (
    CLIPEncoderLayer,
    CLIPTextEmbeddings,
    Sam3DetrDecoder,
    Sam3DetrDecoderLayer,
    Sam3DETRDecoderOutput,
    Sam3DetrEncoderLayer,
    Sam3DotProductScoring,
    Sam3MaskDecoder,
    Sam3MaskEmbedder,
    inverse_sigmoid,
)
from ..adapter_io import CONTAINER
from ..adapters.base import LevelModules, has_selector
from ..adapters.low_rank import BLOCK_CLASSES
from ..adapters.routing import LevelRouting, precision_of
from ..adapters.sites import (
    Sam3IDetrDecoderLayer,
    Sam3IDetrEncoderLayer,
    Sam3IDotProductScoring,
    Sam3IMaskEmbedder,
    Sam3ITextEmbeddings,
    Sam3ITextLayer,
)
from ..configuration_sam3i import AdapterSettings
from ..decoder import Sam3IMaskDecoder

SELECTION = "_sam3i_selection"
"""Attribute of the decoder's queries: what the selector needs beside them."""


def active_settings(site: nn.Module) -> AdapterSettings | None:
    """The settings of the adapter in force at a layer; `None` leaves the model as stock has it."""
    container = getattr(site, CONTAINER, None)
    name = None if container is None else container.current()
    return None if container is None or name is None else container.settings[name]


class AdapterNotMergeableError(NotImplementedError):
    """Instruction adapters are non-linear and depend on the level of each row; no weight can absorb them."""

    def __init__(self):
        super().__init__(
            "Instruction adapters cannot be merged into the weights of SAM3: what they compute depends on the level "
            "of each row. Keep them as adapters, or call `unload()` to get the stock model back."
        )


class InstructionRouting(LevelRouting):
    """The rows of each level, and the instructions themselves.

    Args:
        routing ([`LevelRouting`]): The levels of the rows.
        instruction (`tuple`): Token embeddings `(rows, tokens, text_width)` and their mask `(rows, tokens)`, which
            may be `None`.
    """

    def __init__(self, routing: LevelRouting, instruction: tuple[torch.Tensor, torch.Tensor | None]):
        super().__init__(routing.levels, routing.on_host)
        self.instruction = instruction


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
        self.settings: dict[str, AdapterSettings] = {}
        self.merged_adapters = []
        self._site = (site,)  # known, but not a child: the layer already owns this container

    def get_base_layer(self) -> nn.Module:
        """The layer that the adapters belong to."""
        return self._site[0]

    def add(self, adapter_name: str, settings: AdapterSettings, adapter: nn.Module) -> None:
        """Take one more adapter, in the mode and the place of the layer."""
        self.sam3i_adapter[adapter_name] = adapter.train(self.get_base_layer().training)
        self.settings[adapter_name] = settings
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def current(self) -> str | None:
        """The name of the adapter in force; `None` when there is none or PEFT has disabled it."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.sam3i_adapter), None)

    def active(self) -> Any:
        """The adapter in force itself: level modules, or a table of long positions; `None` when there is none."""
        name = self.current()
        return None if name is None else self.sam3i_adapter[name]

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
        adapter, site = self.sam3i_adapter[adapter_name], self.get_base_layer()
        stock = next((weight.device for weight in site.parameters()), torch.device("cpu"))
        if stock.type != "meta" and not any(parameter.is_meta for parameter in adapter.parameters()):
            # A quantized layer keeps its norms in floating point, and one on the disk has no device of its own.
            adapter.to(device=device or stock, dtype=precision_of(site, torch.float32))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible.

        Raises:
            AdapterNotMergeableError: always.
        """
        raise AdapterNotMergeableError


class TunedSite:
    """Mixin of the layers that PEFT has adapted: their adapter is the active one of the container."""

    level_adapters: InstructionAdapterLayer

    def instruction_adapter(self) -> LevelModules | None:
        return self.level_adapters.active()


class TunedTextLayer(TunedSite, Sam3ITextLayer):
    """A text encoder layer with PEFT's instruction adapters."""


class TunedDetrEncoderLayer(TunedSite, Sam3IDetrEncoderLayer):
    """A DETR encoder layer with PEFT's instruction adapters."""


class TunedDetrDecoderLayer(TunedSite, Sam3IDetrDecoderLayer):
    """A DETR decoder layer with PEFT's instruction adapters."""


class TunedMaskEmbedder(TunedSite, Sam3IMaskEmbedder):
    """The mask embedder with PEFT's instruction adapters."""


class TunedDotProductScoring(TunedSite, Sam3IDotProductScoring):
    """The scoring of queries with PEFT's instance selector, which reads what the decoder laid beside the queries."""

    def forward(  # type: ignore[override]  # as stock's own forward pass calls it
        self, decoder_hidden_states: torch.Tensor, text_features: torch.Tensor, text_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        selection = getattr(decoder_hidden_states, SELECTION, {})
        return super().forward(decoder_hidden_states, text_features, text_mask, **selection)


class TunedTextEmbeddings(Sam3ITextEmbeddings):
    """Text embeddings whose table of long positions belongs to an adapter."""

    level_adapters: InstructionAdapterLayer

    def long_positions(self) -> nn.Embedding | None:
        return self.level_adapters.active()


class TunedDetrDecoder(Sam3DetrDecoder):
    """The stock DETR decoder with what the active adapter asks of it: other clamping, and boxes for the selector."""

    @property
    def clamp_presence_logit_max_val(self) -> float:  # type: ignore[override]  # stock sets a number
        settings = active_settings(self.layers[0])
        if settings is not None and not settings.clamp_presence_logits:
            return float("inf")
        return self.__dict__["clamp_presence_logit_max_val"]

    def forward(self, *args, level_routing: InstructionRouting | None = None, **kwargs) -> Sam3DETRDecoderOutput:
        """As in stock. The scoring gets nothing but the queries, so what a selector needs travels on that tensor."""
        decoded = super().forward(*args, level_routing=level_routing, **kwargs)
        settings = active_settings(self.layers[0])
        if level_routing is not None and has_selector(settings):
            queries = decoded.intermediate_hidden_states  # (layers, rows, queries, hidden_size)
            with torch.no_grad():  # the selector gives boxes no gradient; with one, the tensor would refer to itself
                boxes = (inverse_sigmoid(decoded.reference_boxes) + self.box_head(queries)).sigmoid()
            selection = {"boxes": boxes, "instruction": level_routing.instruction, "level_routing": level_routing}
            setattr(queries, SELECTION, selection | {"last_layer_only": True})
        return decoded


TUNED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    CLIPEncoderLayer: TunedTextLayer,
    CLIPTextEmbeddings: TunedTextEmbeddings,
    Sam3DetrEncoderLayer: TunedDetrEncoderLayer,
    Sam3DetrDecoderLayer: TunedDetrDecoderLayer,
    Sam3DetrDecoder: TunedDetrDecoder,
    Sam3MaskEmbedder: TunedMaskEmbedder,
    Sam3MaskDecoder: Sam3IMaskDecoder,
    Sam3DotProductScoring: TunedDotProductScoring,
} | BLOCK_CLASSES
