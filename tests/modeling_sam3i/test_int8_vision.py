# SPDX-License-Identifier: Apache-2.0
"""The image encoder in 8 bits: close to the model, nothing else changed, refused where it cannot run."""

import copy

import pytest
import torch
from torch import nn

from sam3i.modeling_sam3i.int8_vision import Int8Linear, quantize_vision
from sam3i.processing.fingerprint import fingerprint_tensors


def test_a_layer_is_close_to_its_own():
    torch.manual_seed(0)
    linear, hidden = nn.Linear(64, 96), torch.randn(2, 5, 64)
    expected, found = linear(hidden), Int8Linear(linear)(hidden)
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


def test_only_image_features_change(tiny_model):
    pixels, ids = torch.randn(1, 3, 56, 56), torch.tensor([[1, 2, 3, 2]])
    model = copy.deepcopy(tiny_model).half().eval()  # as a file may hold it
    quantize_vision(model)
    tiny_model.half().float().eval()
    with torch.no_grad():
        expected, found = (
            each.get_vision_features(pixels).fpn_hidden_states[0].flatten() for each in (tiny_model, model)
        )
        words = [each.text_encoder(input_ids=ids).last_hidden_state for each in (tiny_model, model)]
    assert torch.equal(*words)
    assert not torch.equal(found, expected) and torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.98
    assert fingerprint_tensors(model.state_dict()) != fingerprint_tensors(tiny_model.state_dict())


def test_refused_off_the_cpu_and_without_products(tiny_model, monkeypatch):
    with pytest.raises(ValueError, match="on the CPU to run fast in 8 bits, found one on meta"):
        quantize_vision(copy.deepcopy(tiny_model).to("meta"))
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"])
    with pytest.raises(ValueError, match="8-bit products for this processor, found none"):
        quantize_vision(tiny_model)
