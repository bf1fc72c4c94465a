# SPDX-License-Identifier: Apache-2.0
"""Prediction records beside the annotations they answer: one pair per sample of a protocol."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from transformers.utils import logging

from ...processing.datasets.faults import RecordFault
from ..evaluation.protocols import Protocol
from .files import AnnotationFile, AnnotationRecord, PredictionFileError, PredictionRecord

logger = logging.get_logger(__name__)


def pair_files(
    protocol: Protocol, predictions: list[PredictionRecord], annotations: AnnotationFile, file: str = "predictions"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predictions and references as `InstructionSegmentationMetric` takes them, one pair per sample of the protocol.

    Instances ("instance" protocols) pair by annotation_id. Otherwise the target of an image record is all its
    annotations, and the answer is each prediction record by itself where the protocol averages within image records,
    or all of them together. Records of unknown annotations or images are left out with a warning.

    Raises:
        PredictionFileError: a mask of another size than its image, an annotation_id of another image.
    """
    _check_against(predictions, annotations, file)
    pairs = []
    if protocol.unit == "instance":
        answers = {record.annotation_id: record for record in predictions}
        unknown = [record for record in predictions if record.annotation_id not in annotations.annotations]
        for number, annotation in annotations.annotations.items():
            if not annotation.ignored:
                pairs.append(
                    _pair(str(number), annotation.image_id, [annotation], _list(answers.get(number)), annotations)
                )
    else:
        grouped, targets = defaultdict(list), annotations.of_image()
        for record in predictions:
            grouped[record.image_id].append(record)
        unknown = [record for record in predictions if record.image_id not in annotations.images]
        for number in annotations.images:
            records = grouped.get(number, [])
            parts = [[record] for record in records] if protocol.mean_within_groups and records else [records]
            for place, part in enumerate(parts):
                name = f"{number}/{place}" if len(parts) > 1 else str(number)
                pairs.append(_pair(name, number, targets.get(number, []), part, annotations))
    if unknown:
        logger.warning(
            f"{len(unknown)} prediction records belong to no annotated target and are left out, as the authors' "
            f"script does; the first is {unknown[0].label}."
        )
    return [prediction for prediction, _ in pairs], [reference for _, reference in pairs]


def _check_against(predictions: list[PredictionRecord], annotations: AnnotationFile, file: str) -> None:
    faults = []
    for record in predictions:
        size = annotations.images.get(record.image_id)
        if size is not None and record.size not in (None, size):
            found, expected = f"size {list(record.size)}", f"[height, width] = {list(size)} of image {record.image_id}"
            faults.append(
                RecordFault(
                    file, record.label, "predictions.rle.size", found, expected, "resize the masks to the image"
                )
            )
        annotation = annotations.annotations.get(record.annotation_id)
        if annotation is not None and annotation.image_id != record.image_id:
            expected = f"{annotation.image_id}, the image of annotation {record.annotation_id}"
            faults.append(
                RecordFault(file, record.label, "image_id", str(record.image_id), expected, "mend either id")
            )
    if faults:
        raise PredictionFileError(faults)


def _pair(
    name: str, image_id: int, targets: list[AnnotationRecord], records: list[PredictionRecord], file: AnnotationFile
) -> tuple[dict[str, Any], dict[str, Any]]:
    height, width = file.images[image_id]
    prediction = {
        "masks": [counts for record in records for counts in record.masks],
        "scores": [score for record in records for score in record.scores],
    }
    kept = [target for target in targets if not target.ignored]
    reference = {
        "id": name,
        "group": str(image_id),
        "level": records[0].level if records else "",
        "target_kind": file.kinds.get(image_id, "") if kept else "none",
        "height": height,
        "width": width,
        "masks": [target.counts for target in kept],
        "ignore_masks": [target.counts for target in targets if target.ignored] + file.ignore_masks.get(image_id, []),
        "is_crowd": [target.is_crowd for target in kept],
    }
    return prediction, reference


def _list(record: PredictionRecord | None) -> list[PredictionRecord]:
    return [] if record is None else [record]
