# SPDX-License-Identifier: Apache-2.0
"""What was found, as the documented dict or list that also knows the formats of other tools.

Post-processing returns an [`InstructionResult`] for each instruction, the pipeline an [`InstanceList`]. Both write
themselves as JSON, COCO, YOLO and Label Studio, and become `supervision.Detections`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Exports:
    """The ways out, the same for both classes."""

    def _instances(self) -> list[dict[str, Any]]:
        """Dicts with "score", "label", "level", "box" (x1, y1, x2, y2) in pixels and "mask" bool [height, width]."""
        raise NotImplementedError

    def to_json(self) -> list[dict[str, Any]]:
        """Plain dicts, as `sam3i predict` writes them: masks as COCO run lengths ("segmentation", "area")."""
        return _formats().to_json(self._instances())

    def to_coco(self, image_id: int, category_id: int = 1) -> list[dict[str, Any]]:
        """COCO results ("image_id", "category_id", "bbox", "segmentation", "score"), for `COCO.loadRes`.

        `loadRes` takes an instance's area from its box where there is one: drop "bbox" for mask AP by size.
        """
        return _formats().to_coco(self._instances(), image_id, category_id)

    def to_yolo(self, class_id: int = 0) -> str:
        """Lines of a YOLO segmentation label file: the class, then a polygon in [0, 1]; parts are joined by a seam."""
        return _formats().to_yolo(self._instances(), class_id)

    def to_label_studio(self, image: str) -> dict[str, Any]:
        """A Label Studio task with predictions: polygons named "instances" on an image named "image".

        Every piece of a mask is a region; a hole is joined to its outline by a seam.

        Args:
            image (`str`): Address under which Label Studio finds the image.
        """
        return _formats().to_label_studio(self._instances(), image)

    def to_supervision(self) -> Any:
        """`supervision.Detections` with masks, boxes, scores and the instruction as class name.

        `Detections.from_transformers` takes an [`InstructionResult`] as it is, with boxes measured from the masks.
        """
        return _formats().to_supervision(self._instances())


class InstructionResult(_Exports, dict):
    """The instances of one instruction, best first: a dict of tensors.

    Keys:
        scores: `(K,)`.
        boxes: `(K, 4)` (x1, y1, x2, y2), in pixels when the target size was given, else in [0, 1].
        masks: bool `(K, height, width)`.
        labels: `(K,)` zeros: the one class is what the instruction denotes.
        level: name of the level the instruction followed.
        segmentation, segments_info: masks and scores once more, in the layout of Transformers' own instance
            segmentation with binary maps; see [`as_segments`].

    Attributes:
        best_score: of the best candidate, above the threshold or not, as far as the model kept it.
        text: the instruction, where it is known.
    """

    def __init__(self, *args: Any, best_score: float = 0.0, text: str = "", is_in_pixels: bool = True, **fields: Any):
        super().__init__(*args, **fields)
        self.best_score, self.text, self.is_in_pixels = best_score, text, is_in_pixels

    def _instances(self) -> list[dict[str, Any]]:
        if not self.is_in_pixels:
            raise ValueError("Expected boxes and masks in pixels of the image: post-process with `target_sizes`.")
        scores, boxes, masks = (self[name].detach().cpu() for name in ("scores", "boxes", "masks"))
        shared = {"label": self.text, "level": self["level"]}
        return [
            {"score": score, **shared, "box": box, "mask": mask.numpy()}
            for score, box, mask in zip(scores.tolist(), boxes.tolist(), masks, strict=True)
        ]

    def to_instances(self) -> InstanceList:
        """The same as the pipeline returns it: dicts with whole pixels and PIL masks."""
        found = self._instances()
        instances = InstanceList()
        for entry in found:
            height, width = entry["mask"].shape
            limits = (width, height, width, height)
            box = [min(max(round(value), 0), limit) for value, limit in zip(entry["box"], limits, strict=True)]
            mask = Image.fromarray(entry["mask"].astype(np.uint8) * 255)
            instances.append(entry | {"box": dict(zip(CORNERS, box, strict=True)), "mask": mask})
        return instances


def as_segments(masks: torch.Tensor, scores: Sequence[float]) -> dict[str, Any]:
    """Masks `(K, height, width)` and scores as `post_process_instance_segmentation(return_binary_maps=True)` has them.

    Without instances that is a map `(height, width)` of -1.
    """
    segments = [
        {"id": number, "label_id": 0, "was_fused": False, "score": score} for number, score in enumerate(scores)
    ]
    maps = masks if segments else torch.full(masks.shape[1:], -1, device=masks.device)
    return {"segmentation": maps, "segments_info": segments}


class InstanceList(_Exports, list):
    """The instances of one instruction as the pipeline returns them: dicts with "score", "label", "level", "box" and
    "mask" (a PIL image), best first."""

    def _instances(self) -> list[dict[str, Any]]:
        instances = []
        for instance in self:
            box, mask = instance["box"], np.asarray(instance["mask"].convert("L")) > 127
            instances.append(instance | {"box": [box[name] for name in CORNERS], "mask": mask})
        return instances


def _formats() -> Any:
    try:
        return importlib.import_module(".result_formats", __package__)  # not needed where only masks are wanted
    except ImportError as error:
        raise ImportError("Writing other tools' formats needs the package itself: pip install sam3i") from error
