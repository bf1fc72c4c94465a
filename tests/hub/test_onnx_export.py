# SPDX-License-Identifier: Apache-2.0
"""The graphs for ONNX compute what the model computes; exported, onnxruntime does."""

import pytest
import torch

from sam3i.hub.publish.onnx import OUTPUTS, DecoderGraph, OnnxInstructionModel, TextGraph, VisionGraph, export_onnx
from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel, Sam3IConfig
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

DESIGNS = {
    "cascade": {},
    "cascade of the authors": {"always_encode_geometry": True, "mask_padding_in_adapters": False},
    "selective": {"adapter_design": "selective", "selector_dim": 8, "selector_heads": 2, "selector_queries": 4},
}


@pytest.fixture(params=DESIGNS)
def model(request, tiny_config, train_adapters):
    torch.manual_seed(0)
    config = Sam3IConfig.from_dict(tiny_config.to_dict() | DESIGNS[request.param])
    return train_adapters(Sam3IForInstructionSegmentation(config)).eval()


@pytest.fixture
def inputs():
    """Three instructions, one for each level, on two images, padded to the model's length."""
    generator = torch.Generator().manual_seed(3)
    mask = (torch.arange(32)[None] < torch.tensor([[4], [7], [9]])).long()
    ids = torch.randint(1, 60, (3, 32), generator=generator)
    return {
        "pixel_values": torch.randn(2, 3, 56, 56, generator=generator),
        "input_ids": torch.where(mask == 1, ids, 63),
        "attention_mask": mask,
        "instruction_levels": torch.tensor([0, 1, 2]),
        "image_ids": torch.tensor([0, 1, 1]),
    }


@torch.no_grad()
def test_the_graphs_are_the_model(model, inputs):
    expected = model(**inputs)
    for row, level in enumerate(InstructionLevel):
        ids, mask = inputs["input_ids"][row : row + 1], inputs["attention_mask"][row : row + 1]
        pixels = inputs["pixel_values"][inputs["image_ids"][row]][None]
        positions = model.get_vision_features(pixels).fpn_position_encoding[:-1]
        features, words = TextGraph(model, level)(ids, mask)
        found = DecoderGraph(model, level, positions)(features, words, mask, *VisionGraph(model)(pixels))
        for name, value in zip(OUTPUTS, found, strict=True):
            wanted = expected[name][row : row + 1]
            difference = (value - wanted).abs().max() / wanted.abs().max().clamp(min=1)
            assert difference <= 1e-5, name  # of the output's scale: a sum of large terms may cross zero


def test_other_precisions_are_refused(tiny_model, tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match="float32, found torch.bfloat16"):
        export_onnx(tiny_model.to(torch.bfloat16), tmp_path)


def test_a_folder_without_graphs_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(FileNotFoundError, match="export_onnx"):
        OnnxInstructionModel(tmp_path)


@pytest.mark.slow
def test_onnxruntime_computes_what_the_model_computes(model, inputs, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model.train()
    export_onnx(model, tmp_path / "onnx")
    assert model.training
    model.eval()
    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    graphs = {f"{part}_{level.value}.onnx" for part in ("text", "decoder") for level in InstructionLevel}
    assert names == graphs | {"vision.onnx", "README.md"}
    with torch.no_grad():
        expected = model(**inputs)
    runtime = OnnxInstructionModel(tmp_path / "onnx")
    found = runtime({name: value.numpy() for name, value in inputs.items()})
    for name in OUTPUTS:
        torch.testing.assert_close(torch.from_numpy(found[name]), expected[name], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="exported graphs"):
        runtime.run("text_unknown")
