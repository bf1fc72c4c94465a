# SPDX-License-Identifier: Apache-2.0
"""How instructions, levels and boxes are laid out in rows: one row is one instruction on one image."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..modeling_sam3i.configuration_sam3i import AUTO_LEVEL_INDEX, InstructionLevel
from .levels import classify_level, warn_of_language
from .results import CORNERS

AUTO = "auto"
VISUAL_PROMPT = "visual"  # the text stock SAM3 pairs with boxes when no text is given

_BOX_TOLERANCE = 1.0  # pixels by which a box may leave the image: detectors round outwards


def read_texts(text: Any, num_images: int | None, num_boxes: int | None) -> tuple[list[str | None], list[int] | None]:
    """Lay the instructions out in rows.

    Args:
        text: `str`, `list[str]` or `list[list[str]]`; `None` stands for an instruction given by boxes alone.
        num_images (`int`, *optional*): Number of images, when known.
        num_boxes (`int`, *optional*): Length of `input_boxes`, when given.

    Returns:
        The `R` texts and, when the images of the rows are known, the number of rows of each image.

    Raises:
        TypeError, ValueError: for other types or nesting, empty lists or texts, or counts that do not fit the images.
    """
    texts: list[str | None]
    counts: list[int] | None
    if text is None:
        text = [None] * (num_boxes or 0)
    if isinstance(text, str):
        texts, counts = [text] * (num_images or 1), None if num_images is None else [1] * num_images
    elif not isinstance(text, list | tuple):
        raise TypeError(f"Expected `text` as str, list[str] or list[list[str]], found {type(text).__name__}.")
    elif len(text) == 0:
        raise ValueError("Expected at least one instruction in `text`, found an empty list.")
    elif all(isinstance(item, list | tuple) for item in text):
        texts, counts = [item for row in text for item in row], [len(row) for row in text]
        if 0 in counts:
            raise ValueError(
                f"Expected at least one instruction for each image, found none for image {counts.index(0)}."
            )
        if num_images is not None and num_images != len(counts):
            raise ValueError(
                f"Expected one list of instructions for each of {num_images} images, found {len(counts)} lists."
            )
    else:
        texts, counts = list(text), None
        if num_images is not None:
            if num_images not in (1, len(texts)):
                raise ValueError(
                    f"Expected one instruction for each of {num_images} images, found {len(texts)}. For several per "
                    'image nest them: [["a", "b"], ["c"]].'
                )
            counts = [len(texts)] if num_images == 1 else [1] * num_images
    for index, item in enumerate(texts):
        if isinstance(item, str) and not item.strip():
            raise ValueError(f"Instruction {index} is empty: name what to segment.")
        if item is None and num_boxes is None:
            raise ValueError(f"Instruction {index} is None, which needs `input_boxes` in its place.")
        if item is not None and not isinstance(item, str):
            raise TypeError(
                f"Expected `text` as str, list[str] or list[list[str]] of one depth, found {type(item).__name__} as "
                f"instruction {index}."
            )
        if isinstance(item, str) and any(0xD800 <= ord(character) <= 0xDFFF for character in item):
            raise ValueError(f"Instruction {index} is no valid Unicode text: {item!r}.")
    return texts, counts


def read_levels(levels: Any, texts: Sequence[str | None], counts: list[int] | None, auto_levels: str) -> list[int]:
    """The level index of every row; -1 where the model's router shall choose.

    Args:
        levels: `None` or `"auto"`, one level for all rows, or a list with one level per row, flat or nested like the
            texts; a level is an [`InstructionLevel`], its name, its index, or `"auto"`.
        texts: The `R` instructions.
        counts: Rows of each image, when known.
        auto_levels (`str`): `"rules"` or `"router"`: who resolves `"auto"`.

    Raises:
        TypeError, ValueError: for unknown levels, or a list that does not fit the texts.
    """
    if torch.is_tensor(levels) or isinstance(levels, np.ndarray):
        levels = levels.tolist()
    if not isinstance(levels, list | tuple):
        levels = [levels] * len(texts)
    elif len(levels) and all(isinstance(item, list | tuple) for item in levels):
        found = [len(item) for item in levels]
        if counts is None or found != counts:
            raise ValueError(
                f"Expected `instruction_levels` nested like `text` ({counts or [len(texts)]} instructions per image), "
                f"found {found}."
            )
        levels = [level for item in levels for level in item]
    if len(levels) != len(texts):
        raise ValueError(f"Expected one level for each of {len(texts)} instructions, found {len(levels)}.")
    indices = []
    for level, text in zip(levels, texts, strict=True):
        automatic = level is None or level == AUTO_LEVEL_INDEX or (isinstance(level, str) and level.lower() == AUTO)
        if not automatic:
            if not isinstance(level, str | int):
                raise TypeError(f"Expected a level as str, int or InstructionLevel, found {type(level).__name__}.")
            indices.append(InstructionLevel.from_any(level).index)
        elif text is None:
            indices.append(InstructionLevel.CONCEPT.index)
        elif auto_levels == "router":
            warn_of_language(text)
            indices.append(AUTO_LEVEL_INDEX)
        else:
            indices.append(classify_level(text).index)
    return indices


def to_lists(value: Any) -> Any:
    """Nested lists of numbers from tensors, arrays, tuples and boxes as the pipeline returns them."""
    if torch.is_tensor(value) or isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict) and set(CORNERS) <= value.keys():
        value = [value[name] for name in CORNERS]
    if isinstance(value, list | tuple):
        return [to_lists(item) for item in value]
    return value


def _depth(value: Any) -> int:
    if not isinstance(value, list):
        return 0
    return 1 + max((_depth(item) for item in value), default=0)


def _by_row(value: Any, name: str, form: str, rows: int, counts: list[int] | None, depth: int) -> list:
    """Bring a list per row, per image or nested like the texts to one entry per row."""
    value = to_lists(value)
    found = _depth(value)
    if found == depth + 1:
        nested = [len(item) if isinstance(item, list) else None for item in value]
        if counts is None or nested != counts:
            raise ValueError(f"Expected `{name}` nested like `text` ({counts} rows per image), found {nested}.")
        return [item for image in value for item in image]
    if found != depth and not (isinstance(value, list) and all(item in (None, []) for item in value)):
        raise ValueError(f"Expected `{name}` nested as {form}, found {found} levels of lists instead of {depth}.")
    if len(value) == rows:
        return value
    if counts is not None and len(value) == len(counts):
        return [item for item, count in zip(value, counts, strict=True) for _ in range(count)]
    raise ValueError(f"Expected `{name}` for each of {rows} instructions, found {len(value)}.")


def read_boxes(
    boxes: Any, labels: Any, counts: list[int] | None, row_sizes: list[tuple[int, int]], pad_value: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Box exemplars of every row, normalized and padded.

    Args:
        boxes: (x1, y1, x2, y2) in pixels of the original image, nested `[row, box, 4]`, `[image, box, 4]` (the same
            for all rows of an image) or `[image, row, box, 4]`; `None` or `[]` for a row without boxes. A box of four
            `pad_value` is padding.
        labels: 1 (like this) or 0 (not like this) for each box, nested likewise; all 1 if `None`.
        counts: Rows of each image, when known.
        row_sizes (`list[tuple[int, int]]`): Height and width of the image of each row, in pixels.
        pad_value (`int`): Fills rows with fewer boxes than others.

    Returns:
        `(boxes, labels)`: `(R, N, 4)` (cx, cy, w, h) in [0, 1] and `(R, N)`.

    Raises:
        ValueError: for other nesting, and for boxes that are empty, not finite, or outside the image.
    """
    rows = len(row_sizes)
    boxes = _by_row(boxes, "input_boxes", "[instruction, box, 4]", rows, counts, depth=3)
    boxes = [row or [] for row in boxes]
    if labels is None:
        labels = [[1] * len(row) for row in boxes]
    else:
        labels = _by_row(labels, "input_boxes_labels", "[instruction, box]", rows, counts, depth=2)
        labels = [row or [] for row in labels]
        if [len(row) for row in labels] != [len(row) for row in boxes]:
            raise ValueError(
                f"Expected a label for each box ({[len(row) for row in boxes]} per instruction), found "
                f"{[len(row) for row in labels]}."
            )
    width = max(1, max(len(row) for row in boxes))
    box_tensor = torch.tensor([pad_value, pad_value, 0, 0], dtype=torch.float32).repeat(rows, width, 1)  # as stock
    label_tensor = torch.full((rows, width), pad_value, dtype=torch.int64)
    for row, (row_boxes, row_labels, (height, image_width)) in enumerate(zip(boxes, labels, row_sizes, strict=True)):
        for index, (box, label) in enumerate(zip(row_boxes, row_labels, strict=True)):
            where = f"Box {index} of instruction {row}"
            if not isinstance(box, list) or len(box) != 4:
                raise ValueError(f"{where}: expected (x1, y1, x2, y2), found {box!r}.")
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
                raise ValueError(f"{where}: expected four finite numbers, found {box}.")
            if all(value == pad_value for value in box):
                continue
            if label not in (0, 1):
                raise ValueError(f"{where}: expected label 1 (like this) or 0 (not like this), found {label!r}.")
            x1, y1, x2, y2 = box
            if x1 >= x2 or y1 >= y2:
                raise ValueError(f"{where}: expected x1 < x2 and y1 < y2, found {box}.")
            if min(x1, y1) < -_BOX_TOLERANCE or x2 > image_width + _BOX_TOLERANCE or y2 > height + _BOX_TOLERANCE:
                raise ValueError(
                    f"{where} leaves its image of {image_width}x{height} pixels: {box}. Give pixels of the original "
                    "image and clip the box to it."
                )
            corners = torch.tensor(box, dtype=torch.float32)
            corners = corners / torch.tensor([image_width, height, image_width, height], dtype=torch.float32)
            low, high = corners.clamp(0, 1).split(2)
            box_tensor[row, index] = torch.cat([(low + high) / 2, high - low])
            label_tensor[row, index] = int(label)
    return box_tensor, label_tensor
