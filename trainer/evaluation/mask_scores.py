# SPDX-License-Identifier: Apache-2.0
"""Answers and targets as run lengths, and their overlap: merged and instance by instance, never expanded to pixels.

A prediction is {"masks": list of RLE counts, "scores": list of float, "failed": bool}, a reference what
`encode_reference` makes; both are plain dicts, small enough for Arrow files and JSON. A pair of them is one sample.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from ...processing.masks import encode_mask, rle_fault

SMALL_AREA, LARGE_AREA = 32**2, 96**2  # pixels, the limits of COCO
SIZES = ("none", "small", "medium", "large")
SAME_INSTANCE = 0.5  # IoU from which a predicted instance is a true one
_COUNTED = ("intersection", "union", "predicted_area", "target_area", "found", "matched", "instances")
IGNORED_SHARE = 0.5  # of a predicted instance in ignored regions or crowds, from which it counts on neither side


def encode_prediction(result: Any) -> dict[str, Any]:
    """An answer as the metric takes it: masks as RLE counts, a few hundred bytes each.

    It is what the pipeline returns for one instruction (a list of {"score", "mask"}), or masks bool [K, H, W] and
    scores [K], arrays or tensors, of a row of `post_process_instruction_segmentation` or a `SegmentationResult` (an
    `error` makes it a failure). A prediction made here stays as it is.

    Raises:
        TypeError: when it is none of these.
    """
    if isinstance(result, (list, tuple)):
        masks = [np.asarray(instance["mask"]) > 0 for instance in result]
        scores = [float(instance["score"]) for instance in result]
        return {"masks": [encode_mask(mask)["counts"] for mask in masks], "scores": scores, "failed": False}
    values = result if isinstance(result, Mapping) else vars(result) if hasattr(result, "__dict__") else {}
    if "masks" not in values or "scores" not in values:
        raise TypeError(f"Expected masks and scores, or the pipeline's list for one text, found {result!r:.80}.")
    masks, failed = values["masks"], bool(values.get("failed") or values.get("error"))
    if isinstance(masks, list) and all(isinstance(mask, str) for mask in masks):
        return {"masks": masks, "scores": list(values["scores"]), "failed": failed}
    return {
        "masks": [encode_mask(mask)["counts"] for mask in _to_numpy(masks)],
        "scores": [float(score) for score in _to_numpy(values["scores"])],
        "failed": failed,
    }


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
        masks: bool [N, H, W] (array or tensor), or a list of N compressed RLEs {"size", "counts"}, which needs height
            and width (None entries, instances without a mask, are dropped); `ignore_masks` likewise.
        group: what `sam3i-multi` averages within and AP takes as one image; the sample by itself when absent.
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


def number_references(references: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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
    """Columns over S samples: one sample is one answer against one target; pixels are int [S], ignored ones removed.

    Of instances, crowds are none, and neither is what lies in them or in ignored pixels.
    """

    intersection: np.ndarray  # pixels of the merged prediction and the merged target
    union: np.ndarray
    predicted_area: np.ndarray
    target_area: np.ndarray
    found: np.ndarray  # int [S], predicted instances,
    matched: np.ndarray  # those of them that are a true one (one to one, IoU at least .5),
    instances: np.ndarray  # and true ones
    no_target: np.ndarray  # bool [S], the target has no pixel at all
    predictions: list[Mapping[str, Any]]  # the samples themselves
    references: list[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.references)

    @property
    def groups(self) -> list[str]:
        """What some protocols average within first."""
        return [reference["group"] for reference in self.references]

    @property
    def levels(self) -> np.ndarray:
        """The level of each sample, object [S]."""
        return np.array([reference["level"] for reference in self.references], dtype=object)

    @property
    def kinds(self) -> np.ndarray:
        """The kind of target of each sample, object [S]."""
        return np.array([reference["target_kind"] for reference in self.references], dtype=object)

    @property
    def failed(self) -> np.ndarray:
        """Where the system gave no usable answer, bool [S]."""
        return np.array([bool(prediction.get("failed")) for prediction in self.predictions], dtype=bool)

    @property
    def sizes(self) -> np.ndarray:
        """Size of each target by COCO's limits (32 x 32 and 96 x 96 pixels), "none" without a target; object [S]."""
        return np.array(SIZES, dtype=object)[np.digitize(self.target_area, [1, SMALL_AREA, LARGE_AREA])]

    def iou(self, empty: float) -> np.ndarray:
        """Intersection over union, float [S]; `empty` where neither side has a pixel, and 0 for every failure."""
        iou = np.where(self.union > 0, self.intersection / np.maximum(self.union, 1), empty)
        return np.where(self.failed, 0.0, iou)

    @property
    def exact(self) -> np.ndarray:
        """Whether exactly the true instances were found, none missing and none extra: bool [S]."""
        return (self.found == self.instances) & (self.matched == self.instances) & ~self.failed

    def take(self, keep: np.ndarray) -> MaskScores:
        """The samples where `keep` (bool [S]) is true."""
        places = np.flatnonzero(keep)
        columns: dict[str, Any] = {}
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


class InstanceMatches(NamedTuple):
    """K predicted instances by falling score, and the number of true ones."""

    scores: np.ndarray  # float [K]
    correct: np.ndarray  # bool [K]
    counted: np.ndarray  # bool [K], whether it counts at all
    instances: int


def match_instances(prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> InstanceMatches:
    """Gives each predicted instance, the highest score first, the free true one of highest IoU, from .5."""
    height, width = reference["height"], reference["width"]
    order = np.argsort(-np.asarray(prediction["scores"], dtype=np.float64), kind="stable")
    rles = [(index, _rle(prediction["masks"][index], height, width)) for index in order]
    found = [(index, rle) for index, rle in rles if _area(rle)]
    targets = [_rle(counts, height, width) for counts in reference["masks"]]
    flags = list(zip(targets, reference["is_crowd"], strict=True))
    true = [rle for rle, crowd in flags if _area(rle) and not crowd]
    regions = [rle for rle, crowd in flags if _area(rle) and crowd]
    regions += [rle for counts in reference["ignore_masks"] if _area(rle := _rle(counts, height, width))]
    masks = [rle for _, rle in found]
    correct, counted = np.zeros(len(found), dtype=bool), np.ones(len(found), dtype=bool)
    if masks and true:
        overlaps = np.array(coco_mask.iou(masks, true, [0] * len(true)))
        for place, row in enumerate(overlaps):
            best = int(row.argmax())
            if row[best] >= SAME_INSTANCE:
                correct[place], overlaps[:, best] = True, -1.0
    if masks and regions:  # with the crowd flag the intersection is divided by the predicted area
        inside = np.array(coco_mask.iou(masks, regions, [1] * len(regions))).max(1)
        counted &= correct | (inside < IGNORED_SHARE)
    scores = np.array([prediction["scores"][index] for index, _ in found], dtype=np.float64)
    return InstanceMatches(scores, correct, counted, len(true))


def score_masks(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], *, check: bool = True
) -> MaskScores:
    """Scores S predictions against S references (the layout of `InstructionSegmentationMetric`'s features).

    All instances of a prediction are merged by OR, and so are those of a target. Pixels of `ignore_masks` count on
    neither side. `check` may only be off where the samples were checked before (`check_sample`). Raises ValueError: a
    sample that cannot be scored.
    """
    return sweep_masks(predictions, references, (None,), check=check)[0]


def sweep_masks(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    thresholds: Sequence[float | None],
    *,
    check: bool = True,
) -> list[MaskScores]:
    """The scores of the instances above each threshold (None keeps all); see `score_masks`."""
    if len(predictions) != len(references):
        raise ValueError(f"Expected one reference per prediction, found {len(references)} for {len(predictions)}.")
    pixels = np.zeros((len(thresholds), len(_COUNTED), len(references)), dtype=np.int64)
    whole = list(references)
    no_target = np.zeros(len(references), dtype=bool)
    kept: list[list[Mapping[str, Any]]] = [[] for _ in thresholds]
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if check:
            check_sample(prediction, reference)
        no_target[index] = not _area(_union(reference["masks"], reference["height"], reference["width"]))
        matches, known = match_instances(prediction, reference), {}
        for place, threshold in enumerate(thresholds):
            above = [i for i, score in enumerate(prediction["scores"]) if threshold is None or score > threshold]
            if len(above) not in known:
                part = {**prediction, "masks": [prediction["masks"][i] for i in above]}
                part["scores"] = [prediction["scores"][i] for i in above]
                high = np.ones(len(matches.scores), dtype=bool) if threshold is None else matches.scores > threshold
                counts = (high & matches.counted).sum(), (high & matches.correct).sum(), matches.instances
                known[len(above)] = part, (*_pixels(part, reference), *counts)
            part, pixels[place, :, index] = known[len(above)]
            kept[place].append(part)
    return [
        MaskScores(**dict(zip(_COUNTED, rows, strict=True)), no_target=no_target, predictions=found, references=whole)
        for rows, found in zip(pixels, kept, strict=True)
    ]


def _pixels(prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Intersection, union, predicted and true area of the merged masks, ignored pixels removed."""
    height, width = reference["height"], reference["width"]
    predicted = _union(prediction["masks"], height, width)
    target = _union(reference["masks"], height, width)
    common = _common(predicted, target)
    areas = [_area(common), _area(predicted), _area(target)]
    ignored = _union(reference["ignore_masks"], height, width)
    if ignored is not None:
        ignored_areas = [_area(_common(rle, ignored)) for rle in (common, predicted, target)]
        areas = [area - lost for area, lost in zip(areas, ignored_areas, strict=True)]
    return areas[0], areas[1] + areas[2] - areas[0], areas[1], areas[2]


def average_precision(scores: MaskScores, *, merged: bool) -> dict[str, Any]:
    """COCO average precision of masks by pycocotools: AP over IoU .50:.05:.95, AP50, and the curve at IoU .50.

    Args:
        merged: True makes one detection of each prediction (instances merged by OR, the highest score) and lets the
            samples of a group share an image; False keeps the instances, each sample being an image of its own.

    Returns:
        {"AP", "AP50"} in [0, 1] (None without a single true instance) and "recall", "precision", float [101].
    """
    images: dict[Any, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
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
                annotations.append(_coco_entry(annotations, image["id"], rle, iscrowd=int(crowd)))
        for rle, score in found:
            if merged or _area(rle):
                detections.append(_coco_entry(detections, image["id"], rle, iscrowd=0, score=float(score)))
    if not annotations:
        return {"AP": None, "AP50": None, "recall": None, "precision": None}
    return _coco_precision(list(images.values()), annotations, detections)


def _coco_entry(others: list[Any], image_id: int, rle: Any, **more: Any) -> dict[str, Any]:
    box = [float(side) for side in coco_mask.toBbox(rle)]
    entry = {"id": len(others) + 1, "image_id": image_id, "category_id": 1, "segmentation": rle}
    return entry | {"area": _area(rle), "bbox": box, **more}


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
