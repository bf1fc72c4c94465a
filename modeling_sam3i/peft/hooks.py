# SPDX-License-Identifier: Apache-2.0
"""How instruction levels reach the layers of a stock SAM3 that PEFT has adapted.

Stock's forward pass hands unknown arguments to its DETR encoder, DETR decoder and mask decoder. Hooks make one such
argument of `instruction_levels`, and see to the text encoder, which gets none. Nothing is kept between calls.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Sam3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...compat import record_outputs, text_embeddings
from ..adapter_io import CONTAINER
from ..adapters.base import has_selector
from ..adapters.calibration import ScoreCalibration
from ..adapters.router import choose_levels
from ..adapters.routing import LevelRouting
from ..configuration_sam3i import InstructionLevel
from ..inputs import features_of_rows, read_rows, row_images, text_encoder_inputs, token_embeddings
from .layers import TUNED_CLASSES, InstructionRouting, active_settings

STOCK_CLASSES: dict[type[nn.Module], type[nn.Module]] = {tuned: stock for stock, tuned in TUNED_CLASSES.items()}
HOOKS = "_sam3i_hooks"
FORWARD_ARGUMENTS = tuple(inspect.signature(Sam3Model.forward).parameters)[1:-1]
TEXT_ARGUMENTS = ("input_ids", "attention_mask", "position_ids")


def exchange(*modules: nn.Module) -> None:
    """Turn stock modules in place into those that PEFT's adapters need, unless they are already."""
    for module in modules:
        if type(module) in TUNED_CLASSES:
            module.__class__ = TUNED_CLASSES[type(module)]
            if isinstance(module, PreTrainedModel):
                record_outputs(module)


def prepare_stock(model: Sam3Model) -> None:
    """Exchange what is no adapted layer and register the hooks; doing it again changes nothing."""
    exchange(model.detr_decoder, model.mask_decoder)
    if HOOKS not in model.__dict__:
        model.__dict__[HOOKS] = [
            model.register_forward_pre_hook(route_rows, with_kwargs=True),
            model.register_forward_hook(calibrate_scores, with_kwargs=True),
            model.text_encoder.register_forward_pre_hook(route_text, with_kwargs=True),
            model.text_encoder.register_forward_hook(keep_words, with_kwargs=True),
        ]


def restore_stock(model: Sam3Model) -> None:
    """Undo everything: stock classes, no container, no hook."""
    for module in list(model.modules()):
        if hasattr(module, CONTAINER):
            delattr(module, CONTAINER)
        if type(module) in STOCK_CLASSES:
            module.__class__ = STOCK_CLASSES[type(module)]
    for handle in model.__dict__.pop(HOOKS, []):
        handle.remove()


def route_rows(model: Sam3Model, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Before the model runs: encode the text at the levels of its rows and hand the routing to the layers.

    `instruction_levels` and `image_ids` mean what they mean to [`Sam3IForInstructionSegmentation`], and images are
    encoded before rows are matched with them, as there. Stock's own forward does the rest.
    """
    inputs: dict[str, Any] = dict(zip(FORWARD_ARGUMENTS, args, strict=False)) | kwargs
    levels, image_ids = inputs.pop("instruction_levels", None), inputs.pop("image_ids", None)
    given = {name for name in FORWARD_ARGUMENTS if inputs.get(name) is not None}
    if len(given & {"pixel_values", "vision_embeds"}) != 1 or len(given & {"input_ids", "text_embeds"}) != 1:
        return (), inputs  # stock says what is wrong
    settings = active_settings(model.mask_decoder.mask_embedder)

    text, boxes, mask = inputs.get("text_embeds"), inputs.get("input_boxes"), inputs.get("attention_mask")
    words = inputs["input_ids"] if text is None else getattr(text, "pooler_output", text)
    routing, (images,) = read_rows(levels, words.shape[0], words.device, image_ids, may_be_open=text is None)
    if text is None:
        routing = route_levels(model, routing, words, mask)
        text = model.get_text_features(
            input_ids=inputs.pop("input_ids"), attention_mask=mask, level_routing=routing, return_dict=True
        )
    encoded, text = text, getattr(text, "pooler_output", text)  # (text rows, tokens, width)
    vision = inputs.get("vision_embeds")
    if vision is None:
        passed = (*FORWARD_ARGUMENTS, "return_dict")
        others = {name: value for name, value in inputs.items() if name not in passed}
        vision = model.get_vision_features(pixel_values=inputs.pop("pixel_values"), **others)
    count = vision.fpn_hidden_states[0].shape[0]
    rows, images = row_images(image_ids, images, text.shape[0], count, boxes)
    if images is not None:
        vision = features_of_rows(vision, torch.tensor(images, device=text.device))
    inputs["vision_embeds"], text = vision, text.expand(rows, -1, -1)
    inputs["text_embeds"] = BaseModelOutputWithPooling(pooler_output=text)
    if mask is not None:
        inputs["attention_mask"] = mask = mask.expand(rows, -1)
    if settings is None:
        return (), inputs
    if levels is not None:
        width = text_embeddings(model.text_encoder).token_embedding.embedding_dim
        words = token_embeddings(encoded, routing, width, has_selector(settings))
        inputs["level_routing"] = InstructionRouting(routing.expand(rows), (words.expand(rows, -1, -1), mask))
    if settings.always_encode_geometry and (boxes is None or boxes.numel() == 0):
        # A box that is only padding leaves the geometry CLS token alone.
        inputs["input_boxes"] = torch.zeros(rows, 1, 4, dtype=text.dtype, device=text.device)
        inputs["input_boxes_labels"] = torch.full((rows, 1), -10, dtype=torch.long, device=text.device)
    return (), inputs


def calibrate_scores(model: Sam3Model, args: tuple, kwargs: dict, outputs):
    """After the model ran: calibrate the classification logits as the active adapter says, but for training."""
    settings, routing = active_settings(model.mask_decoder.mask_embedder), kwargs.get("level_routing")
    if model.training or settings is None or routing is None:
        return outputs
    calibration = ScoreCalibration.of(settings)
    if isinstance(outputs, tuple):  # masks, boxes, logits, ...
        return outputs[:2] + (calibration(outputs[2], routing),) + outputs[3:]
    outputs.pred_logits = calibration(outputs.pred_logits, routing)
    return outputs


def route_levels(
    model: Sam3Model, routing: LevelRouting, input_ids: torch.Tensor, mask: torch.Tensor | None
) -> LevelRouting:
    """The routing after the active adapter's router has chosen the levels that were left to it."""
    container = getattr(model.text_encoder, CONTAINER, None)
    router = None if container is None else container.active()

    def states() -> torch.Tensor:
        with torch.no_grad():
            concept = LevelRouting(torch.zeros_like(routing.levels), InstructionLevel.CONCEPT.index)
            encoded = model.text_encoder(input_ids=input_ids, attention_mask=mask, level_routing=concept)
            return encoded.last_hidden_state

    return choose_levels(routing, router, states, mask)[0]


def route_text(text_encoder: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Before the text encoder runs: turn `instruction_levels` into routing, and see to padding and positions."""
    inputs = dict(zip(TEXT_ARGUMENTS, args, strict=False)) | kwargs
    levels = inputs.pop("instruction_levels", None)
    settings = active_settings(text_encoder.text_model.encoder.layers[0])
    if settings is None:
        inputs.pop("level_routing", None)
        return (), inputs
    input_ids = inputs["input_ids"]
    inputs |= text_encoder_inputs(text_encoder, settings, input_ids, inputs.get("attention_mask"))
    if levels is not None:
        inputs["level_routing"], _ = read_rows(levels, input_ids.shape[0], input_ids.device)
    return (), inputs


def keep_words(text_encoder: Any, args: tuple, kwargs: dict, outputs):
    """After the text encoder ran: lay the token embeddings beside its output, for the selector."""
    input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
    if hasattr(outputs, "last_hidden_state"):
        outputs.word_embeds = text_embeddings(text_encoder).token_embedding(input_ids)
    return outputs
