# SPDX-License-Identifier: Apache-2.0
"""Checks of what the model is given, and the defaults of levels and image indices."""

from collections.abc import Sequence

import torch

from .configuration_sam3i import AUTO_LEVEL_INDEX, InstructionLevel
from .layers_sam3i import Sam3ITextEmbeddings


def _one_of(first: object, second: object, names: tuple[str, str]) -> None:
    if (first is None) == (second is None):
        found = "both" if first is not None else "neither"
        raise ValueError(f"You must specify exactly one of {names[0]} or {names[1]}, found {found}.")


def check_inputs(pixel_values, vision_embeds, input_ids, attention_mask, text_features, boxes, box_labels) -> int:
    """Check that the model's inputs are complete and fit each other.

    Returns:
        `int`: The number of instruction rows.

    Raises:
        ValueError: names what was expected, what was found and what to pass instead.
    """
    _one_of(pixel_values, vision_embeds, ("pixel_values", "vision_embeds"))
    _one_of(input_ids, text_features, ("input_ids", "text_embeds"))
    if pixel_values is not None and (pixel_values.dim() != 4 or not pixel_values.is_floating_point()):
        raise ValueError(
            "Expected `pixel_values` of shape (images, 3, height, width) in floating point, found shape "
            f"{tuple(pixel_values.shape)} in {pixel_values.dtype}. Let the processor prepare the images."
        )
    if input_ids is not None and (input_ids.dim() != 2 or input_ids.is_floating_point()):
        raise ValueError(
            "Expected `input_ids` of shape (rows, tokens) in integers, found shape "
            f"{tuple(input_ids.shape)} in {input_ids.dtype}. Let the processor prepare the instructions."
        )
    if text_features is not None and text_features.dim() != 3:
        raise ValueError(
            f"Expected `text_embeds` of shape (rows, tokens, width), found {tuple(text_features.shape)}. "
            "Pass the output of `get_text_features`."
        )
    text = input_ids if input_ids is not None else text_features
    if attention_mask is not None and attention_mask.shape != text.shape[:2]:
        raise ValueError(
            f"Expected `attention_mask` of shape {tuple(text.shape[:2])} to match the instructions, found "
            f"{tuple(attention_mask.shape)}."
        )
    if boxes is not None and (boxes.dim() != 3 or boxes.shape[-1] != 4):
        raise ValueError(f"Expected `input_boxes` of shape (rows, boxes, 4), found {tuple(boxes.shape)}.")
    if box_labels is not None and (boxes is None or box_labels.shape != boxes.shape[:2]):
        expected = "`input_boxes` as well" if boxes is None else f"shape {tuple(boxes.shape[:2])}"
        raise ValueError(f"Expected {expected} for `input_boxes_labels`, found {tuple(box_labels.shape)}.")
    return text.shape[0]


def resolve_levels(
    levels: torch.Tensor | Sequence[str | int] | None, rows: int, device: torch.device
) -> torch.LongTensor:
    """The level of every row as a tensor; rows are concepts when no level is given.

    Args:
        levels: `torch.LongTensor` of shape `(rows,)`, or level names or indices.

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
    if low == AUTO_LEVEL_INDEX:
        raise ValueError(
            "`instruction_levels` leaves rows to the model's level router (-1), and this model has none. Load the "
            "processor with auto_levels='rules', or name the levels."
        )
    if low < 0 or high >= len(InstructionLevel):
        raise ValueError(
            "Expected `instruction_levels` of 0 (concept), 1 (simple) or 2 (complex), found values from "
            f"{low} to {high}."
        )
    return levels


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
        ValueError: for more tokens than the encoder has positions.
    """
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


def row_images(
    image_ids: torch.Tensor | None, rows: int, images: int, boxes: torch.Tensor | None
) -> tuple[int, torch.LongTensor | None]:
    """The number of rows and the image of each; `None` when row i uses image i.

    One instruction for several images, or several for one image, need no `image_ids`.

    Raises:
        ValueError: when rows cannot be matched with images or boxes.
    """
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
