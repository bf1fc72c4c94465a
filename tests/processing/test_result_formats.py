# SPDX-License-Identifier: Apache-2.0
"""Results enter other tools, and come back with the same pixels."""

import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from sam3i.processing.masks import decode_mask, segmentation_to_rle
from sam3i.processing.result_formats import from_json, results_to_json
from sam3i.processing.results import InstructionResult, as_segments

HEIGHT, WIDTH = 48, 64


def disc(y, x, radius):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.hypot(rows - y, columns - x) <= radius


MASKS = {
    "disc": disc(20, 20, 12),
    "ring": disc(22, 30, 16) & ~disc(22, 30, 8),
    "two discs": disc(12, 12, 8) | disc(30, 48, 10),
    "ring and disc": (disc(20, 18, 14) & ~disc(20, 18, 6)) | disc(32, 52, 8),
    "at the edge": disc(0, 0, 20),
    "one pixel": disc(5, 7, 0.5),
}


def result(*masks, text="the cup"):
    count = len(masks)
    boxes = [[*np.argwhere(mask).min(0)[::-1], *(np.argwhere(mask).max(0)[::-1] + 1)] for mask in masks]
    scores = torch.linspace(0.9, 0.6, count)
    tensors = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool)
    return InstructionResult(
        scores=scores,
        boxes=torch.tensor(boxes, dtype=torch.float).reshape(count, 4),
        masks=tensors,
        labels=torch.zeros(count, dtype=torch.long),
        level="simple",
        **as_segments(tensors, scores.tolist()),
        text=text,
    )


def filled(points):
    """Pixels of one polygon, as pycocotools fills it."""
    rle = segmentation_to_rle([np.asarray(points, dtype=float).flatten().tolist()], HEIGHT, WIDTH)
    return decode_mask(rle)


@pytest.mark.parametrize("name", MASKS)
def test_yolo_lines_hold_every_hole_and_piece(name):
    (line,) = result(MASKS[name]).to_yolo(3).splitlines()
    number, *values = line.split()
    points = np.reshape([float(value) for value in values], (-1, 2))
    assert number == "3" and 0 <= points.min() and points.max() <= 1
    assert np.array_equal(filled(points * [WIDTH, HEIGHT]), MASKS[name])


@pytest.mark.parametrize("name", MASKS)
def test_label_studio_regions_hold_every_hole_and_piece(name):
    task = result(MASKS[name]).to_label_studio("/data/a.jpg")
    regions = task["predictions"][0]["result"]
    assert len(regions) == (2 if " and " in name or "two" in name else 1)
    union = np.zeros((HEIGHT, WIDTH), bool)
    for region in regions:
        assert region["value"]["polygonlabels"] == ["the cup"] and region["original_width"] == WIDTH
        union |= filled(np.asarray(region["value"]["points"]) * [WIDTH / 100, HEIGHT / 100])
    assert np.array_equal(union, MASKS[name])


def test_coco_opens_with_load_res(tmp_path):
    found = result(*MASKS.values())
    entries = found.to_coco(7, category_id=2)
    (tmp_path / "results.json").write_text(json.dumps(entries))
    index = COCO()
    index.dataset = {"info": {}, "images": [{"id": 7, "height": HEIGHT, "width": WIDTH}], "categories": [{"id": 2}]}
    index.createIndex()
    loaded = index.loadRes(str(tmp_path / "results.json"))
    for annotation, mask in zip(loaded.loadAnns(loaded.getAnnIds()), MASKS.values(), strict=True):
        assert np.array_equal(loaded.annToMask(annotation).astype(bool), mask)


def test_json_comes_back_equal():
    for found in (result(*MASKS.values()), result()):
        instances = found.to_instances()
        again = from_json(json.loads(json.dumps(found.to_json())))
        assert [np.array(one["mask"]).tolist() for one in again] == [np.array(i["mask"]).tolist() for i in instances]
        assert results_to_json(instances) == instances.to_json()
    assert len(results_to_json([instances, instances])) == 2


@pytest.mark.parametrize("masks", [list(MASKS.values()), []], ids=["some", "none"])
def test_supervision_reads_results(masks):
    supervision = pytest.importorskip("supervision")
    found = result(*masks)
    own = found.to_supervision()
    assert len(own) == len(masks) == len(found.to_instances().to_supervision())
    theirs = supervision.Detections.from_transformers(found, {0: "the cup"})  # a row as it comes
    assert len(theirs) == len(masks)
    if masks:
        assert np.array_equal(own.mask, theirs.mask) and np.array_equal(own.class_id, theirs.class_id)
        assert np.abs(own.xyxy - theirs.xyxy).max() <= 1 and np.allclose(own.confidence, theirs.confidence)
        assert list(own.data["class_name"]) == list(theirs.data["class_name"]) == ["the cup"] * len(masks)
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        assert supervision.MaskAnnotator().annotate(image.copy(), own).any()


def test_results_in_fractions_are_refused():
    found = result(MASKS["disc"])
    found.is_in_pixels = False
    for export in (found.to_json, found.to_yolo, found.to_supervision, lambda: found.to_coco(1)):
        with pytest.raises(ValueError, match="in pixels"):
            export()
