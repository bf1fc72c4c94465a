# SPDX-License-Identifier: Apache-2.0
"""A stock SAM3 that PEFT has adapted: the native model's layers and calls, with containers of named adapters."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..adapters.base import CONTAINER
from ..adapters.routing import precision_of
from ..configuration_sam3i import AdapterSettings
from ..losses.loss import Sam3ICriterion
from ..modeling_sam3i import Sam3IModel

STOCK = AdapterSettings(adapter_design="cascade", router_dim=0)
"""Settings under which nothing differs from stock where no adapter is active."""


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
        """Not possible. Raises AdapterNotMergeableError always."""
        raise AdapterNotMergeableError


class AdaptedSam3Model(Sam3IModel):
    """A stock SAM3 on which PEFT keeps instruction adapters; the tuner exchanges the class in place, and back.

    Without an active adapter it computes what stock does.
    """

    criterion = Sam3ICriterion()  # the paper's weights

    @property
    def adapter_settings(self) -> AdapterSettings:
        """The settings of the active adapter."""
        container = getattr(self.mask_decoder.mask_embedder, CONTAINER, None)
        name = None if container is None else container.current()
        return STOCK if container is None or name is None else container.settings[name]
