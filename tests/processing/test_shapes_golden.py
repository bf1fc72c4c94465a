# SPDX-License-Identifier: Apache-2.0
"""The shapes world says the same for ever: the shipped model was trained on it, and figures were measured on it."""

import hashlib
import json

import pytest

from sam3i.processing.shapes.clips import moving_clips
from sam3i.processing.shapes.dataset import ShapesInstructionDataset, shapes_rows
from sam3i.processing.shapes.domain import OUTDOORS
from sam3i.processing.shapes.lexicon import vocabulary
from sam3i.processing.shapes.tokenizer import byte_pair_merges


def digest(values):
    text = hashlib.sha256()
    for value in values:
        text.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")
    return text.hexdigest()[:16]


def without_image(rows):
    for row in rows:
        image = row.pop("image")
        yield [row, hashlib.sha256(image.tobytes()).hexdigest()]


def said(dataset, mirrored=False):
    for case in dataset.cases:
        target = case.target.mirror() if mirrored else case.target
        phrasing = target.phrasings[case.level]
        yield [case.scene_index, case.level.value, target.kind, target.targets, target.number, target.concept,
               phrasing.text, phrasing.template, case.is_held_out, case.pair_text]  # fmt: skip


CASES = {
    "rows train 0": lambda: without_image(shapes_rows("train", 150)),
    "rows train 7": lambda: without_image(shapes_rows("train", 60, seed=7, targets_per_scene=6)),
    "rows validation 3": lambda: without_image(shapes_rows("validation", 80, seed=3)),
    "rows test 0": lambda: without_image(shapes_rows("test", range(40, 120))),
    "samples train 1": lambda: said(ShapesInstructionDataset("train", 120, seed=1)),
    "samples train 1 mirrored": lambda: said(ShapesInstructionDataset("train", 60, seed=1), mirrored=True),
    "evaluation test 0": lambda: said(ShapesInstructionDataset.evaluation("test", 60)),
    "evaluation validation 5": lambda: said(ShapesInstructionDataset.evaluation("validation", 40, 5, ("complex",))),
    "row ids": lambda: [[s["row_id"], s["image_id"]] for s in ShapesInstructionDataset("test", 6)],
    "domain train": lambda: without_image(OUTDOORS.rows("train", 40)),
    "domain test": lambda: without_image(OUTDOORS.rows("test", 40, seed=2)),
    "clips": lambda: [[c.text, c.targets] for level in ("simple", "complex") for c in moving_clips(6, 4, level=level)],
    "words": lambda: [vocabulary(), byte_pair_merges(vocabulary())],
}
GOLDEN = {
    "rows train 0": "d6a2e4e544d40fbe",
    "rows train 7": "37378c99eacc3235",
    "rows validation 3": "239e11fba270c91a",
    "rows test 0": "972d631ca1b5a5cb",
    "samples train 1": "2f367c3dd94acac1",
    "samples train 1 mirrored": "dac24cb991b6409a",
    "evaluation test 0": "f7c3d128a1fc8723",
    "evaluation validation 5": "808fee80ce707487",
    "row ids": "03e40e7c2374306b",
    "domain train": "df197979e0d32c2d",
    "domain test": "0be2d9c8e12bc969",
    "clips": "ffaad37ff3fb85c7",
    "words": "2c5ea39ae544371e",
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_world_says_never_changes(name):
    assert digest(CASES[name]()) == GOLDEN[name]
