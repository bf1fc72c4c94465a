# SPDX-License-Identifier: Apache-2.0
"""A model in half precision: boxes work, adapters train in float32, quantized projections keep the adapters' words."""

import pytest
import torch

from sam3i.modeling_sam3i.configuration_sam3i import Sam3IConfig
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

ROWS = 4


@pytest.fixture(params=["cascade", "selective"])
def model(request, tiny_config, train_adapters):
    torch.manual_seed(0)
    changes = {"adapter_design": request.param, "selector_queries": 4, "max_instruction_length": 40}
    config = Sam3IConfig.from_dict(tiny_config.to_dict() | changes)
    return train_adapters(Sam3IForInstructionSegmentation(config), scale=0.1).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)
    return {
        "pixel_values": torch.randn(1, 3, 56, 56, generator=generator),
        "input_ids": torch.randint(1, 61, (ROWS, 20), generator=generator),
        "attention_mask": (torch.arange(20) < torch.tensor([5, 9, 3, 12])[:, None]).long(),
        "instruction_levels": torch.arange(ROWS) % 3,
        "image_ids": torch.zeros(ROWS, dtype=torch.long),
    }


def labels() -> list[dict[str, torch.Tensor]]:
    return [{"masks": torch.rand(n, 40, 40) > 0.5, "boxes": torch.rand(n, 4) * 0.3 + 0.3} for n in (1, 0, 2, 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_as_the_processor_returns_them_work_in_half_precision(model, inputs, dtype):
    boxes = {"input_boxes": torch.full((ROWS, 1, 4), 0.4), "input_boxes_labels": torch.ones(ROWS, 1).long()}
    with torch.no_grad():
        expected = model(**inputs, **boxes)
        found = model.to(dtype)(**inputs, **boxes)
        instances = model.segment(threshold=0.0, **inputs, **boxes)
    assert found.pred_masks.dtype == dtype
    assert (found.pred_boxes.float() - expected.pred_boxes).abs().max() < 0.1
    assert all(masks.isfinite().all() for masks in instances.pred_masks)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_train_in_float32_on_a_base_as_it_was_loaded(model, inputs, dtype, autocast):
    model.to(dtype).train()
    model.freeze_stock()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert model.vision_encoder.dtype == dtype
    optimizer, first = (
        torch.optim.AdamW(weights.values(), lr=1e-3),
        {n: w.detach().clone() for n, w in weights.items()},
    )
    losses = []
    torch.manual_seed(0)
    targets = labels()
    for _ in range(3):
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            loss = model(**inputs, labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    short = {name for name in first if "long_position_embedding" not in name}  # no instruction is that long
    assert all(not torch.equal(weights[name], first[name]) for name in short)
    assert all(weight.isfinite().all() for weight in weights.values())


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten().float(), b.flatten().float()]))[0, 1].item()


def test_dynamic_int8_follows_full_precision_at_every_level(model, inputs):
    with torch.no_grad():
        expected = model(**inputs)
        quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
        found = quantized(**inputs)
        instances = quantized.segment(threshold=0.0, **inputs)
    for name in ("pred_masks", "pred_boxes", "pred_logits", "semantic_seg"):
        for row in range(ROWS):
            assert correlation(found[name][row], expected[name][row]) > 0.95, (name, row)
    assert len(instances.pred_masks) == ROWS


def test_low_rank_states_are_never_cast_to_the_integers_of_a_quantized_weight(model):
    from sam3i.modeling_sam3i.adapters.routing import precision_of

    linear = torch.nn.Linear(4, 2, bias=False)
    assert precision_of(linear, torch.bfloat16) == torch.float32
    linear.weight = torch.nn.Parameter(torch.zeros(4, 1, dtype=torch.uint8), requires_grad=False)  # as in 4 bit
    assert precision_of(linear, torch.bfloat16) == torch.bfloat16
    assert model.get_input_embeddings() is model.text_encoder.text_model.embeddings.token_embedding
