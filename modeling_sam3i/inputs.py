# SPDX-License-Identifier: Apache-2.0
"""Checks of what the model is given, and the defaults of levels and image indices."""

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from transformers.utils import TransformersKwargs

from ..compat import Sam3VisionEncoderOutput
from .adapters.sites import Sam3ITextEmbeddings
from .configuration_sam3i import AUTO_LEVEL_INDEX, InstructionLevel, Sam3IConfig

PADDING_LABEL = -10
BOX_TOLERANCE = 0.01
"""By which a box may leave the image: exemplars are drawn by hand, and half precision rounds."""

INPUT_NAMES = (
    "pixel_values",
    "vision_embeds",
    "input_ids",
    "attention_mask",
    "text_embeds",
    "input_boxes",
    "input_boxes_labels",
    "instruction_levels",
    "image_ids",
    "labels",
)
OPTIONS = frozenset(TransformersKwargs.__annotations__) | {"return_dict", "use_cache"}
"""What Transformers' callers pass to every model."""


def _one_of(first: object, second: object, names: tuple[str, str]) -> None:
    if (first is None) == (second is None):
        found = "both" if first is not None else "neither"
        raise ValueError(f"You must specify exactly one of {names[0]} or {names[1]}, found {found}.")


def _tensor(name: str, value: object) -> None:
    if value is not None and not torch.is_tensor(value):
        raise TypeError(f"Expected `{name}` as a tensor, found {type(value).__name__}. Let the processor prepare it.")


def check_token_ids(input_ids: torch.Tensor) -> None:
    """Check the form of token ids, `(rows, tokens)` in integers.

    Raises:
        TypeError, ValueError: for anything else.
    """
    _tensor("input_ids", input_ids)
    if input_ids.dim() != 2 or input_ids.is_floating_point() or not input_ids.numel():
        raise ValueError(
            "Expected `input_ids` of shape (rows, tokens) in integers, found shape "
            f"{tuple(input_ids.shape)} in {input_ids.dtype}. Let the processor prepare the instructions."
        )


def check_inputs(
    config: Sam3IConfig,
    pixel_values,
    vision_embeds,
    input_ids,
    attention_mask,
    text_features,
    boxes,
    box_labels,
    options: dict,
) -> int:
    """Check that the model's inputs are complete and fit each other.

    Args:
        config: Of the model.
        options (`dict`): The arguments that the model passes on to its layers.

    Returns:
        `int`: The number of instruction rows.

    Raises:
        TypeError: for inputs that are no tensors, and unknown arguments.
        ValueError: names what was expected, what was found and what to pass instead.
    """
    unknown = sorted(options.keys() - OPTIONS)
    if unknown:
        near = [match for name in unknown for match in get_close_matches(name, INPUT_NAMES, n=1)]
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise TypeError(f"Unexpected arguments: {', '.join(unknown)}.{hint}")
    _one_of(pixel_values, vision_embeds, ("pixel_values", "vision_embeds"))
    _one_of(input_ids, text_features, ("input_ids", "text_embeds"))
    _tensor("pixel_values", pixel_values)
    if pixel_values is not None:
        _check_pixels(config, pixel_values)
    elif not hasattr(vision_embeds, "fpn_hidden_states"):
        raise TypeError(
            f"Expected `vision_embeds` as the output of `get_vision_features`, found {type(vision_embeds).__name__}."
        )
    if input_ids is not None:
        check_token_ids(input_ids)
    _tensor("text_embeds", text_features)
    width = config.detr_encoder_config.hidden_size
    if text_features is not None and (text_features.dim() != 3 or text_features.shape[-1] != width):
        raise ValueError(
            f"Expected `text_embeds` of shape (rows, tokens, {width}), found {tuple(text_features.shape)}. "
            "Pass the output of `get_text_features`."
        )
    text = input_ids if input_ids is not None else text_features
    _tensor("attention_mask", attention_mask)
    if attention_mask is not None and attention_mask.shape != text.shape[:2]:
        raise ValueError(
            f"Expected `attention_mask` of shape {tuple(text.shape[:2])} to match the instructions, found "
            f"{tuple(attention_mask.shape)}."
        )
    _check_boxes(boxes, box_labels)
    return text.shape[0]


def token_embeddings(text_embeds, levels: torch.LongTensor, width: int, needed: bool) -> torch.Tensor:
    """The token embeddings `(rows, tokens, width)` that come with encoded instructions.

    Args:
        text_embeds: The output of `get_text_features`, or its `pooler_output` alone.
        levels (`torch.LongTensor` of shape `(rows,)`): Level of each row.
        width (`int`): Of token embeddings.
        needed (`bool`): Whether the model has a selector, which reads them at the simple and the complex level.

    Raises:
        ValueError: when they are needed and missing.
    """
    words = getattr(text_embeds, "word_embeds", None)
    if words is not None:
        return words
    features = getattr(text_embeds, "pooler_output", text_embeds)
    if needed and bool((levels > 0).any()):
        raise ValueError(
            "Expected `text_embeds` with `word_embeds`, which the selector of simple and complex instructions reads, "
            f"found {type(text_embeds).__name__} without. Pass the whole output of `get_text_features`."
        )
    return features.new_zeros(*features.shape[:2], width)


def _check_pixels(config: Sam3IConfig, pixel_values: torch.Tensor) -> None:
    vision = config.vision_config.backbone_config
    sides = vision.image_size if isinstance(vision.image_size, list | tuple) else [vision.image_size] * 2
    shape = tuple(pixel_values.shape)
    fits = len(shape) == 4 and shape[0] > 0 and shape[1] == vision.num_channels and pixel_values.is_floating_point()
    if not fits or any(
        found // vision.patch_size != side // vision.patch_size for found, side in zip(shape[2:], sides, strict=True)
    ):
        raise ValueError(
            f"Expected `pixel_values` of shape (images, {vision.num_channels}, {sides[0]}, {sides[1]}) in floating "
            f"point, found shape {shape} in {pixel_values.dtype}. Let the processor prepare the images."
        )


def _check_boxes(boxes: torch.Tensor | None, labels: torch.Tensor | None) -> None:
    _tensor("input_boxes", boxes)
    _tensor("input_boxes_labels", labels)
    if boxes is not None and (boxes.dim() != 3 or boxes.shape[-1] != 4 or not boxes.is_floating_point()):
        raise ValueError(
            f"Expected `input_boxes` of shape (rows, boxes, 4) in floating point, found {tuple(boxes.shape)} in "
            f"{boxes.dtype}."
        )
    if labels is not None and (boxes is None or labels.shape != boxes.shape[:2]):
        expected = "`input_boxes` as well" if boxes is None else f"shape {tuple(boxes.shape[:2])}"
        raise ValueError(f"Expected {expected} for `input_boxes_labels`, found {tuple(labels.shape)}.")
    if boxes is None or not boxes.numel():
        return
    used = boxes
    if labels is not None:
        if not bool(((labels == 0) | (labels == 1) | (labels == PADDING_LABEL)).all()):
            raise ValueError(
                "Expected `input_boxes_labels` of 1 (like this), 0 (not like this) or -10 (padding), found "
                f"{sorted(set(labels.flatten().tolist()))}."
            )
        used = boxes[labels != PADDING_LABEL]
    if not bool(((used >= -BOX_TOLERANCE) & (used <= 1 + BOX_TOLERANCE)).all()):
        raise ValueError(
            "Expected `input_boxes` (cx, cy, w, h) as fractions of the image, in [0, 1], found values from "
            f"{float(used.min())} to {float(used.max())}. Let the processor prepare boxes in pixels."
        )


def resolve_levels(
    levels: torch.Tensor | Sequence[str | int] | None, rows: int, device: torch.device, may_be_open: bool = False
) -> torch.LongTensor:
    """The level of every row as a tensor; rows are concepts when no level is given.

    Args:
        levels: `torch.LongTensor` of shape `(rows,)`, or level names or indices.
        may_be_open (`bool`): Whether -1 may leave the choice to the model's level router.

    Raises:
        ValueError: for another number of levels than rows, or an unknown level.
    """
    if levels is None:
        return torch.zeros(rows, dtype=torch.long, device=device)
    if isinstance(levels, str | int):
        raise ValueError(f"Expected `instruction_levels` with one level per row ({rows}), found {levels!r}.")
    if not torch.is_tensor(levels):
        levels = torch.tensor([InstructionLevel.from_any(level).index for level in levels])
    if levels.shape != (rows,) or levels.is_floating_point() or levels.dtype == torch.bool:
        raise ValueError(
            f"Expected `instruction_levels` as integers of shape ({rows},), one level per instruction, found shape "
            f"{tuple(levels.shape)} in {levels.dtype}."
        )
    levels = levels.to(device=device, dtype=torch.long)
    low, high = (int(bound) for bound in torch.aminmax(levels)) if rows else (0, 0)
    if low == AUTO_LEVEL_INDEX and not may_be_open:
        raise ValueError(
            "`instruction_levels` leaves rows to the level router (-1), which only a call with `input_ids` of the "
            "whole model asks. Text that is encoded beforehand has a level: `predict_levels` tells the router's."
        )
    if low < (AUTO_LEVEL_INDEX if may_be_open else 0) or high >= len(InstructionLevel):
        raise ValueError(
            "Expected `instruction_levels` of 0 (concept), 1 (simple) or 2 (complex), found values from "
            f"{low} to {high}."
        )
    return levels


def check_chunk_size(row_chunk_size: int | None) -> None:
    """Check a number of rows to run at once.

    Raises:
        ValueError: when it is given and no integer of at least 1.
    """
    if row_chunk_size is None:
        return
    if isinstance(row_chunk_size, bool) or not isinstance(row_chunk_size, int) or row_chunk_size < 1:
        raise ValueError(f"Expected `row_chunk_size` of at least 1, or None to choose it, found {row_chunk_size!r}.")


def text_encoder_inputs(
    embeddings: Sam3ITextEmbeddings, settings, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None
) -> dict[str, torch.Tensor | None]:
    """What the text encoder is given beside the tokens: masks and, for long instructions, positions.

    Args:
        embeddings: Where the encoder reads its positions.
        settings: `max_instruction_length` and `mask_padding_in_adapters`, of the model's or the adapter's
            configuration.
        input_ids (`torch.LongTensor` of shape `(rows, tokens)`): Token ids.
        attention_mask (`torch.Tensor` of shape `(rows, tokens)`, *optional*): 1 for tokens, 0 for padding.

    Raises:
        TypeError, ValueError: for ids that are none of the encoder's, or more than it has positions.
    """
    check_token_ids(input_ids)
    vocabulary = len(embeddings.token_embedding.weight)  # PEFT may have wrapped it to train single tokens
    if int(input_ids.min()) < 0 or int(input_ids.max()) >= vocabulary:
        raise ValueError(
            f"Expected `input_ids` from 0 to {vocabulary - 1}, found {int(input_ids.min())} to "
            f"{int(input_ids.max())}. The tokenizer is of another model."
        )
    stock_length, tokens = embeddings.position_embedding.num_embeddings, input_ids.shape[1]
    limit = max(stock_length, settings.max_instruction_length)
    if tokens > limit:
        raise ValueError(
            f"Expected instructions of at most {limit} tokens, found {tokens}. Let the processor truncate them, "
            "or load the model with a larger `max_instruction_length`."
        )
    inputs = {"attention_mask": attention_mask, "adapter_padding_mask": None}
    if tokens > stock_length:
        lengths = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).sum(dim=1)
        inputs["position_ids"] = embeddings.positions_for(lengths, tokens)
    if not settings.mask_padding_in_adapters:
        # The adapters see the padding, so its states must be the ones they were trained on: causal mask only.
        inputs["attention_mask"] = None
    elif attention_mask is not None:
        inputs["adapter_padding_mask"] = attention_mask.bool()
    return inputs


def features_of_rows(vision: Sam3VisionEncoderOutput, image_ids: torch.LongTensor) -> Sam3VisionEncoderOutput:
    """Image features with one copy for every row, as stock expects them.

    Args:
        vision ([`Sam3VisionEncoderOutput`]): Features of `I` images.
        image_ids (`torch.LongTensor` of shape `(R,)`): The image of each row.
    """
    return Sam3VisionEncoderOutput(
        fpn_hidden_states=tuple(states[image_ids] for states in vision.fpn_hidden_states),
        fpn_position_encoding=tuple(states[image_ids] for states in vision.fpn_position_encoding),
        hidden_states=vision.hidden_states,
        attentions=vision.attentions,
    )


def row_images(
    image_ids: torch.Tensor | None, rows: int, images: int, boxes: torch.Tensor | None
) -> tuple[int, torch.LongTensor | None]:
    """The number of rows and the image of each; `None` when row i uses image i.

    One instruction for several images, or several for one image, need no `image_ids`.

    Raises:
        ValueError: when rows cannot be matched with images or boxes.
    """
    _tensor("image_ids", image_ids)
    if image_ids is not None:
        if image_ids.shape != (rows,) or image_ids.is_floating_point():
            raise ValueError(
                f"Expected `image_ids` as integers of shape ({rows},), one image per instruction, found shape "
                f"{tuple(image_ids.shape)} in {image_ids.dtype}."
            )
        if rows and not (0 <= int(image_ids.min()) and int(image_ids.max()) < images):
            raise ValueError(
                f"Expected `image_ids` from 0 to {images - 1} for {images} images, found values from "
                f"{int(image_ids.min())} to {int(image_ids.max())}."
            )
        if rows == images and bool((image_ids == torch.arange(rows, device=image_ids.device)).all()):
            image_ids = None
    elif rows != images:
        if rows == 1:
            rows = images
        elif images == 1:
            image_ids = torch.zeros(rows, dtype=torch.long)
        else:
            raise ValueError(
                f"Found {rows} instructions for {images} images. Pass `image_ids` with the image of each instruction "
                "(the processor returns it for nested texts)."
            )
    if boxes is not None and boxes.shape[0] != rows:
        raise ValueError(f"Expected `input_boxes` for each of {rows} rows, found {boxes.shape[0]}.")
    return rows, image_ids
