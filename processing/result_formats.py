# SPDX-License-Identifier: Apache-2.0
"""Instances in the formats of other tools; see [`sam3i.processing.results`].

An instance is a dict with "score", "label" (the instruction), "level", "box" (x1, y1, x2, y2) in pixels and "mask", a
bool array [height, width].
"""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image
from scipy import ndimage

from .masks import decode_mask, encode_mask
from .results import CORNERS, InstanceList

Instances = Sequence[Mapping[str, Any]]


def results_to_json(results: Any) -> Any:
    """The pipeline's results for one image, of one instruction or a list of several, ready for `json.dump`.

    Raises:
        TypeError: when `results` are not the pipeline's.
    """
    if not isinstance(results, list):
        raise TypeError(f"Expected results as the pipeline returns them, a list, found {type(results).__name__}.")
    if results and all(isinstance(row, list) for row in results):
        return [InstanceList(row).to_json() for row in results]
    return InstanceList(results).to_json()


def from_json(entries: Sequence[Mapping[str, Any]]) -> InstanceList:
    """What [`to_json`] wrote, with masks as PIL images again."""
    hidden = ("segmentation", "area")
    return InstanceList(
        {key: value for key, value in entry.items() if key not in hidden}
        | {"mask": Image.fromarray(decode_mask(entry["segmentation"]).astype(np.uint8) * 255)}
        for entry in entries
    )


def to_json(instances: Instances) -> list[dict[str, Any]]:
    entries = []
    for found in instances:
        fields = {"score": found["score"], "label": found["label"], "level": found["level"]}
        box = dict(zip(CORNERS, found["box"], strict=True))
        area = int(found["mask"].sum())
        entries.append(fields | {"box": box, "segmentation": encode_mask(found["mask"]), "area": area})
    return entries


def to_coco(instances: Instances, image_id: int, category_id: int) -> list[dict[str, Any]]:
    entries = []
    for found in instances:
        x1, y1, x2, y2 = found["box"]
        place = {"image_id": image_id, "category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        entries.append(place | {"segmentation": encode_mask(found["mask"]), "score": found["score"]})
    return entries


def to_yolo(instances: Instances, class_id: int) -> str:
    lines = []
    for found in instances:
        if parts := outlines_of(found["mask"]):
            height, width = found["mask"].shape
            path = _seamed(parts) / [width, height]
            lines.append(f"{class_id} " + " ".join(f"{value:.6f}" for value in path.flatten()))
    return "".join(f"{line}\n" for line in lines)


def to_label_studio(instances: Instances, image: str) -> dict[str, Any]:
    regions = []
    for number, found in enumerate(instances, start=1):
        height, width = found["mask"].shape
        pieces, count = ndimage.label(found["mask"])
        for part in range(1, count + 1):
            outline = _seamed(outlines_of(pieces == part))  # holes are kept
            points = (outline * [100 / width, 100 / height]).tolist()
            regions.append(
                {
                    "id": f"{number}-{part}",
                    "from_name": "instances",
                    "to_name": "image",
                    "type": "polygonlabels",
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "score": found["score"],
                    "value": {"points": points, "closed": True, "polygonlabels": [found["label"]]},
                }
            )
    score = max((found["score"] for found in instances), default=0.0)
    return {"data": {"image": image}, "predictions": [{"model_version": "sam3i", "score": score, "result": regions}]}


def label_studio_config(labels: Sequence[str]) -> str:
    """The labeling configuration that shows what [`to_label_studio`] wrote."""
    names = "".join(f"    <Label value={quoteattr(label)}/>\n" for label in labels)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <PolygonLabels name="instances" toName="image">\n'
        f"{names}  </PolygonLabels>\n</View>\n"
    )


def to_supervision(instances: Instances) -> Any:
    try:
        import supervision
    except ImportError as error:
        raise ImportError("`to_supervision` needs supervision: pip install supervision") from error
    if not instances:
        return supervision.Detections.empty()
    return supervision.Detections(
        xyxy=np.array([found["box"] for found in instances], dtype=np.float32),
        mask=np.stack([found["mask"] for found in instances]),
        confidence=np.array([found["score"] for found in instances], dtype=np.float32),
        class_id=np.zeros(len(instances), dtype=int),
        data={"class_name": np.array([found["label"] for found in instances])},
    )


def _seamed(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One closed line through all outlines; the way between two is gone there and back, so it covers nothing."""
    if len(parts) == 1:
        return parts[0]
    path = np.concatenate([np.concatenate([part, part[:1]]) for part in parts])
    return np.concatenate([path, *(part[:1] for part in parts[-2:0:-1])])


def outlines_of(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines (x, y) [points, 2] of a bool mask [height, width] in pixels, outer ones first, then holes."""
    from contourpy import contour_generator  # comes with matplotlib

    lines = contour_generator(z=np.pad(mask, 1).astype(np.float32)).lines(0.5)
    outer: list[np.ndarray] = []
    inner: list[np.ndarray] = []
    for line in lines:
        points = np.asarray(line)[:-1] - 0.5  # closed: the last is the first
        steps = np.roll(points, -1, axis=0) - points
        before = np.roll(steps, 1, axis=0)
        points = points[np.abs(steps[:, 0] * before[:, 1] - steps[:, 1] * before[:, 0]) > 1e-9]  # corners alone
        following = np.roll(points, -1, axis=0)
        area = (points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum()
        (outer if area > 0 else inner).append(points)
    return sorted(outer, key=len, reverse=True) + inner
