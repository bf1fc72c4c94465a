# SPDX-License-Identifier: Apache-2.0
"""What the model is given: names, forms, and the one place that reads values from an accelerator.

The processor checks values. Here forms are checked, and values only where the tensors lie on the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import torch
from transformers.utils import TransformersKwargs

from ..compat import CLIPTextEmbeddings, text_embeddings
from .adapters.routing import LevelRouting
from .configuration_sam3i import AUTO_LEVEL_INDEX, AdapterSettings, InstructionLevel, Sam3IConfig

PADDING_LABEL = -10
BOX_TOLERANCE = 0.1
"""By which a box may leave the image: exemplars are drawn by hand, and the processor allows a pixel of the image."""

OPTIONS = frozenset(TransformersKwargs.__annotations__) | {"return_dict", "use_cache"}
"""What Transformers' callers pass to every model."""
PASSED_OVER = ("original_sizes", "concept_names", "image_keys", "concept_input_ids", "concept_attention_mask")
"""What the processor returns for post-processing, and the collator for `Sam3ITrainer`; the model reads none of it."""


@dataclass
class ModelInputs:
    """The arguments of a call, as they are given; their meanings are those of the model's forward pass."""

    pixel_values: Any = None
    vision_embeds: Any = None
    input_ids: Any = None
    attention_mask: Any = None
    text_embeds: Any = None
    input_boxes: Any = None
    input_boxes_labels: Any = None
    instruction_levels: Any = None
    image_ids: Any = None
    row_chunk_size: Any = None

    @classmethod
    def take_from(cls, arguments: dict[str, Any], row_chunk_size: int | None) -> "ModelInputs":
        """Take them out of keyword arguments, and drop what the model passes over."""
        for name in PASSED_OVER:
            arguments.pop(name, None)
        names = [item.name for item in fields(cls) if item.name != "row_chunk_size"]
        return cls(**{name: arguments.pop(name, None) for name in names}, row_chunk_size=row_chunk_size)

    @property
    def text_features(self) -> Any:
        """Encoded instructions `(rows, tokens, width)`, where they are given."""
        return getattr(self.text_embeds, "pooler_output", self.text_embeds)

    def check(self, config: Sam3IConfig, options: dict[str, Any]) -> int:
        """Check that they are complete and fit each other.

        Returns:
            `int`: The number of instruction rows.

        Raises:
            TypeError: for inputs that are no tensors, and unknown arguments.
            ValueError: names what was expected, what was found and what to pass instead.
        """
        unknown = sorted(options.keys() - OPTIONS)
        if unknown:
            names = [item.name for item in fields(self)] + ["labels"]
            near = [match for name in unknown for match in get_close_matches(name, names, n=1)]
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise TypeError(f"Unexpected arguments: {', '.join(unknown)}.{hint}")
        for name in ("pixel_values", "input_ids", "attention_mask", "input_boxes", "input_boxes_labels", "image_ids"):
            _check_tensor(name, getattr(self, name))
        text_features = self.text_features
        _check_tensor("text_embeds", text_features)
        _check_one_of("pixel_values", self.pixel_values, "vision_embeds", self.vision_embeds)
        _check_one_of("input_ids", self.input_ids, "text_embeds", text_features)
        size = self.row_chunk_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"Expected `row_chunk_size` of at least 1, or None to choose it, found {size!r}.")
        if self.pixel_values is not None:
            _check_pixels(config, self.pixel_values)
        elif not hasattr(self.vision_embeds, "fpn_hidden_states"):
            found = type(self.vision_embeds).__name__
            raise TypeError(f"Expected `vision_embeds` as the output of `get_vision_features`, found {found}.")
        if self.input_ids is not None:
            check_token_ids(self.input_ids)
        width = config.detr_encoder_config.hidden_size
        if text_features is not None and (text_features.dim() != 3 or text_features.shape[-1] != width):
            raise ValueError(
                f"Expected `text_embeds` of shape (rows, tokens, {width}), found {tuple(text_features.shape)}. "
                "Pass the output of `get_text_features`."
            )
        text = self.input_ids if self.input_ids is not None else text_features
        if self.attention_mask is not None and self.attention_mask.shape != text.shape[:2]:
            raise ValueError(
                f"Expected `attention_mask` of shape {tuple(text.shape[:2])} to match the instructions, found "
                f"{tuple(self.attention_mask.shape)}."
            )
        _check_boxes(self.input_boxes, self.input_boxes_labels)
        return text.shape[0]

    def used_columns(self) -> torch.Tensor | None:
        """How many columns of the token ids hold more than padding; a tensor `(1,)`."""
        if self.input_ids is None or self.attention_mask is None:
            return None
        columns = torch.arange(1, self.attention_mask.shape[1] + 1, device=self.attention_mask.device)
        return (columns * self.attention_mask.any(dim=0)).amax(0, keepdim=True).clamp(min=1)


def _check_tensor(name: str, value: object) -> None:
    if value is not None and not torch.is_tensor(value):
        raise TypeError(f"Expected `{name}` as a tensor, found {type(value).__name__}. Let the processor prepare it.")


def _check_one_of(first_name: str, first: object, second_name: str, second: object) -> None:
    if (first is None) == (second is None):
        found = "both" if first is not None else "neither"
        raise ValueError(f"You must specify exactly one of {first_name} or {second_name}, found {found}.")


def _is_readable(tensor: torch.Tensor) -> bool:
    """Whether looking at values costs nothing: no accelerator to wait for, no graph being traced."""
    return tensor.device.type == "cpu" and tensor.numel() > 0 and not torch.compiler.is_compiling()


def check_token_ids(input_ids: torch.Tensor) -> None:
    """Check the form of token ids, `(rows, tokens)` in integers. Raises ValueError for another form."""
    if input_ids.dim() != 2 or input_ids.is_floating_point() or not input_ids.numel():
        raise ValueError(
            "Expected `input_ids` of shape (rows, tokens) in integers, found shape "
            f"{tuple(input_ids.shape)} in {input_ids.dtype}. Let the processor prepare the instructions."
        )


def _check_pixels(config: Sam3IConfig, pixel_values: torch.Tensor) -> None:
    vision: Any = config.vision_config.backbone_config
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
    if boxes is not None and (boxes.dim() != 3 or boxes.shape[-1] != 4 or not boxes.is_floating_point()):
        raise ValueError(
            f"Expected `input_boxes` of shape (rows, boxes, 4) in floating point, found {tuple(boxes.shape)} in "
            f"{boxes.dtype}."
        )
    if labels is not None and (boxes is None or labels.shape != boxes.shape[:2]):
        expected = "`input_boxes` as well" if boxes is None else f"shape {tuple(boxes.shape[:2])}"
        raise ValueError(f"Expected {expected} for `input_boxes_labels`, found {tuple(labels.shape)}.")
    if labels is not None and _is_readable(labels):
        unknown = [label for label in labels.unique().tolist() if label not in (PADDING_LABEL, 0, 1)]
        if unknown:
            raise ValueError(
                f"Expected `input_boxes_labels` of 1 (like this), 0 (not like this) or -10 (padding), found {unknown}."
            )
    if boxes is not None and _is_readable(boxes):
        wrong = ~((boxes >= -BOX_TOLERANCE) & (boxes <= 1 + BOX_TOLERANCE)).all(-1)  # NaN is wrong too
        if labels is not None and labels.device == boxes.device:
            wrong &= labels != PADDING_LABEL
        if bool(wrong.any()):
            raise ValueError(
                "Expected `input_boxes` (cx, cy, w, h) as fractions of the image, in [0, 1], found "
                f"{boxes[wrong][0].tolist()}. Let the processor prepare boxes in pixels."
            )


def to_host(*tensors: torch.Tensor | None) -> list[list[int] | None]:
    """Integer tensors `(n,)` as Python integers, in one copy from an accelerator; `None` stays `None`."""
    given = {i: tensor for i, tensor in enumerate(tensors) if tensor is not None}
    result: list[list[int] | None] = [None] * len(tensors)
    away = {i: tensor for i, tensor in given.items() if tensor.device.type != "cpu"}
    for i, tensor in given.items() - away.items():
        result[i] = tensor.tolist()
    if away:
        device = next(iter(away.values())).device
        values = torch.cat([tensor.to(device=device, dtype=torch.long) for tensor in away.values()]).tolist()
        for i, tensor in away.items():
            result[i], values = values[: len(tensor)], values[len(tensor) :]
    return result


def read_rows(
    levels: torch.Tensor | Sequence[str | int] | None,
    rows: int,
    device: torch.device,
    *others: torch.Tensor | None,
    may_be_open: bool = False,
) -> tuple[LevelRouting, list[list[int] | None]]:
    """The routing of rows by their levels, and the values of other integer tensors of the call, read together.

    Args:
        levels: `torch.LongTensor` of shape `(rows,)`, or level names or indices; concepts if not given.
        may_be_open (`bool`): Whether -1 may leave the choice to the model's level router.

    Raises:
        ValueError: for another number of levels than rows, or an unknown level.
    """
    if levels is None or isinstance(levels, InstructionLevel):
        index = (levels or InstructionLevel.CONCEPT).index
        routing = LevelRouting(torch.full((rows,), index, dtype=torch.long, device=device), index)
        return routing, to_host(*others)
    if isinstance(levels, str | int):
        raise ValueError(f"Expected `instruction_levels` with one level per row ({rows}), found {levels!r}.")
    if not torch.is_tensor(levels):
        levels = torch.tensor([InstructionLevel.from_any(level).index for level in levels])
    if levels.shape != (rows,) or levels.is_floating_point() or levels.dtype == torch.bool:
        raise ValueError(
            f"Expected `instruction_levels` as integers of shape ({rows},), one level per instruction, found shape "
            f"{tuple(levels.shape)} in {levels.dtype}."
        )
    on_host, *rest = to_host(levels, *others)
    assert on_host is not None
    routing = LevelRouting(levels.to(device=device, dtype=torch.long), on_host)
    if routing.has_open_rows and not may_be_open:
        raise ValueError(
            "`instruction_levels` leaves rows to the level router (-1), which only a call with `input_ids` of the "
            "whole model asks. Text that is encoded beforehand has a level: `predict_levels` tells the router's."
        )
    if any(not AUTO_LEVEL_INDEX <= level < len(InstructionLevel) for level in on_host):
        raise ValueError(
            "Expected `instruction_levels` of 0 (concept), 1 (simple) or 2 (complex), found values from "
            f"{min(on_host)} to {max(on_host)}."
        )
    return routing, rest


def row_images(
    given: torch.Tensor | None, on_host: list[int] | None, rows: int, images: int, boxes: torch.Tensor | None
) -> tuple[int, list[int] | None]:
    """The number of rows and the image of each; `None` when row i uses image i.

    One instruction for several images, or several for one image, need no `image_ids`. Raises ValueError when rows
    cannot be matched with images or boxes.
    """
    if given is not None and on_host is not None:
        if given.shape != (rows,) or given.is_floating_point():
            raise ValueError(
                f"Expected `image_ids` as integers of shape ({rows},), one image per instruction, found shape "
                f"{tuple(given.shape)} in {given.dtype}."
            )
        if any(not 0 <= image < images for image in on_host):
            raise ValueError(
                f"Expected `image_ids` from 0 to {images - 1} for {images} images, found values from "
                f"{min(on_host)} to {max(on_host)}."
            )
        if on_host == list(range(images)):
            on_host = None
    elif rows != images:
        if rows == 1:
            rows = images
        elif images == 1:
            on_host = [0] * rows
        else:
            raise ValueError(
                f"Found {rows} instructions for {images} images. Pass `image_ids` with the image of each instruction "
                "(the processor returns it for nested texts)."
            )
    if boxes is not None and boxes.shape[0] != rows:
        raise ValueError(f"Expected `input_boxes` for each of {rows} rows, found {boxes.shape[0]}.")
    return rows, on_host


def text_encoder_inputs(
    text_encoder: Any, settings: AdapterSettings, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> dict[str, torch.Tensor | None]:
    """What the text encoder is given beside the tokens: masks and, for long instructions, positions.

    Raises:
        ValueError: for ids that are none of the encoder's, or more than it has positions.
    """
    check_token_ids(input_ids)
    vocabulary = text_encoder.config.vocab_size
    if _is_readable(input_ids) and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < vocabulary:
        raise ValueError(
            f"Expected `input_ids` from 0 to {vocabulary - 1}, found {int(input_ids.min())} to "
            f"{int(input_ids.max())}. The tokenizer is of another model."
        )
    stock_length, tokens = text_encoder.config.max_position_embeddings, input_ids.shape[1]
    limit = max(stock_length, settings.max_instruction_length)
    if tokens > limit:
        raise ValueError(
            f"Expected instructions of at most {limit} tokens, found {tokens}. Let the processor truncate them, "
            "or load the model with a larger `max_instruction_length`."
        )
    inputs = {"attention_mask": attention_mask, "adapter_padding_mask": None}
    embeddings = text_embeddings(text_encoder)
    extends = isinstance(embeddings, CLIPTextEmbeddings)
    if extends and tokens > stock_length:
        lengths = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).sum(dim=1)
        inputs["position_ids"] = embeddings.positions_for(lengths, tokens)
    if extends and not settings.mask_padding_in_adapters:
        # The adapters see the padding, so its states must be the ones they were trained on: causal mask only.
        inputs["attention_mask"] = None
    elif attention_mask is not None:
        inputs["adapter_padding_mask"] = attention_mask.bool()
    return inputs


def token_embeddings(text_embeds: Any, routing: LevelRouting | None, width: int, needed: bool) -> torch.Tensor:
    """The token embeddings `(rows, tokens, width)` that come with encoded instructions.

    Args:
        text_embeds: The output of `get_text_features`, or its `pooler_output` alone.
        needed (`bool`): Whether the model has a selector, which reads them at the simple and the complex level.

    Raises:
        ValueError: when they are needed and missing.
    """
    words = getattr(text_embeds, "word_embeds", None)
    if words is not None:
        return words
    features = getattr(text_embeds, "pooler_output", text_embeds)
    if needed and routing is not None and routing.has_instructions:
        raise ValueError(
            "Expected `text_embeds` with `word_embeds`, which the selector of simple and complex instructions reads, "
            f"found {type(text_embeds).__name__} without. Pass the whole output of `get_text_features`."
        )
    return features.new_zeros(*features.shape[:2], width)
