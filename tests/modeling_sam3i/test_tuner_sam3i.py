# SPDX-License-Identifier: Apache-2.0
"""SAM3-I as a PEFT method: the same adapters on stock SAM3 compute what the native model computes."""

import copy
import gc
import json
import pickle
import weakref

import pytest
import torch
from compared import OUTPUTS, assert_close, assert_equal
from huggingface_hub.errors import StrictDataclassError
from peft import AutoPeftModel, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Sam3Model, Sam3VideoModel

from sam3i.modeling_sam3i.adapter_io import AdapterMismatchError, save_adapter, to_file_name
from sam3i.modeling_sam3i.configuration_sam3i import AdapterSettings, Sam3IConfig
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.peft.loading import load_instruction_adapter
from sam3i.modeling_sam3i.peft.tuner import (
    AdapterNotMergeableError,
    InstructionAdapterConfig,
    InstructionAdapterLayer,
    Sam3IPeftType,
)

MIXED = torch.tensor([0, 1, 2])
SMALL = {"adapter_design": "cascade", "adapter_dim": 8}
CASCADE = SMALL
AS_CONVERTED = CASCADE | {
    "adapter_scale": 0.5,
    "decoder_c_adapter_skip": False,
    "mask_padding_in_adapters": False,
    "always_encode_geometry": True,
    "clamp_presence_logits": False,
}
LONG = CASCADE | {"max_instruction_length": 48}
SELECTIVE = {"adapter_design": "selective", "selector_dim": 8, "selector_heads": 2, "selector_queries": 4}
DESIGNS = {"cascade": CASCADE, "as_converted": AS_CONVERTED, "long": LONG, "selective": SELECTIVE}


def make_inputs(rows: int = 3, tokens: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([tokens, tokens - 3, tokens - 5])[:rows]
    return {
        "pixel_values": torch.randn(rows, 3, 56, 56, generator=generator),
        "input_ids": torch.randint(1, 60, (rows, tokens), generator=generator),
        "attention_mask": (torch.arange(tokens) < lengths[:, None]).long(),
    }


@pytest.fixture
def inputs():
    return make_inputs()


@pytest.fixture
def boxes():
    return {
        "input_boxes": torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.2, 0.3, 0.2, 0.2]]]).repeat(3, 1, 1),
        "input_boxes_labels": torch.tensor([[1, 0], [1, -10], [0, -10]]),
    }


@pytest.fixture
def stock(tiny_stock_repos, load_once):
    return load_once(Sam3Model, tiny_stock_repos["sam3"])


@pytest.fixture
def make_trained(tiny_stock_repos, load_once, train_adapters, tmp_path):
    """A function that gives a native model with random adapters and the repository of those adapters."""

    def make(name: str = "adapter", seed: int = 7, **settings):
        settings = settings or SMALL
        native = load_once(Sam3IForInstructionSegmentation, tiny_stock_repos["sam3"], **settings)
        train_adapters(native, seed=seed)
        save_adapter(native, tmp_path / name)
        return native, tmp_path / name

    return make


@torch.no_grad()
def run(model, inputs, levels=None, **kwargs):
    if levels is not None:
        kwargs["instruction_levels"] = levels
    return model(**inputs, **kwargs)


def differ(found, expected) -> bool:
    return all(not torch.allclose(found[name], expected[name], atol=1e-4) for name in ("pred_masks", "pred_logits"))


def on_stock_by_peft_model(stock, repo):
    return PeftModel.from_pretrained(stock, repo, adapter_name="instruction")


def on_stock_by_load_adapter(stock, repo):
    report = stock.load_adapter(str(repo), adapter_name="instruction")
    assert not report.missing_keys and not report.unexpected_keys
    return stock


def on_stock_by_our_function(stock, repo):
    return load_instruction_adapter(stock, repo)


LOADERS = [on_stock_by_peft_model, on_stock_by_load_adapter, on_stock_by_our_function]


class TestConfig:
    def test_settings_and_defaults_are_those_of_the_native_model(self, tiny_sam3_config):
        native = Sam3IConfig.from_dict(tiny_sam3_config.to_dict() | {"model_type": "sam3i"})
        assert InstructionAdapterConfig.from_model_config(native) == InstructionAdapterConfig()

    def test_every_setting_is_explained(self):
        for name in InstructionAdapterConfig.setting_names():
            assert f"        {name} (`" in AdapterSettings.__doc__

    @pytest.mark.parametrize(
        "field, value",
        [
            ("adapter_design", "prefix"),
            ("adapter_dim", 0),
            ("adapter_dim", 8.5),
            ("adapter_dim", True),
            ("adapter_heads", -1),
            ("adapter_dropout", 1.0),
            ("adapter_dropout", "none"),
            ("adapter_scale", None),
            ("decoder_c_adapter_skip", "yes"),
            ("adapter_rank", -1),
            ("selector_heads", 5),
            ("selector_queries", -2),
            ("clamp_presence_logits", 1),
            ("max_instruction_length", 2),
        ],
    )
    def test_a_wrong_value_is_named(self, field, value):
        with pytest.raises((ValueError, StrictDataclassError), match=f"(?s){field}.*{value!s}"):
            InstructionAdapterConfig(**{field: value})

    def test_saves_and_loads(self, tmp_path):
        config = InstructionAdapterConfig(**AS_CONVERTED, adapter_dropout=0)
        config.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SAM3I"
        assert PeftConfig.from_pretrained(tmp_path) == config
        assert InstructionAdapterConfig.from_pretrained(tmp_path) == config

    @pytest.mark.parametrize(
        "settings, message",
        [
            (SMALL | {"adapter_heads": 5}, "divide.*32.*5"),
            (LONG | {"mask_padding_in_adapters": False}, "48 with False"),
        ],
    )
    def test_what_does_not_fit_the_model_is_refused_and_leaves_it_stock(self, stock, inputs, settings, message):
        before = run(stock, inputs)
        with pytest.raises(ValueError, match=message):
            get_peft_model(stock, InstructionAdapterConfig(**settings))
        assert type(stock.mask_decoder).__name__ == "Sam3MaskDecoder"
        assert_equal(run(stock, inputs), before)

    def test_peft_knows_the_method(self):
        assert PEFT_TYPE_TO_CONFIG_MAPPING["SAM3I"] is InstructionAdapterConfig
        assert Sam3IPeftType.SAM3I.value == "SAM3I"


class TestEqualsTheNativeModel:
    @pytest.mark.parametrize("load", LOADERS)
    @pytest.mark.parametrize("design", DESIGNS)
    def test_at_mixed_levels(self, stock, make_trained, inputs, design, load):
        native, repo = make_trained(**DESIGNS[design])
        tuned = load(stock, repo)
        found, expected = run(tuned, inputs, MIXED), run(native, inputs, MIXED)
        assert_close(found, expected)
        assert differ(expected, run(native, inputs))
        assert_close(run(tuned, inputs), run(native, inputs))

    @pytest.mark.parametrize("design", DESIGNS)
    def test_with_boxes(self, stock, make_trained, inputs, boxes, design):
        native, repo = make_trained(**DESIGNS[design])
        tuned = on_stock_by_peft_model(stock, repo)
        given = inputs | boxes
        assert_close(run(tuned, given, MIXED), run(native, given, MIXED))
        assert differ(run(tuned, given, MIXED), run(tuned, inputs, MIXED))

    @pytest.mark.parametrize("design", DESIGNS)
    def test_without_attention_mask(self, stock, make_trained, inputs, design):
        native, repo = make_trained(**DESIGNS[design])
        del inputs["attention_mask"]
        assert_close(run(on_stock_by_peft_model(stock, repo), inputs, MIXED), run(native, inputs, MIXED))

    def test_with_long_instructions(self, stock, make_trained):
        native, repo = make_trained(**LONG)
        with torch.no_grad():
            table = native.text_encoder.text_model.embeddings.long_position_embedding.weight
            table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(2)))
        save_adapter(native, repo)
        tuned = on_stock_by_peft_model(stock, repo)
        long = make_inputs(tokens=40)
        assert_close(run(tuned, long, MIXED), run(native, long, MIXED))
        with pytest.raises(ValueError, match="at most 48 tokens, found 60"):
            run(tuned, make_inputs(tokens=60), MIXED)

    def test_row_by_row(self, stock, make_trained, inputs):
        _, repo = make_trained()
        tuned = on_stock_by_peft_model(stock, repo)
        together = run(tuned, inputs, MIXED)
        for row in range(3):
            alone = run(tuned, {name: tensor[row : row + 1] for name, tensor in inputs.items()}, MIXED[row : row + 1])
            assert_close(alone, {name: together[name][row : row + 1] for name in OUTPUTS}, tolerance=1e-5)

    @pytest.mark.parametrize("design", ["cascade", "selective", "as_converted"])
    @pytest.mark.parametrize("image_ids", [torch.tensor([1, 0, 1]), None])
    def test_several_instructions_per_image(self, stock, make_trained, inputs, image_ids, design):
        native, repo = make_trained(**DESIGNS[design])
        images = 1 if image_ids is None else 2
        given = inputs | {"pixel_values": inputs["pixel_values"][:images]}
        extra = {} if image_ids is None else {"image_ids": image_ids}
        tuned = on_stock_by_peft_model(stock, repo)
        assert_close(run(tuned, given, MIXED, **extra), run(native, given, MIXED, **extra), tolerance=1e-5)

    def test_one_instruction_for_several_images(self, stock, make_trained, inputs):
        native, repo = make_trained()
        given = inputs | {name: inputs[name][:1] for name in ("input_ids", "attention_mask")}
        tuned = on_stock_by_peft_model(stock, repo)
        assert_close(run(tuned, given, ["complex"]), run(native, given, ["complex"]))

    @pytest.mark.parametrize(("design", "as_tensor"), [("cascade", False), ("cascade", True), ("selective", False)])
    def test_with_features_encoded_before(self, stock, make_trained, inputs, design, as_tensor):
        native, repo = make_trained(**DESIGNS[design])
        tuned = on_stock_by_load_adapter(stock, repo)
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            encoded = tuned.get_text_features(**text, instruction_levels=MIXED)
            vision = tuned.get_vision_features(inputs["pixel_values"])
        given = {
            "vision_embeds": vision,
            "text_embeds": encoded.pooler_output if as_tensor else encoded,
            "attention_mask": inputs["attention_mask"],
        }
        assert_close(run(tuned, given, MIXED), run(native, inputs, MIXED))

    def test_with_positional_arguments(self, stock, make_trained, inputs):
        native, repo = make_trained()
        tuned = on_stock_by_load_adapter(stock, repo)
        with torch.no_grad():
            found = tuned(
                inputs["pixel_values"], None, inputs["input_ids"], inputs["attention_mask"], instruction_levels=MIXED
            )
        assert_close(found, run(native, inputs, MIXED))

    @pytest.mark.parametrize("design", ["cascade", "selective"])
    def test_recorded_states_are_the_adapted_ones(self, stock, make_trained, inputs, design):
        native, repo = make_trained(**DESIGNS[design])
        tuned = on_stock_by_peft_model(stock, repo)
        found = run(tuned, inputs, MIXED, output_hidden_states=True)
        expected = run(native, inputs, MIXED, output_hidden_states=True)
        for name in ("encoder_hidden_states", "decoder_hidden_states", "vision_hidden_states"):
            assert len(found[name]) == len(expected[name]) > 0
            for ours, theirs in zip(found[name], expected[name], strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("design", ["cascade", "selective"])
    def test_with_either_attention(self, stock, make_trained, inputs, attention, design):
        native, repo = make_trained(**DESIGNS[design])
        for model in (native, stock):
            model.set_attn_implementation(attention)
        assert_close(run(on_stock_by_peft_model(stock, repo), inputs, MIXED), run(native, inputs, MIXED))

    @pytest.mark.parametrize("levels", [torch.tensor([0, 1]), torch.tensor([0, 1, 3]), ["simple", "hard", "concept"]])
    def test_wrong_levels_are_refused(self, stock, make_trained, inputs, levels):
        _, repo = make_trained()
        with pytest.raises(ValueError, match="level"):
            run(on_stock_by_peft_model(stock, repo), inputs, levels)

    def test_missing_inputs_are_reported_as_by_stock(self, stock, make_trained, inputs):
        _, repo = make_trained()
        tuned = on_stock_by_peft_model(stock, repo)
        with pytest.raises(ValueError, match="exactly one of pixel_values or vision_embeds"):
            tuned(input_ids=inputs["input_ids"], instruction_levels=MIXED)
        with pytest.raises(ValueError, match="exactly one of input_ids or text_embeds"):
            tuned(pixel_values=inputs["pixel_values"], instruction_levels=MIXED)


class TestStockIsKept:
    @pytest.mark.parametrize("design", ["cascade", "long", "selective"])
    def test_concepts_are_bit_equal(self, stock, make_trained, inputs, boxes, design):
        _, repo = make_trained(**DESIGNS[design])
        given = inputs | boxes
        before, before_boxes = run(stock, inputs), run(stock, given)
        tuned = on_stock_by_peft_model(stock, repo)
        assert_equal(run(tuned, inputs), before)
        assert_equal(run(tuned, inputs, torch.zeros(3).long()), before)
        assert_equal(run(tuned, given, ["concept"] * 3), before_boxes)

    @pytest.mark.parametrize("design", DESIGNS)
    def test_disabled_adapters_are_stock(self, stock, make_trained, inputs, design):
        _, repo = make_trained(**DESIGNS[design])
        before = run(stock, inputs)
        tuned = on_stock_by_peft_model(stock, repo)
        adapted = run(tuned, inputs, MIXED)
        with tuned.disable_adapter():
            assert_equal(run(tuned, inputs, MIXED), before)
        assert_equal(run(tuned, inputs, MIXED), adapted)

    def test_disabling_through_transformers(self, stock, make_trained, inputs):
        _, repo = make_trained(**AS_CONVERTED)
        before = run(stock, inputs)
        on_stock_by_load_adapter(stock, repo)
        adapted = run(stock, inputs, MIXED)
        stock.disable_adapters()
        assert_equal(run(stock, inputs, MIXED), before)
        stock.enable_adapters()
        assert_equal(run(stock, inputs, MIXED), adapted)

    @pytest.mark.parametrize("design", DESIGNS)
    def test_unloading_restores_the_stock_model(self, stock, make_trained, inputs, design):
        _, repo = make_trained(**DESIGNS[design])
        before, classes = run(stock, inputs), [type(module) for module in stock.modules()]
        names = list(stock.state_dict())
        restored = on_stock_by_peft_model(stock, repo).unload()
        assert restored is stock and not hasattr(stock, "peft_config")
        assert [type(module) for module in stock.modules()] == classes
        assert list(stock.state_dict()) == names
        assert_equal(run(stock, inputs), before)

    def test_after_unloading_another_adapter_fits(self, stock, make_trained, inputs):
        _, first = make_trained("first")
        native, second = make_trained("second", seed=8, **SELECTIVE)
        tuned = on_stock_by_peft_model(on_stock_by_peft_model(stock, first).unload(), second)
        assert_close(run(tuned, inputs, MIXED), run(native, inputs, MIXED))

    def test_the_stock_repository_is_saved_as_stock(self, stock, make_trained, inputs, tmp_path):
        _, repo = make_trained()
        restored = on_stock_by_peft_model(stock, repo).unload()
        restored.save_pretrained(tmp_path / "whole")
        assert json.loads((tmp_path / "whole" / "config.json").read_text())["architectures"] == ["Sam3Model"]
        assert not any("sam3i" in name for name in load_file(tmp_path / "whole" / "model.safetensors"))


def in_peft(name: str, adapter_name: str = "default") -> str:
    """The name in a `PeftModel` of a parameter of the native model."""
    return to_file_name(name).replace(".sam3i_adapter.", f".sam3i_adapter.{adapter_name}.")


class TestFreshAdapters:
    @pytest.mark.parametrize("design", ["cascade", "long", "selective"])
    def test_they_are_the_identity(self, stock, inputs, design):
        before = run(stock, inputs)
        tuned = get_peft_model(stock, InstructionAdapterConfig(**DESIGNS[design])).eval()
        assert_close(run(tuned, inputs, MIXED), before, tolerance=1e-5)

    @pytest.mark.parametrize("design", DESIGNS)
    def test_only_they_train_and_every_weight_gets_a_gradient(self, stock, design):
        settings = DESIGNS[design]
        tuned = get_peft_model(stock, InstructionAdapterConfig(**settings), adapter_name="instruction")
        trainable = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
        assert trainable and all(".sam3i_adapter.instruction." in name for name in trainable)
        assert {name for name, _ in tuned.named_parameters() if "sam3i_adapter" in name} == set(trainable)
        frozen = {name: p.detach().clone() for name, p in tuned.named_parameters() if name not in trainable}
        optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
        inputs = make_inputs(tokens=40 if design == "long" else 8)
        tuned.train()
        reached = set()
        for _ in range(3):
            outputs = tuned(**inputs, instruction_levels=MIXED)
            sum(outputs[name].float().square().mean() for name in OUTPUTS).backward()
            given = {name: p.grad for name, p in trainable.items() if p.grad is not None}
            reached |= {name for name, gradient in given.items() if gradient.abs().sum() > 0}
            optimizer.step()
            optimizer.zero_grad()
        router = {name for name in trainable if ".text_encoder.level_adapters." in name}  # levels were told
        assert len(router) == 6 and reached == set(trainable) - router
        for name, parameter in tuned.named_parameters():
            if name in frozen:
                assert torch.equal(parameter, frozen[name]), name

    @pytest.mark.parametrize("design", ["cascade", "selective"])
    def test_gradients_are_those_of_the_native_model(self, stock, make_trained, inputs, design):
        native, repo = make_trained(**DESIGNS[design])
        tuned = PeftModel.from_pretrained(stock, repo, is_trainable=True)
        native.freeze_stock()
        for model in (native, tuned):
            model.eval()
            first = model(**inputs, instruction_levels=MIXED)
            second = model(**inputs, instruction_levels=MIXED.flip(0))  # two passes before one backward
            (first.pred_masks.square().mean() + second.pred_logits.square().mean()).backward()
        found = {
            name.removeprefix("base_model.model.").replace(
                ".level_adapters.sam3i_adapter.default.", ".sam3i_adapter."
            ): p
            for name, p in tuned.named_parameters()
            if p.requires_grad
        }
        expected = native.adapter_parameters()
        assert sum(parameter.grad is not None for parameter in expected.values()) > 0.9 * len(expected)
        for name, parameter in expected.items():
            if parameter.grad is None:
                assert found[name].grad is None
            else:
                torch.testing.assert_close(found[name].grad, parameter.grad, atol=1e-6, rtol=1e-4)

    def test_a_forward_pass_without_backward_leaves_nothing_behind(self, stock, inputs):
        tuned = get_peft_model(stock, InstructionAdapterConfig(**SELECTIVE)).train()
        seen = []
        stock.dot_product_scoring.register_forward_pre_hook(
            lambda module, args, given: seen.append(weakref.ref(given["level_routing"])), with_kwargs=True
        )
        outputs = tuned(**inputs, instruction_levels=MIXED)
        assert seen
        del outputs
        gc.collect()
        assert seen[0]() is None


class TestSeveralAdapters:
    def test_named_adapters_are_switched_and_deleted(self, stock, make_trained, inputs):
        native_a, repo_a = make_trained("a", seed=1)
        native_b, repo_b = make_trained("b", seed=2, **SELECTIVE)
        native_c, repo_c = make_trained("c", seed=3, **AS_CONVERTED)
        before = run(stock, inputs)
        tuned = PeftModel.from_pretrained(stock, repo_a, adapter_name="a")
        tuned.load_adapter(repo_b, adapter_name="b")
        tuned.load_adapter(repo_c, adapter_name="c")
        expected = {
            "a": run(native_a, inputs, MIXED),
            "b": run(native_b, inputs, MIXED),
            "c": run(native_c, inputs, MIXED),
        }
        assert_close(run(tuned, inputs, MIXED), expected["a"])
        for name in ("b", "c", "a"):
            tuned.set_adapter(name)
            assert tuned.active_adapter == name
            assert_close(run(tuned, inputs, MIXED), expected[name])
        assert differ(expected["a"], expected["b"]) and differ(expected["b"], expected["c"])
        tuned.delete_adapter("b")
        assert_close(run(tuned, inputs, MIXED), expected["a"])
        assert not any(".b." in name for name, _ in tuned.named_parameters())
        with pytest.warns(UserWarning, match="active"):
            tuned.delete_adapter("a")
        assert_close(run(tuned, inputs, MIXED), expected["c"])
        assert_equal(run(tuned.unload(), inputs), before)

    def test_through_transformers(self, stock, make_trained, inputs):
        native_a, repo_a = make_trained("a", seed=1)
        native_b, repo_b = make_trained("b", seed=2)
        before = run(stock, inputs)
        stock.load_adapter(str(repo_a), adapter_name="a")
        stock.load_adapter(str(repo_b), adapter_name="b")
        stock.set_adapter("a")
        assert stock.active_adapters() == ["a"]
        assert_close(run(stock, inputs, MIXED), run(native_a, inputs, MIXED))
        stock.set_adapter("b")
        assert_close(run(stock, inputs, MIXED), run(native_b, inputs, MIXED))
        with pytest.raises(ValueError, match="one active instruction adapter"):
            stock.set_adapter(["a", "b"])
        stock.delete_adapter("a")
        assert_close(run(stock, inputs, MIXED), run(native_b, inputs, MIXED))
        stock.delete_adapter("b")
        assert_equal(run(stock, inputs, MIXED), before)

    def test_a_second_trained_adapter_leaves_the_first_alone(self, stock, make_trained, inputs):
        native, repo = make_trained("a", seed=1)
        tuned = PeftModel.from_pretrained(stock, repo, adapter_name="a")
        tuned.add_adapter("b", InstructionAdapterConfig(**SMALL))
        tuned.set_adapter("b")
        trainable = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
        assert trainable and all(".sam3i_adapter.b." in name for name in trainable)
        tuned.set_adapter("a", inference_mode=True)
        assert_close(run(tuned.eval(), inputs, MIXED), run(native, inputs, MIXED))

    def test_each_is_saved_alone(self, stock, make_trained, inputs, tmp_path):
        native_a, repo_a = make_trained("a", seed=1)
        _, repo_b = make_trained("b", seed=2)
        tuned = PeftModel.from_pretrained(stock, repo_a, adapter_name="a")
        tuned.load_adapter(repo_b, adapter_name="b")
        tuned.save_pretrained(tmp_path / "saved")
        for name, repo in (("a", repo_a), ("b", repo_b)):
            saved, original = (
                load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "saved" / name, repo)
            )
            assert saved.keys() == original.keys()
            assert all(torch.equal(saved[key], original[key]) for key in saved)
        again = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "saved" / "a")
        assert_close(run(again, inputs, MIXED), run(native_a, inputs, MIXED))


class TestFiles:
    @pytest.mark.parametrize("design", DESIGNS)
    def test_peft_saves_what_the_native_model_loads(self, stock, tiny_stock_repos, inputs, tmp_path, design):
        tuned = get_peft_model(stock, InstructionAdapterConfig(**DESIGNS[design])).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if ".sam3i_adapter." in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        tuned.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config["peft_type"] == "SAM3I" and config["base_model_name_or_path"] == str(tiny_stock_repos["sam3"])
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        assert all(".level_adapters.sam3i_adapter." in name and "default" not in name for name in tensors)
        native = Sam3IForInstructionSegmentation.from_pretrained(tmp_path)
        assert len(tensors) == len(native.adapter_parameters())
        assert_close(run(native, inputs, MIXED), run(tuned, inputs, MIXED))

    def test_the_auto_classes_of_peft_and_transformers(self, make_trained, inputs, tiny_tokenizer):
        native, repo = make_trained()
        tiny_tokenizer.save_pretrained(repo)  # as a training leaves it
        expected = run(native, inputs, MIXED)
        for loader in (AutoPeftModel, AutoModel, Sam3Model):
            assert_close(run(loader.from_pretrained(repo), inputs, MIXED), expected)

    @pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
    def test_a_file_that_does_not_match_is_refused_and_leaves_the_model_stock(
        self, stock, make_trained, inputs, change
    ):
        _, repo = make_trained()
        before, classes = run(stock, inputs), [type(module) for module in stock.modules()]
        path = repo / "adapter_model.safetensors"
        tensors = load_file(path)
        name = next(key for key in tensors if "detr_decoder" in key)
        if change == "missing":
            del tensors[name]
        elif change == "unexpected":
            tensors[name + "_more"] = torch.zeros(1)
        else:
            tensors[name] = torch.zeros(3)
        save_file(tensors, path)
        for load in (on_stock_by_peft_model, on_stock_by_our_function):
            with pytest.raises(AdapterMismatchError, match=f"1 {'of another shape' if change == 'shape' else change}"):
                load(stock, repo)
            assert [type(module) for module in stock.modules()] == classes
            assert not hasattr(stock, "peft_config")
            assert_equal(run(stock, inputs), before)

    def test_a_second_adapter_that_does_not_match_leaves_the_first(self, stock, make_trained, inputs):
        native, good = make_trained("good")
        _, bad = make_trained("bad", seed=9)
        tensors = load_file(bad / "adapter_model.safetensors")
        tensors.popitem()
        save_file(tensors, bad / "adapter_model.safetensors")
        tuned = PeftModel.from_pretrained(stock, good, adapter_name="good")
        with pytest.raises(AdapterMismatchError, match="1 missing"):
            tuned.load_adapter(bad, adapter_name="bad")
        assert list(tuned.peft_config) == ["good"]
        assert_close(run(tuned, inputs, MIXED), run(native, inputs, MIXED))

    def test_transformers_reports_what_it_could_not_load(self, stock, make_trained, caplog):
        _, repo = make_trained()
        tensors = load_file(repo / "adapter_model.safetensors")
        tensors.popitem()
        save_file(tensors, repo / "adapter_model.safetensors")
        report = stock.load_adapter(str(repo), adapter_name="instruction")
        assert len(report.missing_keys) == 1


class TestWhere:
    def test_on_the_detector_of_a_video_model(self, tiny_stock_repos, make_trained, inputs):
        native, repo = make_trained()
        video = Sam3VideoModel.from_pretrained(tiny_stock_repos["sam3_video"])
        before = run(video.detector_model, inputs)
        tuned = PeftModel.from_pretrained(video.detector_model, repo)
        assert_close(run(video.detector_model, inputs, MIXED), run(native, inputs, MIXED))
        assert_equal(run(video.detector_model, inputs), before)
        tuned.unload()
        video.detector_model.load_adapter(str(repo), adapter_name="instruction")
        assert_close(run(video.detector_model, inputs, MIXED), run(native, inputs, MIXED))

    def test_on_a_whole_video_model_is_an_error(self, tiny_stock_repos, make_trained):
        _, repo = make_trained()
        video = Sam3VideoModel.from_pretrained(tiny_stock_repos["sam3_video"])
        with pytest.raises(TypeError, match="detector_model"):
            PeftModel.from_pretrained(video, repo)
        with pytest.raises(TypeError, match="detector_model"):
            get_peft_model(video, InstructionAdapterConfig(**SMALL))

    def test_auto_model_on_a_video_base_is_an_error(self, tiny_stock_repos, make_trained, inputs, tmp_path):
        native, repo = make_trained()
        save_adapter(native, repo, base_model_name_or_path=str(tiny_stock_repos["sam3_video"]))
        with pytest.raises(TypeError, match="Sam3IForInstructionSegmentation.from_pretrained"):
            AutoModel.from_pretrained(repo)
        again = Sam3IForInstructionSegmentation.from_pretrained(repo)
        assert_close(run(again, inputs, MIXED), run(native, inputs, MIXED))

    def test_on_the_native_model_is_an_error(self, tiny_model):
        with pytest.raises(TypeError, match="load_instruction_adapter"):
            get_peft_model(tiny_model, InstructionAdapterConfig(**SMALL))

    def test_on_another_model_is_an_error(self):
        with pytest.raises(TypeError, match="found Linear"):
            get_peft_model(torch.nn.Linear(2, 2), InstructionAdapterConfig(**SMALL))

    def test_merging_is_an_error(self, stock, make_trained, inputs):
        native, repo = make_trained()
        tuned = on_stock_by_peft_model(stock, repo)
        for merge in (tuned.merge_adapter, tuned.merge_and_unload):
            with pytest.raises(AdapterNotMergeableError, match="cannot be merged"):
                merge()
        assert_close(run(tuned, inputs, MIXED), run(native, inputs, MIXED))

    def test_peft_describes_it(self, stock, make_trained, capsys):
        _, repo = make_trained()
        tuned = PeftModel.from_pretrained(stock, repo, adapter_name="instruction", is_trainable=True)
        status = tuned.get_model_status()
        assert status.enabled is True and status.active_adapters == ["instruction"]
        assert status.requires_grad == {"instruction": True} and status.devices == {"instruction": ["cpu"]}
        layers = [module for module in tuned.modules() if isinstance(module, InstructionAdapterLayer)]
        assert status.num_adapter_layers == len(layers) == 8
        assert 0 < status.trainable_params < status.total_params


class TestPrecisionAndPlace:
    @pytest.mark.parametrize("design", DESIGNS)
    @pytest.mark.parametrize("autocast", [True, False])
    def test_half_precision_base(self, tiny_stock_repos, make_trained, inputs, autocast, design):
        native, repo = make_trained(**DESIGNS[design])
        stock = Sam3Model.from_pretrained(tiny_stock_repos["sam3"], dtype=torch.bfloat16)
        given = inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}
        before = run(stock, given)
        tuned = PeftModel.from_pretrained(stock, repo, autocast_adapter_dtype=autocast)
        dtypes = {p.dtype for name, p in tuned.named_parameters() if ".sam3i_adapter." in name}
        assert dtypes == {torch.float32 if autocast else torch.bfloat16}
        assert {p.dtype for name, p in tuned.named_parameters() if ".sam3i_adapter." not in name} == {torch.bfloat16}
        outputs = run(tuned, given, MIXED)
        assert outputs.pred_masks.dtype == torch.bfloat16
        # Boxes stay in [0, 1]; bf16 has 8 bits, and random adapters amplify its rounding.
        assert (outputs.pred_boxes.float() - run(native, inputs, MIXED).pred_boxes).abs().max() < 0.1
        if design != "as_converted":
            assert_equal(run(tuned, given, ["concept"] * 3), before)

    def test_under_autocast(self, stock, make_trained, inputs):
        native, repo = make_trained()
        tuned = on_stock_by_peft_model(stock, repo)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(run(tuned, inputs, MIXED), run(native, inputs, MIXED), tolerance=1e-6)

    @pytest.mark.parametrize("design", DESIGNS)
    def test_meta_initialisation(self, stock, make_trained, inputs, design):
        native, repo = make_trained(**DESIGNS[design])
        tuned = PeftModel.from_pretrained(stock, repo, low_cpu_mem_usage=True)
        assert not any(tensor.is_meta for tensor in tuned.state_dict().values())
        assert_close(run(tuned, inputs, MIXED), run(native, inputs, MIXED))
        second = tuned.load_adapter(repo, adapter_name="second", low_cpu_mem_usage=True)
        assert not second.missing_keys and not any(tensor.is_meta for tensor in tuned.state_dict().values())

    def test_moving_and_copying(self, stock, make_trained, inputs):
        native, repo = make_trained()
        tuned = on_stock_by_peft_model(stock, repo)
        twin = copy.deepcopy(tuned)
        expected = run(twin, inputs, MIXED)
        assert_close(expected, run(tuned, inputs, MIXED))  # memory of the copy may be aligned otherwise
        double = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
        tuned.to(torch.float64)
        assert {p.dtype for p in tuned.parameters()} == {torch.float64}
        assert_close(run(tuned, double, MIXED), run(native.to(torch.float64), double, MIXED))
        assert_equal(run(twin, inputs, MIXED), expected)
        twin.unload()
        assert run(tuned, double, MIXED).pred_logits.dtype == torch.float64

    @pytest.mark.parametrize("design", DESIGNS)
    def test_pickling(self, stock, make_trained, inputs, design):
        native, repo = make_trained(**DESIGNS[design])
        tuned = on_stock_by_peft_model(stock, repo)
        twin = pickle.loads(pickle.dumps(tuned))
        assert_close(run(twin, inputs, MIXED), run(native, inputs, MIXED))
        assert twin.peft_config["instruction"].settings() == tuned.peft_config["instruction"].settings()
        with twin.disable_adapter():
            assert_close(run(twin, inputs, MIXED), run(twin.unload(), inputs))

    @pytest.mark.parametrize("load", LOADERS[1:])  # PeftModel places it anew, which fails
    def test_on_a_stock_model_that_accelerate_placed(self, tiny_stock_repos, make_trained, inputs, load, tmp_path):
        native, repo = make_trained(**SELECTIVE)
        names = {name.partition(".")[0] for name in Sam3Model.from_pretrained(tiny_stock_repos["sam3"]).state_dict()}
        device_map = {name: "disk" if name == "vision_encoder" else "cpu" for name in names}
        placed = Sam3Model.from_pretrained(
            tiny_stock_repos["sam3"], device_map=device_map, offload_folder=tmp_path / "o"
        )
        before = run(placed, inputs)
        assert any(parameter.is_meta for parameter in placed.parameters())
        tuned = load(placed, repo).eval()
        adapters = [p for name, p in tuned.named_parameters() if ".sam3i_adapter." in name]
        assert adapters and not any(parameter.is_meta for parameter in adapters)
        assert_close(run(tuned, inputs, MIXED), run(native, inputs, MIXED))
        assert_equal(run(tuned, inputs, torch.zeros(3, dtype=torch.long)), before)

    @pytest.mark.parametrize("load", LOADERS[1:])
    def test_a_mask_embedder_on_the_disk_is_refused(self, tiny_stock_repos, make_trained, load, tmp_path):
        _, repo = make_trained(**SELECTIVE)
        names = {name.partition(".")[0] for name in Sam3Model.from_pretrained(tiny_stock_repos["sam3"]).state_dict()}
        device_map = {name: "disk" if name == "mask_decoder" else "cpu" for name in names}
        placed = Sam3Model.from_pretrained(
            tiny_stock_repos["sam3"], device_map=device_map, offload_folder=tmp_path / "o"
        )
        with pytest.raises(ValueError, match=r"in memory, found it on the disk .* Place `mask_decoder`"):
            load(placed, repo)

    def test_direct_injection(self, stock, inputs):
        before = run(stock, inputs)
        injected = inject_adapter_in_model(InstructionAdapterConfig(**SMALL), stock, "instruction").eval()
        assert injected is stock
        assert_close(run(stock, inputs, MIXED), before, tolerance=1e-5)


def test_what_peft_can_do_for_lora_alone_is_refused_in_a_sentence(stock, tmp_path):
    model = get_peft_model(stock, InstructionAdapterConfig(**SMALL), adapter_name="a")
    model.add_adapter("b", InstructionAdapterConfig(**SMALL))
    with pytest.raises(NotImplementedError, match="not linear in their weights"):
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only supports LORA"):
        hotswap_adapter(model, str(tmp_path / "b"), adapter_name="a")
