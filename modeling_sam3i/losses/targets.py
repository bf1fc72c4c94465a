# SPDX-License-Identifier: Apache-2.0
"""Labels of instruction rows: their validation, and their packing into tensors that matchers and losses share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

# Boxes computed from masks in half precision may leave [0, 1] by a rounding step; more than this is a unit mistake.
BOX_TOLERANCE = 1e-3


def validate_labels(labels: Any, num_rows: int) -> None:
    """
    Check the `labels` of a forward pass: a list with, per instruction row, masks Bool[N,H,W] and boxes Float[N,4].

    Boxes are (cx, cy, w, h) as fractions of the image; a row that denotes nothing has N = 0.

    Raises:
        TypeError: `labels` is not a list of dicts of tensors, or a tensor has the wrong dtype.
        ValueError: a wrong number of rows, a missing key, a wrong shape, or a box outside [0, 1].
    """
    if not isinstance(labels, list | tuple):
        raise TypeError(
            "`labels` must be a list with one dict {'masks': Bool[N,H,W], 'boxes': Float[N,4]} per instruction row, "
            f"got {type(labels).__name__}."
        )
    if len(labels) != num_rows:
        raise ValueError(
            f"`labels` must have one entry per instruction row: expected {num_rows}, got {len(labels)}. "
            "A row that denotes nothing needs an entry too, with masks [0,H,W] and boxes [0,4]."
        )
    for row, label in enumerate(labels):
        _validate_row(label, f"labels[{row}]")
        boxes = label["boxes"]
        if boxes.device.type != "cpu":  # values are looked at where that stops no accelerator
            continue
        wrong = ~((boxes >= -BOX_TOLERANCE) & (boxes <= 1 + BOX_TOLERANCE)).all(-1)  # NaN is wrong too
        if bool(wrong.any()):
            raise ValueError(
                f"labels[{row}]['boxes'] must be (cx, cy, w, h) as fractions of the image, in [0, 1]; divide "
                f"pixel boxes by (width, height, width, height). Got {boxes[wrong][0].tolist()}."
            )


def labels_of_rows(labels: Any, images: Sequence[int] | None) -> Any:
    """
    The labels of each instruction row; maps of objects become masks and boxes, anything else is left as it is.

    labels: integer Tensor[I or R,H,W], 0 for background and another value for each object; maps of I images are their
        rows' (`images` [R] says which)
    """
    if not torch.is_tensor(labels) or labels.dim() != 3 or labels.is_floating_point():
        return labels
    maps = labels.cpu()
    if images is not None and len(maps) != len(images) and max(images) < len(maps):
        maps = maps[images]
    rows = []
    for row in maps:
        values = row.unique()
        masks = row == values[values > 0][:, None, None]  # [N,H,W]
        height, width = row.shape
        x0, y0, x1, y1 = masks_to_boxes(masks).unbind(-1)  # the last pixel is in
        x1, y1 = x1 + 1, y1 + 1
        boxes = torch.stack([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height], -1)
        rows.append({"masks": masks, "boxes": boxes})
    return rows


def _validate_row(label: Any, name: str) -> None:
    if not isinstance(label, Mapping):
        raise TypeError(f"{name} must be a dict with 'masks' and 'boxes', got {type(label).__name__}.")
    for key in ("masks", "boxes"):
        if key not in label:
            raise ValueError(f"{name} must have the keys 'masks' and 'boxes', got {sorted(label)}.")
        if not isinstance(label[key], Tensor):
            raise TypeError(f"{name}['{key}'] must be a tensor, got {type(label[key]).__name__}.")
    masks, boxes = label["masks"], label["boxes"]
    if masks.dtype != torch.bool:
        raise TypeError(f"{name}['masks'] must be a bool tensor (use `masks > 0.5` or `.bool()`), got {masks.dtype}.")
    if not boxes.is_floating_point():
        raise TypeError(f"{name}['boxes'] must be a float tensor of fractions of the image, got {boxes.dtype}.")
    if masks.ndim != 3:
        raise ValueError(f"{name}['masks'] must have the shape [N,H,W], got {list(masks.shape)}.")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}['boxes'] must have the shape [N,4], got {list(boxes.shape)}.")
    if len(masks) != len(boxes):
        raise ValueError(f"{name} must have as many masks as boxes, got {len(masks)} masks and {len(boxes)} boxes.")
    if len(masks) and 0 in masks.shape:
        raise ValueError(f"{name}['masks'] must have at least one pixel, got the shape {list(masks.shape)}.")


@dataclass
class PackedTargets:
    """
    The objects of all rows, one after the other (T objects, R rows, at most M objects in a row).

    counts: objects per row (host integers)
    boxes [T,4] cxcywh in [0,1]; row_index [T]; slot_index [T] (which object of its row)
    padded_boxes [R,M,4] cxcywh; padded_valid [R,M] bool
    has_target [R] float, 1 where the row denotes something
    mask_groups: masks of equal size, Bool[T_g,H_g,W_g]; group_of (host integers) and index_in_group [T] say where
        an object is
    union_groups: per mask size, the rows with a target (host integers) and the union of their masks, Bool[R_g,H_g,W_g]
    """

    counts: list[int]
    boxes: Tensor
    row_index: Tensor
    slot_index: Tensor
    padded_boxes: Tensor
    padded_valid: Tensor
    has_target: Tensor
    mask_groups: list[Tensor]
    group_of: list[int]
    index_in_group: Tensor
    union_groups: list[tuple[list[int], Tensor]]

    @property
    def num_rows(self) -> int:
        return len(self.counts)

    @property
    def offsets(self) -> list[int]:
        """Index of the first object of each row."""
        return [0, *accumulate(self.counts)][:-1]


def pack_targets(labels: Sequence[Mapping[str, Tensor]], device: torch.device) -> PackedTargets:
    """Pack validated labels (`validate_labels`) into the tensors of `PackedTargets`, boxes in float32."""
    counts = [len(label["boxes"]) for label in labels]
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    slots = [slot for count in counts for slot in range(count)]
    boxes = torch.cat([label["boxes"].detach().to(device, torch.float32) for label in labels])  # [T,4]
    row_index = torch.tensor(rows, dtype=torch.long, device=device)
    slot_index = torch.tensor(slots, dtype=torch.long, device=device)
    padded_boxes = boxes.new_zeros(len(labels), max(counts, default=0), 4)
    padded_valid = torch.zeros(padded_boxes.shape[:2], dtype=torch.bool, device=device)
    padded_boxes[row_index, slot_index] = boxes
    padded_valid[row_index, slot_index] = True

    rows_of_size: dict[tuple[int, ...], list[int]] = {}
    for row, label in enumerate(labels):
        if counts[row]:
            rows_of_size.setdefault(tuple(label["masks"].shape[-2:]), []).append(row)
    place: dict[int, tuple[int, int]] = {}  # row -> (group, index of its first mask there)
    mask_groups, union_groups = [], []
    for group, members in enumerate(rows_of_size.values()):
        start = 0
        for row in members:
            place[row] = (group, start)
            start += counts[row]
        masks = [labels[row]["masks"].detach().to(device) for row in members]
        mask_groups.append(torch.cat(masks))  # [T_g,H_g,W_g]
        union_groups.append((members, torch.stack([row_masks.any(0) for row_masks in masks])))  # [R_g,H_g,W_g]
    where = [(place[row][0], place[row][1] + slot) for row, slot in zip(rows, slots, strict=True)]
    return PackedTargets(
        counts=counts,
        boxes=boxes,
        row_index=row_index,
        slot_index=slot_index,
        padded_boxes=padded_boxes,
        padded_valid=padded_valid,
        has_target=torch.tensor([float(count > 0) for count in counts], device=device),
        mask_groups=mask_groups,
        group_of=[group for group, _ in where],
        index_in_group=torch.tensor([index for _, index in where], dtype=torch.long, device=device),
        union_groups=union_groups,
    )
