# SPDX-License-Identifier: Apache-2.0
"""Where scenes come from: COCO-style instances (LVIS and PACO included), rows of our schema, the shapes world.

Fields beyond COCO: LVIS' `neg_category_ids` and `not_exhaustive_category_ids` of an image; PACO's part categories
("bottle:cap") with `obj_ann_id` of an annotation.
"""

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ...datasets.coco_index import INCOMPLETE, CocoIndex
from ...datasets.faults import RecordFault, RecordReader, RowAccount
from ...datasets.image_roots import ImageRoot, ReadOptions, name_and_size
from ...datasets.readers.instances import Instances
from ...datasets.schema import InstructionRow, is_text
from ...fingerprint import fingerprint_files
from ...masks import encode_mask, rle_area
from .scene import AnnotatedScene, LeftOut, RowTarget, SceneInstance, open_image

logger = logging.getLogger(__name__)

Wanted = Callable[[str], bool]  # whether the scene of an image id is asked for
SHAPE_SIZES = (0.244, 0.257)  # of the picture's side: small shapes measure up to 27 pixels of 112, large ones from 29
MIN_AREA = 16  # pixels: smaller masks are neither targets nor siblings


class CocoSource:
    """Scenes of a COCO, LVIS or PACO instances file.

    A record that cannot be used is counted in `left_out` (the file's or its scene's), and the rest goes on. Raises
    ValueError: a file without a named category or without an image.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: ImageRoot = None,
        dataset: str | None = None,
        split: str | None = None,
        crowd: str | None = None,
    ):
        self.path = Path(path)
        self.dataset = dataset or self.path.stem
        self.split = split
        self._options = ReadOptions(image_root, crowd=crowd)
        self.left_out = LeftOut()
        self.fingerprint = fingerprint_files([self.path])
        self.index = CocoIndex(self.path)
        for fault in self.index.faults:
            self.left_out.add("record that cannot be read", str(fault))
        for fault in self.index.orphans():
            self.left_out.add("annotation of an image that the file does not have", str(fault))
        names = {number: _split_name(name) for number, name in self.index.nouns.items()}
        self._names = {number: name for number, name in names.items() if is_text(name[0]) and name[0] != "background"}
        if not self._names or not len(self.index):
            faults = "".join(f"; {example}" for _, example in self.left_out.values())
            raise ValueError(
                f"{self.path}: expected `images` and `categories` with names, found {len(self.index)} images and "
                f"{len(self._names)} names{faults}"
            )
        self._roots = self._options.roots(self.path.parent, self.path.parent / "images")

    @property
    def nouns(self) -> tuple[str, ...]:
        """Every noun of the source, sorted."""
        return tuple(sorted({noun for noun, _ in self._names.values()}))

    def scenes(self, wanted: Wanted | None = None) -> Iterator[AnnotatedScene]:
        """One scene per wanted picture, by ascending image id."""
        for order, (label, record) in enumerate(self.index.images()):
            if wanted is None or wanted(str(record["id"])):
                yield self._scene(order, label, record)
        for note, count in self._roots.notes.items():
            logger.warning("%s: %d x %s", self.path, count, note)

    def _scene(self, order: int, label: str, record: dict[str, Any]) -> AnnotatedScene:
        left_out, where = LeftOut(), f"{self.path}: {label}"
        fields = RecordReader(str(self.path), label, record)
        file_name, image, width, height = name_and_size(fields, self._roots, self.dataset)
        for fault in fields.faults[:1]:
            left_out.add(f"image with a fault in its {fault.field}", str(fault))
        annotations = [] if fields.faults else self.index.annotations_of(record["id"])
        if self.index.may_miss(record["id"], len(annotations)):
            left_out.add(INCOMPLETE, where)
            annotations = []
        known = self.index.category_ids or set()
        partial_nouns = self._named(record.get("not_exhaustive_category_ids"))
        instances: list[SceneInstance] = []
        for place, annotation in annotations:
            category = self.index.number(annotation.get("category_id"))
            noun, granularity = (None, "object") if category is None else self._names.get(category, (None, "object"))
            found, reason, example = self._mask(annotation, place, noun, height, width)
            number = self.index.number(annotation["id"])
            if found is None or noun is None or number is None:
                left_out.add(reason, example)
                if noun is not None:
                    partial_nouns.add(noun)  # there, but not to be told apart
                continue
            whole = annotation.get("obj_ann_id") if granularity == "part" else None
            instances.append(SceneInstance(number, noun, found, granularity, whole))
        numbers = record.get("neg_category_ids")
        absent = None if numbers is None else frozenset(self._named(numbers))
        categories = {self.index.number(one.get("category_id")) for _, one in annotations}
        if None in categories:  # an annotation that names no category may be of any
            partial_nouns.update(instance.noun for instance in instances)
        if absent is None and (categories - known or self.index.may_miss(record["id"], 0)):
            absent = frozenset()  # an annotation of no known name, or of no known image, may be anything
        return AnnotatedScene(
            image_id=str(record["id"]),
            width=width,
            height=height,
            instances=tuple(instances),
            open_image=partial(open_image, image, where),
            order=order,
            image=image,
            file_name=file_name,
            dataset=self.dataset,
            split=self.split,
            absent_nouns=absent,
            partial_nouns=frozenset(partial_nouns),
            left_out=left_out,
        )

    def _mask(
        self, annotation: dict[str, Any], place: str, noun: str | None, height: int, width: int
    ) -> tuple[Any, str, str]:
        """(mask, "", "") of an annotation that can be a target, or (None, why not, what was found)."""
        where = f"{self.path}: {place}"
        if noun is None:
            return None, "annotation of an unknown category", f"{where}: category_id {annotation.get('category_id')!r}"
        record, found = RecordReader(str(self.path), place, annotation), Instances(self._options)
        found.add(record, place, annotation, height, width)
        if record.faults:
            fault = record.faults[0]
            return None, f"annotation with a fault in its {fault.field}", str(fault)
        (mask,), (crowd,) = found.masks, found.is_crowd
        if crowd:
            return None, "annotation of a crowd (iscrowd; --crowd instance takes those of one piece)", where
        if mask is None:
            return None, "annotation with a box and no mask", where
        if rle_area(mask) < MIN_AREA:
            return None, f"annotation with a mask of under {MIN_AREA} pixels", where
        return mask, "", ""

    def _named(self, numbers: Iterable[int] | None) -> set[str]:
        return {self._names[n][0] for n in map(self.index.number, numbers or ()) if n in self._names}


class RowSource:
    """Scenes of instruction rows: images and instances are taken, the instructions are written anew.

    An instance's noun is the first concept of the row that holds it; rows of kind "1-to-N" may name a wider category
    than their target, which is still its noun. Instances of one image are told apart by annotation id, or by mask.
    Each row's target stays known: a chat writer takes it where the rows do not hold all of a category.

    Args:
        rows: rows, whose `image` is a path, a PIL image or `{"path", "bytes"}`, and faults, which are counted.
    """

    def __init__(self, rows: Iterable[InstructionRow | RecordFault], account: RowAccount | None = None):
        self.left_out = LeftOut()
        digest = hashlib.sha256()
        pictures: dict[tuple[str, str], list[InstructionRow]] = {}
        for row in rows:
            if isinstance(row, RecordFault):
                self.left_out.add("faulty record", str(row))
                continue
            pictures.setdefault((row["dataset"], row["image_id"]), []).append(row)
            digest.update(json.dumps({**row, "image": _content(row["image"])}, sort_keys=True).encode())
        for reason, count in account.left_out.items() if account else ():
            self.left_out.add(reason, count=count)
        for note, count in account.notes.items() if account else ():
            logger.warning("%d x %s", count, note)
        self.fingerprint = digest.hexdigest()
        self._found = [self._scene(order, *item) for order, item in enumerate(pictures.items())]

    @property
    def nouns(self) -> tuple[str, ...]:
        return tuple(sorted({noun for scene in self._found for noun in scene.nouns}))

    def scenes(self, wanted: Wanted | None = None) -> Iterator[AnnotatedScene]:
        """One scene per wanted picture, in order of first appearance."""
        return (scene for scene in self._found if wanted is None or wanted(scene.image_id))

    @staticmethod
    def _scene(order: int, key: tuple[str, str], rows: list[InstructionRow]) -> AnnotatedScene:
        first, left_out = rows[0], LeftOut()
        instances: dict[int, SceneInstance] = {}
        targets: list[RowTarget] = []
        partial_nouns: set[str] = set()
        complete: set[str] = set()
        unusable: set[str] = set()  # one of its instances is there, but cannot be told apart
        absent: set[str] = set()
        for row in rows:
            noun = row["concept"][0].lower().strip() if row["concept"] else None
            if noun is None:
                left_out.add("row without a concept: nothing names its target", f"row {row['row_id']}")
                continue
            numbers: Sequence[int | None] = row["annotation_ids"] or [None] * len(row["masks"])
            target = []
            for mask, number, crowd in zip(row["masks"], numbers, row["is_crowd"], strict=True):
                if mask is None or crowd or rle_area(mask) < MIN_AREA:
                    reason = (
                        "box and no mask" if mask is None else "crowd" if crowd else f"less than {MIN_AREA} pixels"
                    )
                    left_out.add(f"instance of a row with {reason}", f"row {row['row_id']}")
                    unusable.add(noun)
                    continue
                number = zlib.crc32(mask["counts"].encode()) if number is None else number
                instances.setdefault(number, SceneInstance(number, noun, mask))
                target.append(number)
            kind = row["target_kind"]
            (complete if kind == "1-to-all" else absent if kind == "none" else partial_nouns).add(noun)
            if len(target) == len(row["masks"]):
                kind = kind or ("none" if not target else "1-to-1" if len(target) == 1 else "1-to-N")
                targets.append(RowTarget(str(row["row_id"]), tuple(sorted(target)), kind, noun))
        image = first["image"]
        return AnnotatedScene(
            image_id=key[1],
            width=first["width"],
            height=first["height"],
            instances=tuple(instances.values()),
            open_image=partial(open_image, image, f"row {first['row_id']}"),
            order=order,
            image=image,
            file_name=first["file_name"],
            dataset=key[0],
            split=first["split"],
            absent_nouns=frozenset(absent) - {instance.noun for instance in instances.values()},
            partial_nouns=frozenset(partial_nouns - complete | unusable),
            row_targets=tuple(targets),
            left_out=left_out,
        )


class ShapesSource:
    """Scenes of the shapes world; nothing but pictures, masks and shape names is taken from the generator.

    Its knowledge comes along: what shapes are for, which sizes it calls small and large, and, for the training split,
    the pairs of color and noun that it keeps for testing.

    Args:
        num_scenes: how many; their indices start at `start`.
    """

    def __init__(self, num_scenes: int, split: str = "train", seed: int = 0, start: int = 0):
        from ...shapes.rendering import NOUNS
        from ...shapes.world import ShapesWorld

        self.left_out = LeftOut()
        self.fingerprint = None  # seed, split and number say all
        self.world = ShapesWorld(seed, split)
        self.indices = range(start, start + num_scenes)
        self.nouns = tuple(sorted(NOUNS))

    def scenes(self, wanted: Wanted | None = None) -> Iterator[AnnotatedScene]:
        """Wanted scenes in order of their indices, rendered one by one."""
        from ...shapes.lexicon import DESCRIPTORS
        from ...shapes.world import HELD_OUT_PAIRS

        for order, index in enumerate(self.indices):
            image_id = f"shapes-{self.world.seed}-{self.world.split}-{index}"
            if wanted is not None and not wanted(image_id):
                continue
            rendered = self.world.scene(index)
            height, width = rendered.image.shape[:2]
            image = Image.fromarray(rendered.image)
            instances = [
                SceneInstance(index * 10 + i, item.noun, encode_mask(rendered.masks[i]))
                for i, item in enumerate(rendered.objects)
            ]
            yield AnnotatedScene(
                image_id=image_id,
                width=width,
                height=height,
                instances=tuple(instances),
                open_image=partial(open_image, image, f"scene {index}"),
                order=order,
                image=image,
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


def _content(image: Any) -> str | None:
    """What tells an image of a row from another, without reading files."""
    if isinstance(image, dict):
        return hashlib.sha256(image["bytes"]).hexdigest() if image.get("bytes") else image.get("path")
    return image if isinstance(image, str) or image is None else hashlib.sha256(image.tobytes()).hexdigest()
