# SPDX-License-Identifier: Apache-2.0
"""Transformers' own model tests over our model and over stock SAM3: ours may fail nothing that stock passes.

Stock SAM3 itself fails some of them with a plain tester, so the two are compared test by test.
"""

import sys
import unittest

import pytest
import torch
from transformers import Sam3Model

from sam3i import Sam3IForInstructionSegmentation


class PlainTester:
    """What the common tests ask of a model: a small configuration and inputs for it."""

    batch_size = 2
    is_training = False

    def __init__(self, config, levels: bool):
        self.config = config
        self.levels = levels
        self.num_hidden_layers = config.vision_config.backbone_config.num_hidden_layers
        self.hidden_size = config.vision_config.backbone_config.hidden_size

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        inputs = {
            "pixel_values": torch.rand(self.batch_size, 3, 56, 56, generator=generator),
            "input_ids": torch.randint(1, 60, (self.batch_size, 16), generator=generator),
            "attention_mask": torch.ones(self.batch_size, 16, dtype=torch.long),
        }
        if self.levels:
            inputs["instruction_levels"] = torch.tensor([1, 2])
        return type(self.config).from_dict(self.config.to_dict()), inputs


def common_tests(model_class, config, levels: bool) -> type[unittest.TestCase]:
    """Transformers' common model tests, bound to a model class."""
    from transformers_tests.test_modeling_common import ModelTesterMixin

    class CommonTest(ModelTesterMixin, unittest.TestCase):
        all_model_classes = (model_class,)
        is_encoder_decoder = False
        test_resize_embeddings = False
        _is_composite = True

        def setUp(self):
            self.model_tester = PlainTester(config, levels)

    return CommonTest


@pytest.mark.slow
def test_ours_fails_nothing_that_stock_passes(run_common_tests, tiny_sam3_config, tiny_config):
    ours = run_common_tests(common_tests(Sam3IForInstructionSegmentation, tiny_config, levels=True))
    assert len(ours) > 100
    failed = {name for name, (outcome, _) in ours.items() if outcome == "failed"}
    stock = run_common_tests(common_tests(Sam3Model, tiny_sam3_config, levels=False), only=failed)
    worse = {name: ours[name][1][-1500:] for name in failed if stock[name][0] != "failed"}
    assert not worse, "\n\n".join(f"{name}: {why}" for name, why in worse.items())


@pytest.mark.slow
def test_table_of_outcomes(run_common_tests, tiny_sam3_config, tiny_config):
    """`pytest -s -m slow` prints the table of the README."""
    stock = run_common_tests(common_tests(Sam3Model, tiny_sam3_config, levels=False))
    ours = run_common_tests(common_tests(Sam3IForInstructionSegmentation, tiny_config, levels=True))
    for label, results in (("stock Sam3Model", stock), ("Sam3IForInstructionSegmentation", ours)):
        found = [outcome for outcome, _ in results.values()]
        counts = {kind: found.count(kind) for kind in ("passed", "skipped", "failed")}
        sys.stdout.write(f"{label}: {counts}\n")
    assert set(stock) == set(ours)
