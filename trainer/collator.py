# SPDX-License-Identifier: Apache-2.0
"""Instruction rows to model inputs: which text of which level is trained, and on what targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..modeling_sam3i.configuration_sam3i import InstructionLevel
from ..processing.datasets.schema import LEVEL_FIELDS
from ..processing.images import read_image
from ..processing.masks import box_of_rle
from .transforms import InstructionTransform, Placement, keyed_random

if TYPE_CHECKING:
    from ..processing.processing_sam3i import Sam3IProcessor

JOINT = "joint"
MIN_OBJECT_AREA = 1e-6  # of the image: smaller instances are no training targets (as the authors' loader has it)


class InstructionCollator:
    """Collates rows of `schema.InstructionRow` into the inputs of `Sam3IForInstructionSegmentation`.

    Every draw is a pure function of (seed, epoch, row): the same row in the same epoch gives the same text and the
    same placement, whatever the batch, the worker, the process, or where training was resumed.

    Args:
        processor: prepares images and texts.
        sampling: the level to train: "concept", "simple", "complex"; "joint" for pairs of a simple and a complex
            instruction of one target plus its concept phrase; or a mapping from levels to weights, by which a level
            is drawn for each row among those it has.
        texts_per_row: instructions (pairs, for "joint") drawn from each row without repetition, as far as it has them.
        transform: augmentation; None leaves images as inference sees them.
        load_images: False leaves images unread and `pixel_values` out, for cached vision features.
        labels: False gives no labels: rows to answer as before (replay) need no targets.
        seed: of all draws.

    Returns (from `__call__`), for I images and R instruction rows:
        pixel_values [I, 3, H, W]; input_ids, attention_mask [R, L]; instruction_levels, image_ids [R];
        labels: R dicts {"masks": Bool[N, H, W], "boxes": Float[N, 4] (cx, cy, w, h) in [0, 1]}, N = 0 for no target;
        concept_names: R noun phrases ("" where a row has none); image_keys: I strings, one per image.
        For "joint", rows 2p and 2p + 1 are the simple and the complex instruction of pair p, and
        concept_input_ids, concept_attention_mask [R / 2, L] hold the concept phrases, which need no image.
    Rows of one image share it: it is encoded once, and its rows stand side by side.
    """

    def __init__(
        self,
        processor: Sam3IProcessor,
        sampling: str | Mapping[str, float] = "simple",
        *,
        texts_per_row: int = 1,
        transform: InstructionTransform | None = None,
        load_images: bool = True,
        labels: bool = True,
        seed: int = 0,
    ):
        if isinstance(texts_per_row, bool) or not isinstance(texts_per_row, int) or texts_per_row < 1:
            raise ValueError(f"texts_per_row must be a whole number >= 1, found {texts_per_row!r}")
        if transform is not None and not load_images:
            raise ValueError("a transform moves the image, cached features show it as it is: drop one of the two")
        self.processor = processor
        self.sampling = read_sampling(sampling)
        self.weights = {} if isinstance(self.sampling, str) else self.sampling
        self.texts_per_row = texts_per_row
        self.transform = transform
        size = processor.image_processor.size
        self.canvas = (int(size["height"]), int(size["width"]))
        self.load_images = load_images
        self.labels = labels
        self.seed = seed
        # Shared memory: workers that outlive an epoch see the next one too.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch whose draws are made."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, before its first batch."""
        self._epoch.fill_(int(epoch))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if not rows:
            raise ValueError("an empty batch: expected at least one row")
        for row in rows:
            problem = row_problem(row, self.sampling, self.labels)
            if problem:
                raise ValueError(f"row {row['row_id']!r} of {row['dataset']!r}: {problem}; use select_rows() first")
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            groups.setdefault(image_key(row), []).append(row)
        texts, levels, labels, names, images, concepts = [], [], [], [], [], []
        for key, members in groups.items():
            placement = self._placement(key, members)
            if self.load_images:
                images.append(self._image(members[0], placement))
            image_texts, image_levels = [], []
            for row in members:
                drawn = self._draw(row)
                label = self._label(row, placement) if self.labels else {}
                name = row["concept"][0].lower() if row["concept"] else ""
                for level, text in drawn:
                    image_texts.append(text)
                    image_levels.append(level)
                labels.extend([label] * len(drawn))
                names.extend([name] * len(drawn))
                concepts.extend([name] * (len(drawn) // 2))
            texts.append(image_texts)
            levels.append(image_levels)
        batch = self._encode(images, texts, levels)
        batch.update(concept_names=names, image_keys=list(groups))
        if self.labels:
            batch["labels"] = labels
        if self.sampling == JOINT:
            phrases = self.processor(text=concepts, return_tensors="pt")
            batch["concept_input_ids"] = phrases["input_ids"]
            batch["concept_attention_mask"] = phrases["attention_mask"]
        return batch

    def _encode(self, images: list[Any], texts: list[list[str]], levels: list[list[str]]) -> dict[str, Any]:
        if self.load_images:
            encoded = self.processor(images=images, text=texts, instruction_levels=levels, return_tensors="pt")
        else:
            flat = [text for group in texts for text in group]
            flat_levels = [level for group in levels for level in group]
            encoded = self.processor(text=flat, instruction_levels=flat_levels, return_tensors="pt")
            encoded["image_ids"] = torch.tensor([index for index, group in enumerate(texts) for _ in group])
        names = ("pixel_values", "input_ids", "attention_mask", "instruction_levels", "image_ids")
        return {name: encoded[name] for name in names if name in encoded}

    def _draw(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(level, text) of the rows to train, in order."""
        generator = keyed_random(self.seed, self.epoch, "text", row["dataset"], row["split"] or "", row["row_id"])
        if self.sampling == JOINT:
            count = min(self.texts_per_row, len(row["simple"]), len(row["complex"]))
            simple, complex_ = (generator.sample(row[level], count) for level in ("simple", "complex"))
            pairs = zip(simple, complex_, strict=True)
            return [item for a, b in pairs for item in (("simple", a), ("complex", b))]
        present = [level for level in self.weights if row[level]]
        level = generator.choices(present, [self.weights[name] for name in present])[0]
        return [(level, text) for text in generator.sample(row[level], min(self.texts_per_row, len(row[level])))]

    def _placement(self, key: str, rows: Sequence[Mapping[str, Any]]) -> Placement:
        if self.transform is None:
            return Placement(self.canvas, self.canvas)
        texts = (text for row in rows for level in LEVEL_FIELDS for text in row[level])
        return self.transform(self.canvas, texts, keyed_random(self.seed, self.epoch, "image", key))

    def _image(self, row: Mapping[str, Any], placement: Placement) -> Image.Image:
        if row["image"] is None:
            raise ValueError(f"row {row['row_id']!r} has no image; load the data with image_root=")
        image = read_image(row["image"])
        if image.size != (row["width"], row["height"]):
            raise ValueError(
                f"row {row['row_id']!r}: the image has {image.width} x {image.height} pixels, the row says "
                f"{row['width']} x {row['height']}; `sam3i data validate` finds such rows"
            )
        return image if self.transform is None else placement.place_image(image)

    def _label(self, row: Mapping[str, Any], placement: Placement) -> dict[str, torch.Tensor]:
        kept = [row["masks"][index] for index in range(len(row["masks"])) if _is_target(row, index)]
        boxes = [box_of_rle(mask) for mask in kept]  # the mask decides, whatever box the source gives
        return {
            "masks": placement.place_masks(kept),
            "boxes": placement.place_boxes(boxes, row["height"], row["width"]),
        }


class RowsWithReplay(torch.utils.data.Dataset):
    """The rows of a stage and, behind them and marked so, those of an old domain."""

    def __init__(self, rows: Any, replay: Any):
        self.rows, self.replay = rows, replay

    def __len__(self) -> int:
        return len(self.rows) + len(self.replay)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index < len(self.rows):
            return self.rows[index]
        return {**self.replay[index - len(self.rows)], "replay": True}


class WithReplay:
    """Collates batches of a stage, and those of marked rows without labels, marked, too."""

    def __init__(self, collator: InstructionCollator, replay_collator: InstructionCollator):
        self.collator, self.replay_collator = collator, replay_collator

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, before its first batch."""
        for collator in (self.collator, self.replay_collator):
            if hasattr(collator, "set_epoch"):
                collator.set_epoch(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if "replay" in rows[0]:
            return self.replay_collator(rows) | {"replay": True}
        return self.collator(rows)


def read_sampling(sampling: str | Mapping[str, float]) -> str | dict[str, float]:
    """ "joint", or weights by level; an unknown level, no level, and weights below or all 0 are refused."""
    if sampling == JOINT:
        return JOINT
    weights = {sampling: 1.0} if isinstance(sampling, str) else dict(sampling)
    known = {InstructionLevel.from_any(level).value: float(weight) for level, weight in weights.items()}
    if not known or min(known.values()) < 0 or not sum(known.values()):
        raise ValueError(f"sampling weights must be >= 0, and not all 0, found {sampling!r}")
    return {level: weight for level, weight in known.items() if weight}


def row_problem(row: Mapping[str, Any], sampling: str | Mapping[str, float], labels: bool = True) -> str | None:
    """Why a row cannot be trained with this sampling, or None; without `labels` its targets are not needed."""
    if sampling == JOINT:
        missing = [level for level in LEVEL_FIELDS if not row[level]]
        if missing:
            return f"joint training needs an instruction of every level, {', '.join(missing)} is empty"
    elif not any(row[level] for level in sampling):
        return f"no instruction of the level {' or '.join(sampling)}"
    if not labels:
        return None
    if None in row["masks"]:
        return "an instance has a box and no mask"
    if row["masks"] and not any(_is_target(row, index) for index in range(len(row["masks"]))):
        return "all its instances are crowds or smaller than a pixel, so it would be trained as having no target"
    return None


@dataclass
class UsableRows:
    """The rows of a dataset that a way of sampling can use, and what became of the others."""

    indices: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # rows by reason
    with_target: int = 0  # rows used that denote something
    small_instances: int = 0  # crowds and instances smaller than a pixel in them, which are no targets


def named_parts(dataset: Any, name: str = "") -> dict[str, Any]:
    """The data sets of a dictionary, or the one that is given under `name`; none of None."""
    if dataset is None:
        return {}
    return dataset if isinstance(dataset, dict) else {name: dataset}


def usable_rows(dataset: Any, sampling: str | Mapping[str, float], labels: bool = True) -> UsableRows:
    """Which rows of a `datasets.Dataset` can be trained with this sampling; images are not opened."""
    sampling, found = read_sampling(sampling), UsableRows()
    light = dataset.select_columns([*LEVEL_FIELDS, "masks", "boxes", "is_crowd", "width", "height"])
    for index, row in enumerate(light):
        problem = row_problem(row, sampling, labels)
        if problem is not None:
            found.left_out[problem] += 1
            continue
        found.indices.append(index)
        found.with_target += bool(row["masks"])
        if labels:
            found.small_instances += sum(not _is_target(row, place) for place in range(len(row["masks"])))
    return found


def select_rows(dataset: Any, sampling: str | Mapping[str, float], labels: bool = True) -> Any:
    """The rows of a `datasets.Dataset` that can be trained with this sampling; [`usable_rows`] says why not others."""
    return dataset.select(usable_rows(dataset, sampling, labels).indices)


def image_key(row: Mapping[str, Any]) -> str:
    """A name for the image of a row, equal for all rows of one image."""
    return f"{row['dataset']}/{row['split'] or ''}/{row['image_id']}"


def _is_target(row: Mapping[str, Any], index: int) -> bool:
    _, _, width, height = row["boxes"][index]
    return not row["is_crowd"][index] and width * height >= MIN_OBJECT_AREA * row["width"] * row["height"]
