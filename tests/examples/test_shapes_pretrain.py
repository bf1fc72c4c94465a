# SPDX-License-Identifier: Apache-2.0
"""The pretraining example writes a stock SAM3 repository that stock classes and ours load completely."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Sam3Model, Sam3Processor

from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from sam3i.processing.shapes.world import ShapesWorld

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(("world", "concept"), [("shapes", "circle"), ("pictograms", "butterfly")])
def test_two_steps_of_pretraining_give_a_stock_repository(world, concept, tmp_path):
    script = [sys.executable, str(EXAMPLES / "shapes_pretrain.py"), "--output", str(tmp_path / "stock")]
    script += ["--world", world]
    brief = ["--vision-steps", "1", "--steps", "1", "--single-steps", "1", "--pool", "12", "--cases", "2"]
    result = subprocess.run(script + brief, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    for expected in ("logits ", "fixed on validation: all gIoU", "nothing 20.0"):
        assert expected in result.stdout

    assert sum(file.stat().st_size for file in (tmp_path / "stock").iterdir()) < 5 * 2**20
    stock, info = Sam3Model.from_pretrained(tmp_path / "stock", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = Sam3Processor.from_pretrained(tmp_path / "stock")
    inputs = processor(images=ShapesWorld(0, "test").scene(0).image, text=concept, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 112, 112) and inputs.input_ids.shape == (1, 32)
    ours = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "stock", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = stock.eval()(**{k: v for k, v in inputs.items() if k != "original_sizes"})
        found = ours(**inputs)
    assert expected.pred_masks.shape == (1, 16, 28, 28)
    torch.testing.assert_close(found.pred_masks, expected.pred_masks)
    torch.testing.assert_close(found.pred_logits, expected.pred_logits)
