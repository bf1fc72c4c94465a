# SPDX-License-Identifier: Apache-2.0
"""Where scenes come from: COCO-style instances (LVIS and PACO included), rows of our schema, the shapes world.

Fields beyond COCO: LVIS' `neg_category_ids` and `not_exhaustive_category_ids` of an image; PACO's part categories
("bottle:cap") with `obj_ann_id` of an annotation.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import logging

from ...datasets.coco_index import CocoIndex
from ...datasets.faults import DatasetFormatError
from ...datasets.image_roots import ImageRoot, ImageRoots
from ...datasets.schema import InstructionRow
from ...images import read_image
from ...masks import encode_mask, rle_area, segmentation_to_rle
from .scene import Scene, SceneInstance

logger = logging.get_logger(__name__)

Wanted = Callable[[str], bool]  # whether the scene of an image id is asked for
SHAPE_SIZES = (0.244, 0.257)  # of the picture's side: small shapes measure up to 27 pixels of 112, large ones from 29
MIN_AREA = 16  # pixels: smaller masks are neither targets nor siblings


class CocoSource:
    """Scenes of a COCO, LVIS or PACO instances file.

    Args:
        path: the JSON file.
        image_root: folder(s) of the pictures; see `image_roots.ImageRoots`.
        dataset: name for the rows; the file's stem if not given.
        split: split for the rows.

    Raises:
        DatasetFormatError: a record that cannot be read; `sam3i data validate` lists all of them.
    """

    def __init__(
        self, path: str | Path, image_root: ImageRoot = None, dataset: str | None = None, split: str | None = None
    ):
        self.path = Path(path)
        self.dataset = dataset or self.path.stem
        self.split = split
        self.index = CocoIndex(self.path)
        for fault in (*self.index.faults, *self.index.orphans()):
            raise DatasetFormatError(str(fault))
        if not self.index.categories:
            raise DatasetFormatError(f"{self.path}: expected `categories` with names, found none; add them")
        self._roots = ImageRoots(image_root, (self.path.parent, self.path.parent / "images"))
        self._names = {number: _split_name(name) for number, name in self.index.categories.items()}

    @property
    def nouns(self) -> tuple[str, ...]:
        """Every noun of the source, sorted."""
        return tuple(sorted({noun for noun, _ in self._names.values()}))

    def scenes(self, wanted: Wanted | None = None) -> Iterator[Scene]:
        """One scene per wanted picture with at least one usable instance, by ascending image id."""
        for order, (label, record) in enumerate(self.index.images()):
            if wanted is None or wanted(str(record["id"])):
                scene = self._scene(order, label, record)
                if scene.instances:
                    yield scene

    def _scene(self, order: int, label: str, record: dict[str, Any]) -> Scene:
        try:
            width, height, file_name = int(record["width"]), int(record["height"]), record.get("file_name")
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetFormatError(f"{self.path}: {label}: expected width and height in pixels: {error}") from error
        file_name = file_name or str(record.get("coco_url", "")).rsplit("/", 1)[-1] or None
        instances, partial_nouns = [], self._named(record.get("not_exhaustive_category_ids"))
        for place, annotation in self.index.annotations_of(record["id"]):
            noun, granularity = self._names.get(annotation.get("category_id"), (None, None))
            if noun is None:
                raise DatasetFormatError(
                    f"{self.path}: {place}: expected the id of a category, found {annotation.get('category_id')!r}"
                )
            try:
                mask = segmentation_to_rle(annotation.get("segmentation"), height, width)
            except ValueError as error:
                raise DatasetFormatError(f"{self.path}: {place}: {error}") from error
            if mask is None or annotation.get("iscrowd"):
                partial_nouns.add(noun)  # there, but not to be told apart
            elif rle_area(mask) >= MIN_AREA:
                whole = annotation.get("obj_ann_id") if granularity == "part" else None
                instances.append(SceneInstance(annotation["id"], noun, mask, granularity, whole))
            else:
                partial_nouns.add(noun)
        negatives = record.get("neg_category_ids")
        picture = self._roots.path(file_name, self.dataset) if file_name else None
        return Scene(
            image_id=str(record["id"]),
            width=width,
            height=height,
            instances=tuple(instances),
            open_image=partial(open_picture, picture, f"{self.path}: {label}"),
            order=order,
            image=picture,
            file_name=file_name,
            dataset=self.dataset,
            split=self.split,
            absent_nouns=None if negatives is None else frozenset(self._named(negatives)),
            partial_nouns=frozenset(partial_nouns),
        )

    def _named(self, numbers: Iterable[int] | None) -> set[str]:
        return {self._names[number][0] for number in numbers or () if number in self._names}


class RowSource:
    """Scenes of instruction rows: pictures and instances are taken, the instructions are written anew.

    An instance's noun is the first concept of the row that holds it; rows of kind "1-to-N" may name a wider category
    than their target, which is still its noun. Instances of one picture are told apart by annotation id, or by mask.

    Args:
        rows: rows whose `image` is a path, a PIL image or `{"path", "bytes"}`.
    """

    def __init__(self, rows: Iterable[InstructionRow]):
        self._pictures: dict[tuple[str, str], list[InstructionRow]] = {}
        for row in rows:
            self._pictures.setdefault((row["dataset"], row["image_id"]), []).append(row)
        self._found = [self._scene(order, *item) for order, item in enumerate(self._pictures.items())]

    @property
    def nouns(self) -> tuple[str, ...]:
        return tuple(sorted({noun for scene in self._found for noun in scene.nouns}))

    def scenes(self, wanted: Wanted | None = None) -> Iterator[Scene]:
        """One scene per wanted picture with at least one instance, in order of first appearance."""
        return (scene for scene in self._found if scene.instances and (wanted is None or wanted(scene.image_id)))

    @staticmethod
    def _scene(order: int, key: tuple[str, str], rows: list[InstructionRow]) -> Scene:
        first, instances, partial_nouns = rows[0], {}, set()
        for row in rows:
            noun = row["concept"][0].lower().strip() if row["concept"] else None
            numbers = row["annotation_ids"] or [None] * len(row["masks"])
            for mask, number, is_crowd in zip(row["masks"], numbers, row["is_crowd"], strict=True):
                if noun is None or mask is None:
                    continue
                if is_crowd:
                    partial_nouns.add(noun)
                    continue
                number = zlib.crc32(mask["counts"].encode()) if number is None else number
                instances.setdefault(number, SceneInstance(number, noun, mask))
            if row["target_kind"] not in ("1-to-all", "none") and noun is not None:
                partial_nouns.add(noun)
        complete = {
            row["concept"][0].lower().strip() for row in rows if row["concept"] and row["target_kind"] == "1-to-all"
        }
        image = first["image"]
        return Scene(
            image_id=key[1],
            width=first["width"],
            height=first["height"],
            instances=tuple(instances.values()),
            open_image=partial(open_picture, image, f"row {first['row_id']}"),
            order=order,
            image=image,
            file_name=first["file_name"],
            dataset=key[0],
            split=first["split"],
            absent_nouns=frozenset(
                row["concept"][0].lower().strip() for row in rows if row["concept"] and row["target_kind"] == "none"
            )
            - {instance.noun for instance in instances.values()},
            partial_nouns=frozenset(partial_nouns - complete),
        )


class ShapesSource:
    """Scenes of the shapes world; nothing but pictures, masks and shape names is taken from the generator.

    Its knowledge comes along: what shapes are for, which sizes it calls small and large, and, for the training split,
    the pairs of colour and noun that it keeps for testing.

    Args:
        num_scenes: how many; their indices start at `start`.
        split, seed: the world.
    """

    def __init__(self, num_scenes: int, split: str = "train", seed: int = 0, start: int = 0):
        from ...shapes.rendering import NOUNS
        from ...shapes.world import ShapesWorld

        self.world = ShapesWorld(seed, split)
        self.indices = range(start, start + num_scenes)
        self.nouns = tuple(sorted(NOUNS))

    def scenes(self, wanted: Wanted | None = None) -> Iterator[Scene]:
        """Wanted scenes in order of their indices, rendered one by one."""
        from ...shapes.lexicon import DESCRIPTORS
        from ...shapes.world import HELD_OUT_PAIRS

        for order, index in enumerate(self.indices):
            image_id = f"shapes-{self.world.seed}-{self.world.split}-{index}"
            if wanted is not None and not wanted(image_id):
                continue
            rendered = self.world.scene(index)
            height, width = rendered.image.shape[:2]
            picture = Image.fromarray(rendered.image)
            instances = [
                SceneInstance(index * 10 + i, item.noun, encode_mask(rendered.masks[i]))
                for i, item in enumerate(rendered.objects)
            ]
            yield Scene(
                image_id=image_id,
                width=width,
                height=height,
                instances=tuple(instances),
                open_image=partial(open_picture, picture, f"scene {index}"),
                order=order,
                image=picture,
                dataset="shapes",
                split=self.world.split,
                is_exhaustive=True,
                descriptors=DESCRIPTORS,
                size_bounds=SHAPE_SIZES,
                reserved_pairs=HELD_OUT_PAIRS if self.world.split == "train" else frozenset(),
            )


def _split_name(name: str) -> tuple[str, str]:
    """(noun, granularity) of a category name: "bottle:cap" is a part; "_" and "(...)" go."""
    words = name.lower().replace("_", " ")
    granularity = "part" if ":" in words else "object"
    return " ".join(words.rsplit(":", 1)[-1].split("(")[0].split()), granularity


def open_picture(picture: Any, label: str) -> Image.Image:
    """The picture of a scene, upright and in RGB; `label` names it in errors."""
    if picture is None:
        raise DatasetFormatError(f"{label}: no picture was found; pass the folder of the pictures (--image-root)")
    return read_image(picture)
