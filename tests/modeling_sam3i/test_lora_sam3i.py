# SPDX-License-Identifier: Apache-2.0
"""LoRA through PEFT, on the native model and beside the instruction adapters on a stock SAM3."""

from functools import partial

import compared
import pytest
import torch
from compared import assert_equal
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Sam3Model

from sam3i.modeling_sam3i.adapter_io import save_adapter
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.peft.loading import load_instruction_adapter
from sam3i.modeling_sam3i.peft.tuner import InstructionAdapterConfig

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "fc1", "fc2"]
DESIGNS = {
    "cascade": {"adapter_dim": 8},
    "selective": {"adapter_design": "selective", "selector_dim": 8, "selector_heads": 2, "selector_queries": 4},
}
MIXED = torch.tensor([0, 1, 2])
assert_close = partial(compared.assert_close, tolerance=1e-5)


@pytest.fixture(params=DESIGNS)
def native(request, tiny_stock_repos, load_once, train_adapters):
    model = load_once(Sam3IForInstructionSegmentation, tiny_stock_repos["sam3"], **DESIGNS[request.param])
    return train_adapters(model)


@pytest.fixture
def stock(tiny_stock_repos, load_once):
    return load_once(Sam3Model, tiny_stock_repos["sam3"])


def lora(targets=TARGETS, **kwargs) -> LoraConfig:
    """LoRA that changes the outputs from the start."""
    return LoraConfig(target_modules=targets, r=2, lora_alpha=2, init_lora_weights=False, **kwargs)


@torch.no_grad()
def run(model, inputs, levels=None):
    return model(**inputs) if levels is None else model(**inputs, instruction_levels=levels)


def differ(found, expected) -> bool:
    difference = (found.pred_masks - expected.pred_masks).abs().max()
    return bool(difference > 1e-3 * expected.pred_masks.abs().max())  # random masks may all be small


class TestOnTheNativeModel:
    def test_it_reaches_every_part_and_no_adapter(self, native):
        tuned = get_peft_model(native, lora())
        targets = tuned.targeted_module_names
        assert not any("sam3i_adapter" in name for name in targets)
        for part in (
            "vision_encoder",
            "text_encoder",
            "geometry_encoder",
            "detr_encoder",
            "detr_decoder",
            "mask_decoder",
        ):
            assert any(name.startswith(part) for name in targets), part
        for part in ("text_encoder.text_model.encoder.layers.0", "detr_encoder.layers.0", "detr_decoder.layers.0"):
            inside = {name.rpartition(".")[2] for name in targets if name.startswith(part)}
            assert {"q_proj", "k_proj", "v_proj", "fc1", "fc2"} < inside
        trainable = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
        assert trainable and all(".lora_" in name for name in trainable)

    def test_it_acts_at_every_level_and_can_be_disabled(self, native, inputs):
        concepts, mixed = run(native, inputs), run(native, inputs, MIXED)
        tuned = get_peft_model(native, lora()).eval()
        for levels, before in ((None, concepts), (MIXED, mixed)):
            assert differ(run(tuned, inputs, levels), before)
            with tuned.disable_adapter():
                assert_equal(run(tuned, inputs, levels), before)
        assert_equal(run(tuned.unload(), inputs, MIXED), mixed)

    def test_it_saves_lora_alone_and_loads_equal(self, native, tiny_stock_repos, inputs, tmp_path):
        native.save_pretrained(tmp_path / "base")
        tuned = get_peft_model(native, lora()).eval()
        expected = run(tuned, inputs, MIXED)
        tuned.save_pretrained(tmp_path / "lora")
        names = load_file(tmp_path / "lora" / "adapter_model.safetensors").keys()
        assert len(names) == 2 * len(tuned.targeted_module_names)
        assert all(".lora_A." in name or ".lora_B." in name for name in names)
        base = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "base")
        assert_close(run(PeftModel.from_pretrained(base, tmp_path / "lora"), inputs, MIXED), expected, tolerance=1e-6)

    def test_transformers_loads_it(self, native, inputs, tmp_path):
        native.save_pretrained(tmp_path / "base")
        tuned = get_peft_model(native, lora()).eval()
        expected = run(tuned, inputs, MIXED)
        tuned.save_pretrained(tmp_path / "lora")
        base = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "base")
        report = base.load_adapter(str(tmp_path / "lora"), adapter_name="domain")
        assert not report.missing_keys and not report.unexpected_keys
        assert_close(run(base, inputs, MIXED), expected, tolerance=1e-6)
        base.disable_adapters()
        assert differ(run(base, inputs, MIXED), expected)

    def test_it_merges_equal(self, native, inputs):
        tuned = get_peft_model(native, lora()).eval()
        mixed, concepts = run(tuned, inputs, MIXED), run(tuned, inputs)
        merged = tuned.merge_and_unload()
        assert type(merged) is Sam3IForInstructionSegmentation
        assert not any("lora" in name for name, _ in merged.named_parameters())
        assert_close(run(merged, inputs, MIXED), mixed)
        assert_close(run(merged, inputs), concepts)

    def test_it_trains_through_the_loss(self, native, inputs):
        tuned = get_peft_model(native, LoraConfig(target_modules=TARGETS, r=2)).train()
        labels = [{"masks": torch.ones(1, 16, 16).bool(), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}] * 3
        frozen = {name: p.detach().clone() for name, p in tuned.named_parameters() if not p.requires_grad}
        trainable = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
        moved = set()
        for _ in range(2):
            tuned(**inputs, instruction_levels=MIXED, labels=labels).loss.backward()
            moved |= {
                name for name, parameter in trainable.items() if parameter.grad is not None and parameter.grad.any()
            }
            optimizer.step()
            optimizer.zero_grad()
        # Without boxes in the input the geometry encoder does not run.
        assert {name for name in trainable if "geometry_encoder" not in name} == moved
        assert all(torch.equal(tuned.get_parameter(name), tensor) for name, tensor in frozen.items())

    def test_the_adapters_are_saved_from_under_it(self, native, inputs, tmp_path):
        before = run(native, inputs, MIXED)
        tuned = get_peft_model(native, lora())
        save_adapter(tuned.get_base_model(), tmp_path)
        assert_close(
            run(Sam3IForInstructionSegmentation.from_pretrained(tmp_path), inputs, MIXED), before, tolerance=1e-6
        )

    def test_a_target_that_matches_nothing_is_an_error(self, native):
        with pytest.raises(ValueError, match=r"Target modules .*query_projection.* not found"):
            get_peft_model(native, lora(["query_projection"]))


class TestBesideInstructionAdaptersOnStock:
    """Two methods in one model: through Transformers (`load_adapter`, `add_adapter`, `set_adapter`)."""

    @pytest.fixture
    def repo(self, native, tmp_path):
        save_adapter(native, tmp_path / "adapter")
        return tmp_path / "adapter"

    @pytest.mark.parametrize("first", ["instruction", "domain"])
    def test_named_adapters_act_together_or_alone(self, stock, native, repo, inputs, first):
        plain, instructed = run(stock, inputs), run(native, inputs, MIXED)
        torch.manual_seed(0)
        if first == "domain":
            stock.add_adapter(lora(), adapter_name="domain")
            stock.load_adapter(str(repo), adapter_name="instruction")
        else:
            stock.load_adapter(str(repo), adapter_name="instruction")
            stock.add_adapter(lora(), adapter_name="domain")
        stock.eval()
        lora_names = [name for name, _ in stock.named_parameters() if ".lora_" in name]
        assert not any("sam3i_adapter" in name for name in lora_names)
        for part in ("text_encoder", "detr_encoder", "detr_decoder"):
            assert any(name.startswith(part) for name in lora_names), part

        stock.set_adapter("instruction")
        assert_close(run(stock, inputs, MIXED), instructed, tolerance=1e-6)
        stock.set_adapter("domain")
        domain = run(stock, inputs, MIXED)
        assert_equal(domain, run(stock, inputs))  # no instruction adapter: levels have no effect
        assert differ(domain, plain)
        stock.set_adapter(["domain", "instruction"])
        both = run(stock, inputs, MIXED)
        assert differ(both, instructed) and differ(both, domain)
        assert_equal(run(stock, inputs), domain)  # concepts follow the domain alone

        twin = get_peft_model(native, lora(), adapter_name="domain").eval()
        weights = {f"base_model.model.{name}": stock.get_parameter(name) for name in lora_names}
        twin.load_state_dict(weights, strict=False)
        assert_close(both, run(twin, inputs, MIXED))

        stock.delete_adapter("domain")
        assert_close(run(stock, inputs, MIXED), instructed, tolerance=1e-6)
        stock.delete_adapter("instruction")
        assert_equal(run(stock, inputs, MIXED), plain)

    @pytest.mark.parametrize("first", ["instruction", "domain"])
    def test_each_is_saved_alone(self, stock, repo, tmp_path, first):
        if first == "domain":
            stock.add_adapter(lora(), adapter_name="domain")
            load_instruction_adapter(stock, repo)
        else:
            load_instruction_adapter(stock, repo)
            stock.add_adapter(lora(), adapter_name="domain")
        original = load_file(repo / "adapter_model.safetensors")
        for name in ("domain", "instruction"):
            stock.set_adapter(name)
            stock.save_pretrained(tmp_path / name)
            saved = load_file(tmp_path / name / "adapter_model.safetensors")
            if name == "domain":
                assert saved and all(".lora_" in key for key in saved)
            else:
                assert saved.keys() == original.keys()
                assert all(torch.equal(saved[key], original[key]) for key in saved)

    def test_adding_lora_trains_lora_alone(self, stock, repo):
        load_instruction_adapter(stock, repo)
        stock.add_adapter(lora(), adapter_name="domain")
        trainable = [name for name, parameter in stock.named_parameters() if parameter.requires_grad]
        assert trainable and all(".lora_" in name for name in trainable)

    def test_all_linear_leaves_the_adapters_alone(self, stock, repo):
        load_instruction_adapter(stock, repo)
        stock.add_adapter(lora("all-linear"), adapter_name="domain")
        assert not any("sam3i_adapter" in name for name, _ in stock.named_parameters() if ".lora_" in name)

    def test_one_peft_model_holds_one_method(self, stock, repo):
        tuned = PeftModel.from_pretrained(stock, repo, adapter_name="instruction")
        with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
            tuned.add_adapter("domain", lora())

    def test_peft_mixed_models_do_not_know_the_method(self, stock):
        with pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
            get_peft_model(stock, InstructionAdapterConfig(adapter_dim=8), mixed=True)


@pytest.mark.parametrize("kind", [LoraConfig, IA3Config, LoHaConfig])
def test_other_methods_know_their_targets_in_a_native_model(tiny_model, inputs, kind):
    tuned = get_peft_model(tiny_model, kind(task_type="FEATURE_EXTRACTION"))
    trainable = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trainable and any("v_proj" in name for name in trainable)
    assert tuned(**inputs).pred_logits.isfinite().all()  # the task's own arguments (`inputs_embeds=None`) are no error
