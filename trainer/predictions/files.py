# SPDX-License-Identifier: Apache-2.0
"""Prediction and annotation files in the authors' JSON layout, checked record by record and brought together.

A prediction file is a list of {"annotation_id", "image_id", "predictions": [{"rle": {"size", "counts"}, "score"}]}
(further fields, such as "prompt_type", are allowed); an annotation file is COCO-style with "images" and "annotations".
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...processing.datasets.faults import RecordFault, RecordReader
from ...processing.datasets.schema import is_number, shown
from ...processing.masks import rle_fault, segmentation_to_rle

if TYPE_CHECKING:
    from ..evaluation.protocols import Protocol

logger = logging.get_logger(__name__)

SHOWN_FAULTS = 20


class PredictionFileError(ValueError):
    """A prediction or annotation file that cannot be scored; `faults` names file, record and field of each fault.

    The message shows the first twenty.
    """

    def __init__(self, faults: Iterable[RecordFault]):
        self.faults = list(faults)
        lines = [str(fault) for fault in self.faults[:SHOWN_FAULTS]]
        if len(self.faults) > SHOWN_FAULTS:
            lines.append(f"... and {len(self.faults) - SHOWN_FAULTS} more")
        super().__init__("\n".join(lines))


@dataclass
class PredictionRecord:
    """One answer: masks as RLE counts of an image of [height, width] = size, and where in the file it stands."""

    label: str
    annotation_id: int | None
    image_id: int
    level: str
    size: tuple[int, int] | None = None
    masks: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass
class AnnotationRecord:
    """One annotated instance as RLE counts; `ignored` regions are targets of nothing."""

    annotation_id: int
    image_id: int
    counts: str
    is_crowd: bool
    ignored: bool


@dataclass
class AnnotationFile:
    """The images and annotations of a file by their ids, each in file order."""

    images: dict[int, tuple[int, int]] = field(default_factory=dict)  # (height, width)
    annotations: dict[int, AnnotationRecord] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)  # by image, as ignore masks, where the file has them
    ignore_masks: dict[int, list[str]] = field(default_factory=dict)
    datasets: set[str] = field(default_factory=set)  # names of the data in it; its own where it names none

    def of_image(self) -> dict[int, list[AnnotationRecord]]:
        """The annotations of every image that has some."""
        grouped: dict[int, list[AnnotationRecord]] = defaultdict(list)
        for annotation in self.annotations.values():
            grouped[annotation.image_id].append(annotation)
        return grouped


def read_predictions(path: str | Path) -> list[PredictionRecord]:
    """The records of a prediction file; its error names every record and field that cannot be used."""
    content = _load_json(path)
    if not isinstance(content, list):
        expected, fix = "a list of prediction records", "write one list; annotations go to --references"
        raise PredictionFileError([RecordFault(str(path), "(file)", "(file)", shown(content), expected, fix)])
    records, faults = [], []
    first_use: dict[int, str] = {}
    for index, data in enumerate(content):
        reader = RecordReader(str(path), f"record [{index}]", data)
        record = _prediction_record(reader)
        if record.annotation_id is not None:
            reader.record = record.label = f"record [{index}] (annotation_id {record.annotation_id})"
            other = first_use.setdefault(record.annotation_id, f"record [{index}]")
            if other != f"record [{index}]":
                reader.fault(
                    "annotation_id",
                    f"{record.annotation_id}, used by {other} too",
                    "one record per annotation",
                    "keep one of them",
                )
        faults += reader.faults
        records.append(record)
    if faults:
        raise PredictionFileError(faults)
    return records


def _prediction_record(reader: RecordReader) -> PredictionRecord:
    annotation_id = reader.whole("annotation_id") if reader.data.get("annotation_id") is not None else None
    level = _level_of(reader.data.get("prompt_type"))
    record = PredictionRecord(reader.record, annotation_id, reader.whole("image_id"), level)
    for index, entry in enumerate(reader.items("predictions")):
        name = f"predictions[{index}]"
        if not isinstance(entry, dict):
            reader.fault(name, shown(entry), 'an object {"rle", "score"}', "write one object per mask")
        elif not is_number(entry.get("score")):
            found = shown(entry["score"]) if "score" in entry else "missing"
            reader.fault(f"{name}.score", found, "a finite number", "write the score of the mask")
        elif fault := _fault_of_mask(entry.get("rle"), record.size):
            expected = 'an object {"size": [height, width], "counts": str} of the image\'s size'
            reader.fault(f"{name}.rle", fault, expected, "encode the mask as compressed RLE")
        else:
            height, width = entry["rle"]["size"]
            record.size = height, width
            record.masks.append(entry["rle"]["counts"])
            record.scores.append(float(entry["score"]))
    return record


def _fault_of_mask(rle: Any, size: tuple[int, int] | None) -> str | None:
    """What is wrong with a mask, of which the ones before it have a size."""
    if rle is None:
        return "missing"
    own: Any = rle.get("size") if isinstance(rle, dict) else None
    if not (isinstance(own, list) and len(own) == 2 and all(type(side) is int and side > 0 for side in own)):
        return shown(rle)
    if size not in (None, tuple(own)):
        return f"size {own}, and {list(size or own)} in the masks before it"
    return rle_fault(rle, own[0], own[1])


def read_annotations(path: str | Path) -> AnnotationFile:
    """The images and annotations of a COCO-style file; polygons and both kinds of RLE are read.

    An annotation with a truthy "ignore" is an ignore region, and so are the "ignore_masks" of an image's "sam3i"
    object (where the authors' layout has no place for them). The error names every record and field that cannot be
    used.
    """
    content = _load_json(path)
    file, faults = AnnotationFile(), []
    if not isinstance(content, dict):
        expected, fix = "an object with the lists images and annotations", "convert it with `sam3i data convert`"
        raise PredictionFileError([RecordFault(str(path), "(file)", "(file)", shown(content), expected, fix)])
    top = RecordReader(str(path), "(file)", content)
    for index, data in enumerate(top.items("images")):
        reader = RecordReader(str(path), f"images[{index}]", data)
        number, height, width = reader.whole("id"), reader.whole("height", 1), reader.whole("width", 1)
        if number in file.images:
            reader.fault("id", str(number), "an id used once", "give it an id of its own")
        if not reader.faults:
            _read_extension(file, reader, number, height, width)
            file.images[number] = (height, width)
        faults += reader.faults
    for index, data in enumerate(top.items("annotations")):
        reader = RecordReader(str(path), f"annotations[{index}]", data)
        _add_annotation(file, reader)
        faults += reader.faults
    if faults or top.faults:
        raise PredictionFileError(top.faults + faults)
    return file


def _read_extension(file: AnnotationFile, reader: RecordReader, number: int, height: int, width: int) -> None:
    extension = reader.data.get("sam3i")
    extension = extension if isinstance(extension, dict) else {}
    name = extension.get("dataset")
    file.datasets.add(name if isinstance(name, str) else Path(reader.file).stem)
    if isinstance(extension.get("target_kind"), str):
        file.kinds[number] = extension["target_kind"]
    for index, rle in enumerate(extension.get("ignore_masks") or []):
        fault = rle_fault(rle, height, width)
        if fault:
            expected = f"compressed RLE of [{height}, {width}]"
            reader.fault(f"sam3i.ignore_masks[{index}]", fault, expected, "encode the mask at the size of the image")
        else:
            file.ignore_masks.setdefault(number, []).append(rle["counts"])


def _add_annotation(file: AnnotationFile, reader: RecordReader) -> None:
    number, image_id = reader.whole("id"), reader.whole("image_id")
    if reader.faults:
        return
    reader.record = f"{reader.record} (id {number})"
    if number in file.annotations:
        reader.fault("id", str(number), "an id used once", "give it an id of its own")
    if image_id not in file.images:
        reader.fault("image_id", str(image_id), "the id of a good image record", "add the image")
        return
    segmentation = reader.data.get("segmentation")
    try:
        if isinstance(segmentation, dict) and segmentation.get("counts") == "":
            counts = ""
        else:
            rle = segmentation_to_rle(segmentation, *file.images[image_id])
            counts = "" if rle is None else rle["counts"]
    except (ValueError, TypeError, OverflowError) as error:
        reader.fault("segmentation", str(error), "polygons or an RLE that fits the image", "encode the mask anew")
    if not reader.faults:
        flags = bool(reader.data.get("iscrowd")), bool(reader.data.get("ignore"))
        file.annotations[number] = AnnotationRecord(number, image_id, counts, *flags)


def _level_of(prompt_type: Any) -> str:
    """The level behind the authors' prompt types ("simple_query_0" and the like), "" where there is none."""
    name = str(prompt_type).split("_")[0]
    return name if name in [level.value for level in InstructionLevel] else ""


def _load_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except json.JSONDecodeError as error:
        fault = f"line {error.lineno}, column {error.colno}", "(syntax)", error.msg, "JSON"
    except UnicodeDecodeError as error:
        fault = f"byte {error.start}", "(encoding)", error.reason, "UTF-8"
    except RecursionError:
        fault = "(file)", "(syntax)", "brackets nested too deeply", "JSON"
    except OSError as error:
        fault = "(file)", "(file)", error.strerror or str(error), "a readable file"
    raise PredictionFileError([RecordFault(str(path), *fault, "mend the file or its path")])


def pair_files(
    protocol: Protocol, predictions: list[PredictionRecord], annotations: AnnotationFile, file: str = "predictions"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Predictions and references as `InstructionSegmentationMetric` takes them, one pair per sample of the protocol.

    Instances ("instance" protocols) pair by annotation_id. Otherwise the target of an image record is all its
    annotations, and the answer is each prediction record by itself where the protocol averages within image records,
    or all of them together. Records of unknown annotations or images are left out with a warning, and counted. Raises
    PredictionFileError: a mask of another size than its image, an annotation_id of another image.
    """
    _check_against(predictions, annotations, file)
    pairs = []
    if protocol.unit == "instance":
        answers = {record.annotation_id: record for record in predictions}
        unknown = [record for record in predictions if record.annotation_id not in annotations.annotations]
        for number, annotation in annotations.annotations.items():
            if not annotation.ignored:
                answer = [answers[number]] if number in answers else []
                pairs.append(_pair(str(number), annotation.image_id, [annotation], answer, annotations))
    else:
        grouped: dict[int, list[PredictionRecord]] = defaultdict(list)
        targets = annotations.of_image()
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
    return [prediction for prediction, _ in pairs], [reference for _, reference in pairs], len(unknown)


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
        number = record.annotation_id
        annotation = None if number is None else annotations.annotations.get(number)
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
