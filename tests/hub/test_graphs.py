# SPDX-License-Identifier: Apache-2.0
"""The graphs compute what the model computes; exported, onnxruntime, OpenVINO and torch.export do."""

import pytest
import torch
from typer.testing import CliRunner

from sam3i.hub.publish import exported, graphs
from sam3i.hub.publish.exported import ExportedModel, export_graphs, export_onnx
from sam3i.hub.publish.graphs import OUTPUTS, DecoderGraph, GraphFormat, TextGraph, VisionGraph
from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel, Sam3IConfig
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

DESIGNS = {
    "cascade": {},
    "cascade of the authors": {"always_encode_geometry": True, "mask_padding_in_adapters": False},
    "selective": {"adapter_design": "selective", "selector_dim": 8, "selector_heads": 2, "selector_queries": 4},
}


@pytest.fixture
def build(tiny_config, train_adapters):
    """A function that makes a model of a design."""

    def build(design: str) -> Sam3IForInstructionSegmentation:
        torch.manual_seed(0)
        config = Sam3IConfig.from_dict(tiny_config.to_dict() | DESIGNS[design])
        return train_adapters(Sam3IForInstructionSegmentation(config)).eval()

    return build


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


@pytest.mark.parametrize("design", DESIGNS)
@torch.no_grad()
def test_the_graphs_are_the_model(design, build, inputs):
    model = build(design)
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


def test_what_cannot_be_exported_is_refused(tiny_model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="found pt2"):
        export_graphs(tiny_model, tmp_path, "pt2", int8=True)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="new or empty folder"):
        export_graphs(tiny_model, tmp_path, "pt2")
    with pytest.raises(ValueError, match="float32, found torch.bfloat16"):
        export_onnx(tiny_model.to(torch.bfloat16), tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="export_graphs"):
        ExportedModel(tmp_path)
    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need onnx, onnxscript, openvino, nncf: pip install .sam3i\[export\]"):
        export_graphs(tiny_model.float(), tmp_path / "new", "openvino", int8=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "to, design, int8",
    [
        ("pt2", "cascade", False),
        ("onnx", "selective", False),
        ("onnx", "cascade of the authors", False),
        ("onnx", "cascade", True),
        ("openvino", "cascade", False),
    ],
)
def test_a_runtime_computes_what_the_model_computes(to, design, int8, build, inputs, tmp_path):
    for name in GraphFormat(to).packages(int8):
        pytest.importorskip(name)
    model = build(design).train()
    report = export_graphs(model, tmp_path / "graphs", to, ["complex"], int8=int8)
    assert model.training
    model.eval()
    names = {path.name for path in (tmp_path / "graphs").iterdir()}
    ending = GraphFormat(to).ending
    assert {f"vision{ending}", f"text_complex{ending}", f"decoder_complex{ending}", "README.md"} <= names
    inputs["instruction_levels"] = torch.tensor([2, 2, 2])
    with torch.no_grad():
        expected = model(**inputs)
    runtime = ExportedModel(tmp_path / "graphs")
    found = runtime({name: value.numpy() for name, value in inputs.items()})
    for name in OUTPUTS:
        difference = (torch.from_numpy(found[name]) - expected[name]).abs().max() / expected[name].abs().max()
        assert difference < (0.1 if int8 else 1e-4), name
    assert (max(report.parity.values()) > 1e-4) == int8 and f"{max(report.parity.values()):.1e}" in str(report)
    with pytest.raises(ValueError, match="exported graphs"):
        runtime.run("text_simple")


def test_graphs_that_differ_are_not_written(build, tmp_path, monkeypatch):
    def write(model, folder, *others):
        (folder / "vision.pt2").touch()

    monkeypatch.setattr(exported, "write_graphs", write)
    monkeypatch.setattr(exported, "ExportedModel", lambda folder: None)
    monkeypatch.setattr(exported, "_parity", lambda *a: {"pred_masks": 0.0, "pred_boxes": 3e-2})
    with pytest.raises(ValueError, match=r"3.0e-02 of the largest value of pred_boxes"):
        export_graphs(build("cascade"), tmp_path / "graphs", "pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "tflite"], "--to takes repository, onnx, openvino, pt2, found 'tflite'"),
        (["--int8"], "is for graphs"),
    ],
)
def test_the_command_refuses_in_a_sentence(options, message, tmp_path):
    from sam3i.cli import app

    done = CliRunner().invoke(app, ["export", "./model", str(tmp_path / "out"), *options])
    assert done.exit_code == 1 and message in done.stderr and not (tmp_path / "out").exists()


def test_the_command_writes_graphs_and_prints_their_parity(tiny_model, tmp_path, monkeypatch):
    from sam3i.cli import app

    tiny_model.half().save_pretrained(tmp_path / "model")
    seen = []

    def export(model, output_dir, to, levels, **options):
        seen.append((model.dtype, to, levels, options["int8"], options["scenes"]))
        output_dir.mkdir()
        return exported.ExportReport(output_dir, {"pred_masks": 1.2e-6})

    monkeypatch.setattr(exported, "export_graphs", export)
    command = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "pt2", "--levels", "simple, complex"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert seen == [(torch.float32, "pt2", ["simple", "complex"], False, 0)] and "1.2e-06" in done.output
