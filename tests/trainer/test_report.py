# SPDX-License-Identifier: Apache-2.0
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import typer
from PIL import Image
from segmenter_fixtures import HEIGHT, WIDTH, HalfSegmenter, rectangle, square_rows
from typer.testing import CliRunner

from sam3i.trainer.evaluation.cli import evaluate
from sam3i.trainer.evaluation.evaluate import evaluate_segmenter
from sam3i.trainer.evaluation.mask_scores import encode_prediction, encode_reference, score_masks
from sam3i.trainer.evaluation.tables import format_count, format_results, published_for
from sam3i.trainer.report import report
from sam3i.trainer.report.charts import group_bars, iou_histogram, precision_recall
from sam3i.trainer.report.report import failure_reason, load_entry, write_report

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[31m\u202e{}%s"
TILE = 120  # drawing takes time
app = typer.Typer()
app.command()(evaluate)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(report, "TILE", TILE)


class Page(HTMLParser):
    """Collects the tags, attributes and text of a page, and notices tags left open."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br", "rect", "line", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in ("rect", "line", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def entries(tmp_path, rows, names=("half", "concept")):
    found = []
    for name in names:
        segmenter = HalfSegmenter(rows, text_source="concept" if name == "concept" else "instruction")
        segmenter.name = name
        result = evaluate_segmenter(segmenter, rows, output_dir=tmp_path / str(len(found)), progress=False)
        found.append(load_entry(result))
    return found


def test_page_is_self_contained_and_complete(tmp_path):
    rows = [{**row, "file_name": f"photos/{row['row_id']}.jpg"} for row in square_rows(4)]
    page = write_report(entries(tmp_path, rows), tmp_path / "report", rows)
    content = Page(page.read_text(encoding="utf-8"))
    assert content.open == []
    text = " ".join(content.text)
    for expected in ("gIoU", "60.00", "Protocol", "answering nothing", "40.00", "Per level", "Best answers of half"):
        assert expected in text
    for expected in ("AP50", "count_ratio", "exact", "photos/0-square.jpg", "Worst answers: nothing found (4 of 20)"):
        assert expected in text
    sources = [value for name, value in content.attributes if name in ("src", "href")]
    charts = [source for source in sources if source.startswith("data:image/svg+xml;base64,")]
    panels = [source for source in sources if source.startswith("data:image/jpeg;base64,")]
    assert len(charts) >= 4 and len(charts) + len(panels) == len(sources)
    assert len(panels) == 4 + 3 + 3 + 6  # rows with a target, three of each of two faults, six at random
    assert not {"script", "link", "iframe"} & set(content.tags)
    for name in ("best", "worst-1", "worst-2", "random"):
        with Image.open(tmp_path / "report" / f"{name}.png") as sheet:
            assert sheet.width > 2 * 3 * TILE and len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 20


def test_hostile_text_stays_text(tmp_path):
    rows = [
        {**row, "simple": [HOSTILE], "dataset": HOSTILE, "row_id": f"{HOSTILE}{i}"}
        for i, row in enumerate(square_rows(2))
    ]
    page = write_report(entries(tmp_path, rows, names=(HOSTILE.replace("/", "|"),)), tmp_path / "report", rows)
    content = Page(page.read_text(encoding="utf-8"))
    assert content.open == []
    assert "script" not in content.tags
    assert not any(name.startswith("on") for name, _ in content.attributes)
    assert all(value.startswith("data:image/") for name, value in content.attributes if name == "src")
    assert "alert(1)" in " ".join(content.text)


def test_page_without_images_has_tables_and_charts(tmp_path):
    page = write_report(entries(tmp_path, square_rows(2)), tmp_path / "report")
    content = Page(page.read_text(encoding="utf-8"))
    sources = [value for name, value in content.attributes if name == "src"]
    assert sources and all(source.startswith("data:image/svg+xml") for source in sources)


def test_report_is_the_same_twice(tmp_path):
    rows = square_rows(3)
    found = entries(tmp_path, rows)
    first = write_report(found, tmp_path / "a", rows, seed=3).read_bytes()
    assert write_report(found, tmp_path / "b", rows, seed=3).read_bytes() == first


def test_charts_cope_with_extremes():
    assert b"<svg" in precision_recall({"a": (np.linspace(0, 1, 101), np.full(101, -1.0))})
    assert group_bars(["x", "y"], {"a": [None, 100.0]}).count(b">100<") == 1  # the label of the one bar
    assert b"<svg" in iou_histogram({"a": np.ones(5), "b": np.zeros(0)})
    assert b"$x_1$" in iou_histogram({"$x_1$": np.ones(5), "$": np.ones(2)})


@pytest.mark.parametrize(
    ("found", "target", "reason"),
    [
        ([(0, 0, 8, 8)], [], "something found where nothing was asked for"),
        ([], [(0, 0, 8, 8)], "nothing found"),
        ([(16, 16, 24, 24)], [(0, 0, 8, 8)], "another thing found"),
        ([(0, 0, 8, 8), (0, 0, 8, 8)], [(0, 0, 8, 8)], "more found than asked for, or one thing twice"),
        ([(0, 0, 8, 8)], [(0, 0, 8, 8), (16, 16, 24, 24)], "instances missing"),
        ([(0, 0, 8, 5)], [(0, 0, 8, 8)], "as many found as asked for, but other pixels"),
        ([(0, 0, 8, 8)], [(0, 0, 8, 8)], None),
        ([], [], None),
    ],
)
def test_the_worst_answers_are_sorted_by_what_is_wrong(found, target, reason):
    stacks = [np.array([rectangle(*box) for box in part]).reshape(-1, HEIGHT, WIDTH) for part in (found, target)]
    prediction = encode_prediction({"masks": stacks[0], "scores": [0.9] * len(found)})
    scores = score_masks([prediction], [encode_reference(stacks[1])])
    assert failure_reason(scores, 0, float(scores.iou(1.0)[0])) == reason


@pytest.mark.parametrize(
    ("protocol", "dataset", "level", "count"),
    [
        ("sam3i-1to1", "sam3i_val", "simple", 5),
        ("sam3i-multi", "HMPL-Instruct", None, 12),
        ("grefcoco", "sam3i_val", "simple", 0),
        ("sam3i-1to1", "shapes", "simple", 0),
        ("sam3i-1to1", "refcoco", "simple", 1),
        ("sam3i-1to1", "refcoco+", "simple", 0),
    ],
)
def test_published_figures_only_beside_the_same_protocol_and_data(protocol, dataset, level, count):
    assert len(published_for(protocol, [dataset], level)) == count


def test_published_figures_stand_in_the_tables(tmp_path):
    rows = [{**row, "dataset": "sam3i_val"} for row in square_rows(2)]
    result = evaluate_segmenter(
        HalfSegmenter(rows), rows, "sam3i-1to1", level="complex", output_dir=tmp_path / "run", progress=False
    )
    table = format_results([result])
    assert re.search(r"SAM3-I complex \(published\) +49\.00 +51\.00", table)
    page = write_report([load_entry(result)], tmp_path / "report").read_text(encoding="utf-8")
    assert "SAM3+Agent (Qwen3-VL-8B) complex" in page and "26.40" in page


def test_counts_for_people():
    assert [format_count(n) for n in (None, 7, 12_300, 840_400_000)] == ["unknown", "7", "12.3 k", "840.4 M"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_scores_files_as_one_json_object(reference_dir):
    files = ("--predictions", reference_dir / "metrics_pred.json", "--references", reference_dir / "metrics_gt.json")
    figures = json.loads(invoke(*files, "--protocol", "sam3i-1to1", "--json").stdout)
    assert [round(figures[name], 2) for name in ("gIoU", "P@0.5", "AP", "AP50")] == [32.61, 28.57, 4.9, 14.17]
    figures = json.loads(invoke(*files, "--protocol", "sam3i-multi", "--json").stdout)
    assert round(figures["gIoU"], 2) == 22.21 and "AP" not in figures
    shown = invoke(*files, "--protocol", "sam3i-multi").stdout
    assert shown.startswith("Protocol sam3i-multi: ") and "22.21" in shown


def test_command_scores_a_run_and_writes_its_report(tmp_path):
    rows = square_rows(2)
    evaluate_segmenter(HalfSegmenter(rows), rows, output_dir=tmp_path, progress=False)
    done = invoke(
        "--predictions", tmp_path / "predictions.jsonl", "--protocol", "grefcoco", "--report", tmp_path / "r"
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "r/report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give --model and --data"),
        (("--predictions", "nowhere.json"), "--references"),
        (("--predictions", "nowhere.json", "--references", "g.json"), "nowhere.json: (file)"),
        (("--predictions", "a.json", "--model", "m"), "--predictions does not go together with --model"),
        (("--model", "m", "--data", "nowhere.json", "--protocol", "x"), "Unknown protocol"),
        (("--model", "m", "--data", "./nowhere.json"), "does not exist"),
    ],
)
def test_command_refuses_in_a_sentence(arguments, message):
    done = invoke(*arguments)
    assert done.exit_code == 1
    assert message in str(done.exception) and isinstance(done.exception, ValueError | OSError)
