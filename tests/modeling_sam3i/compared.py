# SPDX-License-Identifier: Apache-2.0
"""Outputs of two models held against each other."""

import torch

OUTPUTS = ("pred_masks", "pred_boxes", "pred_logits", "presence_logits", "semantic_seg")


def assert_close(found, expected, tolerance: float = 1e-6):
    for name in OUTPUTS:
        difference = (found[name] - expected[name]).abs().max().item()
        assert difference <= tolerance * max(1.0, expected[name].abs().max().item()), (name, difference)


def assert_equal(found, expected):
    for name in OUTPUTS:
        assert torch.equal(found[name], expected[name]), name
