# SPDX-License-Identifier: Apache-2.0
"""Adapter repositories: written without SAM3, loaded with it, and never in part."""

import json
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Sam3Config, Sam3Model, pipeline

from sam3i.modeling_sam3i import pretrained as pretrained_sam3i
from sam3i.modeling_sam3i.adapter_io import (
    AdapterDescription,
    AdapterFileError,
    AdapterMismatchError,
    BaseModelNotFoundError,
    read_adapter_config,
    read_adapter_tensors,
    save_adapter,
    to_file_name,
)
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.peft.loading import load_instruction_adapter
from sam3i.modeling_sam3i.peft.tuner import InstructionAdapterConfig
from sam3i.modeling_sam3i.pretrained import CheckpointMismatchError

DESIGNS = {
    "cascade": {"adapter_design": "cascade", "adapter_dim": 8},
    "long": {"adapter_design": "cascade", "adapter_dim": 8, "max_instruction_length": 48},
    "selective": {"adapter_design": "selective", "selector_dim": 8, "selector_heads": 2, "selector_queries": 4},
}
MIXED = torch.tensor([0, 1, 2])
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def make_trained(tiny_stock_repos, load_once, train_adapters, tmp_path):
    def make(name: str = "adapter", seed: int = 7, base: str = "sam3", **settings):
        settings = settings or DESIGNS["cascade"]
        model = load_once(Sam3IForInstructionSegmentation, tiny_stock_repos[base], **settings)
        train_adapters(model, seed=seed)
        save_adapter(model, tmp_path / name)
        return model, tmp_path / name

    return make


@torch.no_grad()
def predict(model, inputs) -> torch.Tensor:
    return model(**inputs, instruction_levels=MIXED).pred_masks


def edit_config(repo, **changes):
    path = repo / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestSaving:
    @pytest.mark.parametrize("design", DESIGNS)
    def test_the_file_holds_the_adapters_and_nothing_else(self, make_trained, tiny_stock_repos, design):
        model, repo = make_trained(**DESIGNS[design])
        assert sorted(path.name for path in repo.iterdir()) == [CONFIG, WEIGHTS]
        tensors = load_file(repo / WEIGHTS)
        expected = {to_file_name(name): parameter for name, parameter in model.adapter_parameters().items()}
        assert len(expected) == len(model.adapter_parameters())  # no two names coincide
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
        stock = set(Sam3Model(Sam3Config.from_pretrained(tiny_stock_repos["sam3"])).state_dict())
        assert not stock & {name.removeprefix("base_model.model.") for name in tensors}

    def test_names_follow_the_container_of_peft(self):
        name = "detr_encoder.layers.1.sam3i_adapter.c_adapter.norm.weight"
        in_file = "base_model.model.detr_encoder.layers.1.level_adapters.sam3i_adapter.c_adapter.norm.weight"
        assert to_file_name(name) == in_file
        name = "text_encoder.text_model.embeddings.long_position_embedding.weight"
        in_file = "base_model.model.text_encoder.text_model.embeddings.level_adapters.sam3i_adapter.weight"
        assert to_file_name(name) == in_file
        with pytest.raises(KeyError, match="detr_encoder.layers.1.mlp"):
            to_file_name("detr_encoder.layers.1.mlp.fc1.weight")

    def test_the_config_names_method_settings_and_base(self, make_trained, tiny_stock_repos):
        _, repo = make_trained(adapter_dim=8, adapter_scale=0.5)
        values = json.loads((repo / CONFIG).read_text())
        assert values["peft_type"] == "SAM3I" and values["inference_mode"] is True
        assert values["base_model_name_or_path"] == str(tiny_stock_repos["sam3"])
        assert values["adapter_dim"] == 8 and values["adapter_scale"] == 0.5
        assert values["auto_mapping"]["base_model_class"] == "Sam3Model"

    def test_without_peft_the_same_fields_are_known_as_with_it(self):
        assert {item.name for item in fields(AdapterDescription)} == {
            item.name for item in fields(InstructionAdapterConfig)
        }

    def test_another_base_and_gathered_weights_can_be_given(self, tiny_model, tmp_path):
        gathered = {name: torch.full_like(tensor, 2.0) for name, tensor in tiny_model.state_dict().items()}
        save_adapter(tiny_model, tmp_path, base_model_name_or_path="org/sam3", state_dict=gathered)
        assert read_adapter_config(tmp_path).base_model_name_or_path == "org/sam3"
        assert all((tensor == 2).all() for tensor in read_adapter_tensors(tmp_path).values())

    def test_a_model_without_repository_names_no_base(self, tiny_model, tmp_path):
        save_adapter(tiny_model, tmp_path)
        assert read_adapter_config(tmp_path).base_model_name_or_path is None
        with pytest.raises(BaseModelNotFoundError, match="names no base model. Pass `base_model_name_or_path`"):
            Sam3IForInstructionSegmentation.from_pretrained(tmp_path)

    def test_only_native_models_are_saved(self, tiny_sam3_config, tmp_path):
        with pytest.raises(TypeError, match="found Sam3Model"):
            save_adapter(Sam3Model(tiny_sam3_config), tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_save_pretrained_stays_whole(self, make_trained, inputs, tmp_path):
        model, _ = make_trained()
        model.save_pretrained(tmp_path / "whole")
        assert (tmp_path / "whole" / "model.safetensors").is_file() and not (tmp_path / "whole" / CONFIG).exists()
        again = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "whole")
        torch.testing.assert_close(predict(again, inputs), predict(model, inputs))


class TestLoadingWithItsBase:
    @pytest.mark.parametrize("base", ["sam3", "sam3_video"])
    @pytest.mark.parametrize("design", DESIGNS)
    def test_one_call_gives_the_model_back(self, make_trained, inputs, design, base):
        model, repo = make_trained(base=base, **DESIGNS[design])
        again = Sam3IForInstructionSegmentation.from_pretrained(repo)
        assert type(again) is Sam3IForInstructionSegmentation and not again.training
        for name, value in read_adapter_config(repo).settings().items():
            assert getattr(again.config, name) == value
        torch.testing.assert_close(predict(again, inputs), predict(model, inputs), atol=1e-6, rtol=1e-6)

    def test_only_a_stock_repository_is_said_to_lack_adapters(self, make_trained, tiny_stock_repos, monkeypatch):
        _, repo = make_trained()
        said = []
        monkeypatch.setattr(pretrained_sam3i.logger, "warning_once", said.append)
        Sam3IForInstructionSegmentation.from_pretrained(repo)
        assert said == []
        Sam3IForInstructionSegmentation.from_pretrained(tiny_stock_repos["sam3"])
        assert len(said) == 1 and "holds no instruction adapters" in said[0]

    def test_the_base_can_lie_elsewhere(self, make_trained, tiny_stock_repos, inputs):
        model, repo = make_trained()
        edit_config(repo, base_model_name_or_path="nowhere/to-be-found")
        with pytest.raises(BaseModelNotFoundError, match="works on nowhere/to-be-found, which cannot be loaded"):
            Sam3IForInstructionSegmentation.from_pretrained(repo)
        again = Sam3IForInstructionSegmentation.from_pretrained(
            repo, base_model_name_or_path=tiny_stock_repos["sam3_video"]
        )
        torch.testing.assert_close(predict(again, inputs), predict(model, inputs), atol=1e-6, rtol=1e-6)

    def test_a_whole_sam3i_repository_can_be_the_base(self, make_trained, inputs, tmp_path):
        other, _ = make_trained("other", seed=3)
        other.save_pretrained(tmp_path / "whole")
        model, repo = make_trained()
        save_adapter(model, repo, base_model_name_or_path=str(tmp_path / "whole"))
        for loader in (Sam3IForInstructionSegmentation, AutoModel):
            again = loader.from_pretrained(repo)
            assert type(again) is Sam3IForInstructionSegmentation
            torch.testing.assert_close(predict(again, inputs), predict(model, inputs), atol=1e-6, rtol=1e-6)

    def test_arguments_reach_the_model(self, make_trained, inputs):
        _, repo = make_trained()
        model, info = Sam3IForInstructionSegmentation.from_pretrained(
            repo, dtype=torch.bfloat16, attn_implementation="eager", adapter_dropout=0.0, output_loading_info=True
        )
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.config._attn_implementation == "eager" and model.config.adapter_dropout == 0.0
        assert not info["missing_keys"] and not info["unexpected_keys"]

    @pytest.mark.parametrize("kind", ["stock", "native"])
    def test_a_given_config_gets_the_settings_of_the_adapter(self, make_trained, tiny_stock_repos, inputs, kind):
        model, repo = make_trained(adapter_dim=8, adapter_scale=0.5)
        config = Sam3Config.from_pretrained(tiny_stock_repos["sam3"]) if kind == "stock" else model.config
        again = Sam3IForInstructionSegmentation.from_pretrained(repo, config=config)
        assert again.config.adapter_scale == 0.5
        torch.testing.assert_close(predict(again, inputs), predict(model, inputs), atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("base", ["sam3", "sam3_video"])
    def test_the_pipeline_uses_the_adapters(self, make_trained, base):
        model, repo = make_trained(base=base)
        pipe = pipeline("instruction-segmentation", model=str(repo))
        assert type(pipe.model) is Sam3IForInstructionSegmentation
        for name, parameter in model.adapter_parameters().items():
            assert torch.equal(pipe.model.get_parameter(name).cpu(), parameter), name

    def test_a_subfolder(self, make_trained, inputs, tmp_path):
        model, _ = make_trained("repo/instruction")
        again = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "repo", subfolder="instruction")
        torch.testing.assert_close(predict(again, inputs), predict(model, inputs), atol=1e-6, rtol=1e-6)

    def test_a_whole_model_beside_the_adapter_is_ambiguous(self, make_trained):
        model, repo = make_trained()
        model.save_pretrained(repo)
        with pytest.raises(AdapterFileError, match="a whole model.*and an instruction adapter"):
            Sam3IForInstructionSegmentation.from_pretrained(repo)

    def test_a_base_is_only_for_adapters(self, tiny_stock_repos):
        with pytest.raises(ValueError, match="is for repositories of instruction adapters"):
            Sam3IForInstructionSegmentation.from_pretrained(
                tiny_stock_repos["sam3"], base_model_name_or_path=tiny_stock_repos["sam3"]
            )

    def test_a_base_with_a_missing_tensor_is_refused(self, make_trained, tiny_stock_repos, tmp_path):
        _, repo = make_trained()
        base = Sam3Model.from_pretrained(tiny_stock_repos["sam3"])
        base.save_pretrained(tmp_path / "base")
        tensors = load_file(tmp_path / "base" / "model.safetensors")
        del tensors["text_projection.weight"]
        save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointMismatchError, match="missing"):
            Sam3IForInstructionSegmentation.from_pretrained(repo, base_model_name_or_path=tmp_path / "base")


def cut_off(repo):
    data = (repo / WEIGHTS).read_bytes()
    (repo / WEIGHTS).write_bytes(data[: len(data) // 2])


def cut_off_in_header(repo):
    (repo / WEIGHTS).write_bytes((repo / WEIGHTS).read_bytes()[:100])


def pickle_only(repo):
    torch.save(load_file(repo / WEIGHTS), repo / "adapter_model.bin")
    (repo / WEIGHTS).unlink()


def edit_tensors(repo, edit):
    tensors = load_file(repo / WEIGHTS)
    edit(tensors, next(name for name in tensors if name.endswith("c_adapter.norm.weight")))
    save_file(tensors, repo / WEIGHTS)


def native_names(repo):
    tensors = load_file(repo / WEIGHTS)
    save_file({name.replace(".level_adapters.", "."): tensor for name, tensor in tensors.items()}, repo / WEIGHTS)


FAULTS = {
    "missing tensor": (lambda repo: edit_tensors(repo, lambda t, n: t.pop(n)), AdapterMismatchError, "1 missing"),
    "extra tensor": (
        lambda repo: edit_tensors(repo, lambda t, n: t.update({f"{n}.more": torch.ones(1)})),
        AdapterMismatchError,
        "1 unexpected",
    ),
    "wrong shape": (
        lambda repo: edit_tensors(repo, lambda t, n: t.update({n: torch.ones(5)})),
        AdapterMismatchError,
        r"1 of another shape.*expected \(8,\), found \(5,\)",
    ),
    "other names": (native_names, AdapterMismatchError, "missing.*unexpected"),
    "no tensor": (lambda repo: save_file({}, repo / WEIGHTS), AdapterMismatchError, "missing"),
    "truncated": (cut_off, AdapterFileError, "damaged or cut off"),
    "truncated in its header": (cut_off_in_header, AdapterFileError, "damaged or cut off"),
    "empty": (lambda repo: (repo / WEIGHTS).write_bytes(b""), AdapterFileError, "damaged or cut off"),
    "no weights": (lambda repo: (repo / WEIGHTS).unlink(), AdapterFileError, "Expected `adapter_model.safetensors`"),
    "pickled weights": (pickle_only, AdapterFileError, "pickled weights are not read"),
    "broken config": (lambda repo: (repo / CONFIG).write_text("{"), AdapterFileError, "Expected JSON"),
    "config is a list": (lambda repo: (repo / CONFIG).write_text("[]"), AdapterFileError, "found list"),
    "unknown design": (
        lambda repo: edit_config(repo, adapter_design="prefix"),
        AdapterFileError,
        r"adapter_config.json.*'adapter_design' expected one of .* got prefix",
    ),
    "wrong type": (
        lambda repo: edit_config(repo, adapter_dim="8"),
        AdapterFileError,
        "'adapter_dim' expected int, got .*'8'",
    ),
    "not a number": (
        lambda repo: edit_tensors(repo, lambda t, n: t[n].view(-1)[0].fill_(float("nan"))),
        AdapterFileError,
        "found NaN or infinity in 1 tensors",
    ),
    "infinite": (
        lambda repo: edit_tensors(repo, lambda t, n: t[n].view(-1)[0].fill_(float("-inf"))),
        AdapterFileError,
        "found NaN or infinity in 1 tensors",
    ),
    "integers": (
        lambda repo: edit_tensors(repo, lambda t, n: t.update({n: t[n].to(torch.int8)})),
        AdapterFileError,
        "Expected adapter weights in fp32, bf16 or fp16.*found 1 others .*int8",
    ),
    "truth values": (
        lambda repo: edit_tensors(repo, lambda t, n: t.update({n: t[n].bool()})),
        AdapterFileError,
        "found 1 others .*bool",
    ),
    "a calibration that turns scores round": (
        lambda repo: edit_config(repo, score_calibration={"simple": [-1.0, 0.0]}),
        AdapterFileError,
        "positive scale and a bias",
    ),
    "unknown setting": (lambda repo: edit_config(repo, gate="on"), AdapterFileError, r"\(gate\).*Update sam3i"),
}


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_faulty_repository_is_refused(self, make_trained, fault):
        _, repo = make_trained()
        damage, error, message = FAULTS[fault]
        damage(repo)
        with pytest.raises(error, match=message):
            Sam3IForInstructionSegmentation.from_pretrained(repo)

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_loaded_model_stays_as_it_was(self, make_trained, fault):
        _, repo = make_trained()
        model, _ = make_trained("other", seed=8)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        damage, error, message = FAULTS[fault]
        damage(repo)
        with pytest.raises(error, match=message):
            load_instruction_adapter(model, repo)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_stock_model_stays_stock(self, make_trained, tiny_stock_repos, fault):
        _, repo = make_trained()
        stock = Sam3Model.from_pretrained(tiny_stock_repos["sam3"])
        classes = [type(module) for module in stock.modules()]
        damage, error, message = FAULTS[fault]
        damage(repo)
        with pytest.raises(error, match=message):
            load_instruction_adapter(stock, repo)
        assert [type(module) for module in stock.modules()] == classes
        assert not hasattr(stock, "peft_config") and not stock._forward_pre_hooks

    def test_other_methods_are_refused(self, make_trained, tiny_model):
        _, repo = make_trained()
        edit_config(repo, peft_type="LORA")
        with pytest.raises(AdapterFileError, match="found 'LORA'. Load other PEFT methods"):
            load_instruction_adapter(tiny_model, repo)

    def test_a_folder_without_adapter_is_refused(self, tiny_model, tiny_stock_repos, tmp_path):
        for folder in (tiny_stock_repos["sam3"], tmp_path):
            with pytest.raises(AdapterFileError, match="found no `adapter_config.json`"):
                load_instruction_adapter(tiny_model, folder)


class TestLoadingIntoAModel:
    @pytest.mark.parametrize("design", DESIGNS)
    def test_the_adapters_are_overwritten(self, make_trained, inputs, design):
        source, repo = make_trained(**DESIGNS[design])
        model, _ = make_trained("other", seed=8, **DESIGNS[design])
        expected = predict(source, inputs)
        assert not torch.allclose(predict(model, inputs), expected, atol=1e-3)
        assert load_instruction_adapter(model, repo) is model
        torch.testing.assert_close(predict(model, inputs), expected, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize(
        "setting",
        [
            {"adapter_dim": 16},
            {"adapter_scale": 2.0},
            {"decoder_c_adapter_skip": False},
            {"mask_padding_in_adapters": False},
            {"always_encode_geometry": True},
            {"clamp_presence_logits": False},
            {"adapter_heads": 2},
            DESIGNS["selective"],
        ],
    )
    def test_other_settings_are_refused(self, make_trained, setting):
        _, repo = make_trained()
        model, _ = make_trained("other", **(DESIGNS["cascade"] | setting))
        name, value = next(iter(setting.items()))
        with pytest.raises(AdapterMismatchError, match=f"{name} is .* there and {value!r} here"):
            load_instruction_adapter(model, repo)

    def test_dropout_may_differ(self, make_trained, inputs):
        source, repo = make_trained()
        model, _ = make_trained("other", seed=8, adapter_dropout=0.5, **DESIGNS["cascade"])
        load_instruction_adapter(model, repo)
        torch.testing.assert_close(predict(model, inputs), predict(source, inputs), atol=1e-6, rtol=1e-6)

    def test_a_stock_model_gets_a_named_adapter(self, make_trained, tiny_stock_repos, inputs):
        source, repo = make_trained()
        stock = Sam3Model.from_pretrained(tiny_stock_repos["sam3"])
        load_instruction_adapter(stock, repo, adapter_name="mine")
        assert stock.active_adapters() == ["mine"] and not any(p.requires_grad for n, p in stock.named_parameters())
        torch.testing.assert_close(predict(stock, inputs), predict(source, inputs), atol=1e-6, rtol=1e-6)
        with pytest.raises(ValueError, match="already has an adapter named 'mine'"):
            load_instruction_adapter(stock, repo, adapter_name="mine")
        stock.delete_adapter("mine")


def test_adapters_for_weights_on_the_disk_are_refused_and_not_dropped(make_trained, inputs):
    model, repo = make_trained()
    with pytest.raises(AdapterFileError, match="adapters are in memory, found .* on the disk"):
        load_instruction_adapter(model.to("meta"), repo)
