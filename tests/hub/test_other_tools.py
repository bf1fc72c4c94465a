# SPDX-License-Identifier: Apache-2.0
"""SAM3-I inside Label Studio's ML backend, autodistill, an agent and an Inference Endpoint: the real packages."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam3i.processing.pipeline.loading import load_pipeline
from sam3i.processing.shapes.world import ShapesWorld

SHAPES_TINY = str(Path(__file__).resolve().parents[2] / "examples" / "shapes_tiny")
CONFIG = """
<View><Image name="photo" value="$picture"/>
<PolygonLabels name="found" toName="photo"><Label value="star"/><Label value="a" hint="the moon"/>
</PolygonLabels></View>
"""


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(SHAPES_TINY)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(ShapesWorld(0, "test").scene(33).image).save(path)
    return path


def import_or_skip(module: str):
    try:
        return __import__(f"sam3i.hub.{module}", fromlist=["*"])
    except ImportError as error:
        pytest.skip(str(error))


class TestLabelStudio:
    @pytest.fixture
    def backend(self, monkeypatch):
        monkeypatch.setenv("SAM3I_MODEL", SHAPES_TINY)
        monkeypatch.setenv("SAM3I_THRESHOLD", "0.3")
        return import_or_skip("label_studio_backend")

    def test_the_server_draws_the_polygons_of_the_pipeline(self, backend, pipe, scene, monkeypatch):
        monkeypatch.setattr(backend.InstructionBackend, "get_local_path", lambda self, url, **kwargs: str(scene))
        client = backend.make_app().test_client()
        assert client.post("/setup", json={"project": "1.1", "schema": CONFIG}).status_code == 200
        tasks = [{"id": 1, "data": {"picture": "/data/upload/scene.png"}}]
        answer = client.post("/predict", json={"tasks": tasks, "label_config": CONFIG, "project": "1.1"})
        assert answer.status_code == 200, answer.data
        (prediction,) = json.loads(answer.data)["results"]
        star, moon = pipe(str(scene), text=["star", "the moon"], level="auto", threshold=0.3)
        drawn = [region["value"]["polygonlabels"][0] for region in prediction["result"]]
        assert drawn.count("star") >= len(star) and drawn.count("a") >= len(moon) and len(star) + len(moon)
        assert {(region["from_name"], region["to_name"]) for region in prediction["result"]} == {("found", "photo")}
        assert len({region["id"] for region in prediction["result"]}) == len(drawn)
        expected = [region["value"]["points"] for region in star.to_label_studio("x")["predictions"][0]["result"]]
        found = [region["value"]["points"] for region in prediction["result"] if "star" in region["id"]]
        assert found == expected

    def test_other_projects_are_refused(self, backend, monkeypatch):
        model = backend.InstructionBackend(label_config='<View><Text name="t" value="$t"/></View>')
        with pytest.raises(ValueError, match="PolygonLabels"):
            model.predict([])
        monkeypatch.delenv("SAM3I_MODEL")
        with pytest.raises(ValueError, match="SAM3I_MODEL"):
            backend.make_app()


class TestAutodistill:
    @pytest.fixture
    def labeler(self):
        module = import_or_skip("autodistill_model")
        from autodistill.detection import CaptionOntology

        ontology = CaptionOntology({"star": "stars", "the moon": "moons", "triangle above the ring": "none"})
        return module.Sam3IBaseModel(ontology, SHAPES_TINY, threshold=0.3)

    def test_detections_are_those_of_the_pipeline(self, labeler, pipe, scene):
        rows = pipe(str(scene), text=labeler.ontology.prompts(), level="auto", threshold=0.3)
        expected = [number for number, row in enumerate(rows) for _ in row]
        blue_first = np.asarray(Image.open(scene).convert("RGB"))[..., ::-1]
        for image in (str(scene), Image.open(scene), blue_first):
            found = labeler.predict(image)
            assert found.class_id.tolist() == expected and found.mask.shape[1:] == blue_first.shape[:2]
            assert set(found.data["class_name"]) <= set(labeler.ontology.classes())

    def test_a_folder_is_labeled(self, labeler, scene, tmp_path):
        dataset = labeler.label(str(scene.parent), extension=".png", output_folder=str(tmp_path / "labeled"))
        assert len(dataset.annotations[str(scene)]) > 0
        assert list((tmp_path / "labeled").rglob("scene.txt"))


class TestAgent:
    def test_it_finds_a_described_tool_and_calls_it(self, scene):
        for name in ("gradio", "mcp"):
            pytest.importorskip(name, reason='agents need mcp: pip install "gradio[mcp]"')
        import anyio
        from mcp import ClientSession
        from mcp.client.streamable_http import streamablehttp_client

        from sam3i.hub.demo.model import DemoModel
        from sam3i.hub.demo.page import DemoPage

        model = DemoModel.load(SHAPES_TINY, "cpu")
        page = DemoPage(model, for_agents=True)
        _, address, _ = page.launch("127.0.0.1", prevent_thread_lock=True)
        asked = {"image": f"data:image/png;base64,{base64.b64encode(scene.read_bytes()).decode()}"}
        asked |= {"instructions": "moon\nthe star", "level": "auto", "threshold": 0.3, "mask_threshold": 0.5}

        async def call():
            async with streamablehttp_client(f"{address}gradio_api/mcp/") as (read, write, _):
                async with ClientSession(read, write) as session:
                    await session.initialize()
                    return (await session.list_tools()).tools, await session.call_tool("segment", asked)

        try:
            tools, answer = anyio.run(call)
        finally:
            page.blocks.close(verbose=False)
        (tool,) = tools
        described = tool.inputSchema["properties"]
        assert tool.name == "segment" and "Segment what instructions denote" in tool.description
        assert set(described) == set(asked) and all(each.get("description") for each in described.values())
        expected = model.pipe(Image.open(scene), text=["moon", "the star"], threshold=0.3)
        assert not answer.isError, answer.content
        (rows,) = [json.loads(part.text) for part in answer.content if part.type == "text"]
        assert [len(row) for row in rows] == [len(row) for row in expected] and sum(map(len, rows)) > 0


class TestInferenceEndpoint:
    @pytest.fixture(scope="class")
    def handler(self, tmp_path_factory):
        """As an endpoint makes it: the handler's file alone, beside an exported repository."""
        import importlib.util

        from sam3i.hub.publish.remote_code import export_repository

        folder = export_repository(SHAPES_TINY, tmp_path_factory.mktemp("endpoint") / "repository")
        assert "transformers>=" in (folder / "requirements.txt").read_text()
        spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.EndpointHandler(str(folder))

    def test_masks_come_back_as_pictures(self, handler, pipe, scene):
        data = {
            "inputs": base64.b64encode(scene.read_bytes()).decode(),
            "parameters": {"text": ["star", "the moon"], "threshold": 0.3},
        }
        found = json.loads(json.dumps(handler(data)))
        expected = pipe(str(scene), text=["star", "the moon"], threshold=0.3)
        assert [len(row) for row in found] == [len(row) for row in expected]
        for row, wanted in zip(found, expected, strict=True):
            for instance, other in zip(row, wanted, strict=True):
                mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(instance["mask"]))))
                assert (mask == np.asarray(other["mask"])).mean() > 0.999 and instance["box"] == other["box"]

    def test_bad_requests_are_told(self, handler, scene):
        with pytest.raises(ValueError, match="addresses are not fetched"):
            handler({"inputs": "http://127.0.0.1/secret.png"})
        with pytest.raises(ValueError, match="found NoneType"):
            handler({})
        with pytest.raises(ValueError, match="found treshold"):
            handler({"inputs": scene.read_bytes(), "parameters": {"text": "star", "treshold": 1}})
