# SPDX-License-Identifier: Apache-2.0
"""SAM3-LiteText as a base: its stock weights load unchanged, concepts are its own bits, and adapters do their work."""

import pytest
import torch
from compared import OUTPUTS
from safetensors.torch import load_file
from transformers import Sam3LiteTextConfig, Sam3LiteTextModel

from sam3i import InstructionAdapterConfig, Sam3IForInstructionSegmentation, load_instruction_adapter, save_adapter
from sam3i.modeling_sam3i.configuration_sam3i import explain_other_family

TOKENS = torch.tensor([[62, 1, 5, 63, 63, 63], [62, 2, 6, 9, 63, 63], [62, 4, 7, 8, 10, 63]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def lite_repo(tmp_path_factory):
    """A folder of a tiny stock SAM3-LiteText with two convolutional and two transformer layers of text."""
    width = 32
    detr = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 48, "num_layers": 2}
    config = Sam3LiteTextConfig(
        vision_config={
            "model_type": "sam3_vision_model",
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
                "window_size": 2,
                "global_attn_indexes": [0],
                "pretrain_image_size": 28,
            },
            "fpn_hidden_size": width,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            "vocab_size": 64,
            "hidden_size": 24,
            "intermediate_size": 48,
            "projection_dim": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
            "layer_scale_init_value": 0.1,
        },
        geometry_encoder_config=detr,
        detr_encoder_config=detr,
        detr_decoder_config=detr | {"num_queries": 6},
        mask_decoder_config={"hidden_size": width, "num_attention_heads": 4, "num_upsampling_stages": 2},
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lite")
    Sam3LiteTextModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=["selective", "cascade"])
def lite_model(lite_repo, request):
    return Sam3IForInstructionSegmentation.from_pretrained(
        lite_repo, adapter_design=request.param, adapter_dim=8, adapter_heads=4
    ).eval()


@pytest.fixture
def inputs():
    torch.manual_seed(3)
    return {"pixel_values": torch.randn(3, 3, 56, 56), "input_ids": TOKENS, "attention_mask": MASK}


@torch.no_grad()
def test_concepts_are_the_bits_of_stock_before_and_after_training(lite_repo, lite_model, inputs, train_adapters):
    stock = Sam3LiteTextModel.from_pretrained(lite_repo).eval()
    stock.load_state_dict({name: lite_model.state_dict()[name] for name in stock.state_dict()}, assign=True)
    expected = stock(**inputs)
    for model in (lite_model, train_adapters(lite_model)):
        found = model(**inputs, instruction_levels=torch.zeros(3, dtype=torch.long))
        for name in OUTPUTS:
            assert torch.equal(found[name], expected[name]), name


def test_stock_weights_load_unchanged(lite_repo, lite_model):
    stock, ours = load_file(lite_repo / "model.safetensors"), lite_model.state_dict()
    assert stock.keys() == {name for name in ours if ".sam3i_adapter." not in name}
    assert all(torch.equal(ours[name], tensor) for name, tensor in stock.items())


@torch.no_grad()
def test_fresh_adapters_change_nothing_and_mixed_levels_are_row_by_row(lite_model, inputs, train_adapters):
    levels = torch.tensor([0, 1, 2])
    fresh = lite_model(**inputs, instruction_levels=levels)
    concepts = lite_model(**inputs)
    torch.testing.assert_close(fresh.pred_masks, concepts.pred_masks, rtol=0, atol=1e-5)
    train_adapters(lite_model)
    mixed = lite_model(**inputs, instruction_levels=levels)
    assert not torch.allclose(mixed.pred_logits[1:], concepts.pred_logits[1:], atol=1e-3)
    for row in range(3):
        own = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        alone = lite_model(**own, instruction_levels=levels[row : row + 1])
        torch.testing.assert_close(alone.pred_masks[0], mixed.pred_masks[row], rtol=0, atol=1e-4)
    instances = lite_model.segment(**inputs, instruction_levels=levels, threshold=0.0)
    for row in range(3):
        torch.testing.assert_close(instances.pred_logits[row], mixed.pred_logits[row], rtol=0, atol=1e-4)


def test_every_adapter_learns_and_adapters_alone_load_again(lite_repo, lite_model, inputs, tmp_path):
    lite_model.freeze_stock()
    lite_model.train()
    optimizer = torch.optim.SGD([p for p in lite_model.parameters() if p.requires_grad], lr=0.1)
    labels = [{"masks": torch.ones(1, 16, 16).bool(), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}] * 3
    moved = set()
    for step in range(3):
        optimizer.zero_grad()
        lite_model(**inputs, instruction_levels=torch.tensor([1, 2, 1 + step % 2]), labels=labels).loss.backward()
        moved |= {n for n, p in lite_model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
    assert moved == {name for name, p in lite_model.named_parameters() if p.requires_grad}
    assert any(name.startswith("text_encoder.layers.1.sam3i_adapter.") for name in moved)

    save_adapter(lite_model, tmp_path / "adapters")
    again = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "adapters").eval()
    levels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        found = again(**inputs, instruction_levels=levels).pred_logits
        expected = lite_model.eval()(**inputs, instruction_levels=levels).pred_logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # weights in other memory move the last bits

    lite_model.save_pretrained(tmp_path / "whole")
    whole = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "whole")
    assert whole.config.text_config.model_type == "sam3_lite_text_text_model"
    weights = lite_model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.state_dict().items())
    assert load_instruction_adapter(whole, tmp_path / "adapters") is whole


def test_peft_on_lite_text_is_refused_in_a_sentence(lite_repo):
    from peft import get_peft_model

    with pytest.raises(TypeError, match="Sam3IForInstructionSegmentation.from_pretrained"):
        get_peft_model(Sam3LiteTextModel.from_pretrained(lite_repo), InstructionAdapterConfig())


@pytest.mark.parametrize("family", ["sam", "sam2", "sam2_video", "sam3_tracker", "edgetam"])
def test_other_families_are_refused_in_a_sentence(family):
    assert "reads no text" in explain_other_family(family)
