# SPDX-License-Identifier: Apache-2.0
"""Repositories that are broken or of another kind: each is refused with its reason, and nothing is loaded in part."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sam3i import Sam3IForInstructionSegmentation, convert_official_checkpoint
from sam3i.modeling_sam3i.pretrained import CheckpointMismatchError, DamagedCheckpointError


def change_tensors(change):
    def apply(folder):
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def change_config(**values):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return apply


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def without(part):
    return change_tensors(lambda tensors: {name: value for name, value in tensors.items() if part not in name})


BROKEN = {
    "a stock tensor is missing": (without("text_projection.weight"), CheckpointMismatchError, "missing"),
    "a part of the adapters is missing": (without("c_adapter.up_proj"), CheckpointMismatchError, "12 missing"),
    "a mask embedder is missing": (
        without("sam3i_adapter.simple.layers"),
        CheckpointMismatchError,
        "6 miss",
    ),
    "a tensor too many": (
        change_tensors(lambda tensors: tensors | {"decoder.extra": torch.zeros(2)}),
        CheckpointMismatchError,
        "1 unexpected .decoder.extra.",
    ),
    "a tensor of another shape": (
        change_tensors(lambda tensors: tensors | {"text_projection.bias": torch.zeros(7)}),
        RuntimeError,
        "size mismatch|mismatched",
    ),
    "names of the authors": (
        change_tensors(lambda tensors: {f"detector.{name}": value for name, value in tensors.items()}),
        CheckpointMismatchError,
        "sam3i convert",
    ),
    "truncated weights": (truncate, DamagedCheckpointError, "damaged or cut off .* Fetch them again"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), OSError, "no file named|model.safetensors"),
    "another model family": (
        change_config(model_type="clip"),
        ValueError,
        "or 'sam3_lite_text', found 'clip'",
    ),
    "SAM 2": (change_config(model_type="sam2"), ValueError, "found 'sam2'. That model is pointed at"),
    "the tracker of SAM 3": (
        change_config(model_type="sam3_tracker_video"),
        ValueError,
        "tracker alone",
    ),
    "adapters that are not numbers": (
        change_tensors(lambda tensors: {n: t * float("nan") if "sam3i_" in n else t for n, t in tensors.items()}),
        DamagedCheckpointError,
        "Expected finite adapter weights .* found NaN or infinity",
    ),
    "weights as integers": (
        change_tensors(lambda tensors: {n: t.to(torch.int8) if "c_adapter" in n else t for n, t in tensors.items()}),
        DamagedCheckpointError,
        "Expected weights in fp32, bf16 or fp16 .* is I8",
    ),
    "no model type": (change_config(model_type=None), ValueError, "found no config.json with one"),
    "an unknown adapter design": (
        change_config(adapter_design="bigger"),
        ValueError,
        "Expected a configuration of SAM3 in .*broken, found values .*adapter_design.*bigger",
    ),
    "a number that is a text": (change_config(router_dim="many"), ValueError, "router_dim.*expected int"),
    "a part that is no part": (change_config(vision_config=5), ValueError, "configuration of SAM3 in .*broken"),
    "a configuration nested for ever": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        ValueError,
        "RecursionError",
    ),
    "a configuration that is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        ValueError,
        "configuration of SAM3 in .*broken",
    ),
    "a bottleneck of zero": (change_config(adapter_dim=0), ValueError, "`adapter_dim` must be at least 1, got 0"),
    "a bottleneck of another size": (
        change_config(adapter_dim=4),
        RuntimeError,
        "size mismatch|mismatch",
    ),
    "heads that do not divide the width": (change_config(adapter_heads=5), ValueError, "must divide"),
    "a dropout of one": (change_config(adapter_dropout=1.0), ValueError, "got 1.0"),
    "instructions of two tokens": (change_config(max_instruction_length=2), ValueError, "at least 3"),
    "an unknown loss setting": (change_config(loss_config={"wheight": 1}), ValueError, "wheight"),
    "a configuration that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), OSError, "JSON"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), ValueError, "no config.json"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tmp_path_factory.mktemp("repository") / "full"


@pytest.mark.parametrize("case", BROKEN)
def test_broken_repository(tiny_model, repository, tmp_path, case):
    if not repository.exists():
        tiny_model.save_pretrained(repository)
    breaking, error, message = BROKEN[case]
    folder = tmp_path / "broken"
    shutil.copytree(repository, folder)
    breaking(folder)
    with pytest.raises(error, match=message):
        Sam3IForInstructionSegmentation.from_pretrained(folder)


def test_a_stock_repository_misses_only_what_stock_has(tiny_stock_repos, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_stock_repos["sam3"], folder)
    without("text_projection.bias")(folder)
    with pytest.raises(CheckpointMismatchError, match=r"model: 1 missing \(text_projection.bias\)\. Check"):
        Sam3IForInstructionSegmentation.from_pretrained(folder)


def test_adapters_under_other_names_are_missing(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    change_tensors(lambda tensors: {n.replace("sam3i_adapter", "old.sam3i_adapter"): t for n, t in tensors.items()})(
        tmp_path
    )
    number = len(tiny_model.adapter_parameters())
    with pytest.raises(CheckpointMismatchError, match=f"{number} missing .* and {number} unexpected"):
        Sam3IForInstructionSegmentation.from_pretrained(tmp_path)


class Executed:
    """A pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["torch.save", "pickle", "text"])
def test_checkpoint_with_code_is_never_run(tmp_path, kind):
    checkpoint, trace = tmp_path / "checkpoint.pt", tmp_path / "executed"
    if kind == "torch.save":
        torch.save({"model": Executed(trace)}, checkpoint)
    elif kind == "pickle":
        checkpoint.write_bytes(pickle.dumps(Executed(trace)))
    else:
        checkpoint.write_text("not a checkpoint")
    with pytest.raises(ValueError):
        convert_official_checkpoint(checkpoint, tmp_path / "converted")
    assert not trace.exists() and not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    "setting", [{"adapter_dim": -1}, {"selector_heads": 5}, {"adapter_heads": 0}, {"max_instruction_length": 1}]
)
def test_settings_given_while_loading_are_checked(tiny_stock_repos, setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"`{name}` must .*got {value}"):
        Sam3IForInstructionSegmentation.from_pretrained(tiny_stock_repos["sam3"], **setting)


def test_pickled_weights_are_not_loaded(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        Sam3IForInstructionSegmentation.from_pretrained(tmp_path)


def test_pt_weights_are_not_loaded(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weight": Executed(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights|pickle|safetensors"):
        Sam3IForInstructionSegmentation.from_pretrained(tmp_path)
    assert not (tmp_path / "executed").exists()
