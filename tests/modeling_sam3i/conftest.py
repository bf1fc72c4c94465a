# SPDX-License-Identifier: Apache-2.0
"""What several of these tests are run on; the helpers beside them can be imported."""

import sys
from pathlib import Path

import pytest
import torch
from made_once import made_once

from sam3i.modeling_sam3i.configuration_sam3i import Sam3IConfig
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["cascade", "selective"])
def model(request, tiny_config, train_adapters):
    """A model of either design with adapters that change its answers a little."""

    def make():
        torch.manual_seed(0)
        changes = {"adapter_design": request.param, "selector_queries": 4}
        config = Sam3IConfig.from_dict(tiny_config.to_dict() | changes)
        return train_adapters(Sam3IForInstructionSegmentation(config), scale=0.1).eval()

    return made_once(("model", request.param, tiny_config.to_json_string()), make)


@pytest.fixture
def inputs():
    """Three images and three instructions of unlike length."""
    generator = torch.Generator().manual_seed(5)
    return {
        "pixel_values": torch.randn(3, 3, 56, 56, generator=generator),
        "input_ids": torch.randint(1, 60, (3, 8), generator=generator),
        "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 3 + [0] * 5]),
    }
