# SPDX-License-Identifier: Apache-2.0
"""The taxonomy of instructions and the configuration of SAM3-I."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CLIPTextConfig,
    Sam3Config,
    Sam3DETRDecoderConfig,
    Sam3DETREncoderConfig,
    Sam3GeometryEncoderConfig,
    Sam3MaskDecoderConfig,
    Sam3VisionConfig,
)

from .instruction_levels import InstructionLevel

AUTO_LEVEL_INDEX = -1
"""In `instruction_levels` tensors: let the model's own router choose the level of the row."""


LITE_TEXT = "sam3_lite_text"


def explain_other_family(model_type: str | None) -> str:
    """Why a repository of another family of models is none of ours, and what to name instead."""
    found = "no config.json with one" if model_type is None else repr(model_type)
    why = "Name a SAM3-I, SAM3, SAM3 video or SAM3-LiteText repository."
    if model_type in ("sam3_tracker", "sam3_tracker_video"):
        why = "That is SAM 3's tracker alone, which reads no text: name a repository that holds the detector."
    elif str(model_type).startswith(("sam", "edgetam")):
        why = "That model is pointed at what it shall segment and reads no text: name a SAM3 repository."
    expected = "Expected a repository of model type 'sam3i', 'sam3', 'sam3_video' or 'sam3_lite_text'"
    return f"{expected}, found {found}. {why}"


@strict
@dataclass
class AdapterSettings:
    """
    What shapes instruction adapters, on whatever model they sit: fields of [`Sam3IConfig`], of
    [`InstructionAdapterConfig`] and of `adapter_config.json` alike.

    Args:
        adapter_design (`str`, defaults to `"selective"`): The kind of the level modules: `"selective"` are low-rank
            updates of the projections and a pairwise selector of instances, `"cascade"` are the paper's bottleneck
            S-Adapter and C-Adapter. The fields of the other design are without effect.
        adapter_dim (`int`, defaults to 64): Width of the bottleneck.
        adapter_heads (`int`, defaults to 4): Attention heads of the text adapters; divides the text width.
        adapter_dropout (`float`, defaults to 0.1): Dropout on the attention weights of the text adapters.
        adapter_scale (`float`, defaults to 1.0): Factor on the adapters of the DETR encoder and decoder, and on every
            low-rank update.
        decoder_c_adapter_skip (`bool`, defaults to `True`): Whether the C-Adapter of the DETR decoder has an inner
            skip connection, as those of the text encoder and DETR encoder have. The authors' code has none; converted
            checkpoints set `False`. With the skip, the complex path starts where the simple path ended.
        adapter_rank (`int`, defaults to 4): Rank of the low-rank updates of the simple level; the complex level
            has twice as much. 0 leaves them out.
        selector_dim (`int`, defaults to 32): Width of the selector.
        selector_heads (`int`, defaults to 4): Attention heads of the selector; divides its width.
        selector_queries (`int`, defaults to 48): How many of the best queries the selector compares; memory grows
            with the square. 0 leaves the selector out.
        router_dim (`int`, defaults to 32): Width of the level router, which finds the level of an instruction by its
            words. 0 leaves it out, as in converted checkpoints.
        mask_padding_in_adapters (`bool`, defaults to `True`): Whether the text adapters ignore padding. The authors'
            code attends to all 32 positions; converted checkpoints set `False`.
        always_encode_geometry (`bool`, defaults to `False`): Whether the geometry CLS token joins the prompt when no
            box is given. The authors' code always appends it; converted checkpoints set `True`.
        clamp_presence_logits (`bool`, defaults to `True`): Whether presence logits are clamped to [-10, 10] as stock
            does. The authors' code does not; converted checkpoints set `False`.
        max_instruction_length (`int`, defaults to 32): Longest instruction in tokens. Above the text encoder's own
            length a second, trainable position table serves the longer instructions; shorter ones keep theirs.
        score_calibration (`dict`, *optional*): `{"simple": [scale, bias, presence_bias], "complex": [...]}`: what
            becomes of the logits of queries and of presence at inference, so that .5 is the best threshold of a level.
            Absent: nothing.

    Raises:
        ValueError: when a field is out of its range; the message ends with the value received.
        StrictDataclassError: when a field is of another type.
    """

    adapter_design: Literal["cascade", "selective"] = "selective"
    adapter_dim: int = 64
    adapter_heads: int = 4
    adapter_dropout: float | int = 0.1
    adapter_scale: float | int = 1.0
    decoder_c_adapter_skip: bool = True
    adapter_rank: int = 4
    selector_dim: int = 32
    selector_heads: int = 4
    selector_queries: int = 48
    router_dim: int = 32
    mask_padding_in_adapters: bool = True
    always_encode_geometry: bool = False
    clamp_presence_logits: bool = True
    max_instruction_length: int = 32
    score_calibration: dict | None = None

    def __post_init__(self):
        self.check_adapters()

    def check_adapters(self) -> None:
        """Check the ranges of the settings.

        Raises:
            ValueError: when one is out of its range; the message ends with the value received.
        """
        for name in ("adapter_dim", "adapter_heads", "selector_dim", "selector_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("adapter_rank", "selector_queries", "router_dim"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if self.selector_dim % self.selector_heads:
            raise ValueError(
                f"`selector_heads` must divide `selector_dim` ({self.selector_dim}), got {self.selector_heads}."
            )
        if not 0 <= self.adapter_dropout < 1:
            raise ValueError(f"`adapter_dropout` must be in [0, 1), got {self.adapter_dropout}.")
        if self.max_instruction_length < 3:
            raise ValueError(f"`max_instruction_length` must be at least 3, got {self.max_instruction_length}.")

    def check_fits(self, text_config: CLIPTextConfig) -> None:
        """Check what depends on the text encoder.

        Raises:
            ValueError: when heads or lengths do not fit it.
        """
        text_width, positions = text_config.hidden_size, text_config.max_position_embeddings
        if self.adapter_design == "cascade" and text_width % self.adapter_heads:
            raise ValueError(
                f"`adapter_heads` must divide the text encoder's width {text_width}, got {self.adapter_heads}."
            )
        if self.max_instruction_length > positions and not self.mask_padding_in_adapters:
            raise ValueError(
                f"`max_instruction_length` above the text encoder's {positions} positions needs "
                f"`mask_padding_in_adapters=True`, got {self.max_instruction_length} with False."
            )

    @classmethod
    def setting_names(cls) -> list[str]:
        """The fields above, without those that a subclass adds."""
        return [item.name for item in fields(AdapterSettings)]

    @classmethod
    def from_model_config(cls, config: "Sam3IConfig", **others: Any) -> Self:
        """The settings of a native model's adapters."""
        return cls(**config.settings(), **others)

    def settings(self) -> dict[str, Any]:
        """The fields above by name."""
        return {name: getattr(self, name) for name in self.setting_names()}


@strict
class Sam3IConfig(Sam3Config, AdapterSettings):
    r"""
    Configuration of [`Sam3IForInstructionSegmentation`]: a stock [`Sam3Config`] and the instruction adapters on it.

    Its fields are those of [`Sam3Config`] and of [`AdapterSettings`], with their meanings and defaults. The
    configuration of a stock `sam3`, `sam3_video` or `sam3_lite_text` repository loads as it is: the detector's part
    is taken and the adapters get their defaults.

    Args:
        loss_config (`dict`, *optional*): Weights of the training loss where they differ from the paper's.

    Raises:
        ValueError: when a field is out of its range; the message ends with the value received.
    """

    model_type = "sam3i"

    if TYPE_CHECKING:  # stock says "a dict or a configuration"; once made, they are these
        vision_config: Sam3VisionConfig
        text_config: CLIPTextConfig
        geometry_encoder_config: Sam3GeometryEncoderConfig
        detr_encoder_config: Sam3DETREncoderConfig
        detr_decoder_config: Sam3DETRDecoderConfig
        mask_decoder_config: Sam3MaskDecoderConfig

    loss_config: dict | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_adapters()

    def check_adapters(self) -> None:
        """As above, with the text encoder; the model does it again, as `from_pretrained` sets fields later.

        Raises:
            ValueError: when a field is out of its range; the message ends with the value received.
        """
        AdapterSettings.check_adapters(self)
        self.check_fits(self.text_config)

    @property
    def has_causal_text(self) -> bool:
        """Whether no token reads the padding after it, as in SAM3; the text encoder of SAM3-LiteText mixes it in."""
        return self.text_config.model_type != f"{LITE_TEXT}_text_model"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As every configuration.

        Raises:
            ValueError: when `config.json` holds values that no configuration has.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (StrictDataclassError, RecursionError, AttributeError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(
                f"Expected a configuration of SAM3 in {pretrained_model_name_or_path}, found values that cannot be "
                f"read ({reason}). Fetch it again."
            ) from error

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except OSError as error:
            if str(pretrained_model_name_or_path) in str(error):
                raise
            reason = " ".join(str(error).split())
            raise OSError(f"Cannot load {pretrained_model_name_or_path}: {reason}") from error
        return cls.lift_detector_config(config_dict), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        if not __name__.startswith("transformers_modules."):
            # The pipeline is installed and registered: the code of one in the repository needs nobody's trust.
            config_dict = {key: value for key, value in config_dict.items() if key != "custom_pipelines"}
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def lift_detector_config(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        """Turn the configuration of a stock `sam3` or `sam3_video` repository into ours; leave ours as it is.

        Raises:
            ValueError: when the configuration is of another family of models.
        """
        model_type = config_dict.get("model_type")
        if model_type == cls.model_type:
            return config_dict
        if model_type == "sam3_video":
            detector = config_dict.get("detector_config") or {}
            config_dict = {**detector, "dtype": config_dict.get("dtype")}
        elif model_type == LITE_TEXT:  # the detector is SAM3's, under other names
            parts = {key: value for key, value in config_dict.items() if isinstance(value, dict)}
            for part in ("geometry_encoder", "detr_encoder", "detr_decoder", "mask_decoder"):
                own = parts.get(f"{part}_config", {})
                parts[f"{part}_config"] = {name: value for name, value in own.items() if name != "model_type"}
            text = {"model_type": f"{LITE_TEXT}_text_model"} | parts.get("text_config", {})
            config_dict = {**config_dict, **parts, "text_config": text}
        elif model_type != "sam3":
            raise ValueError(explain_other_family(model_type if config_dict else None))
        return {key: value for key, value in config_dict.items() if key != "architectures"} | {
            "model_type": cls.model_type
        }


__all__ = ["AUTO_LEVEL_INDEX", "AdapterSettings", "InstructionLevel", "Sam3IConfig"]
