# SPDX-License-Identifier: Apache-2.0
"""A level fixed by `set_level`: the forward pass is one graph, for `torch.export` and for `torch.compile`."""

import pytest
import torch
from compared import OUTPUTS
from torch import nn


class Outputs(nn.Module):
    """The model with tensors in and out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        outputs = self.model(**inputs)
        return tuple(outputs[name] for name in OUTPUTS)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)
    return {
        "pixel_values": torch.randn(2, 3, 56, 56, generator=generator),
        "input_ids": torch.randint(1, 61, (2, 20), generator=generator),
        "attention_mask": (torch.arange(20) < torch.tensor([5, 20])[:, None]).long(),
    }


@pytest.mark.parametrize("level", ["concept", "simple", "complex"])
def test_equals_the_level_chosen_by_the_call(model, inputs, level):
    with torch.no_grad():
        expected = model(**inputs, instruction_levels=[level] * 2)
        model.set_level(level)
        found = model(**inputs)
    assert torch.equal(found.instruction_levels, expected.instruction_levels)
    assert all(torch.equal(found[name], expected[name]) for name in OUTPUTS)


def test_a_call_that_names_levels_as_well_is_refused(model, inputs):
    model.set_level("simple")
    with pytest.raises(ValueError, match="fixed to 'simple': leave `instruction_levels` out"):
        model(**inputs, instruction_levels=torch.tensor([1, 1]))
    model.set_level(None)
    assert model(**inputs, instruction_levels=torch.tensor([1, 2])).instruction_levels.tolist() == [1, 2]
    with pytest.raises(ValueError, match="Unknown instruction level 'hard'"):
        model.set_level("hard")


@pytest.mark.slow
def test_exports_with_the_same_numbers(model, inputs):
    model.set_level("complex")
    graph = Outputs(model)
    with torch.no_grad():
        exported = torch.export.export(graph, (), inputs, strict=False).module()
        for found, expected in zip(exported(**inputs), graph(**inputs), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_compiles_without_a_graph_break(model, inputs):
    model.set_level("complex")
    with torch.no_grad():
        expected = model(**inputs)
        found = torch.compile(model, backend="eager", fullgraph=True)(**inputs)
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
