# SPDX-License-Identifier: Apache-2.0
"""From the model's raw outputs to instances in pixels of the original image: the one way, used by everything.

Masks are resized as logits and then thresholded, as Meta's SAM3 and SAM3-I's authors do (stock Transformers takes the
sigmoid first, which rounds off corners and thin parts). Scores and boxes are stock's to the last bit. The device is
waited for three times at most, however many rows there are.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from ..modeling_sam3i.configuration_sam3i import InstructionLevel
from .results import InstructionResult, as_segments

MAX_OVERLAP = 0.8
"""IoU of two masks above which people are shown one instance; two things that overlap less are two things."""
_CHUNK_VALUES = 2**24  # mask values resized at once (64 MiB in float32), whatever the number and size of the masks


def check_probability(name: str, value: Any) -> float:
    """Return a threshold as a float if it is one.

    Raises:
        TypeError: when `value` is not a number.
        ValueError: when it is outside [0, 1].
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"Expected `{name}` as a number in [0, 1], found {type(value).__name__}: {value!r}.")
    if not 0 <= value <= 1:
        raise ValueError(f"Expected `{name}` in [0, 1], found {value}.")
    return float(value)


def _is_length(value: Any) -> bool:
    is_number = isinstance(value, int | float | np.integer | np.floating)
    return is_number and math.isfinite(value) and bool(value > 0) and bool(value == int(value))


def row_target_sizes(
    target_sizes: Any, image_ids: Sequence[int] | torch.Tensor | None, rows: int
) -> list[tuple[int, int]] | None:
    """The size of every row's masks from sizes per image, per row, or one for all.

    Raises:
        TypeError, ValueError: for other shapes or counts, or sizes that are not positive integers.
    """
    if target_sizes is None:
        return None
    if torch.is_tensor(target_sizes) or isinstance(target_sizes, np.ndarray):
        target_sizes = target_sizes.tolist()
    if not isinstance(target_sizes, Sequence) or isinstance(target_sizes, str):
        raise TypeError(f"Expected `target_sizes` as a list of (height, width), found {type(target_sizes).__name__}.")
    sizes = []
    for size in target_sizes:
        size = size.tolist() if torch.is_tensor(size) or isinstance(size, np.ndarray) else size
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


def resize_masks(mask_logits: torch.Tensor, size: tuple[int, int] | None, mask_threshold: float) -> torch.Tensor:
    """Resize mask logits bilinearly, then threshold.

    Args:
        mask_logits (`torch.Tensor` of shape `(K, h, w)`): Mask logits.
        size (`tuple[int, int]`, *optional*): Height and width of the result; unchanged if `None`.
        mask_threshold (`float`): Probability above which a pixel belongs to the mask.

    Returns:
        `torch.BoolTensor` of shape `(K, height, width)`.
    """
    lowest = math.log(mask_threshold / (1 - mask_threshold)) if 0 < mask_threshold < 1 else math.inf
    lowest = -math.inf if mask_threshold == 0 else lowest
    if size is None:
        return mask_logits.float() > lowest
    masks = mask_logits.new_empty(len(mask_logits), *size, dtype=torch.bool)
    step = max(1, _CHUNK_VALUES // (size[0] * size[1]))
    for start in range(0, len(mask_logits), step):
        logits = mask_logits[start : start + step].float()  # (chunk, h, w)
        resized = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        torch.gt(resized, lowest, out=masks[start : start + step])
    return masks


def segment_rows(
    outputs: Any,
    threshold: float,
    mask_threshold: float,
    sizes: list[tuple[int, int]] | None,
    max_overlap: float | None = None,
) -> list[InstructionResult]:
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
    if len(logits) == 0:
        return []
    # A tensor, or a list with the instances of each row, which is padded with what no threshold passes.
    padded = logits if torch.is_tensor(logits) else pad_sequence(list(logits), True, -math.inf)  # (rows, queries)
    scores = padded.float().sigmoid()
    presence = getattr(outputs, "presence_logits", None)
    if presence is not None:
        scores = scores * presence.float().sigmoid()
    order = scores.argsort(dim=1, descending=True, stable=True)
    scores = scores.gather(1, order)
    rows = _read_rows(scores, threshold, getattr(outputs, "instruction_levels", None))
    kept = [order[row, : read.found] for row, read in enumerate(rows)]  # (K,) each
    low_res = [masks[row][index] for row, index in enumerate(kept)]  # (K, h, w) each
    chosen = [list(range(read.found)) for read in rows]
    if max_overlap is not None:
        chosen = _without_duplicates(low_res, mask_threshold, max_overlap)
    scale = None
    if sizes is not None:
        scale = scores.new_tensor([[width, height, width, height] for height, width in sizes])  # (rows, 4)
    results = []
    for row, read in enumerate(rows):
        is_whole = len(chosen[row]) == read.found
        place: Any = slice(None) if is_whole else torch.tensor(chosen[row], device=scores.device)
        row_boxes = boxes[row][kept[row]].float()  # (K, 4)
        row_scores = scores[row, : read.found][place]
        row_masks = resize_masks(low_res[row][place], None if sizes is None else sizes[row], mask_threshold)
        results.append(
            InstructionResult(
                scores=row_scores,
                boxes=(row_boxes if scale is None else row_boxes * scale[row])[place],
                masks=row_masks,
                labels=torch.zeros_like(row_scores, dtype=torch.long),
                level=InstructionLevel.from_any(read.level).value,
                **as_segments(row_masks, [read.scores[index] for index in chosen[row]]),
                best_score=read.scores[0] if read.scores else 0.0,
                is_in_pixels=sizes is not None,
            )
        )
    return results


class _Row(NamedTuple):
    """What the host knows of a row: how many of its sorted scores pass, its level, and the scores."""

    found: int
    level: int
    scores: list[float]


def _read_rows(scores: torch.Tensor, threshold: float, levels: torch.Tensor | None) -> list[_Row]:
    """Read sorted scores `(rows, queries)` in one wait."""
    counts = (scores > threshold).sum(1)
    levels = torch.zeros_like(counts) if levels is None else levels.to(counts.device)
    values = torch.cat([torch.stack([counts, levels], 1).to(scores.dtype), scores], 1).tolist()
    if any(math.isnan(row[2]) for row in values if len(row) > 2):  # descending order puts NaN first
        raise ValueError("The outputs hold NaN scores: the weights or the inputs are broken.")
    return [_Row(int(count), int(level), found) for count, level, *found in values]


def _without_duplicates(masks: list[torch.Tensor], mask_threshold: float, max_overlap: float) -> list[list[int]]:
    """The instances of each row that no better one covers again: greedy by score, by IoU of the masks `(K, h, w)`.

    Pixels are counted at the resolution of the model (exact in float32); all rows are read at once.
    """
    overlaps = []
    for row in masks:
        pixels = resize_masks(row, None, mask_threshold).flatten(1).float()  # (K, h * w)
        shared = pixels @ pixels.T  # (K, K)
        area = shared.diagonal()
        union = (area[:, None] + area - shared).clamp(min=1)
        overlaps.append((shared / union > max_overlap).flatten())
    flat, chosen = torch.cat(overlaps).cpu().numpy(), []
    for row in masks:
        overlap, flat = flat[: len(row) ** 2].reshape(len(row), len(row)), flat[len(row) ** 2 :]
        kept: list[int] = []
        for index in range(len(row)):
            if not overlap[index, kept].any():
                kept.append(index)
        chosen.append(kept)
    return chosen
