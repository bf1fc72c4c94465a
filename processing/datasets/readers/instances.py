# SPDX-License-Identifier: Apache-2.0
"""COCO annotations as instances of a row: every segmentation encoding, boxes, crowds; faults are collected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...masks import box_of_rle, segmentation_to_rle
from ..faults import RecordReader
from ..schema import CompressedRLE, InstructionRow, box_fault, make_row, shown, validate_row


@dataclass
class Instances:
    """The instance lists of a row while it is being read."""

    masks: list[CompressedRLE | None] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    is_crowd: list[bool] = field(default_factory=list)
    annotation_ids: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.masks)

    def add(self, record: RecordReader, label: str, annotation: Any, height: int, width: int) -> None:
        """Add a COCO annotation; its faults go to `record` under the name `label`.

        A missing box is taken from the mask; a missing segmentation leaves the mask None; one of the two must exist.
        """
        if not isinstance(annotation, dict):
            record.fault("(record)", shown(annotation), "an object", "write one object per annotation", label)
            return
        try:
            mask = segmentation_to_rle(annotation.get("segmentation"), height, width)
        except ValueError as error:
            fix = "write polygons, an uncompressed or a compressed RLE of the image's size"
            record.fault("segmentation", str(error), f"a segmentation of {width} x {height} pixels", fix, label)
            return
        box = annotation.get("bbox")
        if box is None and mask is not None:
            box = box_of_rle(mask)
        fault = box_fault(box, height, width)
        if fault:
            fix = "write absolute pixels, not fractions or corners"
            record.fault("bbox", fault, f"[x, y, w, h] inside {width} x {height}", fix, label)
            return
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1, False, True):
            record.fault("iscrowd", shown(crowd), "0 or 1", "write 0 for a single instance", label)
            return
        self.masks.append(mask)
        self.boxes.append([float(value) for value in box])
        self.is_crowd.append(bool(crowd))
        if isinstance(annotation.get("id"), int):
            self.annotation_ids.append(annotation["id"])


def count_kind(count: int, several: str = "1-to-N") -> str:
    """Target kind by the number of instances, where a data set says no more."""
    return "none" if count == 0 else "1-to-1" if count == 1 else several


def finish_row(record: RecordReader, instances: Instances, **fields: Any) -> InstructionRow | None:
    """The row of a record, or None where the record has faults (those of the finished row included)."""
    ids = instances.annotation_ids
    if record.faults:
        return None
    row = make_row(
        masks=instances.masks,
        boxes=instances.boxes,
        is_crowd=instances.is_crowd,
        annotation_ids=ids if len(ids) == len(instances) else [],
        **fields,
    )
    record.take(validate_row(row))
    return None if record.faults else row
