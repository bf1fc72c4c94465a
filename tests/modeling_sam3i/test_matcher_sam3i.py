# SPDX-License-Identifier: Apache-2.0
"""The one-to-one and the one-to-many matcher against the authors' matches and against brute force."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file

from sam3i.compat import box_cxcywh_to_xyxy
from sam3i.modeling_sam3i.losses.config import Sam3ILossConfig
from sam3i.modeling_sam3i.losses.matcher import HungarianMatcher, OneToManyMatcher, box_overlap
from sam3i.modeling_sam3i.losses.targets import pack_targets

CASES = ["mixed", "allpos", "allneg"]


def make_layer(logits, boxes):
    return {"pred_logits": logits, "pred_boxes": box_cxcywh_to_xyxy(boxes), "pred_boxes_cxcywh": boxes}


def make_targets(boxes_of_rows):
    labels = [{"masks": torch.ones(len(b), 2, 2, dtype=torch.bool), "boxes": b} for b in boxes_of_rows]
    return pack_targets(labels, torch.device("cpu"))


def random_case(counts, num_queries, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = [torch.rand(count, 4, generator=generator) * 0.4 + 0.2 for count in counts]
    layer = make_layer(
        torch.randn(len(counts), num_queries, generator=generator),
        torch.rand(len(counts), num_queries, 4, generator=generator) * 0.4 + 0.2,
    )
    return layer, make_targets(boxes)


@pytest.fixture(scope="module")
def reference(reference_dir):
    tensors = load_file(reference_dir / "losses.safetensors")
    counts = json.loads((reference_dir / "losses.json").read_text())["config"]["cases"]
    return tensors, counts


def reference_case(reference, case, name):
    tensors, counts = reference
    prefix, suffix = ("aux_0/", name.removeprefix("aux_0")) if name.startswith("aux_0") else ("", name)
    logits = tensors[f"{case}/outputs/{prefix}pred_logits{suffix}"].squeeze(-1)
    boxes = tensors[f"{case}/outputs/{prefix}pred_boxes{suffix}"]
    return make_layer(logits, boxes), make_targets(tensors[f"{case}/targets/boxes"].split(counts[case]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [("", "match_o2o"), ("aux_0", "match_o2o_aux_0"), ("aux_0_o2m", "match_o2m_aux_0_by_o2o_matcher")],
)
def test_one_to_one_equals_the_authors(reference, case, name, expected):
    layer, targets = reference_case(reference, case, name)
    (match,) = HungarianMatcher(Sam3ILossConfig())([layer], targets)
    assert match.row_index.tolist() == reference[0][f"{case}/{expected}/batch_idx"].tolist()
    assert match.query_index.tolist() == reference[0][f"{case}/{expected}/src_idx"].tolist()
    assert match.target_index.tolist() == list(range(len(match)))


@pytest.mark.parametrize("case", CASES)
def test_one_to_many_equals_the_authors(reference, case):
    layer, targets = reference_case(reference, case, "_o2m")
    match = OneToManyMatcher(Sam3ILossConfig())(layer, targets)
    assert match.row_index.tolist() == reference[0][f"{case}/match_o2m/batch_idx"].tolist()
    assert match.query_index.tolist() == reference[0][f"{case}/match_o2m/src_idx"].tolist()
    assert match.target_index.tolist() == reference[0][f"{case}/match_o2m/tgt_idx"].tolist()


def test_class_cost_by_hand():
    """p = .5, box exactly right: focal difference * 2, L1 = 0, GIoU = 1."""
    layer = make_layer(torch.zeros(1, 1), torch.full((1, 1, 4), 0.5))
    cost = HungarianMatcher(Sam3ILossConfig()).cost(layer, make_targets([torch.full((1, 4), 0.5)]))
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(cost[0, 0, 0], 2 * (0.25 * 0.25 * log2 - 0.75 * 0.25 * log2) - 2)


@pytest.mark.parametrize("seed", range(5))
def test_assignment_is_the_cheapest_of_all(seed):
    layer, targets = random_case([3, 0, 2], num_queries=4, seed=seed)
    matcher = HungarianMatcher(Sam3ILossConfig())
    cost = matcher.cost(layer, targets)
    (match,) = matcher([layer], targets)
    for row, count in enumerate(targets.counts):
        mine = match.row_index == row
        slots = match.target_index[mine] - targets.offsets[row]
        assert slots.tolist() == list(range(count))
        found = cost[row, match.query_index[mine], slots].sum()
        cheapest = min(
            sum(cost[row, query, slot].item() for slot, query in enumerate(queries))
            for queries in itertools.permutations(range(4), count)
        )
        assert found.item() == pytest.approx(cheapest, abs=1e-5)


def test_layers_together_equal_layers_alone():
    first, targets = random_case([3, 1], num_queries=6, seed=1)
    second, _ = random_case([3, 1], num_queries=6, seed=2)
    matcher = HungarianMatcher(Sam3ILossConfig())
    together = matcher([first, second], targets)
    for layer, match in zip([first, second], together, strict=True):
        assert matcher([layer], targets)[0].query_index.tolist() == match.query_index.tolist()
    assert matcher([], targets) == []


def test_more_objects_than_queries():
    layer, targets = random_case([5], num_queries=2)
    (match,) = HungarianMatcher(Sam3ILossConfig())([layer], targets)
    assert sorted(match.query_index.tolist()) == [0, 1]
    assert len(set(match.target_index.tolist())) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_refused(value):
    layer, targets = random_case([1], num_queries=2)
    layer["pred_boxes_cxcywh"] = torch.full_like(layer["pred_boxes_cxcywh"], value)
    with pytest.raises(ValueError, match="NaN or Inf"):
        HungarianMatcher(Sam3ILossConfig())([layer], targets)


def test_one_to_many_by_hand():
    """Ten copies of the right box whose scores rise: the best four, all above the threshold."""
    boxes = torch.full((1, 10, 4), 0.5)
    targets = make_targets([torch.full((1, 4), 0.5)])
    matcher = OneToManyMatcher(Sam3ILossConfig())
    match = matcher(make_layer(torch.linspace(-3, 3, 10)[None], boxes), targets)
    assert match.query_index.tolist() == [6, 7, 8, 9]
    # Far from the object nothing passes the threshold: .3 p + 0 <= .4.
    far = torch.tensor([0.1, 0.1, 0.1, 0.1]).expand(1, 10, 4)
    assert len(matcher(make_layer(torch.linspace(-3, 3, 10)[None], far), targets)) == 0


def test_one_to_many_with_fewer_queries_than_it_may_match():
    boxes = torch.full((1, 3, 4), 0.5)
    targets = make_targets([torch.full((1, 4), 0.5)])
    match = OneToManyMatcher(Sam3ILossConfig())(make_layer(torch.tensor([[0.0, 1.0, 2.0]]), boxes), targets)
    assert match.query_index.tolist() == [1, 2]  # strictly above the lowest


def test_one_to_many_ignores_padding():
    layer, targets = random_case([4, 0, 1], num_queries=20)
    layer["pred_boxes"] = box_cxcywh_to_xyxy(targets.padded_boxes[:, :1].expand(3, 20, 4))
    match = OneToManyMatcher(Sam3ILossConfig())(layer, targets)
    assert set(match.row_index.tolist()) == {0, 2}
    assert torch.equal(targets.row_index[match.target_index], match.row_index)


def test_half_precision_predictions_are_matched_in_float32():
    layer, targets = random_case([2, 1], num_queries=5)
    half = {key: value.bfloat16() for key, value in layer.items()}
    exact = {key: value.float() for key, value in half.items()}
    matcher = HungarianMatcher(Sam3ILossConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = matcher.cost(half, targets)
    assert cost.dtype == torch.float32
    assert torch.equal(cost, matcher.cost(exact, targets))


def test_box_overlap_by_hand():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    iou, giou = box_overlap(a, b)
    torch.testing.assert_close(iou, torch.tensor([1 / 7, 0.0, 0.0]))
    torch.testing.assert_close(giou, torch.tensor([1 / 7 - 2 / 9, -1 / 3, 0.0]))
