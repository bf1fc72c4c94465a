# SPDX-License-Identifier: Apache-2.0
"""What the decoders compute in another way than stock has stock's numbers, bit for bit, and stock's gradients."""

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize("rows", [1, 3])
def test_box_bias_equals_stocks(tiny_model, rows):
    decoder = tiny_model.detr_decoder
    boxes = torch.rand(rows, 6, 4, generator=torch.Generator().manual_seed(rows))
    size = (torch.tensor(4), torch.tensor(5))
    expected = F.pad(decoder._get_rpb_matrix(boxes, size), (0, 0, 1, 0))
    found = decoder._box_bias(boxes, size)
    assert found.is_contiguous()
    assert torch.equal(found, expected)
    weight = decoder.box_rpb_embed_x.layer1.weight
    (own,) = torch.autograd.grad(found.square().sum(), weight, retain_graph=True)
    (stock,) = torch.autograd.grad(expected.square().sum(), weight)
    torch.testing.assert_close(own, stock)


def test_pixels_equal_stocks_without_its_copies(tiny_model):
    decoder = tiny_model.mask_decoder
    maps = [torch.randn(2, 32, side, side) for side in (16, 8, 4)]
    before = [level.clone() for level in maps]
    states = torch.randn(2, 16, 32)
    with torch.no_grad():
        assert torch.equal(decoder.embed_pixels(maps, states), decoder._embed_pixels(maps, states))
    assert all(torch.equal(*pair) for pair in zip(maps, before, strict=True))


def test_encoder_layer_in_two_halves(tiny_model):
    layer = tiny_model.detr_encoder.layers[0]
    states, prompt, positions = torch.randn(2, 16, 32), torch.randn(2, 5, 32), torch.randn(2, 16, 32)
    with torch.no_grad():
        whole = layer(states, prompt, positions)
        attended = layer(states, None, positions)
        assert torch.equal(layer(attended, prompt, None), whole)
        # The second half looks at each token by itself.
        pieces = [layer(attended[:, piece], prompt, None) for piece in (slice(0, 5), slice(5, 16))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
