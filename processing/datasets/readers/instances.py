# SPDX-License-Identifier: Apache-2.0
"""COCO annotations as instances of a row: every segmentation encoding, boxes, crowds; faults are collected."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from ...masks import box_of_rle, decode_mask, segmentation_to_rle
from ..faults import RecordReader, as_whole
from ..image_roots import Picture, ReadOptions
from ..schema import (
    BOX_FIX,
    EMPTY_MASK,
    CompressedRLE,
    InstructionRow,
    box_fault,
    fit_box,
    geometry_faults,
    is_number,
    make_row,
    row_faults,
    shown,
)

ANNOTATION_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
MASK_FIX = "write polygons in pixels, an uncompressed or a compressed RLE, of the image's size"
FLAGS = {"": False, "0": False, "false": False, "no": False, "none": False, "1": True, "true": True, "yes": True}


@dataclass
class Instances:
    """The instance lists of a row while it is being read."""

    options: ReadOptions  # its account notes boxes without masks, crowds, and boxes that were cut to their image
    # "instance" or "skip": what becomes of an annotation marked crowd where `options` do not say
    crowd: str = "instance"
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
        part = RecordReader(record.file, label, annotation)
        if part.faults:
            record.faults += part.faults
            return
        part.check_names(ANNOTATION_FIELDS, only_misspelled=True)
        area, crowd = part.data.get("area"), flag_value(part.data.get("iscrowd"))
        if area is not None and not is_number(area) and as_whole(area) is None:
            part.fault("area", shown(area), "a number of pixels", "write the mask's area, or leave it out")
        if crowd is None:
            part.fault("iscrowd", shown(part.data["iscrowd"]), "0 or 1", "write 0 for a single instance")
        mask = self._mask(part, height, width)
        tight = None if mask is None else box_of_rle(mask)
        if tight is not None and not any(tight):
            found = f"a mask that {EMPTY_MASK} ({shown(part.data['segmentation'])})"
            part.fault("segmentation", found, f"a segmentation of {width} x {height} pixels", MASK_FIX)
        box = self._box(part, tight, height, width)
        if part.faults:
            record.faults += part.faults
            return
        if crowd:
            as_instance = (self.options.crowd or self.crowd) == "instance"
            crowd = not (as_instance and mask is not None and is_one_piece(mask))
            kept = "a crowd (no instance of its own)" if crowd else "taken as an instance: its mask is one piece"
            self.options.account.notes[f"annotation marked crowd, {kept}"] += 1
        if mask is None:
            self.options.account.notes["box without a mask"] += 1
        self.masks.append(mask)
        self.boxes.append(box)
        self.is_crowd.append(bool(crowd))
        number = as_whole(annotation.get("id"))
        if number is not None:
            self.annotation_ids.append(number)

    @staticmethod
    def _mask(part: RecordReader, height: int, width: int) -> CompressedRLE | None:
        try:
            return segmentation_to_rle(part.data.get("segmentation"), height, width)
        except ValueError as error:
            part.fault("segmentation", str(error), f"a segmentation of {width} x {height} pixels", MASK_FIX)
            return None

    def _box(self, part: RecordReader, tight: list[float] | None, height: int, width: int) -> list[float]:
        box: Any = part.data.get("bbox")
        if tight is not None and box in (None, [], tight):
            return tight
        fault = box_fault(box, height, width, tight)
        if fault:
            if not any(one.field == "segmentation" for one in part.faults):
                part.fault("bbox", fault, f"[x, y, w, h] inside {width} x {height}", BOX_FIX)
            return []
        fitted = fit_box(box, height, width)
        if fitted != box:
            self.options.account.notes["box cut to its image"] += 1
        return fitted


def flag_value(value: Any) -> bool | None:
    """What an `iscrowd` or the like means: a number but 0, true and "true" say yes; None: it says nothing clear."""
    if isinstance(value, str):
        return FLAGS.get(value.strip().lower())
    return bool(value) if value is None or is_number(value) or isinstance(value, bool) else None


def is_one_piece(mask: CompressedRLE) -> bool:
    """Whether the pixels of a mask hang together (corners count)."""
    return ndimage.label(decode_mask(mask), np.ones((3, 3)))[1] == 1


def count_kind(count: int) -> str:
    """Target kind by the number of instances, where a data set says no more."""
    return "none" if count == 0 else "1-to-1" if count == 1 else "1-to-N"


def finish_row(record: RecordReader, instances: Instances, picture: Picture, **fields: Any) -> InstructionRow | None:
    """The row of a record, or None where the record has faults (those of the finished row included)."""
    if record.faults:
        return None
    fields |= {"masks": instances.masks, "boxes": instances.boxes, "is_crowd": instances.is_crowd}
    row = make_row(**picture._asdict(), **fields)
    ids = instances.annotation_ids
    row["annotation_ids"] = ids if len(ids) == len(instances) else []
    record.take(row_faults(row))
    if row["ignore_masks"]:
        record.take(geometry_faults({"ignore_masks": row["ignore_masks"]}, row["height"], row["width"]))
    return None if record.faults else row
