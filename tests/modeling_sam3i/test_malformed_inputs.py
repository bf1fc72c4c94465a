# SPDX-License-Identifier: Apache-2.0
"""Malformed calls of the model: each is named for what it is before anything is computed."""

import pytest
import torch

ROWS, IMAGES = 3, 2
BOXES = torch.full((ROWS, 2, 4), 0.4)
LABELS = torch.ones(ROWS, 2, dtype=torch.long)

MALFORMED = [
    ({"pixel_values": None}, ValueError, "exactly one of pixel_values or vision_embeds, found neither"),
    ({"input_ids": None}, ValueError, "exactly one of input_ids or text_embeds, found neither"),
    ({"text_embeds": torch.rand(ROWS, 4, 32)}, ValueError, "exactly one of input_ids or text_embeds, found both"),
    ({"pixel_values": [[0.0]]}, TypeError, "`pixel_values` as a tensor, found list"),
    ({"pixel_values": torch.rand(3, 56, 56)}, ValueError, r"shape \(images, 3, 56, 56\) .* found shape \(3, 56, 56\)"),
    ({"pixel_values": torch.rand(IMAGES, 1, 56, 56)}, ValueError, "found shape"),
    ({"pixel_values": torch.rand(IMAGES, 3, 28, 28)}, ValueError, "found shape"),
    ({"pixel_values": torch.rand(0, 3, 56, 56)}, ValueError, "found shape"),
    ({"pixel_values": torch.zeros(IMAGES, 3, 56, 56).byte()}, ValueError, "in torch.uint8"),
    ({"pixel_values": None, "vision_embeds": torch.rand(2, 3)}, TypeError, "output of `get_vision_features`"),
    ({"input_ids": None, "text_embeds": torch.rand(ROWS, 32)}, ValueError, r"\(rows, tokens, 32\), found \(3, 32\)"),
    ({"input_ids": None, "text_embeds": torch.rand(ROWS, 32, 7)}, ValueError, r"found \(3, 32, 7\)"),
    ({"input_ids": [[1, 2]]}, TypeError, "`input_ids` as a tensor, found list"),
    ({"input_ids": torch.ones(32).long()}, ValueError, "`input_ids` of shape"),
    ({"input_ids": torch.ones(ROWS, 32)}, ValueError, "in torch.float32"),
    ({"input_ids": torch.ones(ROWS, 0).long(), "attention_mask": None}, ValueError, "`input_ids` of shape"),
    ({"input_ids": torch.full((ROWS, 32), 64)}, ValueError, "from 0 to 63, found 64 to 64"),
    ({"input_ids": torch.full((ROWS, 32), -1)}, ValueError, "from 0 to 63, found -1 to -1"),
    ({"input_ids": torch.ones(ROWS, 40).long(), "attention_mask": None}, ValueError, "at most 32 tokens, found 40"),
    ({"attention_mask": torch.ones(ROWS, 5)}, ValueError, "`attention_mask` of shape"),
    ({"attention_mask": [[1] * 32] * ROWS}, TypeError, "`attention_mask` as a tensor"),
    ({"instruction_levels": "simple"}, ValueError, "one level per row"),
    ({"instruction_levels": torch.ones(2).long()}, ValueError, "one level per instruction"),
    ({"instruction_levels": torch.full((ROWS,), 3)}, ValueError, "found values from 3 to 3"),
    ({"instruction_levels": torch.full((ROWS,), -2)}, ValueError, "found values from -2 to -2"),
    ({"image_ids": None}, ValueError, "Found 3 instructions for 2 images"),
    ({"image_ids": [0, 0, 1]}, TypeError, "`image_ids` as a tensor"),
    ({"image_ids": torch.tensor([0, 1, 2])}, ValueError, "from 0 to 1 for 2 images"),
    ({"image_ids": torch.tensor([0, 1])}, ValueError, "one image per instruction"),
    ({"input_boxes": BOXES.tolist()}, TypeError, "`input_boxes` as a tensor"),
    ({"input_boxes": BOXES[0]}, ValueError, r"\(rows, boxes, 4\)"),
    ({"input_boxes": LABELS[..., None].expand(-1, -1, 4)}, ValueError, "in torch.int64"),
    ({"input_boxes": BOXES[:2]}, ValueError, "for each of 3 rows, found 2"),
    ({"input_boxes": BOXES, "input_boxes_labels": LABELS[:, :1]}, ValueError, "for `input_boxes_labels`"),
    ({"input_boxes_labels": LABELS}, ValueError, "`input_boxes` as well"),
    ({"input_boxes": BOXES * 100}, ValueError, "fractions of the image"),
    ({"input_boxes": BOXES * float("nan")}, ValueError, "fractions of the image"),
    ({"input_boxes": BOXES, "input_boxes_labels": LABELS * 7}, ValueError, r"1 \(like this\), 0 .* found \[7\]"),
    ({"labels": [{}]}, ValueError, "one entry per instruction row"),
    ({"instruction_level": torch.ones(ROWS).long()}, TypeError, "instruction_level. Did you mean instruction_levels?"),
    ({"threshold": 0.5}, TypeError, "Unexpected arguments: threshold"),
]


@pytest.fixture
def inputs():
    return {
        "pixel_values": torch.rand(IMAGES, 3, 56, 56),
        "input_ids": torch.ones(ROWS, 32, dtype=torch.long),
        "attention_mask": torch.ones(ROWS, 32, dtype=torch.long),
        "image_ids": torch.tensor([0, 0, 1]),
    }


@pytest.mark.parametrize(("change", "error", "message"), MALFORMED)
def test_malformed_calls(tiny_model, inputs, change, error, message):
    with pytest.raises(error, match=message):
        tiny_model(**inputs | change)


def test_padding_boxes_may_hold_anything(tiny_model, inputs):
    padding = {"input_boxes": BOXES * -30, "input_boxes_labels": torch.full((ROWS, 2), -10)}
    with torch.no_grad():
        assert tiny_model(**inputs, **padding).pred_logits.isfinite().all()
