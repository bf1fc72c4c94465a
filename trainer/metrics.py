# SPDX-License-Identifier: Apache-2.0
"""The figures of instruction segmentation as an `evaluate.Metric`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from ..processing.datasets.masks import encode_mask
from .mask_scores import score_masks
from .protocols import PROTOCOLS, get_protocol

_DESCRIPTION = """\
Scores answers to segmentation instructions: gIoU, cIoU, P@0.5 ... P@0.9, AP and AP50 (pycocotools), N-acc and T-acc,
over everything and per level, kind of target and size of target, in percent. The protocol decides what a sample is and
how empty answers count; `config_name` chooses it.
"""
_INPUTS = """
        predictions: one per sample, {"masks": list[str], compressed RLE counts, "scores": list[float]}, an entry per
            instance. Make them with `encode_prediction`.
        references: one per sample, {"id", "group": str, "level", "target_kind": str ("" where unknown), "height",
            "width": int, "masks", "ignore_masks": list[str] of RLE counts, "is_crowd": bool per mask}.
            Make them with `encode_reference`.
        protocol (`str`, *optional*): overrides the protocol of `config_name`.
        breakdown (`bool`, defaults to True): add "per_level", "per_kind" and "per_size".
"""


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


class InstructionSegmentationMetric(evaluate.Metric):
    """gIoU, cIoU, P@t, AP, N-acc and T-acc under a named protocol; works with add, add_batch and across processes.

    Everything goes through Arrow files as run lengths, so memory does not grow with the pixels. With `num_process`
    and `process_id` every process adds its own share and process 0 computes (the others get None); `experiment_id`
    keeps runs on one file system apart. Nothing is downloaded.

    Args:
        config_name (`str`, defaults to `"default"`): the protocol, see `trainer.protocols.PROTOCOLS`.

    Raises:
        ValueError: for an unknown protocol.

    Example:

        metric = InstructionSegmentationMetric("grefcoco")
        metric.add(prediction=encode_prediction(result), reference=encode_reference(masks, level="simple"))
        metric.compute()["gIoU"]
    """

    def __init__(self, config_name: str | None = None, **kwargs):
        self.protocol = get_protocol(config_name or "default")
        super().__init__(config_name=config_name, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text, texts = datasets.Value("string"), datasets.List(datasets.Value("string"))
        number = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="SAM3-I (arXiv 2512.04585)",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": {"masks": texts, "scores": datasets.List(datasets.Value("float64"))},
                    "references": {
                        "id": text,
                        "group": text,
                        "level": text,
                        "target_kind": text,
                        "height": number,
                        "width": number,
                        "masks": texts,
                        "ignore_masks": texts,
                        "is_crowd": datasets.List(datasets.Value("bool")),
                    },
                }
            ),
        )

    def _compute(
        self,
        *,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        protocol: str | None = None,
        breakdown: bool = True,
    ) -> dict[str, Any]:
        chosen = get_protocol(protocol) if protocol else self.protocol
        scores = score_masks(predictions, name_samples(references))
        figures: dict[str, Any] = chosen.compute(scores)
        if breakdown:
            figures |= {f"per_{name}": parts for name, parts in chosen.compute_breakdown(scores).items()}
        return figures


def _to_numpy(array: Any) -> np.ndarray:
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def _counts(mask: Any, height: int, width: int) -> str:
    if isinstance(mask, Mapping):
        if list(mask["size"]) != [height, width]:
            raise ValueError(f"A mask of size {list(mask['size'])} does not fit an image of [{height}, {width}].")
        return mask["counts"]
    return encode_mask(_to_numpy(mask))["counts"]


__all__ = ["PROTOCOLS", "InstructionSegmentationMetric", "encode_prediction", "encode_reference", "name_samples"]
