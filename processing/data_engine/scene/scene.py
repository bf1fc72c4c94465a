# SPDX-License-Identifier: Apache-2.0
"""A picture with its instances: what the data engine writes instructions about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets.schema import CompressedRLE
from ...masks import box_of_rle, decode_mask, rle_area

if TYPE_CHECKING:
    from PIL.Image import Image

GRANULARITIES = ("object", "part")


@dataclass(frozen=True)
class SceneInstance:
    """One instance of a picture.

    Attributes:
        annotation_id: its id in the source, unique within the picture.
        noun: the category as a singular noun phrase, lower case.
        mask: compressed RLE at the size of the picture.
        granularity: "object" or "part".
        whole: annotation id of the object that a part belongs to, where it is known.
    """

    annotation_id: int
    noun: str
    mask: CompressedRLE = field(repr=False)
    granularity: str = "object"
    whole: int | None = None

    @cached_property
    def box(self) -> list[float]:
        """Tight box [x, y, width, height] in pixels."""
        return box_of_rle(self.mask)

    @cached_property
    def area(self) -> int:
        """Pixels covered."""
        return rle_area(self.mask)

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, pixels."""
        x, y, width, height = self.box
        return x + width / 2, y + height / 2

    def pixels(self) -> np.ndarray:
        """The mask as bool [height, width]."""
        return decode_mask(self.mask)


@dataclass(frozen=True)
class Scene:
    """A picture with its instances.

    Attributes:
        image_id: unique within the source.
        width, height: pixels.
        instances: everything annotated that may be a target or a sibling.
        open_image: returns the picture (RGB).
        order: place in the source.
        image: what a row's `image` field gets: a path, a PIL image or None.
        file_name: the path that the source gives.
        dataset, split: where the scene comes from.
        absent_nouns: nouns known to be absent; None where every noun without an instance is absent.
        partial_nouns: nouns whose instances are not all annotated (crowds, LVIS' non-exhaustive categories).
        is_exhaustive: everything in the picture is annotated, so that an instruction may leave the noun open.
        descriptors: what a noun is for or does, as clauses that follow "that", for instructions without the noun.
        size_bounds: longer sides of boxes, in units of the picture's shorter side, up to which an instance is called
            small and from which it is called large; None where it is so only among its category.
        reserved_pairs: (colour, noun) that are kept for testing: no question combines them.
    """

    image_id: str
    width: int
    height: int
    instances: tuple[SceneInstance, ...]
    open_image: Callable[[], Image] = field(repr=False, compare=False)
    order: int = 0
    image: Any = field(default=None, repr=False, compare=False)
    file_name: str | None = None
    dataset: str = ""
    split: str | None = None
    absent_nouns: frozenset[str] | None = None
    partial_nouns: frozenset[str] = frozenset()
    is_exhaustive: bool = False
    descriptors: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)
    size_bounds: tuple[float, float] | None = None
    reserved_pairs: frozenset[tuple[str, str]] = frozenset()

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
