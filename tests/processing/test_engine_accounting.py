# SPDX-License-Identifier: Apache-2.0
"""Nothing vanishes from a build in silence: what is left out is counted by reason, printed and kept in `status`."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scripted_chat import Answer, ScriptedChatServer, texts_of
from typer.testing import CliRunner

from sam3i.cli import app
from sam3i.processing.data_engine.run import RunDirectory
from sam3i.processing.data_engine.scene.sources import CocoSource
from sam3i.processing.datasets.coco_index import INCOMPLETE
from sam3i.processing.masks import encode_mask

SIDE = 26


def call(*arguments, code=0):
    found = CliRunner().invoke(app, ["data", *(str(item) for item in arguments)])
    assert code in (None, found.exit_code), found.output
    return found.output


def status(run):
    return json.loads(CliRunner().invoke(app, ["data", "status", str(run), "--json"]).stdout)


def rectangle(number, image_id, x, y=30, side=SIDE, **fields):
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    annotation = {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "bbox": [x, y, side, side]}
    return annotation | {"segmentation": [corners], "area": side * side} | fields


@pytest.fixture
def coco(tmp_path):
    """Two images of three cups each; `write` takes changes."""
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}]}
    for image_id in (1, 2):
        image = Image.new("RGB", (200, 100), (150, 120, 90))
        data["images"].append({"id": image_id, "file_name": f"{image_id}.png", "width": 200, "height": 100})
        for place, color in enumerate(((220, 40, 40), (40, 90, 220), (40, 160, 60))):
            x = 15 + 65 * place
            ImageDraw.Draw(image).rectangle((x, 30, x + SIDE, 30 + SIDE), fill=color)
            data["annotations"].append(rectangle(10 * image_id + place, image_id, x))
        image.save(tmp_path / f"{image_id}.png")
    path = tmp_path / "instances.json"

    def write():
        path.write_text(json.dumps(data))
        return path

    write.data, write.folder = data, tmp_path
    write()
    return write


def test_a_picture_that_may_miss_an_annotation_is_left_out_and_nothing_is_said_to_be_absent(coco):
    coco.data["annotations"][4]["image_id"] = 77
    scenes = list(CocoSource(coco()).scenes())
    assert [(len(scene.instances), scene.is_absent("plate")) for scene in scenes] == [(3, False), (2, False)]
    coco.data["annotations"][4].update(image_id=2, id=10)
    first, second = CocoSource(coco()).scenes()
    assert len(first.instances) == 3 and not second.instances and INCOMPLETE in second.left_out


@pytest.mark.parametrize(
    ("text", "says"), [("{", "expected JSON"), ("[1]", "expected an object"), ('{"cup": "mug"}', "a list of words")]
)
def test_synonyms_of_another_form_are_refused_by_name(tmp_path, text, says):
    path = tmp_path / "synonyms.json"
    path.write_text(text)
    said = call("build", tmp_path / "run", "--shapes", 1, "--synonyms", path, code=1)
    assert f"Error: {path}: " in said and says in said


def test_crowds_of_one_piece_are_instances_and_counted_where_they_are_to_be_skipped(coco, tmp_path, caplog):
    for annotation in coco.data["annotations"]:
        annotation["iscrowd"] = 1
    path, run = coco(), tmp_path / "run"
    said = call("build", run, "--coco", path, "--crowd", "skip", code=1)
    assert (
        "6 x annotation of a crowd" in said
        and "--crowd instance" in said
        and "No instruction could be written" in said
    )
    assert sum(status(run)["left_out"].values()) == 6 + 2  # and both pictures
    assert "accepted" in call("build", tmp_path / "other", "--coco", path)
    assert "6 x annotation marked crowd, taken as an instance" in caplog.text
    assert "another run" in call("build", tmp_path / "other", "--coco", path, "--crowd", "skip", code=1)
    assert "instance" in call("build", tmp_path / "x", "--coco", path, "--crowd", "maybe", code=1)


def test_faulty_records_are_named_and_the_rest_goes_on(coco, tmp_path):
    annotations = coco.data["annotations"]
    annotations[0]["category_id"] = 99
    annotations += [
        rectangle(31, 1, 10, segmentation=[[1, 2, 3, 4]]),
        rectangle(32, 77, 10),
        rectangle(33, 1, 10, segmentation=[]),
        rectangle(34, 1, 10, side=3),
        rectangle(35, 1, 10, iscrowd="true"),
        rectangle(36, 1, 90, iscrowd="false", category_id=2, y=70, side=20),
    ]
    run = tmp_path / "run"
    said = call("build", run, "--coco", coco(), "--crowd", "skip")
    counted = status(run)["left_out"]
    reasons = ("unknown category", "fault in its segmentation", "image that the file does not have")
    for reason in (*reasons, "box and no mask", "under 16 pixels", "crowd"):
        assert sum(count for name, count in counted.items() if reason in name) == 1, (reason, counted)
        assert reason in said
    assert "(id 31)" in said and "(id 32)" in said
    record = next(item for item in RunDirectory(run).records() if item["image_id"] == "1")
    assert [item["annotation_id"] for item in record["instances"]] == [11, 12, 36]


@pytest.mark.parametrize("fault", ["truncated", "missing", "other size"])
def test_a_broken_image_does_not_end_a_build_and_a_mended_one_is_found_again(coco, tmp_path, fault):
    path, image, run = coco(), coco.folder / "1.png", tmp_path / "run"
    whole = image.read_bytes()
    if fault == "truncated":
        image.write_bytes(whole[: len(whole) // 2])
    elif fault == "missing":
        image.unlink()
    else:
        Image.new("RGB", (100, 200)).save(image)
    reason = {"truncated": "cannot be read", "missing": "not found", "other size": "another size"}[fault]
    said = call("build", run, "--coco", path)
    assert "left out: 1 x image" in said and reason in said
    assert status(run)["pictures"] == 1
    image.write_bytes(whole)
    call("build", run, "--coco", path)
    assert status(run)["pictures"] == 2 and not any(reason in name for name in status(run)["left_out"])


def test_a_build_whose_data_changed_is_not_gone_on_with(coco, tmp_path):
    run = tmp_path / "run"
    call("build", run, "--coco", coco(), "--max-pictures", 1)
    coco.data["categories"][0]["name"] = "mug"
    assert "have changed" in call("build", run, "--coco", coco(), code=1)
    coco.data["categories"][0]["name"] = "cup"
    Image.new("RGB", (200, 100)).save(coco.folder / "1.png")
    assert "not the image" in call("build", run, "--coco", coco(), code=1)


def row(number, **fields):
    mask = np.zeros((100, 200), bool)
    mask[30:56, 15 + 65 * number : 41 + 65 * number] = True
    x = 15 + 65 * number
    values = {"row_id": str(number), "image_id": "1", "file_name": "1.png", "width": 200, "height": 100}
    values |= {"concept": ["cup"], "simple": [f"cup {number}"], "complex": [], "masks": [encode_mask(mask)]}
    values |= {"boxes": [[x, 30, 26, 26]], "is_crowd": [False], "ignore_masks": [], "target_kind": None}
    return values | {"annotation_ids": [number], "dataset": "refs", "split": "train"} | fields


def write_rows(folder, *rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return path


def test_rows_that_templates_cannot_tell_apart_say_so_and_a_chat_writer_takes_them(coco, tmp_path):
    """As in RefCOCO: each row holds one instance, and not all of the category are known."""
    nameless = row(2, concept=[], simple=["this"])
    test_row = row(1, row_id="t", image_id="2", file_name="2.png", split="test")
    path = write_rows(coco.folder, row(0), row(1), nameless, test_row)
    said = call("build", tmp_path / "run", "--rows", path, code=1)
    assert "2 x row whose category is not annotated in full (--writer can take it" in said
    assert "1 x row without a concept" in said

    def script(request, index):
        wanted = request.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
        if not wanted:
            return "yes"
        noun = "cup" if "simple" in wanted else "one"
        return json.dumps({level: [f"the {noun} beside card {index}"] for level in wanted})

    with ScriptedChatServer(script) as server:
        endpoint = f"{server.base_url}#tiny"
        options = ("--writer", endpoint, "--simple", 1, "--complex", 0, "--targets", 2)
        said = call("build", tmp_path / "chat", "--rows", path, *options, "--retries", 0)
    assert "2 to review" in said and "templates" not in said
    records = list(RunDirectory(tmp_path / "chat").records())
    assert [record["image_id"] for record in records] == ["1"]  # and none of the test split
    assert sorted(target["targets"] for target in records[0]["targets"]) == [[0], [1]]


def test_a_faulty_row_is_counted(coco, tmp_path):
    complete = {"target_kind": "1-to-all", "masks": [row(i)["masks"][0] for i in range(3)]}
    complete |= {"boxes": [row(i)["boxes"][0] for i in range(3)], "is_crowd": [False] * 3, "annotation_ids": [0, 1, 2]}
    path = write_rows(coco.folder, row(0, **complete), row(1, width=-4, row_id="b"))
    said = call("build", tmp_path / "run", "--rows", path)
    assert "left out: 1 x faulty record" in said and "width" in said


def test_a_level_that_got_none_is_said(coco, tmp_path):
    said = call(
        "build", tmp_path / "run", "--coco", coco(), "--kind", "1-to-1", "--level", "concept", "--level", "simple"
    )
    assert "No instruction of level concept was accepted" in said


def test_endpoints_are_checked_before_anything_is_made(coco, tmp_path):
    def build(server, code=1):
        return call("build", tmp_path / "run", "--coco", coco(), "--writer", f"{server.base_url}#tiny", code=code)

    with ScriptedChatServer(lambda request, index: Answer(status=500, body=b"image input is not supported")) as server:
        assert "image input is not supported" in build(server)
    assert len(server.requests) == 1 and not (tmp_path / "run").exists()
    assert "the connection failed" in build(server)


def test_an_endpoint_without_schemas_is_told_the_form_in_words(coco, tmp_path):
    def script(request, index):
        if "response_format" in request:
            return Answer(status=422, body=b'{"detail": "Unexpected fields: response_format"}')
        return "yes" if index == 1 else json.dumps({"simple": ["the red cup"]})

    with ScriptedChatServer(script) as server:
        options = ("--writer", f"{server.base_url}#tiny", "--level", "simple", "--simple", 1, "--targets", 1)
        said = call("build", tmp_path / "run", "--coco", coco(), *options, "--retries", 0, code=None)
    assert "takes no JSON schema" in said and status(tmp_path / "run")["calls"]["failed"] == 0
    assert "JSON schema" in texts_of(server.requests[-1]["messages"][0])


def test_a_build_in_which_no_endpoint_answers_fails(coco, tmp_path):
    script = lambda request, index: "yes" if index == 0 else Answer(status=400, body=b"too long")  # noqa: E731
    with ScriptedChatServer(script) as server:
        said = call("build", tmp_path / "run", "--coco", coco(), "--writer", f"{server.base_url}#tiny", code=1)
    assert "No picture was finished" in said and "HTTP 400: too long" in said


def test_odd_answers_of_a_writer_do_not_stop_a_paid_build(coco, tmp_path):
    """Half a surrogate pair, nesting without an end, a usage of words: each costs one answer and no more."""
    odd = [
        Answer('{"simple": ["the cup \\ud83d on the left"]}'),
        Answer("[" * 50_000),
        Answer(body=b'{"choices": [{"message": {"content": "{}"}}], "usage": {"prompt_tokens": "many"}}'),
        Answer('{"simple": ["the red cup"]}'),
    ]
    with ScriptedChatServer(lambda request, index: "yes" if index == 0 else odd[(index - 1) % 4]) as server:
        arguments = ("--writer", f"{server.base_url}#tiny", "--simple", 1, "--complex", 0, "--retries", 3)
        call("build", tmp_path / "run", "--coco", coco(), *arguments, "--targets", 1, "--concurrency", 1)
    pairs = [p for r in RunDirectory(tmp_path / "run").records() for t in r["targets"] for p in t["pairs"]]
    assert {check["check"] for pair in pairs for check in pair["checks"]} >= {"form", "length"}
    assert texts_of(server.requests[-1]["messages"][0]) and status(tmp_path / "run")["calls"]["failed"] == 0


def test_a_writer_without_randomness_that_repeats_itself_is_not_paid_again(coco, tmp_path):
    with ScriptedChatServer(lambda request, index: "no JSON") as server:
        arguments = ("--writer", f"{server.base_url}#tiny", "--targets", 1, "--max-pictures", 1, "--level", "simple")
        said = call("build", tmp_path / "run", "--coco", coco(), *arguments, code=1)
    assert (
        "failed the checks" in said and len(server.requests) == 3
    )  # the check, the request, and one more with the reason


def test_a_password_is_not_handed_to_an_executor_that_writes_it_down(coco, tmp_path):
    writer = "http://ann:secret@127.0.0.1:9/v1#tiny"
    said = call("build", tmp_path / "run", "--coco", coco(), "--writer", writer, "--executor", "local", code=1)
    assert "SAM3I_CHAT_API_KEY" in said and "secret" not in said and not (tmp_path / "run").exists()


def test_status_waits_for_no_heavy_import(tmp_path):
    call("build", tmp_path / "run", "--shapes", 1)
    code = (
        "import sys; sys.argv = ['sam3i', 'data', 'status', sys.argv[1], '--json']; from sam3i.cli import app; "
        "app(standalone_mode=False); heavy = {'torch', 'transformers', 'scipy'} & sys.modules.keys(); assert not heavy"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["pictures"] == 1
