# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run as records, and back to scenes that can be looked at and checked again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from .scene import Scene, SceneInstance
from .sources import open_picture


def scene_to_record(scene: Scene, image: str | None) -> dict[str, Any]:
    """What a run keeps of a picture; `image` is where it lies, relative to the run's folder or absolute."""
    absent = None if scene.absent_nouns is None else sorted(scene.absent_nouns)
    return {
        "order": scene.order,
        "image_id": scene.image_id,
        "image": image,
        "file_name": scene.file_name,
        "width": scene.width,
        "height": scene.height,
        "dataset": scene.dataset,
        "split": scene.split,
        "instances": [
            {
                "annotation_id": item.annotation_id,
                "noun": item.noun,
                "granularity": item.granularity,
                "mask": item.mask,
                "box": item.box,
                "whole": item.whole,
            }
            for item in scene.instances
        ],
        "known": {
            "absent_nouns": absent,
            "partial_nouns": sorted(scene.partial_nouns),
            "is_exhaustive": scene.is_exhaustive,
            "size_bounds": scene.size_bounds,
        },
    }


def picture_of_record(record: dict[str, Any], folder: Path) -> str | None:
    """The path of a recorded picture; `folder` is the run's."""
    image = record["image"]
    return image if image is None or Path(image).is_absolute() else str(folder / image)


def scene_of_record(record: dict[str, Any], folder: Path) -> Scene:
    """The scene that a record was made from; what its source knew beyond masks and nouns is not in old records."""
    known = record.get("known") or {"absent_nouns": [], "partial_nouns": [], "is_exhaustive": False}
    picture, bounds = picture_of_record(record, folder), known.get("size_bounds")
    return Scene(
        image_id=record["image_id"],
        width=record["width"],
        height=record["height"],
        instances=tuple(
            SceneInstance(item["annotation_id"], item["noun"], item["mask"], item["granularity"], item.get("whole"))
            for item in record["instances"]
        ),
        open_image=partial(open_picture, picture, f"picture {record['image_id']}"),
        order=record["order"],
        image=picture,
        file_name=record["file_name"],
        dataset=record["dataset"],
        split=record["split"],
        absent_nouns=None if known["absent_nouns"] is None else frozenset(known["absent_nouns"]),
        partial_nouns=frozenset(known["partial_nouns"]),
        is_exhaustive=known["is_exhaustive"],
        size_bounds=None if bounds is None else tuple(bounds),
    )
