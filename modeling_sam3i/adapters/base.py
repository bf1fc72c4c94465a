# SPDX-License-Identifier: Apache-2.0
"""What every design of instruction adapters has in common: settings, interface and initialization."""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ...compat import init
from ..configuration_sam3i import AdapterSettings
from .routing import LevelRouting

CONTAINER = "level_adapters"
"""Where a layer keeps PEFT's adapters. PEFT passes over modules with "sam3i_", the method's prefix, in their name."""


def adapter_of(site: nn.Module) -> Any:
    """The adapter in force at a module: the native model's, or the active one of those that PEFT keeps there."""
    kept = getattr(site, CONTAINER, None)
    return getattr(site, "sam3i_adapter", None) if kept is None else kept.active()


def has_selector(settings: AdapterSettings | PreTrainedConfig | None) -> bool:
    """Whether adapters of these settings choose among queries; a stock model's configuration knows of none."""
    return getattr(settings, "adapter_design", None) == "selective" and getattr(settings, "selector_queries", 0) > 0


class LevelModules(nn.Module):
    """The modules that one site of SAM3 holds for the simple and the complex level.

    A site calls them on its residual stream (`forward(states, routing, *context)`) and, when `updates_projections` is
    set, asks for the updates of its attention and MLP projections; it does not know what kind they are.
    """

    updates_projections = False

    def init_weights(self) -> None:
        """Initialize what was not loaded, as the identity; copies of stock modules have nothing of their own."""

    def start_complex_from_simple(self) -> None:
        """Hand-over to stage 2: the complex level computes what the simple level has learned."""
        raise NotImplementedError

    def projection_updates(self, part: str, routing: LevelRouting) -> dict[str, Any]:
        """Arguments for the attention or MLP of the site that is called `part`."""
        return {}


class AdapterLinear(nn.Linear):
    """A linear layer of an adapter; torch's dynamic quantization, which goes by the class, leaves it whole."""

    def reset_parameters(self) -> None:
        """As every linear layer, but not on the meta device, where loading builds models and nothing is kept."""
        if not self.weight.is_meta:
            super().reset_parameters()


def init_linear(linear: nn.Linear, zero: bool = False) -> None:
    """PyTorch's default initialization, or zero for an output projection (which makes the adapter the identity)."""
    bound = 0.0 if zero else linear.in_features**-0.5
    for parameter in (linear.weight, linear.bias):
        if parameter is not None and not parameter.is_meta:
            init.uniform_(parameter, -bound, bound)


def init_norm(norm: nn.LayerNorm) -> None:
    """Gain one, shift zero."""
    init.ones_(norm.weight)
    init.zeros_(norm.bias)
