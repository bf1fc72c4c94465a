# SPDX-License-Identifier: Apache-2.0
"""The checks that ask a model: a chat model that answers from the picture alone, and a segmenter that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from ..scene.facts import Facts
from .checks import FAIL, PASS, Candidate, CheckResult

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_NUMBERED = 30  # instances that get a number in the checker's picture; the target's category goes first

# (picture, instructions, levels) -> one bool array [K, height, width] of found instances per instruction
Grounder = Callable[["Image", list[str], list[str]], Sequence[np.ndarray]]


def number_instances(facts: Facts, noun: str | None, rng: Random) -> dict[int, int]:
    """Numbers from 1 for the instances (annotation id -> number), in an order that tells nothing."""
    own = [item.annotation_id for item in facts.scene.instances if item.noun == noun]
    others = [item.annotation_id for item in facts.scene.instances if item.noun != noun]
    rng.shuffle(others)
    chosen = (own + others)[: max(MAX_NUMBERED, len(own))]
    rng.shuffle(chosen)
    return {annotation_id: number for number, annotation_id in enumerate(chosen, start=1)}


def checker_result(candidate: Candidate, numbers: Mapping[int, int], answer: set[int]) -> CheckResult:
    """Compares a checker's answer with the target."""
    by_number = {number: annotation_id for annotation_id, number in numbers.items()}
    strange = sorted(answer - set(by_number))
    found = sorted(by_number[number] for number in answer if number in by_number)
    target = list(candidate.plan.targets)
    evidence = {"found": found, "target": target}
    if strange:
        evidence["unknown_numbers"] = strange
    if not strange and found == target:
        return CheckResult("checker", PASS, "", evidence)
    extra, missing = set(found) - set(target), set(target) - set(found)
    parts = [f"took it to mean {len(extra)} other instance(s)"] if extra or strange else []
    parts += [f"did not find {len(missing)} of the target's instance(s)"] if missing else []
    return CheckResult("checker", FAIL, f"A reader of the picture {' and '.join(parts)}.", evidence)


def grounding_result(candidate: Candidate, facts: Facts, masks: np.ndarray, min_iou: float) -> CheckResult:
    """Compares what a segmenter found (bool [K, height, width]) with the target, as unions of masks."""
    scene = facts.scene
    target = np.zeros((scene.height, scene.width), dtype=bool)
    for annotation_id in candidate.plan.targets:
        target |= scene.by_id[annotation_id].pixels()
    masks = np.asarray(masks, dtype=bool)
    if masks.ndim != 3 or masks.shape[1:] != target.shape:
        raise ValueError(f"A grounder returns masks [K, {scene.height}, {scene.width}], found {masks.shape}.")
    found = masks.any(axis=0)
    union = int((found | target).sum())
    iou = 1.0 if not union else float((found & target).sum() / union)
    evidence = {"iou": round(iou, 4), "instances": len(masks), "min_iou": min_iou}
    if iou >= min_iou:
        return CheckResult("grounding", PASS, "", evidence)
    return CheckResult(
        "grounding", FAIL, f"The segmentation model finds something else for it (IoU {iou:.2f}).", evidence
    )
