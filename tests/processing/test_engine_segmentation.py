# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sam3i.cli import app
from sam3i.processing.data_engine.engine import DataEngine
from sam3i.processing.data_engine.run import EngineConfig, RunConfigError, RunDirectory
from sam3i.processing.data_engine.scene.segmentation import PipelineGrounder, ProposalSource
from sam3i.processing.data_engine.scene.sources import ShapesSource


def instance(score, x, y, width=30, height=30):
    mask = np.zeros((100, 200), np.uint8)
    mask[y : y + height, x : x + width] = 255
    return {"score": score, "mask": Image.fromarray(mask)}


class FixedPipeline:
    """Gives every text the instances it was made with, as far as they pass the threshold."""

    def __init__(self, found):
        self.found = found
        self.calls = []

    def __call__(self, image, text, level, threshold):
        self.calls.append((text, level, threshold))
        return [[item for item in self.found.get(name, []) if item["score"] > threshold] for name in text]


@pytest.fixture
def pictures(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (200, 100), "white").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_proposals_and_doubts(pictures):
    found = {
        "cup": [instance(0.9, 10, 10), instance(0.8, 100, 10)],
        "dog": [instance(0.9, 10, 60), instance(0.3, 60, 60)],  # perhaps a second dog
        "mug": [instance(0.95, 101, 10)],  # what is also a cup
    }
    source = ProposalSource(pictures, ["Cup", "dog", "mug", "cat"], FixedPipeline(found))
    first, second = source.scenes()
    assert (first.file_name, second.file_name, first.order, second.order) == ("a.jpg", "b.png", 0, 1)
    assert sorted(item.noun for item in first.instances) == ["cup", "dog", "mug"]
    assert first.partial_nouns == {"dog", "cup", "mug"} and first.absent_nouns == {"cat"}
    assert [scene.file_name for scene in source.scenes(lambda name: name == "b.png")] == ["b.png"]
    with pytest.raises(ValueError, match="found 2 pictures and 0 concepts"):
        ProposalSource(pictures, [], FixedPipeline(found))


def test_pictures_alone_become_a_run(pictures, tmp_path):
    found = {"cup": [instance(0.9, 10, 30), instance(0.8, 85, 30), instance(0.8, 160, 30)]}
    source = ProposalSource(pictures, ["cup", "cat"], FixedPipeline(found))
    run = RunDirectory(tmp_path / "run", EngineConfig(source="pictures", levels=("simple",)))
    summary = DataEngine(source, run).build(progress=False)
    assert summary.pictures == 2 and summary.accepted > 4
    texts = {pair["text"] for record in run.records() for target in record["targets"] for pair in target["pairs"]}
    assert any("left" in text or "right" in text for text in texts)
    record = next(run.records())
    assert record["image"] == str((pictures / "a.jpg").resolve()) and not (run.path / "images").exists()
    assert DataEngine(source, run).build(progress=False).pictures == 0


def test_grounding_disputes_what_it_does_not_find(tmp_path):
    """A grounder that finds nothing agrees with sentences without a target, and disputes all others."""

    class Nothing(FixedPipeline):
        def __call__(self, image, text, level, threshold):
            self.calls.append(level)
            return [[] for _ in text]

    pipeline = Nothing({})
    run = RunDirectory(tmp_path, EngineConfig(source="shapes", grounder="nothing"))
    engine = DataEngine(ShapesSource(5), run, grounder=PipelineGrounder(pipeline, "nothing"))
    engine.build(progress=False)
    outcomes = {"none": set(), "some": set()}
    for record in run.records():
        for target in record["targets"]:
            for pair in target["pairs"]:
                checks = [item["check"] for item in pair["checks"]]
                if "grounding" in checks:
                    outcomes["none" if target["kind"] == "none" else "some"].add(pair["outcome"])
    assert outcomes == {"none": {"accepted"}, "some": {"review"}}
    assert {level for levels in pipeline.calls for level in levels} == {"concept", "simple", "complex"}
    with pytest.raises(RunConfigError, match="grounder"):
        DataEngine(ShapesSource(5), run)


def test_grounding_with_a_model(tiny_stock_repos, tmp_path):
    """The command runs a stock SAM3, random as it is, over pictures and over instructions."""
    repository = str(tiny_stock_repos["sam3"])
    arguments = ["build", str(tmp_path / "run"), "--shapes", "2", "--targets", "2", "--grounder", repository]
    found = CliRunner().invoke(app, ["data", *arguments, "--device", "cpu"])
    assert found.exit_code == 0, found.output
    records = list(RunDirectory(tmp_path / "run").records())
    checks = [c for r in records for t in r["targets"] for p in t["pairs"] for c in p["checks"]]
    assert any(check["check"] == "grounding" and 0 <= check["evidence"]["iou"] <= 1 for check in checks)
    found = CliRunner().invoke(app, ["data", "build", str(tmp_path / "x"), "--images", str(tmp_path)])
    assert found.exit_code == 1 and "--concept" in found.output
