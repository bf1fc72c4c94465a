# SPDX-License-Identifier: Apache-2.0
"""SAM3-I as a PEFT method: the native model's adapters on a stock SAM3, in the same files.

Importing this module registers the method with PEFT.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, cast

import torch
from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import constants
from torch import nn
from transformers import CLIPTextConfig, Sam3Model

from ...compat import exchange_class, mark_adapters_loaded
from ..adapter_io import PEFT_TYPE, STOCK_CLASS, AdapterFileError, AdapterMismatchError, check_weights
from ..adapters.base import CONTAINER
from ..adapters.cascade import adapter_sites, build_adapter
from ..adapters.routing import precision_of
from ..adapters.sites import Sam3ITextEmbeddings, adopt, restore
from ..configuration_sam3i import AdapterSettings, Sam3IConfig
from ..losses.loss import Sam3ICriterion
from ..modeling_sam3i import Sam3IModel
from ..pretrained import Sam3IPreTrainedModel

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


EMBEDDINGS = "text_encoder.text_model.embeddings"


class Sam3IPeftType(str, Enum):
    """The name of the method in `adapter_config.json`; PEFT's own enumeration cannot be extended."""

    SAM3I = PEFT_TYPE


@dataclass
class InstructionAdapterConfig(AdapterSettings, PeftConfig):
    """
    Configuration of SAM3-I's instruction adapters as a PEFT method on a stock `Sam3Model`.

    Its settings have the names, defaults and meanings of [`Sam3IConfig`].

    Raises:
        ValueError: when a field is out of its range; the message ends with the value received.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import Sam3Model
    >>> from sam3i import InstructionAdapterConfig

    >>> stock = Sam3Model.from_pretrained("facebook/sam3")
    >>> model = get_peft_model(stock, InstructionAdapterConfig(), adapter_name="instruction")
    >>> outputs = model(**inputs, instruction_levels=["simple"])
    ```
    """

    target_modules: ClassVar[None] = None  # PEFT reads it; where the adapters go is not a choice

    def __post_init__(self):
        PeftConfig.__post_init__(self)
        self.check_adapters()
        self.peft_type = Sam3IPeftType.SAM3I

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """As in PEFT; the adapters belong on stock's class, whatever the model's is while they are there."""
        if kwargs.get("auto_mapping_dict") is not None:
            kwargs["auto_mapping_dict"] = STOCK_CLASS
        super().save_pretrained(save_directory, **kwargs)


class InstructionAdapterModel(BaseTuner):
    """
    The tuner that puts instruction adapters on a stock `Sam3Model`, in place.

    Raises:
        TypeError: when `model` is something else.
    """

    prefix = "sam3i_"
    tuner_layer_cls = InstructionAdapterLayer
    target_module_mapping = {}

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        return peft_config

    def _prepare_model(  # type: ignore[override]  # our own configuration
        self, peft_config: InstructionAdapterConfig, model: nn.Module
    ) -> None:
        if isinstance(model, Sam3IPreTrainedModel):
            raise TypeError(
                "Expected a stock Sam3Model, found Sam3IForInstructionSegmentation, which has instruction adapters of "
                "its own. Fill them with `load_instruction_adapter(model, repo)`, or load the pair with "
                "`Sam3IForInstructionSegmentation.from_pretrained(repo)`."
            )
        if type(model) not in (Sam3Model, AdaptedSam3Model):  # SAM3-LiteText has layers of its own classes
            hint = "Pass its `detector_model`. " if hasattr(model, "detector_model") else ""
            raise TypeError(
                f"Expected a stock Sam3Model to put instruction adapters on, found {type(model).__name__}. {hint}"
                "An adapter repository loads by itself with `Sam3IForInstructionSegmentation.from_pretrained(repo)`."
            )
        stock = cast(Sam3Model, model)
        text_config = cast(CLIPTextConfig, stock.config.text_config)
        peft_config.check_fits(text_config)
        exchange_class(stock, AdaptedSam3Model)
        adopt(stock.detr_decoder)
        adopt(stock.mask_decoder)
        self._site_names = {name for name, _ in adapter_sites(stock, peft_config)}
        if peft_config.max_instruction_length > text_config.max_position_embeddings:
            self._site_names.add(EMBEDDINGS)

    def _check_target_module_exists(  # type: ignore[override]  # whose first argument has another name
        self, peft_config: PeftConfig, key: str
    ) -> bool:
        return key in self._site_names

    def _create_and_replace(  # type: ignore[override]  # our own configuration
        self,
        peft_config: InstructionAdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        adopt(target)
        if isinstance(target, Sam3ITextEmbeddings):
            table = nn.Embedding(peft_config.max_instruction_length, target.position_embedding.embedding_dim)
            target.init_long_positions(table)
            adapter: nn.Module = table
        else:
            adapter = build_adapter(target, peft_config, self.model.config.text_config.hidden_size)
        if not hasattr(target, CONTAINER):
            setattr(target, CONTAINER, InstructionAdapterLayer(target))
        getattr(target, CONTAINER).add(adapter_name, peft_config, adapter)

    def _check_merge_allowed(self) -> None:
        raise AdapterNotMergeableError

    def _unload_and_optionally_merge(  # type: ignore[override]  # which returns the model as well
        self, merge: bool = True, **kwargs
    ) -> nn.Module:
        if merge:
            raise AdapterNotMergeableError
        restore_stock(self.model)
        del self.model.peft_config
        return self.model

    def add_weighted_adapter(self, *args, **kwargs) -> None:
        """Not possible. Raises NotImplementedError always."""
        raise NotImplementedError(
            "Instruction adapters are not linear in their weights, so a weighted sum of two follows neither: train "
            "one on both kinds of data, or switch between them with `set_adapter`."
        )

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".sam3i_adapter.{adapter_name}.", ".sam3i_adapter.", 1)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """As in every tuner; and refuse a file that is not exactly this adapter, leaving the model without it."""
        state_dict = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        part = f".{CONTAINER}.sam3i_adapter.{adapter_name}."
        expected = {name: tensor for name, tensor in model.state_dict().items() if part in name}
        try:
            AdapterMismatchError.check(state_dict, expected)
            check_weights(state_dict.items(), f"the adapter {adapter_name!r}")
        except AdapterFileError:
            discard_adapter(getattr(model, "get_base_model", lambda: model)(), adapter_name)
            raise
        return state_dict


def restore_stock(model: Any) -> None:
    """Undo everything: no container, stock's classes."""
    for module in list(model.modules()):
        if hasattr(module, CONTAINER):
            delattr(module, CONTAINER)
        if isinstance(module, AdaptedSam3Model):
            exchange_class(module, Sam3Model)
    restore(model)


def discard_adapter(model: Any, adapter_name: str) -> None:
    """Take one instruction adapter off a stock model; the last one leaves the model as stock has it."""
    for module in model.modules():
        if isinstance(module, InstructionAdapterLayer):
            module.delete_adapter(adapter_name)
    model.peft_config.pop(adapter_name, None)
    if not any(module.settings for module in model.modules() if isinstance(module, InstructionAdapterLayer)):
        restore_stock(model)
    if not model.peft_config:
        del model.peft_config
        mark_adapters_loaded(model, False)


# `peft.utils.register_peft_method` wants a member of PEFT's own enumeration, which cannot be extended.
method: Any = Sam3IPeftType.SAM3I
mapping.PEFT_TYPE_TO_CONFIG_MAPPING[method] = InstructionAdapterConfig
mapping.PEFT_TYPE_TO_TUNER_MAPPING[method] = InstructionAdapterModel
mapping.PEFT_TYPE_TO_PREFIX_MAPPING[method] = InstructionAdapterModel.prefix

# Which layers other methods adapt in a native model when the user names none. PEFT has no function to say it.
for name, targets in vars(constants).items():
    if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_TARGET_MODULES_MAPPING"):
        targets.setdefault(Sam3IConfig.model_type, ["q_proj", "v_proj"])
constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[Sam3IConfig.model_type] = ["k_proj", "v_proj", "fc2"]
constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[Sam3IConfig.model_type] = ["fc2"]
