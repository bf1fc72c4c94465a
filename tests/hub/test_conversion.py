# SPDX-License-Identifier: Apache-2.0
"""Conversion of checkpoints made here with the authors' names: what is written, and what is refused."""

import json
import re
import runpy
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTokenizer, PreTrainedModel, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor
from typer import Typer
from typer.testing import CliRunner

from sam3i.hub.cli import convert
from sam3i.hub.conversion.official import CheckpointConversionError, convert_official_checkpoint
from sam3i.modeling_sam3i.configuration_sam3i import Sam3IConfig
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from sam3i.processing.processing_sam3i import Sam3IProcessor

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
official_names = runpy.run_path(str(EXAMPLES / "official_layout.py"))["official_names"]

QKV_BIAS = "transformer.encoder.layers.0.self_attn.in_proj_bias"
DOWN = "transformer.decoder.layers.1.adapter2.down_proj.weight"


@pytest.fixture(scope="module")
def stock_config() -> dict:
    detr = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_layers": 2}
    backbone = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "pretrain_image_size": 28,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    text = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
        "projection_dim": 8,
        "max_position_embeddings": 8,
    }
    return Sam3Config(
        vision_config={
            "backbone_config": {"model_type": "sam3_vit_model"} | backbone,
            "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config=text,
        geometry_encoder_config=detr,
        detr_encoder_config=detr,
        detr_decoder_config=detr | {"num_queries": 5},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    ).to_dict()


@pytest.fixture(scope="module")
def native(stock_config) -> dict[str, torch.Tensor]:
    """Weights of a tiny model, all of them random, adapters included."""
    torch.manual_seed(0)
    config = Sam3IConfig.from_dict(
        Sam3IConfig.lift_detector_config(stock_config)
        | {"adapter_design": "cascade", "adapter_dim": 6, "max_instruction_length": 8, "router_dim": 0}
    )
    model = Sam3IForInstructionSegmentation(config)
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


def to_official(native: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under the authors' names, with the entries that have no native counterpart."""
    weights = official_names(native)
    weights["backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis"] = torch.zeros(4, 2, dtype=torch.complex64)
    weights["geometry_encoder.points_pool_project.bias"] = torch.zeros(16)
    return weights


@pytest.fixture
def official(native) -> dict[str, torch.Tensor]:
    return to_official(native)


@pytest.fixture
def save(tmp_path):
    def save_checkpoint(content) -> Path:
        torch.save(content, tmp_path / "checkpoint.pt")
        return tmp_path / "checkpoint.pt"

    return save_checkpoint


def layouts(weights: dict[str, torch.Tensor]) -> dict[str, dict]:
    prefixed = {f"detector.{name}": tensor for name, tensor in weights.items()}
    tracker = {"tracker.maskmem_tpos_enc": torch.zeros(2)}
    second_neck = {"detector.backbone.vision_backbone.sam2_convs.0.conv_1x1.bias": torch.zeros(2)}
    projector = {f"{name}.0.weight": torch.zeros(4, 4) for name in ("simple_query_proj", "concept_proj")}
    second_text = {"backbone.text.resizer.weight": torch.zeros(3, 3)}
    return {
        "bare": weights,
        "plain": {"model": weights},
        "detector": {"model": prefixed | tracker | second_neck},
        "trainer": {
            "model": weights | projector | second_text,
            "optimizer": {"state": {}, "param_groups": []},
            "epoch": 4,
            "adapter_config": {"adapter_dim": 6, "adapter_heads": 2, "adapter_scale": 0.5},
        },
    }


@pytest.mark.parametrize("layout", ["bare", "plain", "detector", "trainer"])
def test_every_weight_arrives(official, native, stock_config, save, tmp_path, layout):
    content = layouts(official)[layout]
    report = convert_official_checkpoint(save(content), tmp_path / "out", config=stock_config)

    model, info = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = model.state_dict()
    assert state.keys() == native.keys()
    assert all(torch.equal(state[name], native[name]) for name in native)

    names = set(content.get("model", content)) | (set(content) - {"model"} if "model" in content else set())
    assert set(report.mapped) | set(report.dropped) == names
    assert not set(report.mapped) & set(report.dropped)
    assert sorted(name for targets in report.mapped.values() for name in targets) == sorted(native)
    assert all(report.dropped.values()) and not report.missing
    assert json.loads((tmp_path / "out" / "conversion_report.json").read_text()) == asdict(report)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "conversion_report.json",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "out"}


def test_configuration_follows_the_authors(official, stock_config, save, tmp_path):
    report = convert_official_checkpoint(save({"model": official}), tmp_path / "out", config=stock_config)
    config = Sam3IConfig.from_pretrained(tmp_path / "out")
    assert (config.adapter_design, config.adapter_dim, config.adapter_heads) == ("cascade", 6, 4)
    assert config.adapter_scale == 1.0
    assert config.always_encode_geometry and not config.clamp_presence_logits
    assert not config.mask_padding_in_adapters and not config.decoder_c_adapter_skip
    assert config.vision_config.backbone_config.layer_norm_eps == 1e-5
    assert config.text_config.pad_token_id == 0
    assert "training configuration" in report.settings["adapter_heads"].source


def test_heads_come_from_argument_then_checkpoint_then_configuration(official, stock_config, save, tmp_path):
    ours = Sam3IConfig.lift_detector_config(stock_config) | {"adapter_heads": 1}
    checkpoint = save({"model": official})
    convert_official_checkpoint(checkpoint, tmp_path / "configured", config=ours)
    assert Sam3IConfig.from_pretrained(tmp_path / "configured").adapter_heads == 1
    checkpoint = save(layouts(official)["trainer"])
    convert_official_checkpoint(checkpoint, tmp_path / "stated", config=ours)
    stated = Sam3IConfig.from_pretrained(tmp_path / "stated")
    assert (stated.adapter_heads, stated.adapter_scale) == (2, 0.5)
    convert_official_checkpoint(checkpoint, tmp_path / "given", config=ours, adapter_heads=8)
    assert Sam3IConfig.from_pretrained(tmp_path / "given").adapter_heads == 8


def test_heads_that_do_not_divide_the_width_are_refused(official, stock_config, save, tmp_path):
    with pytest.raises(ValueError, match="must divide the text encoder's width 16, got 3"):
        convert_official_checkpoint(save({"model": official}), tmp_path / "out", config=stock_config, adapter_heads=3)
    assert not (tmp_path / "out").exists()


def test_without_adapters_fresh_ones_are_the_identity(official, stock_config, save, tmp_path):
    weights = {name: tensor for name, tensor in official.items() if "adapter" not in name}
    report = convert_official_checkpoint(save({"model": weights}), tmp_path / "out", config=stock_config)
    model = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "out").eval()
    assert set(report.missing) == set(model.adapter_parameters())
    assert report.adapter_weights == 0 and "none in the checkpoint" in report.summary()
    # These adapters are still to be trained: as ours, not as the authors'.
    assert model.config.mask_padding_in_adapters and model.config.decoder_c_adapter_skip
    assert model.config.always_encode_geometry and not model.config.clamp_presence_logits
    inputs = {"pixel_values": torch.randn(1, 3, 56, 56), "input_ids": torch.randint(1, 40, (1, 8))}
    with torch.no_grad():
        concept, *levels = (
            model(**inputs, instruction_levels=[level]).pred_masks for level in ("concept", "simple", "complex")
        )
    assert all(torch.equal(masks, concept) for masks in levels)


def metas(official: dict[str, torch.Tensor], release: str) -> dict[str, torch.Tensor]:
    """A release of Meta's: no adapters, the tracker beside the detector, and in 3.1 other necks."""
    neck = "backbone.vision_backbone"
    weights = {name: tensor for name, tensor in official.items() if "adapter" not in name}
    if release == "3.1":
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(f"{neck}.convs.3.")}
        for other in ("interactive_convs", "propagation_convs"):
            weights[f"{neck}.{other}.0.conv_1x1.weight"] = torch.ones(16, 16, 1, 1)
    weights = {f"detector.{name}": tensor for name, tensor in weights.items()}
    return weights | {"tracker.maskmem_tpos_enc": torch.zeros(2)}


def save_as(weights: dict[str, torch.Tensor], kind: str, folder: Path) -> Path:
    if kind.startswith("fp16"):
        weights = {name: tensor if tensor.is_complex() else tensor.half() for name, tensor in weights.items()}
    path = folder / f"checkpoint.{kind.split()[1]}"
    if kind.endswith("pt"):
        torch.save(weights, path)
    elif kind.endswith("pt wrapped"):
        torch.save({"model": weights}, path)
    else:
        nested = "model." if kind.endswith("wrapped") else ""
        save_file({f"{nested}{name}": tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


@pytest.mark.parametrize(
    ("release", "kind"),
    [
        ("3", "fp32 pt"),
        ("3", "fp16 pt wrapped"),
        ("3", "fp32 safetensors"),
        ("3.1", "fp32 pt wrapped"),
        ("3.1", "fp16 safetensors"),
        ("3.1", "fp16 safetensors wrapped"),
    ],
)
def test_metas_releases_become_stock_repositories(official, native, stock_config, tmp_path, release, kind):
    weights = metas(official, release)
    report = convert_official_checkpoint(save_as(weights, kind, tmp_path), tmp_path / "out", config=stock_config)
    assert set(report.mapped) | set(report.dropped) == set(weights) and all(report.dropped.values())
    written = [name for name, reason in report.missing.items() if "no fourth image scale" in reason]
    assert bool(written) == (release == "3.1")
    assert ("SAM 3.1" in report.summary()) == (release == "3.1")

    torch.manual_seed(0)
    inputs = {"pixel_values": torch.randn(1, 3, 56, 56), "input_ids": torch.randint(1, 40, (1, 8))}
    config = Sam3Config.from_dict(stock_config)
    config.vision_config.backbone_config.layer_norm_eps = 1e-5  # Meta's, where stock has 1e-6
    original = Sam3Model(config).eval()
    rounded = {name: tensor.half() if "fp16" in kind else tensor for name, tensor in native.items()}
    original.load_state_dict({name: tensor for name, tensor in rounded.items() if "sam3i_" not in name})
    converted, info = Sam3Model.from_pretrained(tmp_path / "out", output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        expected, found = original(**inputs), converted(**inputs)
    for name in ("pred_masks", "pred_boxes", "pred_logits", "presence_logits"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)
    ours = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "out", dtype=torch.float32)
    if "fp16" in kind:
        stored = Sam3Model.from_pretrained(tmp_path / "out")
        assert {parameter.dtype for parameter in stored.parameters()} == {torch.float16}
    assert ours.config.always_encode_geometry and set(ours.adapter_parameters()) <= set(report.missing)


def test_zero_adapter_weights_are_reported(official, stock_config, save, tmp_path):
    for name in official:
        if ".adapter2." in name and name.startswith("transformer.decoder"):
            official[name] = torch.zeros_like(official[name])
    one = "transformer.encoder.layers.0.adapter1.norm.bias"
    official[one] = official[one].index_fill(0, torch.tensor([3]), 0.0)
    report = convert_official_checkpoint(save({"model": official}), tmp_path / "out", config=stock_config)
    per_layer = 2 * 6 * 16 + 16 + 3 * 6  # two projections, their biases, a norm
    assert report.zero_adapter_weights == 2 * per_layer + 1
    assert len(report.zero_adapter_tensors) == 2 * 6
    assert report.adapter_weights == sum(
        official[name].numel() for name in official if re.search(r"\.adapter\d+\.|mask_predictor_adapter", name)
    )
    assert re.search(r"2\s+detr_decoder: c_adapter\.up_proj", report.summary()) is None
    assert re.search(r"4\s+detr_decoder: c_adapter\.up_proj", report.summary())


def test_half_precision_stays(official, stock_config, save, tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in official.items() if not tensor.is_complex()}
    convert_official_checkpoint(save({"model": half}), tmp_path / "out", config=stock_config)
    model = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["object", "file", "folder", "video"])
def test_configuration_sources(official, stock_config, save, tmp_path, kind):
    folder = tmp_path / "stock"
    Sam3Config.from_dict(stock_config).save_pretrained(folder)
    config = {
        "object": Sam3Config.from_dict(stock_config),
        "file": folder / "config.json",
        "folder": folder,
        "video": {"model_type": "sam3_video", "detector_config": stock_config},
    }[kind]
    convert_official_checkpoint(save({"model": official}), tmp_path / "out", config=config)
    assert Sam3IConfig.from_pretrained(tmp_path / "out").detr_decoder_config.num_queries == 5


@pytest.fixture
def base(stock_config, tmp_path_factory) -> Path:
    """A stock repository: configuration and processor. As in CLIP's vocabulary, "!" has id 0."""
    characters = "!abcdeg"
    words = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    folder = tmp_path_factory.mktemp("base")
    Sam3Config.from_dict(stock_config).save_pretrained(folder)
    Sam3Processor(Sam3ImageProcessor(size={"height": 56, "width": 56}), tokenizer).save_pretrained(folder)
    return folder


def test_processor_comes_from_the_base_and_pads_with_zero(official, save, base, tmp_path):
    report = convert_official_checkpoint(save({"model": official}), tmp_path / "out", base=base)
    assert "from the base repository" in report.processor
    processor = Sam3IProcessor.from_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "again")
    image = Image.new("RGB", (40, 30), "red")
    for folder in ("out", "again"):
        processor = Sam3IProcessor.from_pretrained(tmp_path / folder)
        inputs = processor(images=image, text=["bad", "a!"], instruction_levels="complex", return_tensors="pt")
        start, end, mark = (
            processor.tokenizer.get_vocab()[word] for word in ("<|startoftext|>", "<|endoftext|>", "!</w>")
        )
        assert inputs["input_ids"].shape == (2, 8)
        assert inputs["input_ids"][0].tolist()[5:] == [0, 0, 0] and inputs["input_ids"][0, 4] == end
        # An exclamation mark is a token like any other, although the padding token is called "!".
        assert inputs["input_ids"][1].tolist() == [start, 8, mark, end, 0, 0, 0, 0]
        assert inputs["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 4 + [0] * 4]
    model = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        outputs = model(**inputs)
    results = processor.post_process_instruction_segmentation(outputs, threshold=0.0, target_sizes=[(30, 40)] * 2)
    assert [result["level"] for result in results] == ["complex", "complex"]
    assert results[0]["masks"].shape[1:] == (30, 40)


def test_a_base_without_processor_writes_nothing(official, stock_config, save, tmp_path):
    Sam3Config.from_dict(stock_config).save_pretrained(tmp_path / "bare")
    with pytest.raises((OSError, ValueError)):
        convert_official_checkpoint(save({"model": official}), tmp_path / "out", base=tmp_path / "bare")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "bare"}


def test_without_a_base_the_report_says_that_there_is_no_processor(official, stock_config, save, tmp_path):
    report = convert_official_checkpoint(save({"model": official}), tmp_path / "out", config=stock_config)
    assert report.processor.startswith("none written")
    assert not list((tmp_path / "out").glob("*token*"))


class Payload:
    """An object whose unpickling would leave a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def broken(official: dict[str, torch.Tensor], case: str):
    """The contents of a checkpoint with one thing wrong, and a piece of the message it must give."""
    weights = dict(official)
    if case == "unknown weight":
        return {"model": weights | {"transformer.encoder.layers.0.adapter3.norm.bias": torch.zeros(6)}}, "adapter3"
    if case == "unknown entry":
        return {"model": weights, "mystery": 1}, "mystery"
    if case == "given twice":
        return {"model": weights | {f"detector.{QKV_BIAS}": weights[QKV_BIAS]}}, "given twice"
    if case == "stock weight missing":
        del weights[QKV_BIAS]
        return {"model": weights}, "detr_encoder.layers.0.self_attn.q_proj.bias"
    if case == "adapter weight missing":
        del weights[DOWN]
        return {"model": weights}, "detr_decoder.layers.1.sam3i_adapter.c_adapter.down_proj.weight"
    if case == "wrong shape":
        weights[QKV_BIAS] = torch.zeros(51)
        return {"model": weights}, r"expected \(16,\), found \(17,\)"
    if case == "impossible shape":
        weights[QKV_BIAS] = torch.zeros(50)
        return {"model": weights}, "divisible by 3"
    if case == "adapters of two widths":
        weights[DOWN] = torch.zeros(7, 16)
        return {"model": weights}, r"\[6, 7\]"
    if case == "integers":
        weights[QKV_BIAS] = torch.zeros(48, dtype=torch.int8)
        return {"model": weights}, "torch.int8"
    if case == "not a tensor":
        weights[QKV_BIAS] = [0.0] * 48
        return {"model": weights}, "found list"
    if case == "one layer too many":
        extra = {
            name.replace(".layers.1.", ".layers.2."): weights[name] for name in weights if ".encoder.layers.1." in name
        }
        return {"model": weights | extra}, "not in a model of this configuration"
    if case == "empty":
        return {"model": {}}, "found none"
    return [weights[QKV_BIAS]], "found list"


CASES = [
    "unknown weight",
    "unknown entry",
    "given twice",
    "stock weight missing",
    "adapter weight missing",
    "wrong shape",
    "impossible shape",
    "adapters of two widths",
    "integers",
    "not a tensor",
    "one layer too many",
    "empty",
    "not a dictionary",
]


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_explained_is_refused(official, stock_config, save, tmp_path, case):
    content, message = broken(official, case)
    with pytest.raises(CheckpointConversionError, match=message):
        convert_official_checkpoint(save(content), tmp_path / "out", config=stock_config)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


FAMILIES = {
    "EfficientSAM3": ("detector.backbone.vision_backbone.trunk.model.head.0.weight", "convolutional student"),
    "LiteText of its authors": ("detector.backbone.language_backbone.projector.weight", "MobileCLIP text encoder"),
    "SAM 1": ("image_encoder.blocks.0.norm1.weight", "SAM 1 or SAM 2"),
    "SAM 2": ("sam_mask_decoder.iou_token.weight", "read no text"),
    "a tracker alone": ("tracker.maskmem_tpos_enc", "no weight of a detector, only what belongs to the video tracker"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_named(family, save, tmp_path):
    name, message = FAMILIES[family]
    with pytest.raises(CheckpointConversionError, match=message):
        convert_official_checkpoint(save({"model": {name: torch.zeros(2)}}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_released_size_is_the_default_and_its_mismatch_says_what_to_pass(official, save, tmp_path):
    with pytest.raises(CheckpointConversionError, match="pass its stock configuration as `config`") as caught:
        convert_official_checkpoint(save({"model": official}), tmp_path / "out")
    assert len(caught.value.problems["missing"]) > 1000
    assert len(str(caught.value).splitlines()) < 40


def test_code_in_a_checkpoint_is_never_run(official, stock_config, save, tmp_path):
    trace = tmp_path / "trace"
    checkpoint = save({"model": official, "epoch": Payload(trace)})
    with pytest.raises(CheckpointConversionError, match="can run code"):
        convert_official_checkpoint(checkpoint, tmp_path / "out", config=stock_config)
    assert not trace.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_truncated_files_are_refused(official, stock_config, save, tmp_path, kept):
    checkpoint = save({"model": official})
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    with pytest.raises(CheckpointConversionError, match="not a complete PyTorch checkpoint"):
        convert_official_checkpoint(checkpoint, tmp_path / "out", config=stock_config)
    assert not (tmp_path / "out").exists()


def test_another_zip_file_is_refused(stock_config, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(CheckpointConversionError, match="damaged"):
        convert_official_checkpoint(tmp_path / "other.pt", tmp_path / "out", config=stock_config)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        convert_official_checkpoint(tmp_path / "absent.pt", tmp_path / "out")


def test_a_folder_in_use_is_left_alone(official, stock_config, save, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="in use"):
        convert_official_checkpoint(save({"model": official}), tmp_path / "out", config=stock_config)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(official, stock_config, save, tmp_path):
    (tmp_path / "out").mkdir()
    convert_official_checkpoint(save({"model": official}), tmp_path / "out", config=stock_config)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_failure_while_writing_leaves_nothing(official, stock_config, save, tmp_path, monkeypatch):
    def fail(self, folder, **kwargs):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_official_checkpoint(save({"model": official}), tmp_path / "out", config=stock_config)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.fixture
def command():
    app = Typer()
    app.command()(convert)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_prints_the_report(official, stock_config, save, tmp_path, command):
    (tmp_path / "config.json").write_text(json.dumps(stock_config))
    result = command(save({"model": official}), tmp_path / "out", "--config", tmp_path / "config.json")
    assert result.exit_code == 0, result.output
    assert "dropped: 2" in result.output and "missing: 0" in result.output and "adapter_heads = 4" in result.output
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_command_fails_with_the_reason(save, tmp_path, command):
    result = command(save({"model": {"mystery.weight": torch.zeros(2)}}), tmp_path / "out")
    assert result.exit_code == 1
    assert "mystery.weight" in str(result.exception)
    assert not (tmp_path / "out").exists()
