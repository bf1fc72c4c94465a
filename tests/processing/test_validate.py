# SPDX-License-Identifier: Apache-2.0
"""Faulty files and records: each is named (file, record, field), the good records stay usable, nothing is thrown."""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sam3i.cli import app
from sam3i.processing.cli import data_app, read_image_roots
from sam3i.processing.datasets.coco_index import INCOMPLETE
from sam3i.processing.datasets.image_roots import ReadOptions
from sam3i.processing.datasets.loading import load_instruction_dataset, validate_dataset
from sam3i.processing.masks import encode_mask

WIDTH, HEIGHT = 16, 12


def block(left):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2:6, left : left + 3] = True
    return encode_mask(mask)


def official():
    texts = {"concept": ["block"], "simple_query": ["the block"], "complex_query": ["what one builds with"]}
    image = {"file_name": "a.png", "width": WIDTH, "height": HEIGHT, "text_inst_input": texts}
    annotation = {"category_id": 1, "bbox": [2, 2, 3, 4], "area": 12, "iscrowd": 0, "segmentation": block(2)}
    return {
        "images": [{"id": n, **copy.deepcopy(image)} for n in (1, 2, 3)],
        "annotations": [{"id": 10 * n, "image_id": n, **copy.deepcopy(annotation)} for n in (1, 2, 3)],
        "categories": [{"id": 1, "name": "object"}],
    }


def line(number):
    return {
        "file_name": "a.png",
        "width": WIDTH,
        "height": HEIGHT,
        "row_id": str(number),
        "concept": ["block"],
        "simple": ["the block"],
        "complex": [],
        "masks": [block(2)],
        "boxes": [[2, 2, 3, 4]],
        "target_kind": "1-to-1",
        "split": "train",
    }


def put(path, value):
    """A fault: set (or, with `...`, delete) the value at a path of keys."""

    def change(data):
        *keys, last = path
        for key in keys:
            data = data[key]
        if value is ...:
            del data[last]
        else:
            data[last] = value

    return change


IMAGE, ANNOTATION = ("images", 1), ("annotations", 1)
ON_IMAGE, ON_ANNOTATION = "images[1]", "annotations[1]"

# path in the document, value, record and field that the message must name, rows that stay usable
OFFICIAL_FAULTS = [
    ((*IMAGE, "id"), ..., ON_IMAGE, "id", 2),
    ((*IMAGE, "id"), "", ON_IMAGE, "id", 2),
    ((*IMAGE, "id"), [2], ON_IMAGE, "id", 2),
    ((*IMAGE, "id"), 1, ON_IMAGE, "id", 1),
    ((*IMAGE, "id"), 10**30, ON_IMAGE, "id", 2),
    ((*IMAGE, "width"), ..., ON_IMAGE, "width", 2),
    ((*IMAGE, "width"), 10**9, ON_IMAGE, "width", 2),
    ((*IMAGE, "width"), 0, ON_IMAGE, "width", 2),
    ((*IMAGE, "height"), 12.5, ON_IMAGE, "height", 2),
    ((*IMAGE, "height"), True, ON_IMAGE, "height", 2),
    ((*IMAGE, "file_name"), ..., ON_IMAGE, "file_name", 2),
    ((*IMAGE, "file_name"), 7, ON_IMAGE, "file_name", 2),
    ((*IMAGE, "text_inst_input"), ..., ON_IMAGE, "text_inst_input", 2),
    ((*IMAGE, "text_inst_input"), ["a"], ON_IMAGE, "text_inst_input", 2),
    ((*IMAGE, "text_inst_input"), {}, ON_IMAGE, "concept/simple/complex", 2),
    ((*IMAGE, "text_inst_input", "concept"), "block", ON_IMAGE, "text_inst_input.concept", 2),
    ((*IMAGE, "text_inst_input", "simple_query"), ["a", ""], ON_IMAGE, "text_inst_input.simple_query[1]", 2),
    ((*IMAGE, "text_inst_input", "complex_query"), [None], ON_IMAGE, "text_inst_input.complex_query[0]", 2),
    ((*IMAGE, "sam3i"), 3, ON_IMAGE, "sam3i", 2),
    ((*IMAGE, "sam3i"), {"target_kind": "some"}, ON_IMAGE, "target_kind", 2),
    ((*IMAGE, "sam3i"), {"target_kind": "none"}, ON_IMAGE, "target_kind", 2),
    ((*IMAGE, "sam3i"), {"annotation_ids": ["a"]}, ON_IMAGE, "annotation_ids[0]", 2),
    ((*IMAGE, "sam3i"), {"annotation_ids": [1, 2]}, ON_IMAGE, "sam3i.annotation_ids", 2),
    ((*IMAGE, "sam3i"), {"ignore_masks": 5}, ON_IMAGE, "sam3i.ignore_masks", 2),
    ((*IMAGE, "sam3i"), {"ignore_mask": []}, ON_IMAGE, "sam3i.ignore_mask", 2),
    ((*IMAGE, "sam3i"), {"row_id": "1"}, ON_IMAGE, "row_id", 2),
    (IMAGE, "text", ON_IMAGE, "(record)", 2),
    (IMAGE, None, ON_IMAGE, "(record)", 2),
    ((*ANNOTATION, "id"), ..., ON_ANNOTATION, "id", 2),
    ((*ANNOTATION, "id"), 10, ON_ANNOTATION, "id", 2),
    ((*ANNOTATION, "image_id"), ..., ON_ANNOTATION, "image_id", 2),
    ((*ANNOTATION, "image_id"), 77, ON_ANNOTATION, "image_id", 2),
    ((*ANNOTATION, "image_id"), "two", ON_ANNOTATION, "image_id", 2),
    ((*ANNOTATION, "category_id"), ..., ON_ANNOTATION, "category_id", 2),
    ((*ANNOTATION, "category_id"), 9, ON_ANNOTATION, "category_id", 2),
    ((*ANNOTATION, "iscrowd"), ..., ON_ANNOTATION, "iscrowd", 2),
    ((*ANNOTATION, "iscrowd"), "perhaps", ON_ANNOTATION, "iscrowd", 2),
    ((*ANNOTATION, "bbox"), ..., ON_ANNOTATION, "bbox", 2),
    ((*ANNOTATION, "bbox"), [1, 2, 3], ON_ANNOTATION, "bbox", 2),
    ((*ANNOTATION, "bbox"), [1, 2, -3, 4], ON_ANNOTATION, "bbox", 2),
    ((*ANNOTATION, "bbox"), [10, 2, 30, 4], ON_ANNOTATION, "bbox", 2),
    ((*ANNOTATION, "bbox"), [1, 2, 3, "4"], ON_ANNOTATION, "bbox", 2),
    ((*ANNOTATION, "bbox"), [1, 2, 3, float("nan")], ON_ANNOTATION, "bbox", 2),
    ((*ANNOTATION, "segmentation"), "rle", ON_ANNOTATION, "segmentation", 2),
    ((*ANNOTATION, "segmentation"), [[1, 2, 3]], ON_ANNOTATION, "segmentation", 2),
    ((*ANNOTATION, "segmentation"), [1, 2, 3, 4, 5, 6], ON_ANNOTATION, "segmentation", 2),
    ((*ANNOTATION, "segmentation"), {"counts": "11"}, ON_ANNOTATION, "segmentation", 2),
    ((*ANNOTATION, "segmentation", "size"), [WIDTH, HEIGHT], ON_ANNOTATION, "segmentation", 2),
    ((*ANNOTATION, "segmentation", "size"), ["a", "b"], ON_ANNOTATION, "segmentation", 2),
    ((*ANNOTATION, "segmentation", "counts"), [5, 5], ON_ANNOTATION, "segmentation", 2),
    ((*ANNOTATION, "segmentation", "counts"), "zzzz", ON_ANNOTATION, "segmentation", 2),
    ((*ANNOTATION, "segmentation", "counts"), "a b", ON_ANNOTATION, "segmentation", 2),
    ((*ANNOTATION, "segmentation", "counts"), 5, ON_ANNOTATION, "segmentation", 2),
    (ANNOTATION, [], ON_ANNOTATION, "(record)", 2),
    (("categories",), ..., "(file)", "categories", 3),
    (("categories", 0), {"id": 1}, "categories[0]", "name", 3),
    (("images",), ..., "(file)", "images", 0),
]

LINE_FAULTS = [
    (("width",), ..., "width"),
    (("height",), -1, "height"),
    (("simple",), "text", "simple"),
    (("simple",), [3], "simple[0]"),
    (("masks",), {}, "masks"),
    (("masks", 0), {"size": [1, 1], "counts": "11"}, "masks[0]"),
    (("masks", 0), [[0, 0, 1]], "masks[0]"),
    (("boxes",), [], "boxes"),
    (("boxes", 0), [0, 0, 100, 1], "boxes[0]"),
    (("target_kind",), "1-to-2", "target_kind"),
    (("target_kind",), "none", "target_kind"),
    (("row_id",), "0", "row_id"),
    (("file_name",), 5, "file_name"),
    (("is_crowd",), [False, True], "is_crowd"),
    (("annotation_ids",), ["a"], "annotation_ids[0]"),
    (("instruction",), "text", "instruction"),
    (("simpel",), ["beside the right one"], "simpel"),
    (("is_crowd",), ["no"], "is_crowd[0]"),
    (("masks", 0, "size"), [float("inf"), WIDTH], "masks[0]"),
]

LINE_SYNTAX = ["{", "[1, 2]", "not json", '{"a": 1} trailing', '{"width": 1e999', "\ufeff\x00"]


def save_picture(folder):
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(folder / "a.png")


def test_there_are_enough_faults():
    assert len(OFFICIAL_FAULTS) + len(LINE_FAULTS) + len(LINE_SYNTAX) >= 60


@pytest.mark.parametrize(("path", "value", "record", "field", "usable"), OFFICIAL_FAULTS)
def test_faults_of_the_authors_json(tmp_path, path, value, record, field, usable):
    save_picture(tmp_path)
    data = official()
    put(path, value)(data)
    file = tmp_path / "train.json"
    file.write_text(json.dumps(data))
    options = ReadOptions()
    count = options.account
    faults = list(validate_dataset(file, "official", options))
    assert [(fault.file, fault.field) for fault in faults if fault.record.startswith(record)][:1] == [
        (str(file), field)
    ]
    assert all(fault.found and fault.expected and fault.fix for fault in faults)
    orphaned = path == ("images",) or path[:2] == IMAGE and (len(path) == 2 or path[2] == "id")
    assert len(faults) <= (4 if orphaned else 1), faults
    assert count.kept == usable and count.num_faults == len(faults)
    if usable:
        assert len(load_instruction_dataset(file, format="official", skip_faulty=True)) == usable


@pytest.mark.parametrize(("path", "value", "field"), LINE_FAULTS)
def test_faults_of_a_line(tmp_path, path, value, field):
    save_picture(tmp_path)
    lines = [line(number) for number in range(3)]
    put(path, value)(lines[1])
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(json.dumps(one) for one in lines))
    faults = list(validate_dataset(file))
    assert [(fault.record, fault.field) for fault in faults] == [("line 2", field)]
    assert load_instruction_dataset(file, skip_faulty=True)["row_id"][:] == ["0", "2"]


@pytest.mark.parametrize("text", LINE_SYNTAX)
def test_lines_that_are_no_json(tmp_path, text):
    save_picture(tmp_path)
    file = tmp_path / "train.jsonl"
    file.write_text(f"{json.dumps(line(0))}\n{text}\n{json.dumps(line(1))}\n", encoding="utf-8")
    faults = list(validate_dataset(file))
    assert [fault.record for fault in faults] == ["line 2"]
    assert load_instruction_dataset(file, skip_faulty=True)["row_id"][:] == ["0", "1"]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ('{"images": [', "(syntax)"),
        ('{"images": [}', "(syntax)"),
        ("", "(syntax)"),
        ("[]", "categories"),
        ('{"images": 3, "categories": []}', "(record)"),
    ],
)
def test_broken_documents(tmp_path, content, field):
    file = tmp_path / "a.json"
    file.write_text(content)
    assert field in [fault.field for fault in validate_dataset(file, format="official")]


def test_a_syntax_fault_in_the_middle_keeps_what_came_before(tmp_path):
    save_picture(tmp_path)
    text = json.dumps(official(), indent=1)
    file = tmp_path / "a.json"
    file.write_text(text[: text.rindex('"id": 30')] + "oops" + text[text.rindex('"id": 30') :])
    options = ReadOptions()
    count = options.account
    faults = list(validate_dataset(file, "official", options, check_images=False))
    syntax = [fault for fault in faults if fault.field == "(syntax)"]
    line_number = file.read_text()[: file.read_text().index("oops")].count("\n") + 1
    assert len(syntax) == 1 and syntax[0].record.startswith(f"line {line_number}, byte")
    assert count.kept == 2 and count.left_out == {INCOMPLETE: 1}  # it does not read as one without a target


def test_bytes_that_are_no_utf8_are_named_where_they_stand(tmp_path):
    save_picture(tmp_path)
    data = official()
    data["images"][1]["text_inst_input"]["simple_query"] = ["caf@"]
    data["images"][2]["extra"] = "caf@"
    file = tmp_path / "a.json"
    file.write_bytes(json.dumps(data).encode().replace(b"@", b"\xe9"))
    faults = list(validate_dataset(file))
    assert [(fault.record, fault.field) for fault in faults] == [
        ("images[1] (id 2)", "text_inst_input.simple_query[0]")
    ]


def test_several_faults_of_one_record_are_all_named(tmp_path):
    save_picture(tmp_path)
    data = official()
    put(("images", 1, "width"), "x")(data)
    put(("images", 1, "text_inst_input", "concept"), [""])(data)
    put(("annotations", 2, "bbox"), None)(data)
    put(("annotations", 2, "category_id"), 5)(data)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(data))
    fields = [fault.field for fault in validate_dataset(file)]
    assert fields == ["width", "text_inst_input.concept[0]", "category_id", "bbox"]


def test_pictures_are_checked(tmp_path):
    rows = [{**line(n), "file_name": name} for n, name in enumerate(["a.png", "absent.png", "broken.png", "wide.png"])]
    save_picture(tmp_path)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[:40])
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(tmp_path / "wide.png")
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    faults = list(validate_dataset(file, options=ReadOptions(tmp_path)))
    assert [fault.record for fault in faults] == ["row 1", "row 2", "row 3"]
    assert "no file 'absent.png'" in faults[0].found and "17 x 12" in faults[2].found
    assert not list(validate_dataset(file, check_images=False))


def test_turned_photographs_have_the_size_one_sees(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "a.jpg", exif=exif)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({**line(0), "file_name": "a.jpg"}))
    assert not list(validate_dataset(file))
    assert load_instruction_dataset(file)[0]["image"].size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["absent.json", "folder", "text.txt"])
def test_paths_that_are_no_data(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    faults = list(validate_dataset(tmp_path / name))
    assert len(faults) == 1 and faults[0].file == str(tmp_path / name)


@pytest.fixture
def good_file(tmp_path):
    save_picture(tmp_path)
    file = tmp_path / "train.json"
    file.write_text(json.dumps(official()))
    return file


def test_command_validate(good_file, tmp_path):
    runner = CliRunner()
    result = runner.invoke(data_app, ["validate", str(good_file)])
    assert result.exit_code == 0 and "3 rows kept, 0 records left out, 0 faults" in result.output
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{\n" * 5)
    result = runner.invoke(data_app, ["validate", str(good_file), str(bad), "--json", "--limit", "2"])
    assert result.exit_code == 1
    printed = [json.loads(text) for text in result.stdout.splitlines() if text.startswith("{")]
    assert [fault["record"] for fault in printed] == ["line 1", "line 2"]


def test_command_inspect(good_file, tmp_path):
    sheet = tmp_path / "out" / "sheet.png"
    result = CliRunner().invoke(data_app, ["inspect", str(good_file), "--sheet", str(sheet), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(next(text for text in result.stdout.splitlines() if text.startswith("{")))
    assert (summary["rows"], summary["instances"], summary["sizes"]) == (3, 3, {"small": 3})
    assert summary["instructions"] == {"concept": 3, "simple": 3, "complex": 3}
    with Image.open(sheet) as picture:
        colors = picture.convert("RGB").getcolors(1 << 24)
    assert len(colors) > 20


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_command_convert(good_file, tmp_path, name):
    target = tmp_path / "out" / name
    result = CliRunner().invoke(data_app, ["convert", str(good_file), str(target)])
    assert result.exit_code == 0, result.output
    again = load_instruction_dataset(target, image_root=tmp_path)
    assert list(again.remove_columns("image")) == list(load_instruction_dataset(good_file).remove_columns("image"))


def test_commands_explain_what_they_cannot_do(good_file, tmp_path):
    runner = CliRunner()
    for arguments, message in (
        (["convert", str(good_file), str(tmp_path / "a.xyz")], "cannot tell the format"),
        (["inspect", str(tmp_path / "absent.json")], "does not exist"),
    ):
        result = runner.invoke(app, ["data", *arguments])
        assert result.exit_code in (1, 2) and message in " ".join(result.output.split())


def test_image_root_values():
    assert read_image_roots(None) is None and read_image_roots(["a"]) == "a"
    assert read_image_roots(["coco=/x", "/y"]) == {"coco": "/x", "": "/y"}
