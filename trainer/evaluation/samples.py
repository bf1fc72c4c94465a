# SPDX-License-Identifier: Apache-2.0
"""Answers and targets as samples: plain dicts of run lengths, small enough for Arrow files and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...processing.masks import encode_mask


def encode_prediction(result: Any) -> dict[str, list]:
    """An answer as the metric takes it: masks as RLE counts, a few hundred bytes each.

    Args:
        result: a row of `post_process_instruction_segmentation` or a `SegmentationResult`: masks bool [K, H, W] and
            scores [K], arrays or tensors.
    """
    get = result.get if isinstance(result, Mapping) else lambda name: getattr(result, name)
    masks, scores = _to_numpy(get("masks")), _to_numpy(get("scores"))
    return {"masks": [encode_mask(mask)["counts"] for mask in masks], "scores": [float(score) for score in scores]}


def encode_reference(
    masks: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    sample_id: str = "",
    group: str | None = None,
    level: str | None = None,
    target_kind: str | None = None,
    ignore_masks: Any = (),
    is_crowd: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """A target as the metric takes it.

    Args:
        masks: bool [N, H, W] (array or tensor), or a list of N compressed RLEs {"size", "counts"} (None entries,
            instances without a mask, are dropped).
        height, width: pixels; needed for a list of RLEs, read from the shape otherwise.
        group: what `sam3i-multi` averages within and AP takes as one image; the sample by itself when absent.
        ignore_masks: M masks in either form.
        is_crowd: N flags, for AP.

    Raises:
        ValueError: without a size, or when an RLE has another one.
    """
    if not isinstance(masks, (list, tuple)):
        masks = _to_numpy(masks)
        height, width = masks.shape[-2:]
    if height is None or width is None:
        raise ValueError("encode_reference needs height and width when masks are not one array [N, H, W].")
    crowd = [False] * len(masks) if is_crowd is None else [bool(flag) for flag in is_crowd]
    kept = [index for index, mask in enumerate(masks) if mask is not None]
    return {
        "id": sample_id,
        "group": group or "",
        "level": level or "",
        "target_kind": target_kind or "",
        "height": int(height),
        "width": int(width),
        "masks": [_counts(masks[index], height, width) for index in kept],
        "ignore_masks": [_counts(mask, height, width) for mask in ignore_masks],
        "is_crowd": [crowd[index] for index in kept],
    }


def name_samples(references: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The references with an id and a group each: their place in the sequence where they have none."""
    named = []
    for place, reference in enumerate(references):
        sample_id = reference["id"] or f"#{place}"
        named.append({**reference, "id": sample_id, "group": reference["group"] or f"#{place}"})
    return named


def _to_numpy(array: Any) -> np.ndarray:
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def _counts(mask: Any, height: int, width: int) -> str:
    if isinstance(mask, Mapping):
        if list(mask["size"]) != [height, width]:
            raise ValueError(f"A mask of size {list(mask['size'])} does not fit an image of [{height}, {width}].")
        return mask["counts"]
    return encode_mask(_to_numpy(mask))["counts"]
