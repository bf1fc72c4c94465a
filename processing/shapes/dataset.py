# SPDX-License-Identifier: Apache-2.0
"""The shapes world as data: samples for training, fixed evaluation sets, rows of the common schema, official files."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ..datasets.conversion import write_official
from ..datasets.schema import InstructionRow, make_row
from ..language.meaning import NONE
from ..masks import encode_mask
from .questions import families_of, one_of
from .world import Scene, ShapesWorld
from .writer import InstructionWriter, WrittenTarget, kinds_of

CONCEPT, SIMPLE, COMPLEX = InstructionLevel
_SCENES_KEPT = 512


@dataclass(frozen=True)
class ShapesCase:
    """One instruction about one scene: which scene, what was written about it, and the level it is said at."""

    scene_index: int
    target: WrittenTarget
    level: InstructionLevel

    @property
    def text(self) -> str:
        return self.target.phrasings[self.level].text

    @property
    def pair_text(self) -> str | None:
        """The same question at the other instruction level, where it can be said there."""
        other = {SIMPLE: COMPLEX, COMPLEX: SIMPLE}.get(self.level)
        phrasing = self.target.phrasings.get(other) if other else None
        return phrasing.text if phrasing else None

    @property
    def is_held_out(self) -> bool:
        """Whether training has neither seen this phrasing nor this pair of color and noun (either suffices)."""
        return self.target.held_out_pair or self.target.phrasings[self.level].held_out


def write_targets(
    world: ShapesWorld,
    scenes: Sequence[int],
    targets_per_scene: int = 4,
    concepts_per_scene: int = 2,
    emphasis: Mapping[str, float] | None = None,
) -> list[tuple[int, WrittenTarget]]:
    """Targets for a set of scenes, balanced over the whole set; (scene index, target) in order of the scenes.

    Args:
        world: where the scenes come from.
        scenes: their indices.
        targets_per_scene: at most so many with simple and complex phrasings per scene.
        concepts_per_scene: at most so many concepts per scene.
        emphasis: families that are asked more or less often than others; see `writer.cell_weights`.
    """
    words = world.words
    follow = InstructionWriter(world.split, families_of(COMPLEX, words), emphasis=emphasis, words=words)
    name = InstructionWriter(world.split, families_of(CONCEPT), (CONCEPT,), words=words)
    written = []
    for index in scenes:
        objects = world.layout(index)
        for writer, stream, count in ((name, 2, concepts_per_scene), (follow, 3, targets_per_scene)):
            rng = world.rng(index, stream)
            drawn = [writer.write(objects, rng) for _ in range(count)]
            seen = set()
            for target in drawn:
                if target is not None and (target.meaning, target.number) not in seen:
                    seen.add((target.meaning, target.number))
                    written.append((index, target))
    return written


class ShapesInstructionDataset(Dataset):
    """Instructions of the shapes world as samples, one per (target, level).

    A sample is a dict: `image` (uint8 [H, W, 3]), `text`, `level` ("concept" | "simple" | "complex"), `kind`,
    `masks` (bool [N, H, W]), `boxes` (float32 [N, 4], cxcywh in [0, 1]), `concept` (the category's noun), `pair_text`
    (the same question at the other instruction level, or None), `template`, `is_held_out`, `row_id`, `image_id`.

    Args:
        split: "train", "validation" or "test".
        num_scenes: how many scenes to write about.
        seed: the world.
        levels: the levels wanted.
        targets_per_scene, concepts_per_scene: see [`write_targets`].
        cases: use these instead of writing new ones.
    """

    world_type: ClassVar[type[ShapesWorld]] = ShapesWorld

    def __init__(
        self,
        split: str = "train",
        num_scenes: int = 1000,
        seed: int = 0,
        levels: Sequence[str | InstructionLevel] = tuple(InstructionLevel),
        targets_per_scene: int = 4,
        concepts_per_scene: int = 2,
        cases: Sequence[ShapesCase] | None = None,
    ):
        self.world = self.world_type(seed, split)
        wanted = [InstructionLevel.from_any(level) for level in levels]
        if cases is None:
            written = write_targets(
                self.world,
                range(num_scenes),
                targets_per_scene if set(wanted) - {CONCEPT} else 0,
                concepts_per_scene if CONCEPT in wanted else 0,
            )
            cases = [
                ShapesCase(index, target, level)
                for index, target in written
                for level in wanted
                if level in target.phrasings
            ]
        self.cases = list(cases)
        self._scenes: OrderedDict[int, Scene] = OrderedDict()

    @classmethod
    def evaluation(
        cls,
        split: str = "test",
        cases_per_cell: int = 125,
        seed: int = 0,
        levels: Sequence[str | InstructionLevel] = tuple(InstructionLevel),
    ) -> ShapesInstructionDataset:
        """The fixed evaluation set of a split: `cases_per_cell` instructions for every (level, target kind).

        Simple and complex cases of a kind ask the same questions as far as both can say them. A concept names all
        instances, so it has no 1-to-N; its other two positive kinds get twice the cases, which leaves a fifth without
        a target. Held-out compositions: about half of the phrasings, and every color-noun pair in proportion to the
        images.
        """
        world = cls.world_type(seed, split)
        wanted = {}
        for level in map(InstructionLevel.from_any, levels):
            for kind in kinds_of(level):
                wanted[level, kind] = cases_per_cell * (2 if level is CONCEPT and kind != NONE else 1)
        targets = 1 if any(level is not CONCEPT for level, _ in wanted) else 0
        concepts = 1 if any(level is CONCEPT for level, _ in wanted) else 0
        cases: list[ShapesCase] = []
        filled: Counter = Counter()
        start, step = 0, 200
        while any(filled[cell] < count for cell, count in wanted.items()):
            for index, target in write_targets(world, range(start, start + step), targets, concepts):
                for level in target.phrasings:
                    if filled[level, target.kind] < wanted.get((level, target.kind), 0):
                        filled[level, target.kind] += 1
                        cases.append(ShapesCase(index, target, level))
            start += step
        return cls(split, 0, seed, cases=cases)

    def __len__(self) -> int:
        return len(self.cases)

    def scene(self, index: int) -> Scene:
        """Scene `index` of the world; the most recent ones are kept."""
        if index not in self._scenes:
            self._scenes[index] = self.world.scene(index)
            if len(self._scenes) > _SCENES_KEPT:
                self._scenes.popitem(last=False)
        return self._scenes[index]

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.sample(self.cases[position])

    def sample(self, case: ShapesCase, mirrored: bool = False) -> dict[str, Any]:
        """The sample of a case; `mirrored` exchanges left and right in image and words (an augmentation)."""
        scene = self.scene(case.scene_index)
        if mirrored:
            scene = scene.mirror()
            case = ShapesCase(case.scene_index, case.target.mirror(), case.level)
        chosen = list(case.target.targets)
        image_id = _image_id(self.world, case.scene_index)
        return {
            "image": scene.image,
            "text": case.text,
            "level": case.level.value,
            "kind": case.target.kind,
            "masks": scene.masks[chosen],
            "boxes": scene.boxes[chosen],
            "concept": case.target.concept,
            "pair_text": case.pair_text,
            "template": case.target.phrasings[case.level].template,
            "is_held_out": case.is_held_out,
            "row_id": _row_id(image_id, case.target.asked),
            "image_id": image_id,
        }

    def rows(self, asked_at: InstructionLevel | None = None) -> list[InstructionRow]:
        """A row of the common schema for every case, in their order; its text stands at one level, the case's own if
        not told otherwise."""
        rows = []
        for case in self.cases:
            image_id = _image_id(self.world, case.scene_index)
            of_scene = world_fields(self.scene(case.scene_index), image_id, case.target.asked, case.target.targets)
            texts: dict[str, Any] = {(asked_at or case.level).value: [case.text]}
            row = make_row(
                **of_scene,
                **texts,
                target_kind=case.target.kind,
                dataset=self.world.words.name,
                split=self.world.split,
            )
            rows.append(row)
        return rows


def shapes_rows(
    split: str,
    scenes: int | Sequence[int],
    seed: int = 0,
    targets_per_scene: int = 4,
    more_phrasings: int = 0,
    emphasis: Mapping[str, float] | None = None,
) -> Iterator[InstructionRow]:
    """Rows of scenes of the shapes world; see [`world_rows`]."""
    return world_rows(ShapesWorld(seed, split), scenes, targets_per_scene, more_phrasings, emphasis)


def world_rows(
    world: ShapesWorld,
    scenes: int | Sequence[int],
    targets_per_scene: int = 4,
    more_phrasings: int = 0,
    emphasis: Mapping[str, float] | None = None,
) -> Iterator[InstructionRow]:
    """Rows of the common schema, one per target, with PIL images, of the first so many scenes or of the ones given.

    `concept` holds the category's noun as the official files do: it anchors the row, and denotes the row's target only
    where `target_kind` is not "1-to-N" and the row asks for the whole category (its id contains "-category-").
    Questions that only the complex level can ask have no simple instruction. To train on, a row may have up to
    `more_phrasings` further instructions of each level (`WrittenTarget.more_texts`), and some families of questions
    more rows than others (`emphasis`, by which the share of a family is multiplied).

    Raises:
        ValueError: if `emphasis` names a family that is never asked, or a share that is not positive.
    """
    numbers = range(scenes) if isinstance(scenes, int) else scenes
    scene, choose = None, None
    for index, target in write_targets(world, numbers, targets_per_scene, concepts_per_scene=0, emphasis=emphasis):
        if scene is None or choose is None or scene.index != index:
            scene = world.scene(index)
            choose = partial(one_of, world.rng(index, stream=4))
        texts = {level.value: [phrasing.text] for level, phrasing in target.phrasings.items()}
        for level in target.phrasings if more_phrasings else ():
            texts[level.value] += target.more_texts(level, choose, more_phrasings, world.words)
        yield make_row(
            **world_fields(scene, _image_id(world, index), target.asked, target.targets),
            concept=[target.concept],
            simple=texts.get("simple"),
            complex=texts.get("complex"),
            target_kind=target.kind,
            dataset=world.words.name,
            split=world.split,
        )


def world_fields(scene: Scene, image_id: str, asked: Sequence[str | None], targets: Sequence[int]) -> dict[str, Any]:
    """The fields of a row that say where it comes from and what its target is; `asked` makes the row's id."""
    height, width = scene.image.shape[:2]
    return {
        "image": Image.fromarray(scene.image),
        "width": width,
        "height": height,
        "row_id": _row_id(image_id, asked),
        "image_id": image_id,
        "masks": [encode_mask(scene.masks[i]) for i in targets],
        "boxes": [pixel_box(scene.boxes[i], height, width) for i in targets],
        "annotation_ids": [scene.index * 10 + i for i in targets],
    }


def write_official_json(
    directory: str | Path, split: str, num_scenes: int, seed: int = 0, world_type: type[ShapesWorld] = ShapesWorld
) -> Path:
    """Write scenes as PNG files and their rows in the authors' format; returns the JSON's path.

    The authors' loader needs all three instruction lists, so only targets that every level can ask for are written.
    An image appears under several record ids, one per target.
    """
    path = Path(directory) / f"sam3i_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_official((row for row in world_rows(world_type(seed, split), num_scenes) if row["simple"]), path)
    return path


def pixel_box(box: np.ndarray, height: int, width: int) -> list[float]:
    """[x, y, width, height] in pixels of a tight box (cx, cy, w, h) in [0, 1]; tight boxes are whole pixels."""
    cx, cy, w, h = (float(value) for value in box)
    return [float(round(value)) for value in ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)]


def _row_id(image_id: str, asked: Sequence[str | None]) -> str:
    return "-".join([image_id, *(part for part in asked if part)])


def _image_id(world: ShapesWorld, index: int) -> str:
    return f"{world.words.name}-{world.seed}-{world.split}-{index}"
