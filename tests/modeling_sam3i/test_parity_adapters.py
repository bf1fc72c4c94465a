# SPDX-License-Identifier: Apache-2.0
"""Adapters, their layers and the mask head against numbers of the authors' code (random weights, fp32)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sam3i.hub.conversion.official_keys import find_target
from sam3i.modeling_sam3i.adapters.routing import LevelRouting
from sam3i.modeling_sam3i.configuration_sam3i import Sam3IConfig
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

TOLERANCE = 1e-4
LEVELS = {"type1": 0, "type2": 1, "type4": 2}
MEMBERS = {"adapter1": "s_adapter", "adapter12": "cascade_s_adapter", "adapter2": "c_adapter"}


@pytest.fixture(scope="module")
def load(reference_dir):
    """Build a tiny model, fill the part that a fixture describes, and return it with the fixture's tensors."""

    def load_fixture(name, official_prefix, native_prefixes):
        stock = json.loads((reference_dir / "full_model_hf_config.json").read_text())
        config = Sam3IConfig.from_dict(
            Sam3IConfig.lift_detector_config(stock)
            | {
                "adapter_design": "cascade",
                "adapter_dim": 16,
                "adapter_heads": 4,
                "router_dim": 0,
                "decoder_c_adapter_skip": False,
                "mask_padding_in_adapters": False,
                "clamp_presence_logits": False,
            }
        )
        model = Sam3IForInstructionSegmentation(config).eval()
        tensors = load_file(reference_dir / f"{name}.safetensors")
        native = {}
        for key, tensor in tensors.items():
            if key.startswith("state_dict/"):
                target = find_target(official_prefix + key.removeprefix("state_dict/"))
                native.update(zip(target.names, target.transform.apply(tensor), strict=True))
        missing, unexpected = model.load_state_dict(native, strict=False)
        assert not unexpected
        assert not [key for key in missing if key.startswith(native_prefixes)]
        return model, tensors

    return load_fixture


def routing(level, rows):
    return LevelRouting(torch.full((rows,), level))


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max().item()
    assert difference <= TOLERANCE, f"max abs difference {difference:.2e}"


@pytest.fixture(scope="module")
def text(load):
    return load("adapters_text", "backbone.language_backbone.", ("text_encoder.", "text_projection."))


@pytest.fixture(scope="module")
def encoder(load):
    return load("adapters_detr_encoder", "transformer.encoder.", ("detr_encoder.",))


@pytest.fixture(scope="module")
def decoder(load):
    return load("adapters_detr_decoder", "transformer.decoder.", ("detr_decoder.",))


@pytest.fixture(scope="module")
def seg_head(load):
    return load("seg_head", "segmentation_head.", ("mask_decoder.",))


@pytest.mark.parametrize("text_type", LEVELS)
@torch.no_grad()
def test_text_encoder(text, text_type):
    model, tensors = text
    ids = tensors["input/token_ids"]
    outputs = model.get_text_features(
        input_ids=ids,
        attention_mask=(~tensors[f"output/{text_type}/padding_mask"]).long(),
        instruction_levels=torch.full((len(ids),), LEVELS[text_type]),
    )
    assert_close(outputs.last_hidden_state, tensors[f"output/{text_type}/last_hidden_state"])
    assert_close(outputs.pooler_output.transpose(0, 1), tensors[f"output/{text_type}/text_memory_resized"])


@pytest.mark.parametrize("member", MEMBERS)
@torch.no_grad()
def test_text_adapter(text, member):
    model, tensors = text
    adapter = getattr(model.text_encoder.text_model.encoder.layers[0].sam3i_adapter, MEMBERS[member])
    assert_close(adapter(tensors["input/block_x"]), tensors[f"output/block0_{member}"])


@pytest.mark.parametrize("text_type", LEVELS)
@torch.no_grad()
def test_text_layer(text, text_type):
    model, tensors = text
    states = tensors["input/block_x"]
    rows, tokens, _ = states.shape
    causal = torch.full((tokens, tokens), float("-inf")).triu(1)[None, None]
    layer = model.text_encoder.text_model.encoder.layers[0]
    outputs = layer(states, attention_mask=causal, level_routing=routing(LEVELS[text_type], rows))
    assert_close(outputs, tensors[f"output/{text_type}/block0_forward"])


def encoder_inputs(tensors):
    side = 6
    to_map = {name: tensors[f"input/{name}"].permute(1, 2, 0).unflatten(-1, (side, side)) for name in ("src", "pos")}
    return to_map["src"], to_map["pos"], tensors["input/prompt"].transpose(0, 1), ~tensors["input/prompt_padding_mask"]


@pytest.mark.parametrize("text_type", LEVELS)
@torch.no_grad()
def test_detr_encoder(encoder, text_type):
    model, tensors = encoder
    source, positions, prompt, mask = encoder_inputs(tensors)
    outputs = model.detr_encoder(
        vision_features=[source],
        text_features=prompt,
        vision_pos_embeds=[positions],
        text_mask=mask,
        level_routing=routing(LEVELS[text_type], len(source)),
    )
    assert_close(outputs.last_hidden_state.transpose(0, 1), tensors[f"output/{text_type}/memory"])


@pytest.mark.parametrize("text_type", LEVELS)
@torch.no_grad()
def test_detr_encoder_layer(encoder, text_type):
    model, tensors = encoder
    source, positions, prompt, mask = encoder_inputs(tensors)
    outputs = model.detr_encoder.layers[0](
        source.flatten(2).transpose(1, 2),
        prompt_feats=prompt,
        vision_pos_encoding=positions.flatten(2).transpose(1, 2),
        prompt_cross_attn_mask=mask[:, None, None],
        level_routing=routing(LEVELS[text_type], len(source)),
    )
    assert_close(outputs, tensors[f"output/{text_type}/layer0"])


@pytest.mark.parametrize("site", ["encoder", "decoder"])
@pytest.mark.parametrize("member", MEMBERS)
@torch.no_grad()
def test_detr_adapter(request, site, member):
    model, tensors = request.getfixturevalue(site)
    adapter = getattr(getattr(model, f"detr_{site}").layers[0].sam3i_adapter, MEMBERS[member])
    assert_close(adapter(tensors["input/adapter_x"]), tensors[f"output/layer0_{member}"])


@pytest.mark.parametrize("site", ["encoder", "decoder"])
@pytest.mark.parametrize("text_type", LEVELS)
@torch.no_grad()
def test_detr_cascade(request, site, text_type):
    model, tensors = request.getfixturevalue(site)
    layer = getattr(model, f"detr_{site}").layers[0]
    states = tensors["input/adapter_x"]
    outputs = layer.adapt(states, routing(LEVELS[text_type], len(states)))
    assert_close(outputs, tensors[f"output/{text_type}/layer0_adapter_forward"])
    if site == "decoder":
        outputs = layer.mlp_layer_norm(outputs + layer.mlp(states))
        assert_close(outputs, tensors[f"output/{text_type}/layer0_forward_ffn"])


@pytest.mark.parametrize("text_type", LEVELS)
@pytest.mark.parametrize("one_to_many", [False, True])
@torch.no_grad()
def test_detr_decoder(decoder, text_type, one_to_many):
    model, tensors = decoder
    memory = tensors["input/memory"].transpose(0, 1)
    outputs = model.detr_decoder(
        vision_features=memory,
        text_features=tensors["input/prompt"].transpose(0, 1),
        vision_pos_encoding=tensors["input/pos"].transpose(0, 1),
        text_mask=~tensors["input/prompt_padding_mask"],
        spatial_shapes=torch.tensor([[6, 6]]),
        level_routing=routing(LEVELS[text_type], len(memory)),
        one_to_many=one_to_many,
    )
    prefix = f"output_dac/{text_type}" if one_to_many else f"output/{text_type}"
    hidden_states = outputs.intermediate_hidden_states
    assert_close(hidden_states.transpose(1, 2), tensors[f"{prefix}/hs"])
    assert_close(outputs.reference_boxes.transpose(1, 2), tensors[f"{prefix}/reference_boxes"])
    assert_close(outputs.presence_logits.transpose(1, 2), tensors[f"{prefix}/presence_logits"])
    if not one_to_many:
        offsets = model.detr_decoder.box_head(hidden_states)
        boxes = (torch.special.logit(outputs.reference_boxes, eps=1e-3) + offsets).sigmoid()
        assert_close(boxes.transpose(1, 2), tensors[f"{prefix}/pred_boxes_cxcywh"])


@torch.no_grad()
def test_detr_decoder_box_bias(decoder):
    model, tensors = decoder
    boxes = model.detr_decoder.reference_points.weight.expand(2, -1, -1).sigmoid()
    assert_close(model.detr_decoder._get_rpb_matrix(boxes, (6, 6)), tensors["output/rpb_layer0"])


@pytest.mark.parametrize("text_type", LEVELS)
@torch.no_grad()
def test_mask_head(seg_head, text_type):
    model, tensors = seg_head
    queries = tensors["input/obj_queries"][-1]
    outputs = model.mask_decoder(
        decoder_queries=queries,
        backbone_features=[tensors[f"input/backbone_feat{level}"] for level in range(3)],
        encoder_hidden_states=tensors["input/encoder_hidden_states"].transpose(0, 1),
        prompt_features=tensors["input/prompt"].transpose(0, 1),
        prompt_mask=~tensors["input/prompt_padding_mask"],
        level_routing=routing(LEVELS[text_type], len(queries)),
    )
    assert_close(outputs.pred_masks, tensors[f"output/{text_type}/pred_masks"])
    assert_close(outputs.semantic_seg, tensors[f"output/{text_type}/semantic_seg"])
