# SPDX-License-Identifier: Apache-2.0
"""The image encoder in lower precision: close to the model, nothing else changed, refused where it cannot run."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.models.sam3.modeling_sam3 import Sam3MLP, Sam3ViTRoPEAttention

from sam3i.modeling_sam3i import fast_vision
from sam3i.modeling_sam3i.fast_vision import (
    BFloat16Layer,
    Int8Linear,
    PiecewiseAttention,
    PiecewiseMLP,
    make_vision_fast,
)
from sam3i.processing.fingerprint import fingerprint_tensors


def modules(model: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) is kind]


def hidden_states_of(model: nn.Module, kind: type) -> list[tuple[nn.Module, tuple, dict, torch.Tensor]]:
    """Every module of a kind with its inputs and its output for a picture."""
    found = []

    def keep(module, args, kwargs, output):
        found.append((module, args, kwargs, output))

    hooks = [module.register_forward_hook(keep, with_kwargs=True) for module in modules(model, kind)]
    with torch.no_grad():
        model.get_vision_features(torch.randn(2, 3, 56, 56))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("reduce_range", [False, True])
def test_a_layer_is_close_to_its_own(monkeypatch, reduce_range):
    monkeypatch.setattr(fast_vision, "processor_has", lambda *features: not reduce_range)
    torch.manual_seed(0)
    linear, hidden = nn.Linear(64, 96), torch.randn(2, 5, 64)
    layer = Int8Linear(linear)
    expected, found = linear(hidden), layer(hidden)
    assert layer.reduce_range is reduce_range
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("rows", [3, 576])
def test_pieces_compute_what_stock_does(tiny_model, monkeypatch, rows):
    monkeypatch.setattr(fast_vision, "ROWS", rows)
    found = hidden_states_of(tiny_model, Sam3ViTRoPEAttention)
    assert len({args[0].shape for _, args, _, _ in found}) > 1  # in windows, and of the whole picture
    with torch.no_grad():
        for attention, args, kwargs, expected in found:
            for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
                states = PiecewiseAttention(attention, dtype)(*args, **kwargs)[0]
                assert states.dtype == torch.float32 and states.shape == expected[0].shape
                assert (states - expected[0]).norm() <= tolerance * expected[0].norm()
        for mlp, args, _, expected in hidden_states_of(tiny_model, Sam3MLP):
            torch.testing.assert_close(PiecewiseMLP(mlp)(*args), expected)


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_only_image_features_change(tiny_model, monkeypatch, has_bfloat16):
    monkeypatch.setattr(fast_vision, "processor_has", lambda *features: "avx512_bf16" in features and has_bfloat16)
    pixels, ids = torch.randn(1, 3, 56, 56), torch.tensor([[1, 2, 3, 2]])
    model = copy.deepcopy(tiny_model).half().eval()  # as a file may hold it
    make_vision_fast(model)
    assert not modules(model.vision_encoder.backbone, nn.Linear)
    assert not modules(model, Sam3ViTRoPEAttention) and not modules(model.vision_encoder, Sam3MLP)
    assert bool(modules(model, BFloat16Layer)) is has_bfloat16
    assert model.dtype == torch.float32  # what inputs are cast to
    tiny_model.half().float().eval()
    with torch.no_grad():
        expected, found = (
            each.get_vision_features(pixels).fpn_hidden_states[0].flatten() for each in (tiny_model, model)
        )
        words = [each.text_encoder(input_ids=ids).last_hidden_state for each in (tiny_model, model)]
    assert torch.equal(*words) and found.dtype == torch.float32
    assert not torch.equal(found, expected) and torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.98
    assert fingerprint_tensors(model.state_dict()) != fingerprint_tensors(tiny_model.state_dict())


def test_a_lora_of_the_image_encoder_stays(tiny_model):
    model = copy.deepcopy(tiny_model).eval()
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        before = model.get_vision_features(pixels).fpn_hidden_states[0].flatten()
        targets = r"vision_encoder\.backbone\..*\.(q_proj|fc1)"
        inject_adapter_in_model(LoraConfig(target_modules=targets, init_lora_weights=False), model)
        expected = model.get_vision_features(pixels).fpn_hidden_states[0].flatten()
        make_vision_fast(model)
        found = model.get_vision_features(pixels).fpn_hidden_states[0].flatten()
    assert (found - expected).norm() < 0.2 * (before - expected).norm()


def test_refused_off_the_cpu_and_without_products(tiny_model, monkeypatch):
    with pytest.raises(ValueError, match="on the CPU to run fast, found one on meta"):
        make_vision_fast(copy.deepcopy(tiny_model).to("meta"))
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"])
    with pytest.raises(ValueError, match="8-bit products for this processor, found none"):
        make_vision_fast(tiny_model)
