# SPDX-License-Identifier: Apache-2.0
"""The supervised loss against the authors' numbers and against values computed by hand."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from sam3i.compat import box_cxcywh_to_xyxy
from sam3i.modeling_sam3i.losses import criteria as criteria_sam3i
from sam3i.modeling_sam3i.losses.config import Sam3ILossConfig
from sam3i.modeling_sam3i.losses.criteria import mask_losses, sigmoid_focal_loss
from sam3i.modeling_sam3i.losses.loss import Sam3ICriterion
from sam3i.modeling_sam3i.losses.targets import pack_targets, validate_labels

CASES = ["mixed", "allpos", "allneg"]
# Our names -> the authors'.
REFERENCE_NAMES = {
    "loss_bbox": "loss_bbox",
    "loss_giou": "loss_giou",
    "loss_ce": "loss_ce",
    "ce_f1": "ce_f1",
    "loss_presence": "presence_loss",
    "presence_accuracy": "presence_dec_acc",
    "loss_mask": "loss_mask",
    "loss_dice": "loss_dice",
    "loss_semantic_seg": "loss_semantic_seg",
    "loss_semantic_dice": "loss_semantic_dice",
    "semantic_iou": "miou_semantic_seg",
}


@pytest.fixture(scope="module")
def reference(reference_dir):
    tensors = load_file(reference_dir / "losses.safetensors")
    counts = json.loads((reference_dir / "losses.json").read_text())["config"]["cases"]
    return tensors, counts


def reference_labels(reference, case):
    tensors, counts = reference
    masks = tensors[f"{case}/targets/masks"].split(counts[case])
    boxes = tensors[f"{case}/targets/boxes"].split(counts[case])
    return [{"masks": m, "boxes": b} for m, b in zip(masks, boxes, strict=True)]


def reference_outputs(reference, case, group="outputs"):
    """The outputs of a case, and its leaves by the names under which the fixture keeps their gradients."""
    tensors, _ = reference
    leaves = {}

    def leaf(name):
        leaves[name] = tensors[f"{case}/{group}/{name}"].clone().requires_grad_()
        return leaves[name]

    def layer(prefix, suffix):
        boxes = leaf(f"{prefix}pred_boxes{suffix}")
        return {
            "pred_logits": leaf(f"{prefix}pred_logits{suffix}").squeeze(-1),
            "pred_boxes": box_cxcywh_to_xyxy(boxes),
            "pred_boxes_cxcywh": boxes,
        }

    outputs = layer("", "") | {
        "presence_logits": leaf("presence_logit_dec"),
        "pred_masks": leaf("pred_masks"),
        "semantic_seg": leaf("semantic_seg"),
        "auxiliary_outputs": [layer("aux_0/", "") | {"presence_logits": leaf("aux_0/presence_logit_dec")}],
    }
    outputs["one_to_many"] = layer("", "_o2m") | {
        "pred_masks": leaf("pred_masks_o2m"),
        "auxiliary_outputs": [layer("aux_0/", "_o2m")],
    }
    return outputs, leaves


def random_outputs(num_rows=2, num_queries=5, size=6, dtype=torch.float32, one_to_many=True, seed=0):
    """Outputs of a tiny model, and the leaves behind them."""
    generator = torch.Generator().manual_seed(seed)
    leaves = []

    def leaf(*shape, scale=1.0):
        leaves.append((torch.randn(*shape, generator=generator) * scale).to(dtype).requires_grad_())
        return leaves[-1]

    def layer(presence=True):
        boxes = leaf(num_rows, num_queries, 4).sigmoid()
        values = {
            "pred_logits": leaf(num_rows, num_queries),
            "pred_boxes": box_cxcywh_to_xyxy(boxes),
            "pred_boxes_cxcywh": boxes,
        }
        return values | ({"presence_logits": leaf(num_rows, 1)} if presence else {})

    outputs = layer() | {
        "pred_masks": leaf(num_rows, num_queries, size, size, scale=3.0),
        "semantic_seg": leaf(num_rows, 1, size, size, scale=3.0),
        "auxiliary_outputs": [layer(), layer()],
    }
    if one_to_many:
        outputs["one_to_many"] = layer(presence=False) | {
            "pred_masks": leaf(num_rows, num_queries, size, size, scale=3.0),
            "auxiliary_outputs": [layer(presence=False), layer(presence=False)],
        }
    return outputs, leaves


def random_labels(counts, sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "masks": torch.rand(count, *size, generator=generator) > 0.5,
            "boxes": torch.rand(count, 4, generator=generator) * 0.3 + 0.3,
        }
        for count, size in zip(counts, sizes, strict=True)
    ]


@pytest.mark.parametrize("case", CASES)
def test_values_equal_the_authors(reference, case):
    tensors, _ = reference
    outputs, _ = reference_outputs(reference, case)
    loss, parts = Sam3ICriterion()(outputs, reference_labels(reference, case))
    torch.testing.assert_close(loss.detach(), tensors[f"{case}/stage1_total/core_loss"], rtol=1e-5, atol=1e-6)
    checked = 0
    for suffix in ("", "_aux_0", "_o2m", "_aux_0_o2m"):
        # The authors record one-to-many values after weighting.
        factor = 2.0 if suffix.endswith("_o2m") else 1.0
        for ours, theirs in REFERENCE_NAMES.items():
            if f"{ours}{suffix}" not in parts:
                continue
            checked += 1
            expected = tensors[f"{case}/stage1_total/{theirs}{suffix}"]
            actual = parts[f"{ours}{suffix}"] * factor
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7, msg=f"{ours}{suffix}")
    # Final layer, auxiliary layer (no masks, no semantic map), and both again for one-to-many (no presence).
    assert checked == len(parts) == 11 + 6 + 6 + 4


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_authors(reference, case):
    tensors, _ = reference
    outputs, leaves = reference_outputs(reference, case)
    loss, _ = Sam3ICriterion()(outputs, reference_labels(reference, case))
    loss.backward()
    for name, leaf in leaves.items():
        expected = tensors[f"{case}/stage1_total_grad/{name}"]
        atol = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_second_pass_values_equal_the_authors(reference, case):
    tensors, _ = reference
    ours, _ = reference_outputs(reference, case, group="outputs_ref")
    loss, _ = Sam3ICriterion()(ours, reference_labels(reference, case))
    torch.testing.assert_close(loss.detach(), tensors[f"{case}/stage3/ref_call/core_loss"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_mask_callable_equals_mask_tensor(reference, case):
    labels = reference_labels(reference, case)
    whole, leaves = reference_outputs(reference, case)
    lazy, lazy_leaves = reference_outputs(reference, case)
    asked = []

    def predictor(masks):
        def predict_masks(match):
            asked.append(len(match))
            return masks[match.row_index, match.query_index]

        return predict_masks

    lazy["pred_masks"] = predictor(lazy["pred_masks"])
    lazy["one_to_many"]["pred_masks"] = predictor(lazy["one_to_many"]["pred_masks"])
    loss, _ = Sam3ICriterion()(whole, labels)
    lazy_loss, _ = Sam3ICriterion()(lazy, labels)
    assert torch.equal(loss, lazy_loss)
    loss.backward()
    lazy_loss.backward()
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, lazy_leaves[name].grad), name
    num_boxes = sum(len(label["boxes"]) for label in labels)
    assert asked[0] == num_boxes  # one-to-one: exactly the matched queries, nothing else


def test_perfect_prediction_by_hand():
    """One row, one object, one query that is exactly right: every term has a closed form."""
    box = torch.tensor([[[0.5, 0.5, 0.5, 0.5]]])
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    logits = torch.where(mask, 20.0, -20.0)
    outputs = {
        "pred_logits": torch.zeros(1, 1),
        "pred_boxes": box_cxcywh_to_xyxy(box),
        "pred_boxes_cxcywh": box,
        "presence_logits": torch.zeros(1, 1),
        "pred_masks": logits[None, None],
        "semantic_seg": logits[None, None],
    }
    loss, parts = Sam3ICriterion()(outputs, [{"masks": mask[None], "boxes": box[0]}])
    log2 = math.log(2)
    assert parts["loss_bbox"] == 0
    assert parts["loss_giou"].item() == pytest.approx(0, abs=1e-6)
    # p = .5, IoU = 1: soft target .5^.25, whose BCE at logit 0 is log 2 all the same; 10 x that over 200 queries.
    assert parts["loss_ce"].item() == pytest.approx(10 * log2 / 200, rel=1e-6)
    assert parts["loss_presence"].item() == pytest.approx(0.5 * log2, rel=1e-6)
    assert parts["loss_mask"].item() == pytest.approx(0, abs=1e-8)
    assert parts["loss_dice"].item() == pytest.approx(0, abs=1e-6)
    assert parts["semantic_iou"] == 1
    assert loss.item() == pytest.approx(20 * 10 * log2 / 200 + 20 * 0.5 * log2, rel=1e-5)


def test_box_losses_by_hand():
    """A box next to the target: no overlap, GIoU = -(hull - union) / hull."""
    target = torch.tensor([[0.25, 0.5, 0.5, 1.0]])  # left half
    box = torch.tensor([[[0.875, 0.5, 0.25, 1.0]]])  # rightmost quarter
    outputs, _ = random_outputs(num_rows=1, num_queries=1, one_to_many=False)
    outputs |= {"pred_boxes": box_cxcywh_to_xyxy(box), "pred_boxes_cxcywh": box, "auxiliary_outputs": []}
    _, parts = Sam3ICriterion()(outputs, [{"masks": torch.ones(1, 4, 4, dtype=torch.bool), "boxes": target}])
    assert parts["loss_bbox"].item() == pytest.approx(0.625 + 0.25, rel=1e-6)
    assert parts["loss_giou"].item() == pytest.approx(1 + 0.25, rel=1e-6)


def test_mask_losses_by_hand():
    """Logit 0 everywhere, a quarter of the pixels wanted."""
    target = torch.zeros(1, 4, 4, dtype=torch.bool)
    target[0, :2, :2] = True
    focal, dice, iou = mask_losses(torch.zeros(1, 2, 2), target, torch.tensor([0]), alpha=0.25, gamma=2.0)
    assert focal.item() == pytest.approx(math.log(2) / 4 * (0.25 * 0.25 + 0.75 * 0.75), rel=1e-6)
    assert dice.item() == pytest.approx(1 - (2 * 2 + 1) / (8 + 4 + 1), rel=1e-6)
    assert iou.item() == 0


def test_focal_loss_by_hand():
    logits, targets = torch.tensor([math.log(3.0), math.log(3.0)]), torch.tensor([1.0, 0.0])  # p = .75
    expected = [0.25 * 0.25**2 * -math.log(0.75), 0.75 * 0.75**2 * -math.log(0.25)]
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets, 0.25, 2.0), torch.tensor(expected))


def test_rows_without_target_train_presence_only():
    """A row that denotes nothing gives a presence gradient and leaves its queries alone."""
    outputs, _ = random_outputs(num_rows=2, one_to_many=False)
    for key in ("pred_logits", "presence_logits", "semantic_seg", "pred_masks"):
        outputs[key] = outputs[key].detach().clone().requires_grad_()
    loss, _ = Sam3ICriterion()(outputs, random_labels([0, 2], [(8, 8), (8, 8)]))
    loss.backward()
    assert outputs["presence_logits"].grad[0].item() > 0  # pushed down
    assert outputs["presence_logits"].grad[1].item() < 0  # pushed up
    for key in ("pred_logits", "semantic_seg", "pred_masks"):
        assert outputs[key].grad[0].abs().max() == 0, key
        assert outputs[key].grad[1].abs().max() > 0, key


def test_rows_without_target_can_turn_their_queries_down():
    outputs, _ = random_outputs(num_rows=2, one_to_many=False)
    outputs["pred_logits"] = outputs["pred_logits"].detach().clone().requires_grad_()
    labels = random_labels([0, 2], [(8, 8), (8, 8)])
    loss, parts = Sam3ICriterion({"classify_without_target": True})(outputs, labels)
    loss.backward()
    assert (outputs["pred_logits"].grad[0] > 0).all()  # every one is pushed down
    assert parts["loss_ce"] > Sam3ICriterion()(outputs, labels)[1]["loss_ce"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("counts", [[0], [1], [7], [0, 0], [2, 0, 1]])
def test_every_leaf_gets_a_finite_gradient(dtype, counts):
    """Empty targets, a batch of one, more objects than queries, half precision."""
    outputs, leaves = random_outputs(num_rows=len(counts), dtype=dtype)
    labels = random_labels(counts, [(9, 7)] * len(counts))
    loss, parts = Sam3ICriterion()(outputs, labels)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert all(value.ndim == 0 and torch.isfinite(value) and not value.requires_grad for value in parts.values())
    for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        assert gradient.dtype == leaf.dtype and torch.isfinite(gradient).all()


def test_autocast_does_not_change_the_loss():
    outputs, _ = random_outputs()
    labels = random_labels([2, 1], [(8, 8), (8, 8)])
    loss, _ = Sam3ICriterion()(outputs, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, _ = Sam3ICriterion()(outputs, labels)
    assert torch.equal(loss, again)


def test_mask_callable_runs_in_the_precision_of_its_caller():
    """The mask head behind the callable keeps float32 weights under autocast and gets a gradient without targets."""
    outputs, _ = random_outputs(one_to_many=False)
    head = torch.nn.Linear(6, 6)
    states = outputs["pred_masks"].detach().bfloat16()
    outputs["pred_masks"] = lambda match: head(states[match.row_index, match.query_index])
    for counts in ([2, 1], [0, 0]):
        head.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = Sam3ICriterion()(outputs, random_labels(counts, [(8, 8), (8, 8)]))
        loss.backward(inputs=list(head.parameters()), retain_graph=True)
        assert head.weight.grad.dtype == torch.float32 and torch.isfinite(head.weight.grad).all()
        assert (head.weight.grad.abs().max() > 0) == (counts == [2, 1])


@pytest.mark.parametrize("empty_size", [(0, 0), (1, 1), (8, 8)])
def test_size_of_empty_masks_does_not_matter(empty_size):
    outputs, _ = random_outputs()
    labels = random_labels([2, 0], [(8, 8), (8, 8)])
    loss, _ = Sam3ICriterion()(outputs, labels)
    labels[1]["masks"] = torch.zeros(0, *empty_size, dtype=torch.bool)
    assert torch.equal(loss, Sam3ICriterion()(outputs, labels)[0])


def test_masks_of_different_sizes_equal_separate_rows():
    """With a fixed normalizer the mask and semantic losses of a batch are the sums of its rows."""
    outputs, _ = random_outputs(num_rows=2, one_to_many=False)
    labels = random_labels([2, 3], [(8, 8), (5, 12)])
    _, both = Sam3ICriterion()(outputs, labels)
    singles = []
    for row in range(2):
        part = {key: value[row : row + 1] for key, value in outputs.items() if key != "auxiliary_outputs"}
        singles.append(Sam3ICriterion()(part, [labels[row]])[1])
    for key in ("loss_mask", "loss_dice"):
        expected = (singles[0][key] * 2 + singles[1][key] * 3) / 5
        torch.testing.assert_close(both[key], expected)
    for key in ("loss_semantic_seg", "loss_semantic_dice"):
        torch.testing.assert_close(both[key], (singles[0][key] + singles[1][key]) / 2)


def test_chunked_masks_equal_unchunked_and_keep_less(monkeypatch):
    """Upsampling in pieces changes neither values nor gradients, and keeps no upsampled map for the backward pass."""
    logits = torch.randn(12, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(5, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.5
    index = torch.arange(12) % 5

    def run(pixels):
        monkeypatch.setattr(criteria_sam3i, "PIXELS_PER_CHUNK", pixels)
        leaf, kept = logits.clone().requires_grad_(), {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            focal, dice, iou = mask_losses(leaf, targets, index, 0.25, 2.0)
        (focal.sum() + dice.sum()).backward()
        return (focal.detach(), dice.detach(), iou, leaf.grad), sum(kept.values())

    whole, kept_whole = run(2**22)
    pieces, kept_pieces = run(64 * 64 * 2)
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    upsampled = 12 * 64 * 64 * 4  # bytes of one upsampled float32 map of all masks
    assert kept_whole > 3 * upsampled
    assert kept_pieces < upsampled / 4


def test_degenerate_boxes_give_finite_gradients():
    boxes = torch.zeros(1, 2, 4, requires_grad=True)
    outputs, _ = random_outputs(num_rows=1, num_queries=2, one_to_many=False)
    outputs |= {"pred_boxes": box_cxcywh_to_xyxy(boxes), "pred_boxes_cxcywh": boxes, "auxiliary_outputs": []}
    labels = [{"masks": torch.ones(1, 4, 4, dtype=torch.bool), "boxes": torch.zeros(1, 4)}]
    loss, _ = Sam3ICriterion()(outputs, labels)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(boxes.grad).all()


def test_weights_come_from_the_config():
    outputs, _ = random_outputs()
    labels = random_labels([2, 1], [(8, 8), (8, 8)])
    zero = {name: 0.0 for name in Sam3ILossConfig().to_dict() if name.endswith("_weight") and "same" not in name}
    zero |= {"one_to_many_score_weight": 0.3, "classification_positive_weight": 10.0}
    _, parts = Sam3ICriterion()(outputs, labels)
    loss, _ = Sam3ICriterion(zero | {"box_l1_weight": 3.0, "scale_by_rows": False})(outputs, labels)
    expected = 3 * (parts["loss_bbox"] + parts["loss_bbox_aux_0"] + parts["loss_bbox_aux_1"])
    torch.testing.assert_close(loss.detach(), expected)


def test_missing_output_is_named():
    outputs, _ = random_outputs()
    del outputs["one_to_many"]["pred_masks"]
    with pytest.raises(ValueError, match=r"one_to_many.*missing \['pred_masks'\]"):
        Sam3ICriterion()(outputs, random_labels([1, 1], [(8, 8), (8, 8)]))


def test_config_round_trip_and_errors():
    config = Sam3ILossConfig(kl_weight=0.5, hard_region_divergence="jensen-shannon")
    assert Sam3ILossConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Sam3ILossConfig.from_dict(None) == Sam3ILossConfig()
    for wrong, message in [
        ({"box_l1_weight": -1.0}, "box_l1_weight.*got -1.0"),
        ({"box_l1_weight": "5"}, "box_l1_weight.*got str .value: '5'"),
        ({"mask_focal_alpha": 1.5}, r"\[0, 1\], got 1.5"),
        ({"info_nce_temperature": 0.0}, "> 0, got 0.0"),
        ({"one_to_many_top_k": 0}, "whole number >= 1, got 0"),
        ({"hard_region_divergence": "js"}, "hard_region_divergence.*got js"),
        ({"margin": float("nan")}, "finite"),
        ({"scale_by_rows": 1}, "scale_by_rows.*expected bool, got int .value: 1"),
        ({"bbox_weight": 1.0}, "Unknown loss setting.*bbox_weight"),
        ({"match_class_cost": 0, "match_l1_cost": 0, "match_giou_cost": 0}, "At least one"),
    ]:
        with pytest.raises(ValueError, match=message):
            Sam3ILossConfig.from_dict(wrong)


def good_label():
    return {"masks": torch.ones(2, 4, 4, dtype=torch.bool), "boxes": torch.full((2, 4), 0.5)}


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (good_label(), TypeError, "must be a list.*got dict"),
        (None, TypeError, "must be a list.*got NoneType"),
        ([good_label()], ValueError, "expected 2, got 1"),
        ([good_label(), 3], TypeError, r"labels\[1\] must be a dict.*got int"),
        ([good_label(), {"masks": good_label()["masks"]}], ValueError, r"labels\[1\].*keys.*got \['masks'\]"),
        ([good_label(), good_label() | {"masks": [1]}], TypeError, "must be a tensor, got list"),
        ([good_label(), good_label() | {"masks": torch.ones(2, 4, 4)}], TypeError, "bool tensor.*got torch.float32"),
        ([good_label(), good_label() | {"boxes": torch.ones(2, 4).long()}], TypeError, "float tensor.*torch.int64"),
        ([good_label(), good_label() | {"masks": torch.ones(4, 4).bool()}], ValueError, r"\[N,H,W\], got \[4, 4\]"),
        ([good_label(), good_label() | {"boxes": torch.ones(2, 5)}], ValueError, r"\[N,4\], got \[2, 5\]"),
        ([good_label(), good_label() | {"boxes": torch.ones(3, 4)}], ValueError, "2 masks and 3 boxes"),
        ([good_label(), good_label() | {"masks": torch.ones(2, 0, 4).bool()}], ValueError, "at least one pixel"),
        ([good_label(), good_label() | {"boxes": torch.full((2, 4), 12.0)}], ValueError, r"labels\[1\].*pixel"),
        ([good_label(), good_label() | {"boxes": torch.full((2, 4), math.nan)}], ValueError, r"labels\[1\].*nan"),
    ],
)
def test_unusable_labels_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        validate_labels(labels, 2)


def test_packed_targets():
    labels = random_labels([2, 0, 1, 1], [(4, 4), (9, 9), (3, 5), (4, 4)])
    packed = pack_targets(labels, torch.device("cpu"))
    assert packed.counts == [2, 0, 1, 1] and packed.offsets == [0, 2, 2, 3]
    assert packed.row_index.tolist() == [0, 0, 2, 3] and packed.slot_index.tolist() == [0, 1, 0, 0]
    assert packed.has_target.tolist() == [1, 0, 1, 1]
    assert packed.padded_valid.tolist() == [[True, True], [False, False], [True, False], [True, False]]
    flat = [mask for label in labels for mask in label["masks"]]
    for target, mask in enumerate(flat):
        found = packed.mask_groups[packed.group_of[target]][packed.index_in_group[target]]
        assert torch.equal(found, mask)
    rows, union = packed.union_groups[0]
    assert rows == [0, 3] and torch.equal(union[0], labels[0]["masks"].any(0))
