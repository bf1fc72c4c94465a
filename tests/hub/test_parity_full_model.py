# SPDX-License-Identifier: Apache-2.0
"""Converted checkpoints against the outputs of the authors' code, in every layout, level by level (fp32)."""

import pytest
import torch
from safetensors.torch import load_file

from sam3i.hub.conversion.official import convert_official_checkpoint
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

TOLERANCE = 1e-4
LEVELS = {"type1": "concept", "type2": "simple", "type4": "complex"}
LAYOUTS = {"plain": "", "detector": "_detector", "base_detector": "_base_detector", "trainer": "_trainer_stage3"}
CASES = [
    (layout, text_type)
    for layout in LAYOUTS
    for text_type in LEVELS
    if layout != "base_detector" or text_type == "type1"  # that file has no adapters
]


@pytest.fixture(scope="module")
def reference(reference_dir):
    return load_file(reference_dir / "full_model.safetensors")


@pytest.fixture(scope="module")
def converted(reference_dir, tmp_path_factory):
    """Layout to the model loaded from its converted repository."""
    folder = tmp_path_factory.mktemp("converted")
    models = {}
    for layout, suffix in LAYOUTS.items():
        checkpoint = reference_dir / f"full_model_ckpt{suffix}.pt"
        convert_official_checkpoint(
            checkpoint, folder / layout, config=reference_dir / "full_model_hf_config.json", adapter_heads=4
        )
        model, info = Sam3IForInstructionSegmentation.from_pretrained(folder / layout, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        models[layout] = model.eval()
    return models


@torch.no_grad()
def run(model, reference, text_type, **inputs):
    """The model's outputs, the decoder's last normed queries, the encoder's memory and the prompt with its mask."""
    seen = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, kwargs, output, name=name: seen.update({name: (kwargs, output)}), with_kwargs=True
        )
        for name, module in {"encoder": model.detr_encoder, "decoder": model.detr_decoder}.items()
    ]
    ids = reference["input/token_ids"]
    outputs = model(
        pixel_values=reference["input/pixel_values"],
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        instruction_levels=[LEVELS[text_type]] * len(ids),
        **inputs,
    )
    for hook in hooks:
        hook.remove()
    encoder_inputs, encoded = seen["encoder"]
    return outputs, {
        "queries": seen["decoder"][1].intermediate_hidden_states[-1],
        "encoder_hidden_states": encoded.last_hidden_state.transpose(0, 1),
        "prompt": encoder_inputs["text_features"].transpose(0, 1),
        "prompt_padding_mask": ~encoder_inputs["text_mask"][:, 0, 0],  # every pixel attends to the same tokens
    }


def assert_close(actual, expected, name):
    assert actual.shape == expected.shape, name
    difference = (actual - expected).abs().max().item()
    assert difference <= TOLERANCE, f"{name}: max abs difference {difference:.2e}"


@pytest.mark.parametrize(("layout", "text_type"), CASES)
def test_text_prompts(converted, reference, layout, text_type):
    outputs, inner = run(converted[layout], reference, text_type)
    expected = {
        name.split("/")[-1]: tensor for name, tensor in reference.items() if name.startswith(f"output/{text_type}/")
    }
    padding = expected.pop("prompt_padding_mask")
    # Without a box, stock's geometry encoder is given one that is padding; the authors' prompt has no place for it.
    assert inner["prompt_padding_mask"][:, -1].all()
    assert torch.equal(inner["prompt_padding_mask"][:, :-1], padding)
    inner["prompt"] = inner["prompt"][:-1]
    if layout == "base_detector":  # fresh adapters ignore padding, so nobody computes its states as the authors do
        valid = ~padding.T[..., None]
        inner["prompt"], expected["prompt"] = inner["prompt"] * valid, expected["prompt"] * valid
    actual = {
        "pred_logits": outputs.pred_logits[..., None],
        "pred_boxes_xyxy": outputs.pred_boxes,
        "pred_masks": outputs.pred_masks,
        "presence_logit_dec": outputs.presence_logits,
        "semantic_seg": outputs.semantic_seg,
        **{name: inner[name] for name in ("queries", "encoder_hidden_states", "prompt")},
    }
    expected.pop("pred_boxes")  # the same boxes as (cx, cy, w, h)
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert_close(tensor, expected[name], name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_box_prompts(converted, reference, layout):
    boxes = reference["input/boxes_cxcywh"].transpose(0, 1)
    outputs, _ = run(converted[layout], reference, "type1", input_boxes=boxes)
    x1, y1, x2, y2 = outputs.pred_boxes.unbind(-1)
    actual = {
        "pred_logits": outputs.pred_logits[..., None],
        "pred_boxes": torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1),
        "pred_masks": outputs.pred_masks,
        "presence_logit_dec": outputs.presence_logits,
        "semantic_seg": outputs.semantic_seg,
    }
    for name, tensor in actual.items():
        assert_close(tensor, reference[f"output_boxes/type1/{name}"], name)


@torch.no_grad()
def test_vision_features(converted, reference):
    features = converted["plain"].get_vision_features(pixel_values=reference["input/pixel_values"])
    for level in range(3):
        assert_close(features.fpn_hidden_states[level], reference[f"output/vision/fpn{level}"], f"fpn{level}")
    assert_close(features.fpn_position_encoding[2], reference["output/vision/pos_coarsest"], "pos_coarsest")


def test_levels_share_a_batch(converted, reference):
    ids = reference["input/token_ids"]
    with torch.no_grad():
        outputs = converted["plain"](
            pixel_values=reference["input/pixel_values"],
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            instruction_levels=["simple", "complex"],
        )
    for row, text_type in enumerate(("type2", "type4")):
        assert_close(outputs.pred_masks[row], reference[f"output/{text_type}/pred_masks"][row], text_type)
        assert_close(outputs.pred_logits[row], reference[f"output/{text_type}/pred_logits"][row, :, 0], text_type)
