# SPDX-License-Identifier: Apache-2.0
"""The settings of instruction adapters: what `adapter_config.json` says about them, on whatever model they sit."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from transformers import CLIPTextConfig, PreTrainedConfig

from ..configuration_sam3i import check_fits, check_settings


@dataclass
class AdapterSettings:
    """
    The fields that shape instruction adapters; they have the names, defaults and meanings of [`Sam3IConfig`].

    Raises:
        ValueError: when a field is out of its range; the message ends with the value received.
    """

    adapter_design: Literal["cascade", "selective"] = field(
        default="selective",
        metadata={
            "help": "Kind of the level modules: 'selective' are low-rank updates and a pairwise selector, 'cascade' "
            "are the paper's S-Adapter and C-Adapter."
        },
    )
    adapter_dim: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    adapter_heads: int = field(
        default=4, metadata={"help": "Attention heads of the text adapters; divides the text encoder's width."}
    )
    adapter_dropout: float = field(
        default=0.1, metadata={"help": "Dropout on the attention weights of the text adapters."}
    )
    adapter_scale: float = field(
        default=1.0,
        metadata={"help": "Factor on the adapters of the DETR encoder and decoder, and on every low-rank update."},
    )
    decoder_c_adapter_skip: bool = field(
        default=True, metadata={"help": "Inner skip connection of the DETR decoder's C-Adapter."}
    )
    adapter_rank: int = field(
        default=4, metadata={"help": "Rank of the low-rank updates, doubled at the complex level; 0 leaves them out."}
    )
    selector_dim: int = field(default=32, metadata={"help": "Width of the selector."})
    selector_heads: int = field(default=4, metadata={"help": "Attention heads of the selector; divides its width."})
    selector_queries: int = field(
        default=48, metadata={"help": "How many of the best queries the selector compares; 0 leaves it out."}
    )
    router_dim: int = field(default=32, metadata={"help": "Width of the level router; 0 leaves it out."})
    mask_padding_in_adapters: bool = field(default=True, metadata={"help": "Let the text adapters ignore padding."})
    always_encode_geometry: bool = field(
        default=False, metadata={"help": "Append the geometry CLS token to the prompt even without boxes."}
    )
    clamp_presence_logits: bool = field(default=True, metadata={"help": "Clamp presence logits to [-10, 10]."})
    max_instruction_length: int = field(
        default=32,
        metadata={"help": "Longest instruction in tokens; above the stock length a second position table is trained."},
    )

    def __post_init__(self):
        for item in fields(AdapterSettings):
            self._check_type(item.name, item.type)
        check_settings(self)

    def _check_type(self, name: str, expected) -> None:
        value, choices = getattr(self, name), get_args(expected)
        if choices:
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")
            return
        accepted = (int, float) if expected is float else expected
        if not isinstance(value, accepted) or (expected is not bool and isinstance(value, bool)):
            raise ValueError(f"`{name}` must be of type {expected.__name__}, got {value!r}.")

    @classmethod
    def setting_names(cls) -> list[str]:
        """The fields above, without those that a subclass adds."""
        return [item.name for item in fields(AdapterSettings)]

    @classmethod
    def from_model_config(cls, config: PreTrainedConfig, **kwargs) -> "AdapterSettings":
        """The settings of a native model's adapters, from its [`Sam3IConfig`]."""
        return cls(**{name: getattr(config, name) for name in cls.setting_names()}, **kwargs)

    def settings(self) -> dict[str, Any]:
        """The fields as arguments of [`Sam3IConfig`]."""
        return {name: getattr(self, name) for name in self.setting_names()}

    def check_fits(self, text_config: CLIPTextConfig) -> None:
        """Check what depends on the text encoder.

        Raises:
            ValueError: when heads or lengths do not fit.
        """
        check_fits(self, text_config)


__all__ = ["AdapterSettings"]
