# SPDX-License-Identifier: Apache-2.0
"""Scores on the shapes world as the examples print them: one way to choose a threshold, one line of a table."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from shapes_common import pixel_values
from torch import nn

from sam3i import InstructionLevel, ShapesInstructionDataset
from sam3i.processing.datasets import TARGET_KINDS
from sam3i.processing.shapes import IMAGE_SIZE
from sam3i.trainer.evaluation import choose_threshold

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 19))
COLUMNS = ("all", *TARGET_KINDS, "cIoU", "P@0.5", "N-acc")


@torch.no_grad()
def mask_areas(
    model: nn.Module,
    tokenizer,
    dataset: ShapesInstructionDataset,
    levels: Sequence[int] | None = None,
    scenes_at_once: int = 16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels that the united masks share with the truth, and pixels in either, for every case and threshold.

    Args:
        levels: the level at which each case is asked, 0 to 2; its own if not given.

    Returns two tensors [cases, thresholds] in the order of the cases.
    """
    model.eval()
    if levels is None:
        levels = [case.level.index for case in dataset.cases]
    by_scene = defaultdict(list)
    for number, case in enumerate(dataset.cases):
        by_scene[case.scene_index].append(number)
    common, either = torch.zeros(2, len(dataset), len(THRESHOLDS), dtype=torch.long)
    scenes = list(by_scene)
    for start in range(0, len(scenes), scenes_at_once):
        chosen = scenes[start : start + scenes_at_once]
        numbers = [number for scene in chosen for number in by_scene[scene]]
        samples = [dataset[number] for number in numbers]
        text = tokenizer([s["text"] for s in samples], padding=True, return_tensors="pt")
        outputs = model(
            pixel_values=pixel_values([dataset.scene(scene).image for scene in chosen]),
            image_ids=torch.tensor([i for i, scene in enumerate(chosen) for _ in by_scene[scene]]),
            instruction_levels=torch.tensor([levels[number] for number in numbers]),
            **text,
        )
        scores = outputs.pred_logits.sigmoid() * outputs.presence_logits.sigmoid()  # [R, Q]
        masks = nn.functional.interpolate(outputs.pred_masks, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear") > 0
        best = torch.where(masks, scores[..., None, None], 0.0).amax(1)  # of the masks over each pixel: [R, H, W]
        truth = torch.stack([torch.from_numpy(s["masks"]).any(0) for s in samples])  # [R, H, W]
        for column, threshold in enumerate(THRESHOLDS):
            found = best > threshold
            common[numbers, column] = (found & truth).sum((1, 2))
            either[numbers, column] = (found | truth).sum((1, 2))
    return common, either


def ious_of_areas(common: torch.Tensor, either: torch.Tensor) -> torch.Tensor:
    """IoU of each entry; nothing found where nothing is denoted counts 1."""
    return torch.where(either == 0, 1.0, common / either.clamp(min=1))


def union_ious(
    model: nn.Module, tokenizer, dataset: ShapesInstructionDataset, levels: Sequence[int] | None = None
) -> torch.Tensor:
    """IoU of the united masks with the truth for every case of a dataset and every threshold: [cases, thresholds]."""
    return ious_of_areas(*mask_areas(model, tokenizer, dataset, levels))


def scores_by_kind(ious: torch.Tensor, dataset: ShapesInstructionDataset) -> dict[str, dict[str, float]]:
    """gIoU (mean IoU) and P@0.5 for all cases and per target kind of one column of `union_ious`."""
    groups: dict[str, list[int]] = {"all": list(range(len(dataset)))}
    for number, case in enumerate(dataset.cases):
        groups.setdefault(case.target.kind, []).append(number)
        if case.target.held_out_pair:
            groups.setdefault("held-out pair", []).append(number)
    return {
        name: {
            "gIoU": ious[rows].mean().item(),
            "P@0.5": (ious[rows] > 0.5).float().mean().item(),
            "nothing": float(np.mean([dataset.cases[row].target.kind == "none" for row in rows])),
            "cases": len(rows),
        }
        for name, rows in groups.items()
    }


@dataclass(frozen=True)
class LevelScore:
    """How a system answers the test cases of a level at a threshold."""

    test: ShapesInstructionDataset
    threshold: float
    areas: tuple[torch.Tensor, torch.Tensor]  # pixels in common and in either, [cases]

    @property
    def ious(self) -> torch.Tensor:
        """IoU of every case."""
        return ious_of_areas(*self.areas)

    def line(self, name: str) -> str:
        """Its line of the table."""
        return line(f"{name} (threshold {self.threshold})", self.test, self.ious, self.areas)

    def by_kind(self) -> dict[str, float]:
        """gIoU of all cases and by kind of target."""
        kinds = [case.target.kind for case in self.test.cases]
        chosen = {kind: torch.tensor([each == kind for each in kinds]) for kind in TARGET_KINDS}
        return {"all": self.ious.mean().item()} | {
            kind: self.ious[rows].mean().item() for kind, rows in chosen.items()
        }


@lru_cache(maxsize=8)
def splits(
    level: InstructionLevel, cases: int, world: int
) -> tuple[ShapesInstructionDataset, ShapesInstructionDataset]:
    """Validation cases, to choose on, and test cases, `cases` per kind of target."""
    validation = ShapesInstructionDataset.evaluation("validation", max(30, cases // 2), world, [level])
    return validation, ShapesInstructionDataset.evaluation("test", cases, world, [level])


def best_column(ious: torch.Tensor) -> int:
    """The place in `THRESHOLDS` of the one to choose, from IoUs [cases, thresholds]."""
    return THRESHOLDS.index(choose_threshold(dict(zip(THRESHOLDS, ious.mean(0).tolist(), strict=True))))


def score_level(
    model: nn.Module,
    tokenizer,
    level: InstructionLevel,
    cases: int,
    world: int = 0,
    asked_at: int | None = None,
    threshold: float | None = None,
) -> LevelScore:
    """Score a system on a level.

    Args:
        asked_at: the level (0 to 2) at which it is asked, if not the cases' own.
        threshold: one of `THRESHOLDS`; chosen on validation cases if not given.
    """
    validation, test = splits(level, cases, world)
    asked_at = level.index if asked_at is None else asked_at
    if threshold is None:
        chosen = best_column(union_ious(model, tokenizer, validation, [asked_at] * len(validation)))
    else:
        chosen = THRESHOLDS.index(threshold)
    common, either = mask_areas(model, tokenizer, test, [asked_at] * len(test))
    return LevelScore(test, THRESHOLDS[chosen], (common[:, chosen], either[:, chosen]))


def header(title: str) -> str:
    """The first line of a table."""
    return f"{title:<34}" + "".join(f"{name:>9}" for name in COLUMNS)


def line(name: str, dataset: ShapesInstructionDataset, ious: torch.Tensor, areas=None) -> str:
    """One row of the table: gIoU of all cases and by kind of target, then cIoU, P@0.5 and N-acc."""
    kinds = [case.target.kind for case in dataset.cases]
    cells = [f"{ious.mean():.3f}"]
    for kind in TARGET_KINDS:
        chosen = torch.tensor([each == kind for each in kinds])
        cells.append(f"{ious[chosen].mean():.3f}" if chosen.any() else "-")
    if areas is None:
        cells += ["-", "-", "-"]
    else:
        common, either = areas
        none = torch.tensor([kind == "none" for kind in kinds])
        cells.append(f"{common.sum() / either.sum():.3f}")
        cells.append(f"{(ious >= 0.5).float().mean():.3f}")
        cells.append(f"{(either[none] == 0).float().mean():.3f}")
    return f"{name:<34}" + "".join(f"{cell:>9}" for cell in cells)


def pick_any(dataset: ShapesInstructionDataset) -> torch.Tensor:
    """Expected IoU, [cases], of cutting out one object of the noun, picked by chance (of all, without a noun)."""
    ious = []
    for case in dataset.cases:
        scene, noun = dataset.scene(case.scene_index), case.target.meaning.noun
        masks = torch.from_numpy(scene.masks)
        truth = masks[list(case.target.targets)].any(0)
        picks = [mask for mask, item in zip(masks, scene.objects, strict=True) if noun in (None, item.noun)]
        if not picks:
            ious.append(float(not truth.any()))
            continue
        ious.append(sum(float((pick & truth).sum() / (pick | truth).sum()) for pick in picks) / len(picks))
    return torch.tensor(ious)
