# SPDX-License-Identifier: Apache-2.0
"""The level router: what it reads, what it decides, and that nothing else depends on it."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import Sam3Model

from sam3i import InstructionAdapterConfig, Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.adapters.router import LevelRouter
from sam3i.modeling_sam3i.adapters.routing import LevelRouting

AUTO = -1


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    model = Sam3IForInstructionSegmentation(tiny_config).eval()
    with torch.no_grad():
        for parameter in model.adapter_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def inputs(tiny_config):
    torch.manual_seed(1)
    size = tiny_config.vision_config.backbone_config.image_size
    return {
        "pixel_values": torch.randn(1, 3, size, size),
        "input_ids": torch.randint(1, tiny_config.text_config.vocab_size, (3, 6)),
        "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]),
        "image_ids": torch.zeros(3, dtype=torch.long),
    }


def favour(model, level: int) -> None:
    """Make the router choose one level whatever the words."""
    with torch.no_grad():
        model.text_encoder.sam3i_adapter.level_proj.weight.zero_()
        model.text_encoder.sam3i_adapter.level_proj.bias.copy_(torch.eye(3)[level])


def test_padding_says_nothing():
    torch.manual_seed(0)
    router = LevelRouter(8, 4)
    torch.nn.init.normal_(router.level_proj.weight)
    states, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    torch.testing.assert_close(router(states, mask)[0], router(states[:1, :3])[0])
    assert not torch.allclose(router(states, mask)[0], router(states)[0])


def test_only_open_rows_are_decided(model, inputs):
    favour(model, 2)
    open_rows = LevelRouting(torch.tensor([AUTO, 0, 1]))
    routing, logits = model.choose_levels(open_rows, inputs["input_ids"], inputs["attention_mask"])
    assert routing.levels.tolist() == routing.on_host == [2, 0, 1] and logits.shape == (3, 3)


def test_told_levels_cost_nothing(model):
    told = LevelRouting(torch.tensor([0, 2]))
    assert model.choose_levels(told, None, None) == (told, None)  # no text is read


@torch.no_grad()
def test_open_rows_equal_told_ones(model, inputs):
    logits = model.predict_levels(inputs["input_ids"], inputs["attention_mask"])
    chosen = logits.argmax(-1)
    found = model(**inputs, instruction_levels=torch.full((3,), AUTO))
    told = model(**inputs, instruction_levels=chosen)
    assert torch.equal(found.instruction_levels, chosen) and torch.equal(found.level_logits, logits)
    assert told.level_logits is None
    for name in ("pred_masks", "pred_logits", "pred_boxes", "presence_logits", "text_features"):
        assert torch.equal(found[name], told[name]), name


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_router_decides_by_words_at_the_concept_level(model, inputs, level):
    favour(model, level)
    found = model(**inputs, instruction_levels=torch.tensor([AUTO, 1, 0]))
    assert found.instruction_levels.tolist() == [level, 1, 0]


@torch.no_grad()
def test_it_does_not_follow_the_adapters(model, inputs):
    before = model.predict_levels(inputs["input_ids"], inputs["attention_mask"])
    for name, parameter in model.adapter_parameters().items():
        if not name.startswith("text_encoder.sam3i_adapter."):
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(model.predict_levels(inputs["input_ids"], inputs["attention_mask"]), before)


def test_a_model_without_router_says_so(tiny_config, inputs):
    tiny_config.router_dim = 0
    model = Sam3IForInstructionSegmentation(tiny_config).eval()
    assert not any(name.startswith("text_encoder.sam3i_adapter.") for name in model.adapter_parameters())
    with pytest.raises(ValueError, match="auto_levels='rules'"):
        model(**inputs, instruction_levels=torch.full((3,), AUTO))
    with pytest.raises(ValueError, match="auto_levels='rules'"):
        model.predict_levels(inputs["input_ids"])


@torch.no_grad()
def test_encoded_text_has_a_level_already(model, inputs):
    open_levels = torch.full((3,), AUTO)
    with pytest.raises(ValueError, match="predict_levels"):
        model.get_text_features(inputs["input_ids"], inputs["attention_mask"], instruction_levels=open_levels)
    text = model.get_text_features(inputs.pop("input_ids"), inputs["attention_mask"])
    with pytest.raises(ValueError, match="predict_levels"):
        model(**inputs, text_embeds=text, instruction_levels=open_levels)


@torch.no_grad()
def test_the_same_file_routes_a_stock_model_through_peft(model, inputs, tmp_path):
    from sam3i.modeling_sam3i.adapter_io import save_adapter

    favour(model, 1)
    stock = Sam3Model(model.config)
    stock.load_state_dict({name: model.state_dict()[name] for name in stock.state_dict()}, assign=True)
    stock.eval()
    save_adapter(model, tmp_path, base_model_name_or_path="somewhere")
    tuned = PeftModel.from_pretrained(stock, tmp_path, adapter_name="instruction")
    levels = torch.tensor([AUTO, 2, AUTO])
    found = tuned(**inputs, instruction_levels=levels)
    native = model(**inputs, instruction_levels=levels)
    assert native.instruction_levels.tolist() == [1, 2, 1]
    torch.testing.assert_close(found.pred_masks, native.pred_masks, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.pred_logits, native.pred_logits.squeeze(), atol=1e-6, rtol=0)
    settings = model.config.settings() | {"router_dim": 0}
    tuned.add_adapter("routerless", InstructionAdapterConfig(**settings))
    tuned.set_adapter("routerless")
    with pytest.raises(ValueError, match="auto_levels='rules'"):
        tuned(**inputs, instruction_levels=levels)


def test_peft_trains_a_router(model, inputs):
    stock = Sam3Model(model.config)
    tuned = get_peft_model(stock, InstructionAdapterConfig(adapter_heads=2), adapter_name="instruction")
    names = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert any("text_encoder.level_adapters.sam3i_adapter.instruction.level_proj" in name for name in names)
