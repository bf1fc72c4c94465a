# SPDX-License-Identifier: Apache-2.0
"""From the model's raw outputs to instances in pixels of the original image."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..modeling_sam3i.configuration_sam3i import InstructionLevel
from .mask_resizing import resize_and_binarize


def check_probability(name: str, value: Any) -> float:
    """Return a threshold if it is one.

    Raises:
        TypeError: when `value` is not a number.
        ValueError: when it is outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Expected `{name}` as a number in [0, 1], found {type(value).__name__}: {value!r}.")
    if not 0 <= value <= 1:
        raise ValueError(f"Expected `{name}` in [0, 1], found {value}.")
    return float(value)


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float | np.integer) and math.isfinite(value) and value > 0 and value == int(value)


def row_target_sizes(
    target_sizes: Any, image_ids: Sequence[int] | torch.Tensor | None, rows: int
) -> list[tuple[int, int]] | None:
    """The size of every row's masks from sizes per image, per row, or one for all.

    Raises:
        TypeError, ValueError: for other shapes or counts, or sizes that are not positive integers.
    """
    if target_sizes is None:
        return None
    if torch.is_tensor(target_sizes):
        target_sizes = target_sizes.tolist()
    if not isinstance(target_sizes, Sequence) or isinstance(target_sizes, str):
        raise TypeError(f"Expected `target_sizes` as a list of (height, width), found {type(target_sizes).__name__}.")
    sizes = []
    for size in target_sizes:
        size = size.tolist() if torch.is_tensor(size) else size
        if not isinstance(size, Sequence) or len(size) != 2 or not all(_is_length(n) for n in size):
            raise ValueError(f"Expected `target_sizes` as a list of (height, width) in pixels, found entry {size!r}.")
        sizes.append((int(size[0]), int(size[1])))
    if image_ids is not None:
        images = image_ids.tolist() if torch.is_tensor(image_ids) else list(image_ids)
        if len(images) != rows:
            raise ValueError(f"Expected `image_ids` for each of {rows} instructions, found {len(images)}.")
        if len(sizes) == max(images, default=-1) + 1:
            return [sizes[image] for image in images]
    if len(sizes) == rows:
        return sizes
    if len(sizes) == 1:
        return sizes * rows
    raise ValueError(
        f"Expected `target_sizes` for each of {rows} instructions, or for each image together with `image_ids`, found "
        f"{len(sizes)}."
    )


def segment_rows(
    outputs: Any, threshold: float, mask_threshold: float, sizes: list[tuple[int, int]] | None
) -> list[dict[str, Any]]:
    """Keep, sort and resize the instances of every row; see `Sam3IProcessor.post_process_instruction_segmentation`."""
    masks, boxes, logits = outputs.pred_masks, outputs.pred_boxes, outputs.pred_logits
    if masks is None or boxes is None or logits is None:
        raise ValueError("The outputs hold no masks (the model was called with `labels`); call it without them.")
    lowest = getattr(outputs, "threshold", None)
    if lowest is not None and threshold < lowest:
        raise ValueError(
            f"Expected a `threshold` of at least {lowest}, with which the model segmented, found {threshold}. "
            "Segment with a lower one."
        )
    presence = getattr(outputs, "presence_logits", None)
    levels = getattr(outputs, "instruction_levels", None)
    results = []
    # A tensor, or a list with the instances of each row; a tensor at once, as in stock, to the last bit.
    by_row = logits.float().sigmoid() if torch.is_tensor(logits) else [row.float().sigmoid() for row in logits]
    for row, scores in enumerate(by_row):  # (queries,)
        if presence is not None:
            scores = scores * presence[row].float().sigmoid()
        if scores.isnan().any():
            raise ValueError("The outputs hold NaN scores: the weights or the inputs are broken.")
        order = scores.argsort(descending=True, stable=True)
        kept = order[scores[order] > threshold]  # (K,)
        size = None if sizes is None else sizes[row]
        row_boxes = boxes[row][kept].float()  # (K, 4)
        if size is not None:
            row_boxes = row_boxes * row_boxes.new_tensor([size[1], size[0], size[1], size[0]])
        level = InstructionLevel.CONCEPT if levels is None else InstructionLevel.from_any(int(levels[row]))
        results.append(
            {
                "scores": scores[kept],
                "boxes": row_boxes,
                "masks": resize_and_binarize(masks[row][kept], size, mask_threshold),
                "level": level.value,
            }
        )
    return results
