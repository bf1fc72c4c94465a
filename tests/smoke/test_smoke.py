# SPDX-License-Identifier: Apache-2.0
"""What is promised for every supported version of Transformers, PEFT and huggingface_hub, in under a minute.

Load, forward, pipeline, save, PEFT, LoRA, three stages of training, remote code. `.ci/run` runs it in an environment
for the oldest, a middle and the newest version.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import sam3i
from sam3i import (
    InstructionAdapterConfig,
    Sam3IForInstructionSegmentation,
    Sam3IProcessor,
    convert_official_checkpoint,
    load_instruction_adapter,
    save_adapter,
)
from sam3i.compat import OVERRIDDEN

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))
import training_fixtures  # noqa: E402

TEXTS = ["red square", "the red square on the left", "the red thing"]
LEVELS = ["concept", "simple", "complex"]
LOW_RANK = {"adapter_design": "selective", "adapter_rank": 2, "selector_dim": 8, "selector_heads": 2, "router_dim": 8}
REMOTE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sam3i":
            raise ImportError("not installed here")
sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModel, AutoProcessor, pipeline
pipe = pipeline("instruction-segmentation", model=sys.argv[1], trust_remote_code=True)
print(len(pipe(sys.argv[2], text="the red square on the left", level="simple", threshold=0.0)))
"""


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def stock_repo(tmp_path_factory):
    """A tiny stock SAM3 with its processor."""
    folder = tmp_path_factory.mktemp("repositories") / "sam3"
    ours = training_fixtures.tiny_config()
    config = {name: value for name, value in ours.to_dict().items() if name not in ours.settings()}
    config["model_type"] = "sam3"
    torch.manual_seed(0)
    transformers.Sam3Model(transformers.Sam3Config.from_dict(config)).save_pretrained(folder)
    processor = training_fixtures.tiny_processor()
    transformers.Sam3Processor(processor.image_processor, processor.tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(stock_repo):
    """On that stock, with adapters that do something."""
    model = Sam3IForInstructionSegmentation.from_pretrained(stock_repo, **LOW_RANK)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.adapter_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="module")
def inputs(stock_repo, photo):
    processor = Sam3IProcessor.from_pretrained(stock_repo)
    return processor(images=Image.open(photo), text=TEXTS, instruction_levels=LEVELS, return_tensors="pt")


@torch.no_grad()
def logits(model, inputs) -> torch.Tensor:
    return model(**inputs).pred_logits


def test_every_name_that_is_overridden_exists():
    for name in OVERRIDDEN:
        owner, method = name.split(".")
        assert hasattr(getattr(transformers, owner), method), name


def test_concepts_equal_stock(stock_repo, model, inputs):
    stock = transformers.Sam3Model(transformers.Sam3Config.from_pretrained(stock_repo)).eval()
    stock.load_state_dict({name: model.state_dict()[name] for name in stock.state_dict()}, assign=True)
    of_stock = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    of_stock |= {name: of_stock[name][:1] for name in ("input_ids", "attention_mask")}
    ours = {**of_stock, "instruction_levels": torch.zeros(1, dtype=torch.long)}
    with torch.no_grad():
        expected, found = stock(**of_stock), model(**ours)
    for name in ("pred_masks", "pred_boxes", "pred_logits", "presence_logits", "semantic_seg"):
        assert torch.equal(expected[name], found[name]), name


def test_whole_models_save_and_load_through_the_auto_classes(stock_repo, model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    Sam3IProcessor.from_pretrained(stock_repo).save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(again) is Sam3IForInstructionSegmentation
    assert type(transformers.AutoProcessor.from_pretrained(tmp_path)) is Sam3IProcessor
    torch.testing.assert_close(logits(again, inputs), logits(model, inputs))


def test_the_pipeline_runs_whole_models_adapters_and_stock(stock_repo, model, photo, tmp_path):
    Sam3IProcessor.from_pretrained(stock_repo).save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "whole")
    save_adapter(model, tmp_path / "adapters")
    found = []
    for name in ("whole", "adapters"):
        pipe = transformers.pipeline("instruction-segmentation", model=str(tmp_path / name))
        found.append(pipe(str(photo), text=TEXTS[1], level="simple", threshold=0.0))
    assert [item["score"] for item in found[0]] == pytest.approx([item["score"] for item in found[1]], abs=1e-5)
    stock = transformers.pipeline("instruction-segmentation", model=str(stock_repo))
    assert stock(str(photo), text="red square", threshold=0.0)
    stock.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.py"))


def test_adapters_are_the_same_natively_and_through_peft(stock_repo, model, inputs, tmp_path):
    from peft import PeftModel, get_peft_model

    save_adapter(model, tmp_path / "adapters")
    expected = logits(model, inputs)
    native = Sam3IForInstructionSegmentation.from_pretrained(tmp_path / "adapters")
    torch.testing.assert_close(logits(native, inputs), expected)
    for load in (
        lambda stock: PeftModel.from_pretrained(stock, tmp_path / "adapters", adapter_name="instruction"),
        lambda stock: load_instruction_adapter(stock, tmp_path / "adapters"),
    ):
        tuned = load(transformers.Sam3Model.from_pretrained(stock_repo)).eval()
        torch.testing.assert_close(logits(tuned, inputs), expected, atol=1e-5, rtol=1e-5)
    stock = transformers.Sam3Model.from_pretrained(stock_repo)
    fresh = get_peft_model(stock, InstructionAdapterConfig(**LOW_RANK), adapter_name="instruction")
    fresh.save_pretrained(tmp_path / "peft")
    again = load_instruction_adapter(
        Sam3IForInstructionSegmentation.from_pretrained(stock_repo, **LOW_RANK), tmp_path / "peft" / "instruction"
    )
    torch.testing.assert_close(logits(fresh.eval(), inputs), logits(again, inputs), atol=1e-5, rtol=1e-5)


def test_transformers_own_adapter_methods_or_their_refusal(stock_repo, model, inputs, tmp_path):
    save_adapter(model, tmp_path)
    stock = transformers.Sam3Model.from_pretrained(stock_repo)
    stock.load_adapter(str(tmp_path), adapter_name="instruction")
    torch.testing.assert_close(logits(stock.eval(), inputs), logits(model, inputs), atol=1e-5, rtol=1e-5)
    stock.disable_adapters()
    concept = {**inputs, "instruction_levels": torch.zeros(3, dtype=torch.long)}
    torch.testing.assert_close(logits(stock, inputs), logits(model, concept), atol=1e-5, rtol=1e-5)


def test_lora_on_top_saves_reloads_and_merges_equal(stock_repo, inputs, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    tuned = get_peft_model(
        Sam3IForInstructionSegmentation.from_pretrained(stock_repo, **LOW_RANK),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    ).eval()
    expected = logits(tuned, inputs)
    tuned.save_pretrained(tmp_path)
    base = Sam3IForInstructionSegmentation.from_pretrained(stock_repo, **LOW_RANK)
    again = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(logits(again, inputs), expected)
    torch.testing.assert_close(logits(again.merge_and_unload(), inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("design", ["cascade", "selective"])
def test_three_stages_train_and_load(design, tmp_path):
    model = training_fixtures.tiny_model(adapter_design=design)
    before = training_fixtures.weights(model)
    trainer = training_fixtures.tiny_trainer(tmp_path, model, max_steps=2)
    trainer.train()
    trainer.save_model()
    after = model.state_dict()
    adapters = set(model.adapter_parameters())
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved and moved <= adapters
    base = training_fixtures.tiny_model(adapter_design=design)
    load_instruction_adapter(base, tmp_path)
    training_fixtures.assert_equal({n: after[n] for n in adapters}, {n: base.state_dict()[n] for n in adapters})


@pytest.mark.slow  # `.ci/versions` runs it; tests/hub/test_export.py shows the same with the newest version
def test_exported_code_runs_without_the_package(stock_repo, model, photo, tmp_path):
    from sam3i.hub.publish.remote_code import add_remote_code

    model.save_pretrained(tmp_path)
    Sam3IProcessor.from_pretrained(stock_repo).save_pretrained(tmp_path)
    add_remote_code(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REMOTE, str(tmp_path), str(photo)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 0


def test_public_names_import():
    for name in sam3i.__all__:
        assert getattr(sam3i, name) is not None
    assert callable(convert_official_checkpoint)
