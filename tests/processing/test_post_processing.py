# SPDX-License-Identifier: Apache-2.0
"""Masks are those of Meta and the authors, duplicates are dropped, and the device is not waited for row by row."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sam3i.modeling_sam3i.outputs import Sam3IInstancesOutput
from sam3i.processing import post_processing
from sam3i.processing.post_processing import check_probability, resize_masks, row_target_sizes, segment_rows


def outputs_of(masks: torch.Tensor, scores: list[float]) -> SimpleNamespace:
    """Outputs of one row from bool masks [K, h, w]."""
    count = len(scores)
    return SimpleNamespace(
        pred_masks=(masks.float() * 20 - 10)[None],
        pred_boxes=torch.tensor([[0.0, 0.0, 0.5, 1.0]]).repeat(count, 1)[None],
        pred_logits=torch.logit(torch.tensor(scores))[None],
        presence_logits=torch.tensor([[20.0]]),
        instruction_levels=torch.tensor([1]),
    )


def scene(**boxes: tuple[int, int, int, int]) -> torch.Tensor:
    masks = torch.zeros(len(boxes), 64, 64, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.values(), strict=True):
        mask[top:bottom, left:right] = True
    return masks


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_masks_are_resized_as_the_authors_and_meta_do(reference_dir, threshold):
    """Both interpolate logits bilinearly without aligned corners and compare probabilities afterwards."""
    tensors = load_file(reference_dir / "full_model.safetensors")
    for kind in ("type1", "type2"):
        logits = tensors[f"output/{kind}/pred_masks"]
        expected = F.interpolate(logits, (75, 130), mode="bilinear", align_corners=False).sigmoid() > threshold
        found = torch.stack([resize_masks(row, (75, 130), threshold) for row in logits])
        assert torch.equal(found, expected) and 0 < expected.float().mean() < 1


def test_logits_first_keeps_what_probabilities_round_off():
    logits = torch.full((1, 4, 4), -1.0)
    logits[0, 1, 1] = 8.0
    first = resize_masks(logits, (64, 64), 0.5).sum()
    last = (F.interpolate(logits[None].sigmoid(), (64, 64), mode="bilinear", align_corners=False) > 0.5).sum()
    assert first > 1.5 * last


@pytest.mark.parametrize(("threshold", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_thresholds_at_the_ends(threshold, share):
    assert resize_masks(torch.randn(2, 8, 8), (16, 16), threshold).float().mean() == share


def test_pieces_equal_one_piece(monkeypatch):
    logits = torch.randn(7, 12, 12)
    whole = resize_masks(logits, (50, 70), 0.5)
    monkeypatch.setattr(post_processing, "_CHUNK_VALUES", 50 * 70 * 2)
    assert torch.equal(resize_masks(logits, (50, 70), 0.5), whole)


def test_rows_with_instances_of_their_own():
    """What `segment` returns has another number of queries in every row."""
    outputs = Sam3IInstancesOutput(
        pred_masks=[torch.randn(2, 6, 6), torch.randn(0, 6, 6)],
        pred_boxes=[torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]), torch.zeros(0, 4)],
        pred_logits=[torch.tensor([1.0, 3.0]), torch.zeros(0)],
        presence_logits=torch.tensor([[10.0], [10.0]]),
        instruction_levels=torch.tensor([1, 2]),
        threshold=0.4,
    )
    for max_overlap in (None, 0.8):
        first, second = segment_rows(outputs, 0.5, 0.5, [(10, 20)] * 2, max_overlap)
        assert first["scores"].tolist() == sorted(first["scores"].tolist(), reverse=True)
        assert first["boxes"].tolist() == [[10, 5, 20, 10], [0, 0, 10, 5]]
        assert first["masks"].shape == (2, 10, 20) and first["level"] == "simple"
        assert second["masks"].shape == (0, 10, 20) and second["level"] == "complex"
        assert second.best_score == 0 and first.best_score == first["scores"][0]
    with pytest.raises(ValueError, match=r"at least 0\.4"):
        segment_rows(outputs, threshold=0.3, mask_threshold=0.5, sizes=None)


def test_the_best_score_is_known_when_nothing_is_found():
    (row,) = segment_rows(outputs_of(scene(a=(0, 0, 9, 9), b=(9, 9, 20, 20)), [0.3, 0.49]), 0.5, 0.5, None)
    assert len(row["scores"]) == 0 and row.best_score == pytest.approx(0.49)


def test_equal_objects_are_one_and_the_best_stays():
    masks = scene(a=(0, 0, 20, 20), again=(0, 0, 20, 20), almost=(0, 0, 20, 18), other=(40, 40, 60, 60))
    (row,) = segment_rows(outputs_of(masks, [0.6, 0.9, 0.7, 0.8]), 0.5, 0.5, [(128, 128)], 0.8)
    assert row["scores"].tolist() == pytest.approx([0.9, 0.8])
    assert len(row["boxes"]) == len(row["masks"]) == len(row["labels"]) == 2
    assert row["masks"].flatten(1).sum(1).tolist() == [1600, 1600]


def test_nested_and_touching_objects_are_two():
    masks = scene(wheel=(0, 0, 10, 10), car=(0, 0, 30, 20), neighbor=(30, 0, 60, 20))
    (row,) = segment_rows(outputs_of(masks, [0.9, 0.8, 0.7]), 0.5, 0.5, None, 0.8)
    assert len(row["scores"]) == 3


def test_suppression_is_greedy_by_score():
    """What a dropped instance overlaps stays: a covers b, b covers c, a does not cover c."""
    masks = scene(a=(0, 0, 20, 10), b=(2, 0, 22, 10), c=(4, 0, 24, 10))
    (row,) = segment_rows(outputs_of(masks, [0.9, 0.8, 0.7]), 0.5, 0.5, None, 0.7)
    assert row["scores"].tolist() == pytest.approx([0.9, 0.7])


def test_empty_masks_are_no_duplicates_of_each_other():
    (row,) = segment_rows(outputs_of(torch.zeros(2, 8, 8, dtype=torch.bool), [0.9, 0.8]), 0.5, 0.5, None, 0.8)
    assert len(row["scores"]) == 2


def test_suppression_of_200_queries_counts_pixels_exactly_and_quickly():
    generator = torch.Generator().manual_seed(0)
    logits = F.interpolate(torch.randn(1, 200, 9, 9, generator=generator), (288, 288), mode="bilinear")[0]
    logits[100:] = logits[:100] + 0.05 * torch.randn(100, 1, 1, generator=generator)
    start = time.process_time()
    (kept,) = post_processing._without_duplicates([logits], 0.5, 0.8)
    assert time.process_time() - start < 3
    pixels = (logits > 0).numpy().reshape(200, -1)
    expected: list[int] = []
    for index in range(200):
        overlaps = ((pixels[index] & pixels[k]).sum() / (pixels[index] | pixels[k]).sum() for k in expected)
        if not any(overlap > 0.8 for overlap in overlaps):
            expected.append(index)
    assert kept == expected and 90 < len(kept) < 190


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), 0.5, np.int64(1), 1])
def test_thresholds_may_be_numpy_numbers(number):
    assert check_probability("threshold", number) == float(number)


def test_sizes_may_be_arrays():
    expected = [(30, 40), (50, 60)]
    for sizes in (np.array(expected), [np.array(size) for size in expected], [(np.int64(30), 40.0), (50, 60)]):
        assert row_target_sizes(sizes, None, 2) == expected
