# SPDX-License-Identifier: Apache-2.0
"""The demo without its page: what a visitor's session holds, thresholds, files, and the folder for a Hub Space."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sam3i.hub.demo import html as demo_html
from sam3i.hub.demo.model import MOST_INSTRUCTIONS, DemoModel, read_instructions
from sam3i.hub.demo.segmentation import LOWEST_THRESHOLD, BoxExemplar, Segmentation, Shown
from sam3i.hub.demo.session import CANVAS_SIDE, MOST_BOXES, DemoSession, demo_examples, read_corners
from sam3i.processing.drawing.style import POSITIVE
from sam3i.processing.masks import decode_mask

SHAPES_TINY = Path(__file__).resolve().parents[2] / "examples" / "shapes_tiny"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>alert(1)</script>"


@pytest.fixture(scope="module")
def model() -> DemoModel:
    model = DemoModel.load(str(SHAPES_TINY), "cpu")
    model.pipe.model.float()  # saved in half precision, where last bits show
    return model


@pytest.fixture
def session() -> DemoSession:
    session = DemoSession()
    session.show(demo_examples()[0].image)
    return session


def passes(model: DemoModel, monkeypatch) -> list[str]:
    """A list that grows by a name whenever the model runs its vision encoder, or as a whole."""
    seen, whole, vision = [], model.pipe.model.segment, model.pipe.model.vision_encoder.forward
    monkeypatch.setattr(model.pipe.model, "segment", lambda **inputs: (seen.append("model"), whole(**inputs))[1])
    monkeypatch.setattr(
        model.pipe.model.vision_encoder, "forward", lambda *a, **k: (seen.append("vision"), vision(*a, **k))[1]
    )
    return seen


def same(one: list, other: list) -> bool:
    """Whether instances are equal up to last bits, which depend on what is computed together."""
    if [len(row) for row in one] != [len(row) for row in other]:
        return False
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
    return all(
        abs(a["score"] - b["score"]) < 2e-3
        and all(abs(a["box"][side] - b["box"][side]) <= 1 for side in a["box"])
        and a["level"] == b["level"]
        and (np.asarray(a["mask"]) == np.asarray(b["mask"])).mean() > 0.999
        for a, b in pairs
    )


@pytest.mark.parametrize("threshold", [LOWEST_THRESHOLD, 0.3, 0.6])
@pytest.mark.parametrize("mask_threshold", [0.2, 0.5])
@pytest.mark.parametrize("with_boxes", [False, True])
def test_instances_equal_those_of_the_pipeline(model, session, threshold, mask_threshold, with_boxes):
    texts = ["moon", "the star", "the objects that could move the tide"]
    boxes = {}
    if with_boxes:
        session.add_box((10, 10, 50, 60), True)
        session.add_box((60, 60, 90, 100), False)
        boxes = {"boxes": [[10, 10, 50, 60], [60, 60, 90, 100]], "box_labels": [1, 0]}
    answer = session.segment(model, "\n".join(texts), "auto")
    found = answer.instances(Shown(threshold, mask_threshold))
    expected = model.pipe(
        session.image, text=texts, level="auto", threshold=threshold, mask_threshold=mask_threshold, **boxes
    )
    assert sum(map(len, expected)) > 0
    assert same(found, expected)


def test_thresholds_do_not_run_the_model_and_a_picture_is_encoded_once(model, session, monkeypatch):
    session.image.putpixel((0, 0), (1, 2, 3))  # a picture that no other test encoded
    seen = passes(model, monkeypatch)
    answer = session.segment(model, "moon\nthe star\nheart", "auto")
    assert seen == ["vision", "model"] and answer.vision_seconds > 0
    counts = [sum(map(len, session.view(Shown(threshold, 0.5)).rows)) for threshold in (0.05, 0.3, 0.6, 1.0)]
    areas = [sum(line.area for line in session.view(Shown(0.3, mask)).lines()) for mask in (0.1, 0.5, 0.9)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 0
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[-1]
    assert seen == ["vision", "model"]
    assert session.segment(model, "moon", "simple").vision_seconds is None
    session.compare(model, "moon\nthe star")
    assert seen == ["vision", "model", "model", "model"]


def test_what_lies_below_the_threshold_is_hinted_at(model, session):
    answer = session.segment(model, "moon\nzeppelin", "concept")
    found = answer.view(Shown(0.5))
    best = answer.results(Shown(0.05), None, None)[0].best_score
    missed = answer.view(Shown(min(0.99, best + 0.005)))
    assert found.rows[0] and not missed.rows[0] and missed.best[0] == pytest.approx(best)
    assert f"nothing above {missed.shown.threshold:g}, best {best:.2f}" in demo_html.summary(missed, "rules")
    lower = missed.lower_threshold
    assert lower < best and answer.view(Shown(lower)).rows[0] and not answer.view(Shown(lower + 0.01)).rows[0]
    assert found.lower_threshold is None or not found.rows[1]


def test_duplicates_are_hidden_and_counted(model, session, monkeypatch):
    answer = session.segment(model, "moon", "concept")
    twice = {
        name: values
        if name in ("presence_logits", "instruction_levels")
        else [row.repeat_interleave(2, 0) for row in values]
        for name, values in answer.outputs.items()
    }
    doubled = replace(answer, outputs=twice)
    everything = answer.view(Shown(0.3, hide_duplicates=False))
    one, both = doubled.view(Shown(0.3)), doubled.view(Shown(0.3, hide_duplicates=False))
    assert len(one.rows[0]) == len(answer.view(Shown(0.3)).rows[0]) and len(both.rows[0]) == 2 * len(
        everything.rows[0]
    )
    assert one.hidden[0] == len(both.rows[0]) - len(one.rows[0]) and both.hidden == [0]
    assert "duplicate" in one.found_words(0) and "duplicate" not in both.found_words(0)
    assert "max_overlap=None" in doubled.code(both.shown) and "max_overlap" not in doubled.code(one.shown)


def test_features_of_few_pictures_are_kept(model):
    for shade in range(8):
        model.segment(Image.new("RGB", (40, 30), (shade, 0, 0)), ["moon"])
    assert len(model._features) == 4


def test_three_levels_equal_three_calls(model, session):
    text = "moon\nthe objects that could move the tide"
    parts = session.compare(model, text)
    assert [part.asked for part in parts] == ["concept", "simple", "complex"]
    for part in parts:
        alone = session.segment(model, text, part.asked)
        assert part.levels == alone.levels == [part.asked] * 2 and part.texts == alone.texts
        assert same(part.instances(Shown(0.3, 0.5)), alone.instances(Shown(0.3, 0.5)))


def test_auto_says_what_it_chose(model, session):
    answer = session.segment(model, "moon\nthe objects that could move the tide", "auto")
    html = demo_html.summary(answer.view(Shown(0.3, 0.5)), "rules")
    assert answer.levels[0] == "concept" and html.count("by the rules") == 2 and "level-concept" in html
    told = session.segment(model, "moon", "simple")
    assert told.levels == ["simple"] and "by the rules" not in demo_html.summary(told.view(Shown(0.3, 0.5)), "rules")


def test_probabilities_of_a_router_are_shown(model, session, monkeypatch):
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    segment = model.pipe.model.segment

    def route(**inputs):
        assert inputs["instruction_levels"].tolist() == [-1, -1]
        outputs = segment(**(inputs | {"instruction_levels": logits.argmax(-1)}))
        outputs.level_logits = logits
        return outputs

    monkeypatch.setattr(model.pipe.processor, "auto_levels", "router")
    monkeypatch.setattr(model.pipe.model, "segment", route)
    answer = session.segment(model, "moon\nthe star", "auto")
    assert answer.levels == ["concept", "complex"]
    assert torch.tensor(answer.probabilities).argmax(-1).tolist() == [0, 2]
    html = demo_html.summary(answer.view(Shown(0.3, 0.5)), "router")
    assert html.count("by the router") == 2 and html.count("complex 99%") == 1
    document = json.loads(zipfile.ZipFile(io.BytesIO(answer.archive(Shown(0.3, 0.5)))).read("results.json"))
    assert document["results"][1]["level_probabilities"][2] == pytest.approx(0.987, abs=0.01)


def test_archive_holds_the_masks_of_the_pipeline(model, session):
    texts = ["moon", "the objects that could move the tide"]
    archive = zipfile.ZipFile(io.BytesIO(session.segment(model, "\n".join(texts), "complex").archive(Shown(0.3, 0.4))))
    expected = model.pipe(session.image, text=texts, level="complex", threshold=0.3, mask_threshold=0.4)
    document = json.loads(archive.read("results.json"))
    assert (document["threshold"], document["mask_threshold"], document["level"]) == (0.3, 0.4, "complex")
    assert [entry["text"] for entry in document["results"]] == texts
    files, saved = {"results.json", "overlay.png"}, []
    for entry in document["results"]:
        saved.append([])
        for found in entry["instances"]:
            mask = Image.open(archive.open(found["file"]))
            assert np.array_equal(decode_mask(found["segmentation"]), np.asarray(mask) > 127)
            saved[-1].append(found | {"mask": mask})
            files.add(found["file"])
    assert same(saved, expected) and saved[1]
    assert set(archive.namelist()) == files


def test_large_pictures_are_shown_small_and_saved_whole(model):
    session = DemoSession()
    session.show(demo_examples()[0].image.resize((2000, 1500)))
    answer = session.segment(model, "moon", "concept")
    view = answer.view(Shown(0.3, 0.5))
    assert view.image.size == (1280, 960) and view.rows[0][0]["mask"].size == (1280, 960)
    assert answer.instances(Shown(0.3, 0.5))[0][0]["mask"].size == (2000, 1500)
    box = answer.instances(Shown(0.3, 0.5))[0][0]["box"]
    assert view.lines()[0].box == pytest.approx((box["xmin"], box["ymin"], box["xmax"], box["ymax"]), abs=1)


def test_the_code_makes_the_same_call(model, session, tmp_path, monkeypatch):
    session.add_box((10, 10, 50, 60), False)
    answer = session.segment(model, "moon\nthe 'star'", "simple")
    session.image.save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    single = str(tmp_path / "single")  # both sides in single precision, as the fixture has it
    model.pipe.model.save_pretrained(single)
    model.pipe.processor.save_pretrained(single)
    scope = {}
    exec(replace(answer, model=single).code(Shown(0.45, 0.45)), scope)
    assert same(scope["results"], answer.instances(Shown(0.45, 0.45))) and scope["results"][0]


def test_spotlight_keeps_one_instance_bright(model, session):
    view = session.segment(model, "moon", "concept").view(Shown(0.1, 0.5))
    line = view.lines()[0]
    lit = view.overlay(line)
    factor = lit.width // view.image.width
    size = (view.image.width * factor,) * 2
    mask = np.asarray(view.rows[0][0]["mask"].resize(size)) > 127
    plain, lit = (np.asarray(picture, dtype=float)[: len(mask)] for picture in (view.image.resize(size), lit))
    assert lit[mask].mean() > 0.85 * plain[mask].mean()
    assert lit[~mask].mean() < 0.6 * plain[~mask].mean()


def test_boxes_by_clicks_and_by_numbers(session):
    factor = CANVAS_SIDE / max(session.image.size)
    assert session.click((50 * factor, 60 * factor), True) is None and session.corner == (50, 60)
    assert session.click((10 * factor, 20 * factor), True) == BoxExemplar((10, 20, 50, 60), True)
    assert session.add_box(read_corners("-5, 90,  500 30"), False) == BoxExemplar((0, 30, 112, 90), False)
    canvas = np.asarray(session.canvas())
    assert canvas.shape == (640, 640, 3)
    assert (canvas[round(40 * factor), round(10 * factor) + 1] == POSITIVE).all()
    session.click((3, 3), True)
    session.undo_box()
    assert session.corner is None and len(session.boxes) == 2
    session.undo_box()
    session.undo_box()
    assert session.boxes == []
    session.undo_box()  # nothing left is no error


def test_boxes_may_speak_alone(model, session):
    session.add_box((15, 70, 36, 96), True)
    answer = session.segment(model, "", "auto")
    assert answer.texts == (None,) and answer.captions == ["what the boxes show"]
    answer.view(Shown(LOWEST_THRESHOLD, 0.5)).overlay()
    assert "what the boxes show" in demo_html.summary(answer.view(Shown(0.3, 0.5)), "rules")


def test_another_picture_clears_what_belonged_to_the_last(model, session):
    session.add_box((1, 1, 9, 9), True)
    session.segment(model, "moon", "auto")
    assert not session.show(session.image.copy()) and session.boxes and session.answer
    assert session.show(demo_examples()[1].image)
    assert (session.boxes, session.answer, session.comparison) == ([], None, [])
    assert session.show(None) and session.canvas() is None


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s, m: DemoSession().segment(m, "moon", "auto"), "no picture yet"),
        (lambda s, m: DemoSession().compare(m, "moon"), "no picture yet"),
        (lambda s, m: s.segment(m, "", "auto"), "Write an instruction"),
        (lambda s, m: s.segment(m, " \n\t\n", "auto"), "Write an instruction"),
        (lambda s, m: s.segment(m, None, "auto"), "Write an instruction"),
        (lambda s, m: s.segment(m, "moon\n" * (MOST_INSTRUCTIONS + 1), "auto"), "too many"),
        (lambda s, m: s.segment(m, "moon", "nonsense"), "nonsense"),
        (lambda s, m: s.add_box((5, 5, 5, 50), True), "no area"),
        (lambda s, m: s.add_box((200, 200, 300, 300), True), "no area"),
        (lambda s, m: [s.add_box((1, 1, 9, 9), True) for _ in range(MOST_BOXES + 1)], "at most"),
        (lambda s, m: read_corners("1, 2, 3"), "four numbers"),
        (lambda s, m: read_corners("1, 2, 3, nan"), "four numbers"),
        (lambda s, m: read_corners(HOSTILE), "four numbers"),
        (lambda s, m: s.show(str(SHAPES_TINY / "config.json")), "Cannot read image"),
    ],
)
def test_bad_input_is_told_in_words(model, session, act, message):
    with pytest.raises(ValueError, match=message):
        act(session, model)


def test_words_that_do_not_fit_are_named(model, session):
    answer = session.segment(model, "the star " + "and the moon " * 20 + "called zebra\nmoon", "auto")
    message = demo_html.lost_words(answer)
    assert "zebra" in message and answer.lost[1] == "" and "warning" in message
    assert demo_html.lost_words(session.segment(model, "moon", "auto")) == ""


def test_hostile_text_is_escaped(model, session):
    answer = session.segment(model, f"{HOSTILE}\nmoon", "auto")
    session.compare(model, HOSTILE)
    fragments = [
        demo_html.summary(answer.view(Shown(0.3, 0.5)), "rules"),
        demo_html.comparison([part.view(Shown(0.3, 0.5)) for part in session.comparison]),
        demo_html.notice(HOSTILE, "error"),
        demo_html.lost_words(session.segment(model, HOSTILE + " moon" * 40, "auto")),
        demo_html.header(DemoModel(model.pipe, HOSTILE)),
    ]
    for fragment in fragments:
        assert "<script" not in fragment and "<img" not in fragment and "&lt;script&gt;" in fragment
    compile(answer.code(Shown(0.3, 0.5)), "code", "exec")


def test_visitors_take_turns(model):
    examples, answers = demo_examples(), {}

    def visit(index: int) -> None:
        session = DemoSession()
        session.show(examples[index].image)
        answer = session.segment(model, "\n".join(examples[index].instructions), "auto")
        answers[index] = answer.instances(Shown(0.3, 0.5))

    threads = [threading.Thread(target=visit, args=(index,)) for index in range(len(examples))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, example in enumerate(examples):
        assert same(answers[index], model.pipe(example.image, text=list(example.instructions), threshold=0.3))


def test_read_instructions():
    assert read_instructions(" a \r\n\n b\n") == ["a", "b"] and read_instructions(None) == []


def test_segmentation_remembers_only_candidates(model, session):
    answer = session.segment(model, "moon", "auto")
    assert isinstance(answer, Segmentation)
    scores = answer.outputs["pred_logits"][0].sigmoid() * answer.outputs["presence_logits"][0].sigmoid()
    assert len(scores) > 0 and (scores > LOWEST_THRESHOLD).all() and (scores.diff() <= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./missing"], "found no folder ./missing"),
        (["--model", str(SHAPES_TINY.parent)], "model type"),
        (["--model", str(SHAPES_TINY), "--device", "quantum"], "quantum"),
        (["--model", str(SHAPES_TINY), "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--model", "./missing", "--export-space", "space"], "found no folder ./missing"),
        (["--model", "org/name", "--export-space", str(SHAPES_TINY)], "new or empty folder"),
    ],
)
def test_command_line_says_what_is_wrong(arguments, message, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason='the page needs gradio: pip install "sam3i[demo]"')
    from sam3i.cli import app

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert result.exit_code == 1 and "Error: " in result.stderr and message in result.stderr
    assert "Traceback" not in result.stderr and not list(tmp_path.iterdir())


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch):
    from sam3i.cli import app

    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("layout", "page"):
        monkeypatch.delitem(sys.modules, f"sam3i.hub.demo.{name}", raising=False)
    result = CliRunner().invoke(app, ["demo", "--model", str(SHAPES_TINY)])
    assert result.exit_code == 1 and 'pip install "sam3i[demo]"' in result.stderr


def test_space_names_a_model_of_the_hub(tmp_path):
    gradio = pytest.importorskip("gradio", reason='the page needs gradio: pip install "sam3i[demo]"')
    from huggingface_hub import metadata_load

    from sam3i.hub.demo.space import export_demo_space

    folder = export_demo_space("org/sam3-i", tmp_path / "space")
    metadata = metadata_load(folder / "README.md")
    assert metadata["sdk"] == "gradio" and metadata["sdk_version"] == gradio.__version__
    assert (folder / metadata["app_file"]).is_file() and metadata["models"] == ["org/sam3-i"]
    assert len(metadata["short_description"]) <= 60 and metadata["license"] == "apache-2.0"
    app = (folder / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert "MODEL = 'org/sam3-i'" in app and "pathlib" not in app
    names = {re.split(r"[<>=!~ ]", line)[0] for line in (folder / "requirements.txt").read_text().split("\n")}
    assert {"torch", "transformers", "peft", "pillow"} <= names and not names & {"pytest", "ruff", "gradio"}
    assert (folder / "sam3i" / "processing" / "data_engine" / "writers" / "prompts" / "writer.md").is_file()
    assert not list(folder.rglob("__pycache__")) and not (folder / "sam3i" / "tests").exists()


@pytest.mark.slow
def test_space_starts_and_answers(tmp_path):
    pytest.importorskip("gradio", reason='the page needs gradio: pip install "sam3i[demo]"')
    from gradio_client import Client, handle_file

    from sam3i.hub.demo.space import export_demo_space

    folder = export_demo_space(str(SHAPES_TINY), tmp_path / "space")
    picture = tmp_path / "picture.png"
    demo_examples()[0].image.save(picture)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = (tmp_path / "log.txt").open("w")
    process = subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        client = _connect(Client, f"http://127.0.0.1:{port}", process, tmp_path / "log.txt")
        rows = client.predict(handle_file(picture), "moon\nthe star", "auto", 0.3, 0.5, api_name="/segment")
    finally:
        process.terminate()
        process.wait(20)
        log.close()
    expected = DemoModel.load(str(SHAPES_TINY), "cpu").pipe(
        demo_examples()[0].image, text=["moon", "the star"], threshold=0.3
    )
    assert [len(row) for row in rows] == [len(row) for row in expected] and sum(map(len, rows)) > 0
    for found, instance in zip(rows[0], expected[0], strict=True):
        assert (decode_mask(found["segmentation"]) == (np.asarray(instance["mask"]) > 127)).mean() > 0.999


def _connect(client_class, address: str, process: subprocess.Popen, log: Path):
    deadline = time.monotonic() + 240  # imports take long on a busy machine
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            return client_class(address, verbose=False)
        except Exception:  # not up yet: whatever the connection says
            time.sleep(1)
    raise AssertionError(f"The Space did not start: {log.read_text()}")


def test_a_folder_name_is_no_code_in_the_space(tmp_path):
    pytest.importorskip("gradio", reason='the page needs gradio: pip install "sam3i[demo]"')
    from sam3i.hub.demo.space import export_demo_space

    named = tmp_path / '"""\nraise SystemExit("owned")\n"""'
    shutil.copytree(SHAPES_TINY, named)
    folder = export_demo_space(str(named), tmp_path / "space")
    assert "owned" not in (folder / "app.py").read_text()
    assert not any(path.is_symlink() for path in (folder / "model").iterdir())


def test_a_space_of_adapters_holds_the_whole_model(tmp_path, tiny_stock_repos, train_adapters, tiny_model):
    pytest.importorskip("gradio", reason='the page needs gradio: pip install "sam3i[demo]"')
    from sam3i import save_adapter
    from sam3i.hub.demo.space import export_demo_space

    train_adapters(tiny_model)
    save_adapter(tiny_model, tmp_path / "adapters", str(tiny_stock_repos["sam3"]))
    (tmp_path / "adapters" / "credentials.json").write_text("secret")
    folder = export_demo_space(str(tmp_path / "adapters"), tmp_path / "space")
    names = {path.name for path in (folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json"} <= names
    assert "credentials.json" not in names and "adapter_config.json" not in names


def test_the_page_answers_only_its_own_host():
    pytest.importorskip("gradio", reason='the page needs gradio: pip install "sam3i[demo]"')
    import httpx

    from sam3i.hub.demo.model import DemoModel
    from sam3i.hub.demo.page import DemoPage

    page = DemoPage(DemoModel.load(str(SHAPES_TINY), "cpu"))
    _, address, _ = page.launch("127.0.0.1", prevent_thread_lock=True)
    try:
        assert httpx.get(address).status_code == 200
        assert httpx.get(address, headers={"host": "elsewhere.example"}).status_code == 400
    finally:
        page.blocks.close(verbose=False)
