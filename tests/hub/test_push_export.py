# SPDX-License-Identifier: Apache-2.0
"""An export of the data engine goes to the Hub and is read from there."""

import json

import pytest
from typer.testing import CliRunner

from sam3i.cli import app
from sam3i.processing.data_engine.engine import DataEngine
from sam3i.processing.data_engine.export import ExportError, accepted_rows, export_run, push_export
from sam3i.processing.data_engine.run import EngineConfig, RunDirectory
from sam3i.processing.data_engine.scene.sources import ShapesSource
from sam3i.processing.datasets.loading import load_instruction_dataset

NAME = "org/instructions"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = RunDirectory(tmp_path_factory.mktemp("run"), EngineConfig(source="shapes"))
    DataEngine(ShapesSource(2), run).build(progress=False)
    return run


@pytest.mark.parametrize("private", [False, True])
def test_a_parquet_export_is_read_back_from_the_hub(run, hub_here, tmp_path, private):
    flags = ["--to", "parquet", "--push-to", NAME, *(["--private"] if private else [])]
    found = CliRunner().invoke(app, ["data", "export", str(run.path), str(tmp_path / "data"), *flags])
    assert found.exit_code == 0, found.output
    assert f"{hub_here.endpoint}/datasets/{NAME}" in found.output
    assert hub_here.repositories["dataset", NAME].private is private
    files = hub_here.files(NAME, kind="dataset")
    assert {"README.md", "data.parquet"} <= set(files)
    assert "# instructions" in files["README.md"].decode() and "sam3i" in files["README.md"].decode()
    rows, back = list(accepted_rows(run)), load_instruction_dataset(NAME)
    assert [row["complex"] for row in back] == [row["complex"] for row in rows]
    assert back[0]["image"].size == (112, 112) and back[0]["masks"] == rows[0]["masks"]


def test_pictures_go_along_with_json_lines(run, hub_here, tmp_path):
    path = export_run(run, tmp_path / "data", "jsonl")
    (tmp_path / "data" / "private_notes.txt").write_text("not part of the export")
    push_export(path, NAME)
    push_export(path, NAME)  # once more: nothing to change, and no error
    files = hub_here.files(NAME, kind="dataset")
    named = {json.loads(line)["file_name"] for line in path.read_text().splitlines()}
    assert named <= set(files) and "private_notes.txt" not in files
    path.write_text(path.read_text().replace("images/", "elsewhere/"))
    with pytest.raises(ExportError, match="--to parquet"):
        push_export(path, NAME)


def test_refusals_are_explained(run, hub_here, tmp_path):
    path = export_run(run, tmp_path / "data", "parquet")
    with pytest.raises(ExportError, match="did not take not a name"):
        push_export(path, "not a name")
    with pytest.raises(ExportError, match="did not take stranger/data"):
        push_export(path, "stranger/data")
    assert ("dataset", "stranger/data") not in hub_here.repositories
