# SPDX-License-Identifier: Apache-2.0
import html
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from engine_disputed import disputed_run
from engine_faulty_models import FaultyModels
from engine_session import run_session
from PIL import Image, ImageDraw
from scripted_chat import ScriptedChatServer
from typer.testing import CliRunner

from sam3i.cli import app
from sam3i.processing.chat.prompts import PromptError
from sam3i.processing.data_engine.calls import EndpointSpec
from sam3i.processing.data_engine.engine import DataEngine
from sam3i.processing.data_engine.export import ExportError, accepted_rows, export_run
from sam3i.processing.data_engine.review.desk import DecisionError, EditChecks, ReviewDesk, breaks_a_rule
from sam3i.processing.data_engine.review.label_studio import LabelStudioError, export_tasks, import_decisions
from sam3i.processing.data_engine.review.view import as_text
from sam3i.processing.data_engine.run import EngineConfig, RunDirectory
from sam3i.processing.data_engine.scene.scene import scene_of_record, scene_to_record
from sam3i.processing.data_engine.scene.sources import ShapesSource
from sam3i.processing.data_engine.status import run_status, status_lines
from sam3i.processing.data_engine.writers.chat_writer import engine_prompts
from sam3i.processing.datasets.loading import load_instruction_dataset
from sam3i.processing.datasets.schema import validate_row


def decisions_of(run):
    """What people decided, in the order in which they did."""
    return [made for _, made in run.store.decisions()]


@pytest.fixture(scope="module")
def disputed(tmp_path_factory):
    """A run whose checker errs in half of its answers, so that much has to be decided by people."""
    models = FaultyModels(5, checker_error=0.5)
    with models.server:
        run, _, summary = run_session(
            tmp_path_factory.mktemp("disputed"), models.server.base_url, 5, max_retries=0, targets_per_image=4
        )
    assert summary.review >= 5
    return run


@pytest.fixture
def run(disputed, tmp_path):
    """A fresh copy of the disputed run."""
    import shutil

    return RunDirectory(shutil.copytree(disputed.path, tmp_path / "run"))


def test_decisions_are_kept_with_author_and_time(run):
    desk = ReviewDesk(run)
    first, second, third = desk.queue()[:3]
    desk.decide(first.pair["pair_id"], "accept", "ann", when=1.0)
    desk.decide(second.pair["pair_id"], "edit", "ann", "the better words", when=2.0)
    desk.decide(third.pair["pair_id"], "reject", "ann")
    again = ReviewDesk(run)
    assert again.outcome(first.pair) == ("accepted", first.pair["text"])
    assert again.outcome(second.pair) == ("accepted", "the better words")
    assert again.outcome(third.pair)[0] == "dropped"
    assert [line["author"] for line in decisions_of(run)] == ["ann"] * 3
    assert again.decisions(first.pair["pair_id"])[0].time == 1.0
    waiting = {item.pair["pair_id"] for item in again.queue()}
    assert not waiting & {item.pair["pair_id"] for item in (first, second, third)}


def test_two_reviewers(run):
    desk = ReviewDesk(run)
    assert "agreement        not known: no instruction" in (said := "\n".join(status_lines(run_status(run))))
    assert "None" not in said
    ids = [item.pair["pair_id"] for item in desk.queue()[:4]]
    for pair_id, ann, bob in zip(
        ids, ("accept", "reject", "accept", "skip"), ("accept", "accept", "accept", "accept"), strict=True
    ):
        desk.decide(pair_id, ann, "ann")
        desk.decide(pair_id, bob, "bob")
    assert desk.agreement() == {"pairs": 3, "observed": 0.6667, "kappa": -0.2}
    assert "0.6667 on 3 instructions with several decisions, kappa -0.2" in "\n".join(status_lines(run_status(run)))
    open_ids = [item.pair["pair_id"] for item in desk.queue()]
    assert ids[1] in open_ids and not set(open_ids) & {ids[0], ids[2], ids[3]}
    assert ids[1] not in [item.pair["pair_id"] for item in desk.queue("ann")]
    desk.decide(ids[1], "accept", "ann")  # a change of mind; the first decision stays on file
    assert ids[1] not in [item.pair["pair_id"] for item in desk.queue()]
    assert len(list(decisions_of(run))) == 9


def test_queue_learns_what_is_worth_a_look(run):
    desk = ReviewDesk(run)
    queue = desk.queue()
    values = [item.value for item in queue]
    assert values == sorted(values, reverse=True) and values[0] > values[-1]
    first = queue[0]
    before = first.value
    alike = [
        item
        for item in queue[1:]
        if [c["verdict"] for c in item.pair["checks"]] == [c["verdict"] for c in first.pair["checks"]]
    ]
    for item in alike[:3]:
        desk.decide(item.pair["pair_id"], "reject", "ann")
    after = next(item.value for item in desk.queue() if item.pair["pair_id"] == first.pair["pair_id"])
    assert after < before


@pytest.mark.parametrize(
    ("decision", "author", "text", "message"),
    [
        ("maybe", "ann", None, "one of"),
        ("accept", " ", None, "author"),
        ("edit", "ann", " ", "new text"),
        ("accept", "ann", "x", "new text"),
    ],
)
def test_bad_decisions_are_refused(run, decision, author, text, message):
    desk = ReviewDesk(run)
    with pytest.raises(DecisionError, match=message):
        desk.decide(desk.queue()[0].pair["pair_id"], decision, author, text)
    with pytest.raises(DecisionError, match="no instruction"):
        desk.decide("elsewhere", "accept", "ann")
    assert not list(decisions_of(run))


def test_label_studio_there_and_back(run, tmp_path):
    desk = ReviewDesk(run)
    path = tmp_path / "tasks.json"
    count = export_tasks(desk, path)
    tasks = json.loads(path.read_text())
    assert count == len(tasks) == len(desk.queue())
    assert tasks[0]["data"]["image"].startswith("data:image/png;base64,")
    region = tasks[0]["predictions"][0]["result"][0]
    assert 0 <= region["value"]["x"] and region["value"]["x"] + region["value"]["width"] <= 100.001
    labels = [item["value"]["rectanglelabels"][0] for item in tasks[0]["predictions"][0]["result"]]
    assert labels.count("target") == len(desk.queue()[0].target["targets"])
    assert "<RectangleLabels" in path.with_suffix(".xml").read_text()

    def annotate(task, choice, text=None):
        results = [{"from_name": "decision", "type": "choices", "value": {"choices": [choice]}}]
        results += [{"from_name": "edit", "type": "textarea", "value": {"text": [text]}}] if text else []
        return task | {
            "annotations": [
                {"result": results, "completed_by": {"email": "ann@x"}, "updated_at": "2025-01-02T03:04:05Z"}
            ]
        }

    done = [
        annotate(tasks[0], "accept"),
        annotate(tasks[1], "accept", "other words"),
        annotate(tasks[2], "reject"),
        tasks[3],
    ]
    path.write_text(json.dumps(done))
    assert import_decisions(desk, path) == 3
    assert import_decisions(desk, path) == 0  # the same file again
    assert [item.decision for task in tasks[:3] for item in desk.decisions(task["data"]["pair_id"])] == [
        "accept",
        "edit",
        "reject",
    ]
    assert desk.decisions(tasks[0]["data"]["pair_id"])[0].time == 1735787045.0
    path.write_text(json.dumps([annotate(tasks[3], "hm")]))
    with pytest.raises(LabelStudioError, match="'hm'"):
        import_decisions(desk, path)
    path.write_text(json.dumps([{"data": {}}]))
    with pytest.raises(LabelStudioError, match="pair_id"):
        import_decisions(desk, path)


@pytest.mark.parametrize("format", ["jsonl", "official", "parquet"])
def test_export_reads_back(run, tmp_path, format):
    desk = ReviewDesk(run)
    edited = desk.queue()[0].pair
    desk.decide(edited["pair_id"], "edit", "ann", "the words of a person")
    rows = list(accepted_rows(run))
    assert not [fault for row in rows for fault in validate_row(row)]
    path = export_run(run, tmp_path / "data", format)
    back = load_instruction_dataset(str(path))
    assert len(back) == len(rows)
    for row, read in zip(rows, back, strict=True):
        for field in ("concept", "simple", "complex", "masks", "boxes", "target_kind", "annotation_ids", "row_id"):
            assert read[field] == row[field], field
        assert read["image"].size == (row["width"], row["height"])
    assert sum("the words of a person" in row[edited["level"]] for row in rows) == 1
    texts = {(row["image_id"], text) for row in rows for text in row["simple"] + row["complex"]}
    waiting = {(item.picture["image_id"], item.pair["text"]) for item in ReviewDesk(run).queue()}
    assert waiting and not texts & waiting
    card = (tmp_path / "data" / "README.md").read_text()
    assert "People made 1 decisions" in card and "| simple | 1-to-1 | object |" in card
    status = run_status(run)
    assert sum(status["accepted"].values()) == status["settled"]["accepted"]


def test_empty_run_is_not_exported(tmp_path):
    with pytest.raises(ExportError, match="no accepted"):
        export_run(RunDirectory(tmp_path, EngineConfig(source="shapes")), tmp_path / "data")


def test_prompts_can_be_replaced_and_are_versioned(tmp_path):
    own = engine_prompts()
    (tmp_path / "writer.md").write_text("<!-- version: mine -->\nWrite about $noun.")
    prompts = engine_prompts(tmp_path)
    assert prompts["writer"].version == "mine" and prompts["checker"] == own["checker"]
    assert prompts["writer"].sha256 != own["writer"].sha256
    with pytest.raises(PromptError, match="unknown"):
        prompts["writer"].fill(other=1)
    (tmp_path / "writer.md").write_text("no version")
    with pytest.raises(PromptError, match="version"):
        engine_prompts(tmp_path)
    with pytest.raises(PromptError, match="found none"):
        engine_prompts(tmp_path / "nowhere")


def test_reasons_go_back_to_the_writer(tmp_path):
    """The writer is told why a text was rejected, and its next text is taken."""
    prompts = []

    def script(request, index):
        text = next(part["text"] for part in request["messages"][0]["content"] if part["type"] == "text")
        prompts.append(text)
        noun = text.split('other instances of\n"', 1)[1].split('"', 1)[0]
        return json.dumps(
            {"complex": [f"the {noun} that one would pick"] if len(prompts) == 1 else ["what one would pick"]}
        )

    with ScriptedChatServer(script) as server:
        run = RunDirectory(
            tmp_path,
            EngineConfig(
                source="s", writer="w", simple_texts=0, complex_texts=1, targets_per_image=1, levels=("complex",)
            ),
        )
        DataEngine(ShapesSource(1), run, writer=EndpointSpec(server.base_url, "w")).build(progress=False)
    assert len(prompts) == 2 and "rejected" not in prompts[0] and "must not name the target" in prompts[1]
    pairs = next(run.records())["targets"][0]["pairs"]
    assert [pair["outcome"] for pair in pairs] == ["dropped", "review"]


def test_coco_end_to_end(tmp_path):
    """Polygons and pictures in, checked rows out, by the command."""
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "wine_glass"}]}
    for image_id in (1, 2):
        picture = Image.new("RGB", (200, 100), (150, 120, 90))
        data["images"].append({"id": image_id, "file_name": f"{image_id}.png", "width": 200, "height": 100})
        for place, color in enumerate(((220, 40, 40), (40, 90, 220), (220, 40, 40))):
            x, y, side = 15 + 65 * place, 30, 25 if place else 40
            ImageDraw.Draw(picture).rectangle((x, y, x + side, y + side), fill=color)
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotation = {"id": 10 * image_id + place, "image_id": image_id, "category_id": 1, "iscrowd": 0}
            data["annotations"].append(annotation | {"bbox": [x, y, side, side], "segmentation": [corners]})
        picture.save(tmp_path / f"{image_id}.png")
    (tmp_path / "instances.json").write_text(json.dumps(data))
    run = tmp_path / "run"
    arguments = ["build", str(run), "--coco", str(tmp_path / "instances.json"), "--targets", "20"]
    assert CliRunner().invoke(app, ["data", *arguments]).exit_code == 0
    assert CliRunner().invoke(app, ["data", "export", str(run), str(tmp_path / "data")]).exit_code == 0
    rows = list(load_instruction_dataset(str(tmp_path / "data" / "data.jsonl"), image_root=str(tmp_path)))
    answers = {text: row["annotation_ids"] for row in rows if row["image_id"] == "1" for text in row["simple"]}
    truth = {"blue cup": [11], "largest cup": [10], "biggest cup": [10], "rightmost cup": [12], "red cups": [10, 12]}
    truth |= {"two rightmost cups": [11, 12], "two leftmost cups": [10, 11], "second cup from the left": [11]}
    truth |= {"second cup from the right": [11], "leftmost cup": [10], "three cups": [10, 11, 12]}
    asked = {text: phrase for text in answers for phrase in truth if text.endswith(f"the {phrase}")}
    assert len(asked) >= 3, answers
    assert {text: answers[text] for text in asked} == {text: truth[phrase] for text, phrase in asked.items()}
    assert rows[0]["image"].size == (200, 100)


def test_commands(tmp_path):

    def call(*arguments, code=0):
        found = CliRunner().invoke(app, ["data", *(str(item) for item in arguments)])
        assert found.exit_code == code, found.output
        return found

    run, data = tmp_path / "run", tmp_path / "data"
    assert "accepted" in call("build", run, "--shapes", 4, "--kind", "1-to-1").output
    assert json.loads(call("status", run, "--json").stdout)["pictures"] == 4
    assert "another run" in call("build", run, "--shapes", 4, "--seed", 2, code=1).output
    assert "found 0" in call("build", tmp_path / "x", code=1).output
    assert "URL#MODEL" in call("build", tmp_path / "x", "--shapes", 1, "--writer", "gpt", code=1).output
    call("export", run, data, "--to", "jsonl")
    assert {row["target_kind"] for row in load_instruction_dataset(str(data / "data.jsonl"))} == {"1-to-1"}
    assert "--writer can take it" in call("build", tmp_path / "again", "--rows", data / "data.jsonl", code=1).output
    for shard in (0, 1):
        call("build", tmp_path / f"s{shard}", "--shapes", 4, "--shard", f"{shard}/2")
    assert "merged 4" in call("merge", tmp_path / "s0", tmp_path / "s1", "--to", tmp_path / "m").output
    assert "0 tasks" in call("review-export", run, tmp_path / "tasks.json").output
    assert "0 new" in call("review-import", run, tmp_path / "tasks.json").output


def test_many_hands_lose_no_decision(run):
    """Threads at one desk and desks of their own, all deciding the same pairs at once."""
    desks = [ReviewDesk(run), ReviewDesk(run)]
    ids = [item.pair["pair_id"] for item in desks[0].queue()[:4]]

    def decide(number):
        for pair_id in ids:
            desks[number % 2].decide(pair_id, "accept", f"reviewer {number}", when=float(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decide, range(8)))
    lines = list(decisions_of(run))
    assert len(lines) == 32 == len({(line["pair_id"], line["author"]) for line in lines})
    desks[0].refresh()
    assert len(desks[0].decisions(ids[0])) == 8
    assert ReviewDesk(run).progress("reviewer 1")["decided"] == 4


def test_second_looks(run):
    desk = ReviewDesk(run, second_looks=1.0)
    pair_id = desk.queue()[0].pair["pair_id"]
    before = len(desk.queue("bob"))
    desk.decide(pair_id, "accept", "ann")
    assert len(desk.queue("bob")) == before  # settled, and still to be looked at once more
    assert pair_id not in {item.pair["pair_id"] for item in [*desk.queue(), *desk.queue("ann")]}
    desk.decide(pair_id, "accept", "bob")
    assert pair_id not in {item.pair["pair_id"] for item in desk.queue("carl")}
    assert len(ReviewDesk(run).queue("carl")) == before - 1
    with pytest.raises(ValueError, match="share"):
        ReviewDesk(run, second_looks=2)


def test_edits_go_through_the_checks(tmp_path):
    run = disputed_run(tmp_path)
    desk = ReviewDesk(run)
    checks = EditChecks(desk)
    item = desk.queue()[0]
    noun = item.target["noun"]

    def failed(text):
        return [result.check for result in checks(item, text) if result.verdict == "fail"]

    assert failed("two\nlines") == ["length"] and breaks_a_rule(checks(item, "two\nlines"))
    assert failed(f"the {noun} " * 20)[0] == "length"
    assert failed("the thing over there") == ["level"]
    assert failed(item.pair["text"]) == []
    kept = [pair for pair, *_ in desk.settled(item.picture["image_id"]) if pair["pair_id"] != item.pair["pair_id"]]
    assert "duplicate" in failed(kept[0]["text"]) + failed(kept[-1]["text"])
    nowhere = checks(item, f"the purple {noun} above the {noun}")
    assert not breaks_a_rule(nowhere)


def test_shown_text_is_harmless():
    shown = as_text("<b>&amp;${x}{{y}}`\\ \u202eabc\x07")
    assert not set("${}`\\") & set(shown) and "<b>" not in shown
    assert html.unescape(shown) == "<bdi><b>&amp;${x}{{y}}`\\ ⟨U+202E⟩abc⟨U+0007⟩</bdi>"
    assert "(5000 characters)" in as_text("a" * 5000)


@pytest.mark.parametrize("name", ["", "  ", "a" * 81, "ann\u202e"])
def test_reviewers_have_a_name(name):
    pytest.importorskip("gradio")
    from sam3i.processing.data_engine.review.page import reviewer_name

    with pytest.raises(ValueError, match="name"):
        reviewer_name(name)
    assert reviewer_name("  Ann  Lee ") == "Ann Lee"


def test_page_without_gradio_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "sam3i.processing.data_engine.review.page", raising=False)
    found = CliRunner().invoke(app, ["data", "review", str(run.path)])
    assert found.exit_code == 1 and 'pip install "sam3i[demo]"' in found.output


def test_picture_of_a_record_is_the_scene_again(run):
    record = run.ordered_records()[0]
    scene = scene_of_record(record, run.path)
    original = next(item for item in ShapesSource(5).scenes() if item.image_id == record["image_id"])
    assert scene.instances == original.instances and scene.size_bounds == original.size_bounds
    assert scene.open_image().tobytes() == original.open_image().tobytes()
    again = json.loads(json.dumps(scene_to_record(scene, record["image"])))
    assert again == {key: record[key] for key in record if key != "targets"}
