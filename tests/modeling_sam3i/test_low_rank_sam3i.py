# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates: what they compute, for which rows, under which names. The guarantees of both designs are tested in
test_modeling_sam3i.py."""

import pytest
import torch
from compared import OUTPUTS
from peft import LoraConfig, get_peft_model
from transformers import Sam3Model

from sam3i import Sam3IConfig, Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.adapters.low_rank import LowRankLevels, LowRankUpdate, projections
from sam3i.modeling_sam3i.adapters.routing import LevelRouting


@pytest.fixture
def low_rank_config(tiny_sam3_config):
    """Low-rank updates without the selector."""
    fields = {"model_type": "sam3i", "adapter_design": "selective", "adapter_rank": 3, "selector_queries": 0}
    return Sam3IConfig.from_dict(tiny_sam3_config.to_dict() | fields)


@pytest.fixture
def low_rank_model(low_rank_config):
    torch.manual_seed(0)
    return Sam3IForInstructionSegmentation(low_rank_config).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    attention_mask = torch.ones(2, 12, dtype=torch.long)
    attention_mask[1, 7:] = 0
    return {
        "pixel_values": torch.randn(2, 3, 56, 56, generator=generator),
        "input_ids": torch.randint(1, 60, (2, 12), generator=generator),
        "attention_mask": attention_mask,
    }


def layers(model):
    return [
        *model.text_encoder.text_model.encoder.layers,
        *model.detr_encoder.layers,
        *model.detr_decoder.layers,
    ]


@pytest.mark.parametrize("level", ["simple", "complex"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_level_is_stock_with_the_updates_added_to_its_weights(
    low_rank_model, tiny_sam3_config, train_adapters, inputs, level, attention
):
    train_adapters(low_rank_model, scale=0.2)
    stock = Sam3Model(tiny_sam3_config).eval()
    stock.load_state_dict({k: v for k, v in low_rank_model.state_dict().items() if ".sam3i_adapter." not in k})
    with torch.no_grad():
        for ours, merged in zip(layers(low_rank_model), layers(stock), strict=True):
            updates = getattr(ours.sam3i_adapter, level)
            targets = dict(projections(merged))
            assert list(updates) == list(targets)
            for name, update in updates.items():
                targets[name].weight += update.up_proj.weight @ update.down_proj.weight
        embedder = getattr(low_rank_model.mask_decoder.mask_embedder.sam3i_adapter, level)
        stock.mask_decoder.mask_embedder.load_state_dict(embedder.state_dict())
        for model in (low_rank_model, stock):
            model.set_attn_implementation(attention)
        found = low_rank_model(**inputs, instruction_levels=[level] * 2)
        concept = low_rank_model(**inputs)
        expected = stock(**inputs)
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-4)
    assert (found.pred_logits - concept.pred_logits).abs().max() > 1e-2


def test_every_projection_of_every_adapted_layer_is_updated(low_rank_model):
    updated = set()
    for layer in layers(low_rank_model):
        linears = {id(linear) for name, linear in layer.named_modules() if isinstance(linear, torch.nn.Linear)}
        linears -= {id(linear) for linear in layer.sam3i_adapter.modules()}
        assert {id(linear) for _, linear in projections(layer)} == linears
        updated |= set(layer.sam3i_adapter.simple)
    assert {"self_attn_q", "self_attn_out", "cross_attn_k", "text_cross_attn_v", "vision_cross_attn_o"} <= updated
    assert {"mlp_fc1", "mlp_fc2"} <= updated


def test_an_update_sees_the_rows_of_its_level_only(low_rank_model, inputs):
    seen = []
    for module in low_rank_model.detr_encoder.layers[0].sam3i_adapter.modules():
        if isinstance(module, LowRankUpdate):
            module.register_forward_hook(lambda update, args, _: seen.append((update, args[0].shape[0])))
    text = {name: inputs[name][[0, 1, 1]] for name in ("input_ids", "attention_mask")}
    low_rank_model(pixel_values=inputs["pixel_values"][:1], **text, instruction_levels=["concept"] * 3)
    assert seen == []
    low_rank_model(
        pixel_values=inputs["pixel_values"][:1], **text, instruction_levels=["complex", "concept", "complex"]
    )
    complex_updates = set(low_rank_model.detr_encoder.layers[0].sam3i_adapter.complex.values())
    assert {update for update, _ in seen} == complex_updates and {rows for _, rows in seen} == {2}


def test_concept_rows_of_a_mixed_batch_keep_the_projection_bit_for_bit(low_rank_model, train_adapters):
    train_adapters(low_rank_model)
    layer = low_rank_model.detr_decoder.layers[0]
    states = torch.randn(3, 5, 32)
    routing = LevelRouting(torch.tensor([1, 0, 2]))
    linear = layer.mlp.fc1
    with torch.no_grad():
        found = layer.sam3i_adapter.project("mlp", routing, "fc1", linear, states)
        assert torch.equal(found[1], linear(states)[1])
        for row, level in ((0, "simple"), (2, "complex")):
            update = getattr(layer.sam3i_adapter, level)["mlp_fc1"]
            expected = (
                linear(states[row]) + update.up_proj.weight.matmul(update.down_proj.weight.matmul(states[row].T)).T
            )
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_the_scale_multiplies_the_update(low_rank_config, train_adapters):
    low_rank_config.adapter_scale = 0.5
    model = train_adapters(Sam3IForInstructionSegmentation(low_rank_config))
    layer, states = model.detr_encoder.layers[0], torch.randn(1, 4, 32)
    update = layer.sam3i_adapter.simple["mlp_fc1"]
    with torch.no_grad():
        found = layer.sam3i_adapter.project("mlp", LevelRouting(torch.tensor([1])), "fc1", layer.mlp.fc1, states)
        torch.testing.assert_close(found - layer.mlp.fc1(states), 0.5 * update(states), atol=1e-6, rtol=0)


@pytest.mark.parametrize("reloaded", [False, True])
def test_the_complex_update_starts_as_the_simple_one_and_goes_beyond_it(
    low_rank_model, train_adapters, reloaded, tmp_path
):
    train_adapters(low_rank_model)
    if reloaded:  # loaded weights count as initialised, which must not keep the old complex update alive
        low_rank_model.save_pretrained(tmp_path)
        low_rank_model = Sam3IForInstructionSegmentation.from_pretrained(tmp_path)
    low_rank_model.start_complex_from_simple()
    levels: LowRankLevels = low_rank_model.detr_decoder.layers[1].sam3i_adapter
    simple, complex_ = levels.simple["vision_cross_attn_q"], levels.complex["vision_cross_attn_q"]
    states = torch.randn(2, 4, 32)
    torch.testing.assert_close(complex_(states), simple(states), atol=1e-6, rtol=0)
    assert complex_.down_proj.weight.shape[0] == 2 * simple.down_proj.weight.shape[0] == 6
    assert complex_.down_proj.weight[3:].abs().min() > 0 and complex_.up_proj.weight[:, 3:].eq(0).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lora_finds_stocks_projections_and_none_of_ours(low_rank_model, train_adapters, inputs, tmp_path):
    train_adapters(low_rank_model, scale=0.1)
    levels = torch.tensor([1, 2])
    with torch.no_grad():
        before = low_rank_model(**inputs, instruction_levels=levels)
    lora = get_peft_model(low_rank_model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=True))
    adapted = [name for name, _ in lora.named_parameters() if "lora_" in name]
    assert adapted and not any("sam3i_adapter" in name for name in adapted)
    assert any("detr_decoder.layers.1.vision_cross_attn.q_proj" in name for name in adapted)
    with torch.no_grad():
        same = lora(**inputs, instruction_levels=levels)
        torch.testing.assert_close(same.pred_logits, before.pred_logits, atol=1e-6, rtol=0)
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
        changed = lora(**inputs, instruction_levels=levels)
        assert (changed.pred_logits - before.pred_logits).abs().max() > 1e-3
        lora.save_pretrained(tmp_path)
        merged = lora.merge_and_unload()(**inputs, instruction_levels=levels)
    torch.testing.assert_close(merged.pred_logits, changed.pred_logits, atol=1e-4, rtol=1e-4)


def test_attention_maps_are_recorded_after_the_update(low_rank_model, train_adapters, inputs):
    train_adapters(low_rank_model)
    low_rank_model.set_attn_implementation("eager")
    with torch.no_grad():
        simple = low_rank_model(**inputs, instruction_levels=["simple"] * 2, output_attentions=True)
        concept = low_rank_model(**inputs, output_attentions=True)
    for name in ("detr_encoder_attentions", "detr_decoder_attentions"):
        assert len(simple[name]) == len(concept[name]) > 0
        assert all((a - b).abs().max() > 1e-4 for a, b in zip(simple[name], concept[name], strict=True)), name


@pytest.mark.slow
def test_an_updated_layer_compiles_without_a_graph_break(low_rank_model, train_adapters):
    layer = train_adapters(low_rank_model).detr_encoder.layers[0]
    pixels, prompt, position = torch.randn(3, 16, 32), torch.randn(3, 5, 32), torch.randn(3, 16, 32)
    routing = LevelRouting(torch.tensor([1, 0, 2]))
    with torch.no_grad():
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        found = compiled(pixels, prompt, position, level_routing=routing)
        torch.testing.assert_close(found, layer(pixels, prompt, position, level_routing=routing))


def test_rank_zero_leaves_the_updates_out(low_rank_config, inputs):
    low_rank_config.adapter_rank = 0
    model = Sam3IForInstructionSegmentation(low_rank_config).eval()
    assert not any("layers." in name for name in model.adapter_parameters() if "mask_embedder" not in name)
    model.start_complex_from_simple()
    with torch.no_grad():
        assert torch.equal(model(**inputs, instruction_levels=["simple"] * 2).pred_logits, model(**inputs).pred_logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter_rank": -1}, "`adapter_rank` must be at least 0, got -1"),
        ({"selector_queries": -2}, "`selector_queries` must be at least 0, got -2"),
        ({"selector_heads": 0}, "`selector_heads` must be at least 1, got 0"),
        ({"selector_dim": 30}, "must divide `selector_dim` \\(30\\), got 4"),
    ],
)
def test_settings_out_of_range(tiny_sam3_config, fields, message):
    with pytest.raises(ValueError, match=message):
        Sam3IConfig.from_dict(tiny_sam3_config.to_dict() | {"model_type": "sam3i"} | fields)
