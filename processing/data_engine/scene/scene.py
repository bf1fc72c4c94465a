# SPDX-License-Identifier: Apache-2.0
"""A picture with its instances: what the data engine writes instructions about, and what a run keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...images import read_image
from ...masks import box_of_rle, decode_mask, rle_area

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class SceneInstance:
    """One instance of a picture."""

    annotation_id: int  # its id in the source, unique within the picture
    noun: str  # the category as a singular noun phrase, lower case
    mask: Any = field(repr=False)  # compressed RLE at the size of the picture
    granularity: str = "object"  # "object" or "part"
    whole: int | None = None  # annotation id of the object that a part belongs to, where it is known

    @cached_property
    def box(self) -> list[float]:
        """Tight box [x, y, width, height] in pixels."""
        return box_of_rle(self.mask)

    @cached_property
    def area(self) -> int:
        """Pixels covered."""
        return rle_area(self.mask)

    @property
    def center(self) -> tuple[float, float]:
        """Center of the box, pixels."""
        x, y, width, height = self.box
        return x + width / 2, y + height / 2

    def pixels(self) -> np.ndarray:
        """The mask as bool [height, width]."""
        return decode_mask(self.mask)


class LeftOut(dict[str, tuple[int, str]]):
    """What is not used: {reason: (how often, the first example)}."""

    def add(self, reason: str, example: str = "", count: int = 1) -> None:
        """Count something."""
        known, first = self.get(reason, (0, example))
        self[reason] = (known + count, first)


@dataclass(frozen=True)
class RowTarget:
    """The target of an instruction row: annotation ids, ascending, its kind and its noun."""

    row_id: str
    targets: tuple[int, ...]
    kind: str
    noun: str


@dataclass(frozen=True)
class AnnotatedScene:
    """A picture with its instances."""

    image_id: str  # unique within the source
    width: int  # pixels
    height: int
    instances: tuple[SceneInstance, ...]  # everything annotated that may be a target or a sibling
    open_image: Callable[[], Image] = field(repr=False, compare=False)  # returns the image (RGB)
    order: int = 0  # place in the source
    # what a row's `image` field gets: a path, a PIL image or None
    image: Any = field(default=None, repr=False, compare=False)
    file_name: str | None = None  # the path that the source gives
    dataset: str = ""  # where the scene comes from
    split: str | None = None
    # nouns known to be absent; None where every noun without an instance is absent
    absent_nouns: frozenset[str] | None = None
    # nouns whose instances are not all annotated (crowds, LVIS' non-exhaustive categories)
    partial_nouns: frozenset[str] = frozenset()
    # everything in the picture is annotated, so that an instruction may leave the noun open
    is_exhaustive: bool = False
    # what a noun is for or does, as clauses that follow "that", for instructions without the noun
    descriptors: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)
    # longer sides of boxes, in units of the picture's shorter side, up to which an instance is called small and from
    # which it is called large; None where it is so only among its category
    size_bounds: tuple[float, float] | None = None
    # (color, noun) that are kept for testing: no question combines them
    reserved_pairs: frozenset[tuple[str, str]] = frozenset()
    row_targets: tuple[RowTarget, ...] = ()  # targets that instruction rows of the picture have
    # annotations of the picture that cannot be used, and why
    left_out: LeftOut = field(default_factory=LeftOut, repr=False, compare=False)

    @cached_property
    def by_id(self) -> dict[int, SceneInstance]:
        """Instances by annotation id."""
        return {instance.annotation_id: instance for instance in self.instances}

    @cached_property
    def nouns(self) -> dict[str, tuple[SceneInstance, ...]]:
        """Instances by noun, nouns in order of first appearance."""
        groups: dict[str, list[SceneInstance]] = {}
        for instance in self.instances:
            groups.setdefault(instance.noun, []).append(instance)
        return {noun: tuple(members) for noun, members in groups.items()}

    def is_absent(self, noun: str) -> bool:
        """Whether the picture is known to hold no instance of a noun."""
        if noun in self.nouns or noun in self.partial_nouns:
            return False
        return self.absent_nouns is None or noun in self.absent_nouns


def open_image(source: Any, label: str) -> Image:
    """The image of a scene, upright and in RGB; `label` names it in errors."""
    if source is None:
        raise FileNotFoundError(f"{label}: no image was found; pass the folder of the images (--image-root)")
    return read_image(source)


_PICTURE = ("order", "image_id", "file_name", "width", "height", "dataset", "split")
_INSTANCE = ("annotation_id", "noun", "granularity", "mask", "whole")


def scene_to_record(scene: AnnotatedScene, image: str | None) -> dict[str, Any]:
    """What a run keeps of a picture; `image` is where it lies, relative to the run's folder or absolute."""
    return {
        **{name: getattr(scene, name) for name in _PICTURE},
        "image": image,
        "instances": [
            {**{name: getattr(item, name) for name in _INSTANCE}, "box": item.box} for item in scene.instances
        ],
        "known": {
            "absent_nouns": None if scene.absent_nouns is None else sorted(scene.absent_nouns),
            "partial_nouns": sorted(scene.partial_nouns),
            "is_exhaustive": scene.is_exhaustive,
            "size_bounds": scene.size_bounds,
        },
    }


def image_of_record(record: dict[str, Any], folder: Path) -> str | None:
    """The path of a recorded image; `folder` is the run's."""
    image = record["image"]
    return image if image is None or Path(image).is_absolute() else str(folder / image)


def scene_of_record(record: dict[str, Any], folder: Path) -> AnnotatedScene:
    """The scene that a record was made from; what its source knew beyond masks and nouns is not in old records."""
    known = record.get("known") or {"absent_nouns": [], "partial_nouns": [], "is_exhaustive": False}
    image, bounds = image_of_record(record, folder), known.get("size_bounds")
    return AnnotatedScene(
        **{name: record[name] for name in _PICTURE},
        instances=tuple(SceneInstance(**{name: item.get(name) for name in _INSTANCE}) for item in record["instances"]),
        open_image=partial(open_image, image, f"picture {record['image_id']}"),
        image=image,
        absent_nouns=None if known["absent_nouns"] is None else frozenset(known["absent_nouns"]),
        partial_nouns=frozenset(known["partial_nouns"]),
        is_exhaustive=known["is_exhaustive"],
        size_bounds=None if bounds is None else tuple(bounds),
    )
