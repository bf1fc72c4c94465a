# SPDX-License-Identifier: Apache-2.0
"""An exported repository runs where this package cannot be imported, and gives the same results."""

import ast
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from sam3i import InstructionSegmentationPipeline, Sam3IProcessor
from sam3i.hub.publish.remote_code import add_remote_code, export_repository, remote_code_files

SCRIPT = """
import json, os, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "sam3i" or name.startswith("sam3i."):
            raise ImportError("this package is not installed here")
sys.meta_path.insert(0, Refuse())
import torch
torch.manual_seed(0)
from transformers import AutoModel, AutoProcessor, pipeline
folder, image = sys.argv[1:]
pipe = pipeline("instruction-segmentation", model=folder, trust_remote_code=True)
results = pipe(image, text=["dog", "the dog on the left"], level=["concept", "complex"], threshold=0.0)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert not any(name == "sam3i" for name in sys.modules)
print(json.dumps({
    "classes": [type(pipe).__name__, type(model).__name__, type(processor).__name__],
    "scores": [[item["score"] for item in one] for one in results],
    "levels": [[item["level"] for item in one] for one in results],
}))
"""


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def test_flat_files_import_only_each_other():
    files = remote_code_files()
    assert {"configuration_sam3i.py", "modeling_sam3i.py", "processing_sam3i.py", "pipeline_sam3i.py"} <= set(files)
    for name, text in files.items():
        compile(text, name, "exec")
        for line in text.splitlines():
            words = line.split()
            if words[:1] == ["from"] and words[1].startswith("."):
                assert f"{words[1][1:]}.py" in files, (name, line)
            assert words[:2] not in (["import", "sam3i"], ["from", "sam3i"]), name


def test_flat_files_need_no_peft():
    files = remote_code_files()
    assert not {"adapter_files_sam3i.py", "tuner_sam3i.py"} & set(files)
    modules = [ast.walk(ast.parse(text)) for text in files.values()]
    imported = [node for nodes in modules for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imported}
    assert "torch" in names and not {name for name in names if name.split(".")[0] == "peft"}


def test_pipeline_without_the_package(tiny_model, train_adapters, tiny_stock_repos, photo, tmp_path):
    from sam3i import Sam3IProcessor

    train_adapters(tiny_model).save_pretrained(tmp_path / "full")
    Sam3IProcessor.from_pretrained(tiny_stock_repos["sam3"]).save_pretrained(tmp_path / "full")
    exported = export_repository(tmp_path / "full", tmp_path / "exported")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(exported), str(photo)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["classes"] == [
        "InstructionSegmentationPipeline",
        "Sam3IForInstructionSegmentation",
        "Sam3IProcessor",
    ]
    here = pipeline("instruction-segmentation", model=str(tmp_path / "full"))(
        str(photo), text=["dog", "the dog on the left"], level=["concept", "complex"], threshold=0.0
    )
    assert found["levels"] == [[item["level"] for item in one] for one in here]
    for expected, scores in zip(here, found["scores"], strict=True):
        np.testing.assert_allclose(scores, [item["score"] for item in expected], atol=1e-5)


def test_the_installed_package_runs_an_exported_repository(tiny_model, tiny_stock_repos, photo, tmp_path):
    Sam3IProcessor.from_pretrained(tiny_stock_repos["sam3"]).save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    add_remote_code(tmp_path)
    pipe = pipeline("instruction-segmentation", model=str(tmp_path))
    assert type(pipe) is InstructionSegmentationPipeline
    assert pipe(str(photo), text="dog", threshold=0.0)


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        add_remote_code(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="new or empty folder"):
        export_repository(tmp_path, tmp_path)
