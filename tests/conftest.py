# SPDX-License-Identifier: Apache-2.0
"""Settings shared by every test: no network, an empty cache, few threads, ground truth where it is present."""

import atexit
import gc
import json
import os
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors; more threads only wait for each other, here and below

if "PYTEST_XDIST_WORKER" not in os.environ:  # no test meets what an earlier run has kept; workers inherit it
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="sam3i-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from made_once import made_once

torch.set_num_threads(1)

REFERENCE = Path(__file__).resolve().parents[1] / ".." / "shared" / "reference"


def pytest_collection_finish(session):
    """What imports have made is no garbage: to look it over again and again took a third of a training test's time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip what Transformers itself refuses: its `add_adapter` family may ask for a PEFT that is not released yet."""
    try:
        return (yield)
    except ValueError as error:
        if "The version of PEFT you are using is not compatible" in str(error):
            pytest.skip(f"this release of Transformers refuses this release of PEFT: {error}")
        raise


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder of numeric ground truth; tests that need it are skipped where it is absent."""
    if not REFERENCE.is_dir():
        pytest.skip("the numeric ground truth (../shared/reference) is not present beside this checkout")
    return REFERENCE.resolve()


@pytest.fixture
def run_common_tests(monkeypatch):
    """A function that runs Transformers' own tests, as a `unittest.TestCase`, and returns their outcomes by name.

    Each outcome is ("passed" | "failed" | "skipped", reason of a failure).
    """
    suite = Path(__file__).resolve().parents[1] / ".transformers-tests"
    if not suite.is_dir():
        pytest.skip("Transformers' own tests are not fetched: run tests/fetch_transformers_tests.py")
    monkeypatch.syspath_prepend(str(suite))
    monkeypatch.syspath_prepend(str(suite / "utils"))

    def run(case, only=None) -> dict[str, tuple[str, str]]:
        results = {}
        case.setUpClass()
        for name in unittest.defaultTestLoader.getTestCaseNames(case):
            if only is None or name in only:
                result = unittest.TestResult()
                case(name).run(result)
                bad = result.failures or result.errors
                results[name] = ("failed", bad[0][1]) if bad else ("skipped" if result.skipped else "passed", "")
        case.tearDownClass()
        return results

    return run


TINY_WORDS = "a the dog cat red brown left right on of and something that sits animal to be let out man".split()


def _tiny_sam3_config():
    """A stock SAM3 configuration of about 0.3 M parameters: 56 px images, 16 px patches of 8."""
    from transformers import CLIPTextConfig, Sam3Config

    width = 32
    detr = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 48, "num_layers": 2}
    return Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
                "window_size": 2,
                "global_attn_indexes": [1],
                "pretrain_image_size": 28,
            },
            "fpn_hidden_size": width,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config=CLIPTextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            hidden_act="gelu",
            bos_token_id=62,
            eos_token_id=63,
            pad_token_id=63,
        ),
        geometry_encoder_config=detr,
        detr_encoder_config=detr,
        detr_decoder_config=detr | {"num_queries": 6},
        mask_decoder_config={"hidden_size": width, "num_attention_heads": 4, "num_upsampling_stages": 2},
    )


@pytest.fixture
def tiny_sam3_config():
    """A stock `Sam3Config` small enough for a test."""
    return _tiny_sam3_config()


@pytest.fixture(scope="session")
def load_once():
    """A function like `model_class.from_pretrained(folder, **settings)` that reads a folder of stock weights once."""

    def load(model_class, folder, **settings):
        key = (model_class, str(folder), json.dumps(settings, sort_keys=True))
        return made_once(key, lambda: model_class.from_pretrained(folder, **settings))

    return load


@pytest.fixture
def tiny_config():
    """A `Sam3IConfig` on the tiny stock configuration."""
    from sam3i.modeling_sam3i.configuration_sam3i import Sam3IConfig

    stock = _tiny_sam3_config().to_dict() | {"model_type": "sam3i"}
    return Sam3IConfig.from_dict(stock | {"adapter_design": "cascade", "adapter_dim": 8, "adapter_heads": 4})


@pytest.fixture
def tiny_model(tiny_config):
    """A `Sam3IForInstructionSegmentation` with random stock weights and fresh adapters, in evaluation mode."""
    from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

    def make():
        torch.manual_seed(0)
        return Sam3IForInstructionSegmentation(tiny_config).eval()

    return made_once(("tiny_model", tiny_config.to_json_string()), make)


@pytest.fixture
def train_adapters():
    """A function that gives every adapter weight of a model random values, as if it had been trained."""

    def randomise(model, scale: float = 0.3, seed: int = 7):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".sam3i_adapter." in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        return model

    return randomise


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A CLIP tokenizer of a few whole words."""
    from transformers import CLIPTokenizer

    vocab = {"<|startoftext|>": 62, "<|endoftext|>": 63}
    vocab |= {f"{word}</w>": index for index, word in enumerate(TINY_WORDS, start=1)}
    vocab |= {letter: len(TINY_WORDS) + 1 + index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    merges = []
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=32)


@pytest.fixture(scope="session")
def tiny_stock_repos(tmp_path_factory, tiny_tokenizer):
    """Folders of one tiny stock SAM3 in both layouts: {"sam3": path, "sam3_video": path}."""
    from transformers import Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor, Sam3VideoConfig, Sam3VideoModel

    root = tmp_path_factory.mktemp("stock")
    torch.manual_seed(1)
    model = Sam3Model(_tiny_sam3_config())
    processor = Sam3Processor(Sam3ImageProcessor(size={"height": 56, "width": 56}), tiny_tokenizer)
    model.save_pretrained(root / "sam3")
    processor.save_pretrained(root / "sam3")
    video_config = Sam3VideoConfig(detector_config=Sam3Config(**_tiny_sam3_config().to_dict()))
    tracker = video_config.tracker_config
    del tracker
    torch.manual_seed(1)
    video = Sam3VideoModel(video_config)
    video.detector_model.load_state_dict(model.state_dict())
    video.save_pretrained(root / "sam3_video")
    processor.save_pretrained(root / "sam3_video")
    return {"sam3": root / "sam3", "sam3_video": root / "sam3_video"}
