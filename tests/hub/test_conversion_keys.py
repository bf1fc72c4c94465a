# SPDX-License-Identifier: Apache-2.0
"""The key mapping against the reference tables, at tiny and at real size, without any weights."""

import json
import re

import pytest
import torch

from sam3i.hub.conversion.official_keys import Transform, find_drop_reason, find_target

OPERATIONS = {
    "copy": Transform.COPY,
    "split dim0 into q,k,v": Transform.SPLIT_QKV,
    "transpose": Transform.TRANSPOSE,
    "drop first (cls) position: t[:,1:]": Transform.DROP_CLS_POSITION,
}


@pytest.mark.parametrize("size", ["", "_realsize"])
def test_stock_names_equal_the_reference_table(reference_dir, size):
    table = json.loads((reference_dir / f"official_to_hf_stock_mapping{size}.json").read_text())
    assert len(table) > 300
    for official, native, operation in table:
        target = find_target(official)
        if native is None:
            assert target is None and find_drop_reason(official), official
            continue
        names = tuple(native.replace("{q,k,v}", part) for part in "qkv") if "{q,k,v}" in native else (native,)
        assert target is not None and target.names == names, official
        assert target.transform is OPERATIONS[operation], official
        assert find_drop_reason(official) is None, official


def test_adapter_names_at_real_size(reference_dir):
    officials = json.loads((reference_dir / "official_adapter_keys_realsize.json").read_text())
    natives = [name for official in officials for name in find_target(official).names]
    assert len(officials) == 1092 and len(set(natives)) == 1092
    kinds = {re.sub(r"\.\d+\.", ".N.", name) for name in natives}
    cascade = {
        f"{site}.layers.N.sam3i_adapter.{member}.{part}.{kind}"
        for site, parts in {
            "text_encoder.text_model.encoder": "attention_norm qkv_proj attn_proj bottleneck_norm down_proj up_proj",
            "detr_encoder": "down_proj norm up_proj",
            "detr_decoder": "down_proj norm up_proj",
        }.items()
        for member in ("s_adapter", "cascade_s_adapter", "c_adapter")
        for part in parts.split()
        for kind in ("weight", "bias")
    }
    masks = {
        f"mask_decoder.mask_embedder.sam3i_adapter.{level}.layers.N.{kind}"
        for level in ("simple", "complex")
        for kind in ("weight", "bias")
    }
    assert kinds == cascade | masks


@pytest.mark.parametrize(
    ("official", "native"),
    [
        (
            "backbone.language_backbone.encoder.transformer.resblocks.23.adapter12.mha_adapter.in_proj_weight",
            "text_encoder.text_model.encoder.layers.23.sam3i_adapter.cascade_s_adapter.qkv_proj.weight",
        ),
        (
            "backbone.language_backbone.encoder.transformer.resblocks.0.adapter1.norm1.bias",
            "text_encoder.text_model.encoder.layers.0.sam3i_adapter.s_adapter.attention_norm.bias",
        ),
        (
            "transformer.encoder.layers.5.adapter2.norm.weight",
            "detr_encoder.layers.5.sam3i_adapter.c_adapter.norm.weight",
        ),
        (
            "segmentation_head.mask_predictor_adapter2.mask_embed.layers.2.bias",
            "mask_decoder.mask_embedder.sam3i_adapter.complex.layers.2.bias",
        ),
    ],
)
def test_adapter_names(official, native):
    assert find_target(official).names == (native,)
    assert find_target(official).transform is Transform.COPY


@pytest.mark.parametrize(
    "name",
    [
        "tracker.maskmem_tpos_enc",
        "backbone.text.encoder.ln_final.weight",
        "backbone.vision_backbone.sam2_convs.0.conv_1x1.weight",
        "concept_proj.3.bias",
    ],
)
def test_dropped_names_have_a_reason_and_no_target(name):
    assert find_drop_reason(name)
    assert find_target(name) is None


@pytest.mark.parametrize(
    "name",
    ["", "weight", "transformer.encoder.layers.0.adapter3.norm.weight", "backbone.text", "x.tracker.y"],
)
def test_unknown_names_are_neither_mapped_nor_dropped(name):
    assert find_target(name) is None
    assert find_drop_reason(name) is None


def test_transforms():
    stacked = torch.arange(12.0).view(6, 2)
    query, key, value = Transform.SPLIT_QKV.apply(stacked)
    assert query.tolist() == [[0, 1], [2, 3]] and key.tolist() == [[4, 5], [6, 7]] and value.tolist()[1] == [10, 11]
    assert Transform.TRANSPOSE.apply(stacked)[0].shape == (2, 6)
    assert Transform.DROP_CLS_POSITION.apply(stacked[None])[0].tolist() == [stacked[1:].tolist()]
    assert Transform.COPY.apply(stacked)[0] is stacked


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (Transform.SPLIT_QKV, (4, 2)),
        (Transform.SPLIT_QKV, ()),
        (Transform.TRANSPOSE, (3,)),
        (Transform.DROP_CLS_POSITION, (1, 1, 4)),
    ],
)
def test_transforms_refuse_impossible_shapes(transform, shape):
    with pytest.raises(ValueError, match="found"):
        transform.apply(torch.zeros(shape))
