# SPDX-License-Identifier: Apache-2.0
"""Per-sample overlap of predicted and true masks, computed on run lengths; masks are never expanded to pixels."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...processing.masks import rle_fault

SMALL_AREA, LARGE_AREA = 32**2, 96**2  # pixels, the limits of COCO
SIZES = ("none", "small", "medium", "large")


def _rle(counts: str, height: int, width: int) -> dict[str, Any] | None:
    """The run lengths as pycocotools takes them; None for an empty string, which stands for an empty mask."""
    return {"size": [height, width], "counts": counts.encode("ascii")} if counts else None


def _empty(height: int, width: int) -> dict[str, Any]:
    return coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)


def _union(masks: Sequence[str], height: int, width: int) -> dict[str, Any] | None:
    rles = [rle for counts in masks if (rle := _rle(counts, height, width)) is not None]
    return coco_mask.merge(rles) if rles else None


def _area(rle: dict[str, Any] | None) -> int:
    return 0 if rle is None else int(coco_mask.area(rle))


def _common(*rles: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if any(rle is None for rle in rles) else coco_mask.merge(list(rles), intersect=True)


@dataclass
class MaskScores:
    """Columns over S samples: one sample is one answer against one target.

    Attributes:
        ids, groups, levels, kinds: S strings; a group is what some protocols average within first.
        intersection, union: int [S], pixels of the merged prediction and the merged target, ignored pixels removed.
        predicted_area, target_area: int [S], pixels, ignored pixels removed.
        no_target: bool [S], the target has no pixel at all.
        predictions, references: the S samples themselves, for what needs single instances.
    """

    ids: list[str]
    groups: list[str]
    levels: list[str]
    kinds: list[str]
    intersection: np.ndarray
    union: np.ndarray
    predicted_area: np.ndarray
    target_area: np.ndarray
    no_target: np.ndarray
    predictions: list[Mapping[str, Any]]
    references: list[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sizes(self) -> list[str]:
        """Size of each target by COCO's limits (32 x 32 and 96 x 96 pixels), "none" without a target."""
        places = np.digitize(self.target_area, [1, SMALL_AREA, LARGE_AREA])
        return [SIZES[place] for place in places]

    def iou(self, empty: float) -> np.ndarray:
        """Intersection over union, float [S]; `empty` where neither side has a pixel."""
        return np.where(self.union > 0, self.intersection / np.maximum(self.union, 1), empty)

    def take(self, keep: np.ndarray) -> MaskScores:
        """The samples where `keep` (bool [S]) is true."""
        places = np.flatnonzero(keep)
        columns = {}
        for name, column in vars(self).items():
            columns[name] = column[places] if isinstance(column, np.ndarray) else [column[i] for i in places]
        return MaskScores(**columns)


def check_sample(prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Refuses what the C library would trust: scores that do not fit the masks, run lengths that do not fit the image.

    Raises:
        ValueError: names the sample, the field, what was found and what was expected.
    """
    height, width, name = reference["height"], reference["width"], reference["id"]
    if len(prediction["masks"]) != len(prediction["scores"]):
        raise ValueError(
            f"Sample {name!r}: expected one score per mask, found {len(prediction['masks'])} masks and "
            f"{len(prediction['scores'])} scores."
        )
    columns = {
        "predictions.masks": prediction["masks"],
        "references.masks": reference["masks"],
        "references.ignore_masks": reference["ignore_masks"],
    }
    for field, masks in columns.items():
        for index, counts in enumerate(masks):
            fault = rle_fault({"size": [height, width], "counts": counts}, height, width)
            if fault:
                raise ValueError(
                    f"Sample {name!r}, {field}[{index}]: {fault}; expected the compressed RLE counts of a mask of "
                    f"[height, width] = [{height}, {width}]."
                )


def score_masks(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], *, check: bool = True
) -> MaskScores:
    """Scores S predictions against S references (the layout of `InstructionSegmentationMetric`'s features).

    All instances of a prediction are merged by OR, and so are those of a target. Pixels of `ignore_masks` count on
    neither side.

    Args:
        check: whether the masks are checked first (`check_sample`); leave it on unless they were checked before.

    Raises:
        ValueError: a sample that cannot be scored.
    """
    if len(predictions) != len(references):
        raise ValueError(f"Expected one reference per prediction, found {len(references)} for {len(predictions)}.")
    pixels = np.zeros((4, len(references)), dtype=np.int64)
    no_target = np.zeros(len(references), dtype=bool)
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if check:
            check_sample(prediction, reference)
        height, width = reference["height"], reference["width"]
        predicted = _union(prediction["masks"], height, width)
        target = _union(reference["masks"], height, width)
        common = _common(predicted, target)
        areas = [_area(common), _area(predicted), _area(target)]
        no_target[index] = areas[2] == 0
        ignored = _union(reference["ignore_masks"], height, width)
        if ignored is not None:
            ignored_areas = [_area(_common(rle, ignored)) for rle in (common, predicted, target)]
            areas = [area - lost for area, lost in zip(areas, ignored_areas, strict=True)]
        pixels[:, index] = areas[0], areas[1] + areas[2] - areas[0], areas[1], areas[2]
    return MaskScores(
        ids=[reference["id"] for reference in references],
        groups=[reference["group"] for reference in references],
        levels=[reference["level"] for reference in references],
        kinds=[reference["target_kind"] for reference in references],
        intersection=pixels[0],
        union=pixels[1],
        predicted_area=pixels[2],
        target_area=pixels[3],
        no_target=no_target,
        predictions=list(predictions),
        references=list(references),
    )


def average_precision(scores: MaskScores, *, merged: bool) -> dict[str, Any]:
    """COCO average precision of masks by pycocotools: AP over IoU .50:.05:.95, AP50, and the curve at IoU .50.

    Args:
        merged: True makes one detection of each prediction (instances merged by OR, the highest score) and lets the
            samples of a group share an image; False keeps the instances, each sample being an image of its own.

    Returns:
        {"AP", "AP50"} in [0, 1] (None without a single true instance) and "recall", "precision", float [101].
    """
    images, annotations, detections = {}, [], []
    for index, (prediction, reference) in enumerate(zip(scores.predictions, scores.references, strict=True)):
        height, width = reference["height"], reference["width"]
        key = reference["group"] if merged else index
        image = images.setdefault(key, {"id": len(images) + 1, "height": height, "width": width})
        # merged: an empty mask stays in, as in the authors' script; instances: it is no instance
        targets = [_rle(counts, height, width) for counts in reference["masks"]]
        found = [(_rle(c, height, width), s) for c, s in zip(prediction["masks"], prediction["scores"], strict=True)]
        if merged:
            targets = [rle or _empty(height, width) for rle in targets]
            if found:
                union = _union(prediction["masks"], height, width) or _empty(height, width)
                found = [(union, max(prediction["scores"]))]
        for rle, crowd in zip(targets, reference["is_crowd"], strict=True):
            if merged or _area(rle):
                annotations.append(_coco_entry(len(annotations) + 1, image["id"], rle) | {"iscrowd": int(crowd)})
        for rle, score in found:
            if merged or _area(rle):
                detections.append(_coco_entry(len(detections) + 1, image["id"], rle) | {"score": float(score)})
    if not annotations:
        return {"AP": None, "AP50": None, "recall": None, "precision": None}
    return _coco_precision(list(images.values()), annotations, detections)


def _coco_entry(number: int, image_id: int, rle: dict[str, Any]) -> dict[str, Any]:
    box = [float(side) for side in coco_mask.toBbox(rle)]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "segmentation": rle,
        "area": _area(rle),
        "bbox": box,
        "iscrowd": 0,
    }


def _coco_precision(images: list, annotations: list, detections: list) -> dict[str, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def indexed(entries: list) -> COCO:
        coco = COCO()
        coco.dataset = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "object"}]}
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
        evaluation = COCOeval(indexed(annotations), indexed(detections), "segm")
        # one area range and one detection limit instead of four and three: the other figures are not reported
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, 0]  # [10 IoU thresholds, 101 recalls]
    if (precision < 0).all():  # only crowds
        return {"AP": None, "AP50": None, "recall": None, "precision": None}
    return {
        "AP": float(precision[precision > -1].mean()),
        "AP50": float(precision[0][precision[0] > -1].mean()),
        "recall": evaluation.params.recThrs,
        "precision": precision[0],
    }
