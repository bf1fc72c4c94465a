# SPDX-License-Identifier: Apache-2.0
"""Calibrated scores: by level, at inference, alike in the native model, in `segment` and through PEFT on stock."""

import pytest
import torch
from transformers import Sam3Model

from sam3i import Sam3IForInstructionSegmentation, load_instruction_adapter, save_adapter

VALUES = {"simple": [1.5, 0.3, 1.0], "complex": [0.7, -0.2, 0.0]}
LEVELS = [0, 1, 2, 1]


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)
    return {
        "pixel_values": torch.randn(1, 3, 56, 56, generator=generator),
        "input_ids": torch.randint(1, 61, (4, 20), generator=generator),
        "attention_mask": torch.ones(4, 20).long(),
        "instruction_levels": torch.tensor(LEVELS),
    }


def calibrated(logits: torch.Tensor) -> torch.Tensor:
    numbers = torch.tensor([(1.0, 0.0, 0.0), *VALUES.values()])[LEVELS]
    return logits * numbers[:, :1] + numbers[:, 1:2]


@torch.no_grad()
def test_logits_of_each_level_are_scaled_and_moved_and_concepts_keep_their_bits(model, inputs):
    before = model(**inputs)
    model.calibrate_scores(VALUES)
    after = model(**inputs)
    torch.testing.assert_close(after.pred_logits, calibrated(before.pred_logits))
    torch.testing.assert_close(
        after.presence_logits[:, 0], before.presence_logits[:, 0] + torch.tensor([0, 1.0, 0, 1])
    )
    assert torch.equal(after.pred_logits[0], before.pred_logits[0])
    assert torch.equal(after.presence_logits[0], before.presence_logits[0])
    assert torch.equal(after.pred_masks, before.pred_masks)
    segmented = model.segment(threshold=0.0, **inputs)
    assert torch.equal(segmented.pred_logits[1], after.pred_logits[1])
    assert torch.equal(segmented.presence_logits, after.presence_logits)
    alone = model(**{name: value[1:2] if name != "pixel_values" else value for name, value in inputs.items()})
    torch.testing.assert_close(alone.presence_logits, after.presence_logits[1:2])
    model.calibrate_scores(None)
    assert torch.equal(model(**inputs).pred_logits, before.pred_logits)


def test_the_loss_does_not_see_it(model, inputs):
    labels = [{"masks": torch.ones(1, 8, 8, dtype=torch.bool), "boxes": torch.full((1, 4), 0.4)}] * 4
    before = model(**inputs, labels=labels)
    model.calibrate_scores(VALUES)
    after = model(**inputs, labels=labels)
    assert torch.equal(after.loss, before.loss)
    torch.testing.assert_close(after.pred_logits, calibrated(before.pred_logits))
    model.train()
    raw = model(**inputs).pred_logits
    model.calibrate_scores(None)
    torch.manual_seed(0)
    torch.testing.assert_close(model.eval()(**inputs).pred_logits, before.pred_logits)
    assert raw.shape == before.pred_logits.shape


@torch.no_grad()
def test_it_travels_with_the_model_and_with_the_adapters(model, inputs, tiny_sam3_config, tmp_path):
    model.calibrate_scores(VALUES)
    expected = model(**inputs).pred_logits
    model.save_pretrained(tmp_path / "whole")
    whole = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(whole(**inputs).pred_logits, expected)
    save_adapter(model, tmp_path / "adapter", "org/sam3")
    stock = Sam3Model(tiny_sam3_config).eval()
    own = {name: tensor for name, tensor in model.state_dict().items() if "sam3i" not in name}
    stock.load_state_dict(own)
    tuned = load_instruction_adapter(stock, tmp_path / "adapter")
    torch.testing.assert_close(tuned(**inputs).pred_logits, expected)
    torch.testing.assert_close(tuned(**inputs, return_dict=False)[2], expected)
    model.calibrate_scores(None)
    load_instruction_adapter(model, tmp_path / "adapter")
    assert model.config.score_calibration == VALUES


@pytest.mark.parametrize(
    "values",
    [
        {"concept": [1, 0]},
        {"simple": [0, 1]},
        {"simple": [1]},
        {"complex": [1, float("nan")]},
        {"complex": [1, 0, float("inf")]},
        {"complex": [1, 0, 0, 0]},
    ],
)
def test_numbers_that_are_no_calibration(model, values):
    with pytest.raises(ValueError, match="positive scale and a bias"):
        model.calibrate_scores(values)


@torch.no_grad()
def test_without_a_third_number_presence_stays(model, inputs):
    before = model(**inputs).presence_logits
    model.calibrate_scores({"simple": [1.5, 0.3]})
    assert model.config.score_calibration == {"simple": [1.5, 0.3, 0.0]}
    assert torch.equal(model(**inputs).presence_logits, before)


@torch.no_grad()
def test_queries_come_before_selection_and_calibration(model, inputs):
    model.calibrate_scores(VALUES)
    found = model.instruction_queries(**inputs, row_chunk_size=3)
    concept = model(**inputs | {"instruction_levels": torch.zeros(4).long()})
    assert torch.equal(found.instruction_levels, inputs["instruction_levels"])
    torch.testing.assert_close(found.pred_logits[0], concept.pred_logits[0])  # at a concept nothing is chosen
    assert found.queries.shape[:2] == found.pred_boxes.shape[:2] == found.pred_logits.shape
    assert found.words.shape[:2] == found.text_mask.shape
    if model.selects_instances:
        selector, own = model.dot_product_scoring.sam3i_adapter.simple, slice(1, 2)
        given = (found.pred_logits, found.queries, found.pred_boxes)
        chosen = selector(*(t[own][:, None] for t in given), found.words[own], found.text_mask[own])[:, 0]
        scale, bias, _ = VALUES["simple"]
        torch.testing.assert_close(chosen * scale + bias, model(**inputs).pred_logits[own])
