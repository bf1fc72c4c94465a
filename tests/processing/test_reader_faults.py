# SPDX-License-Identifier: Apache-2.0
"""Every kind of fault in every format that is read: a line that names file and record, exit status 1, the rest usable.

Each format is written three records long, and the second one is made wrong. Run as a script, it prints the table of
docs/howto/data.md.
"""

import json
import pickle
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from sam3i.cli import app
from sam3i.processing.datasets.coco_index import INCOMPLETE
from sam3i.processing.datasets.faults import RecordFault
from sam3i.processing.datasets.image_roots import ReadOptions
from sam3i.processing.datasets.loading import find_source, iterate_items

WIDTH, HEIGHT = 32, 24
SQUARE = [4, 6, 12, 6, 12, 16, 4, 16]
DEEP = "nested too deeply"
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "data.md"


def record(number, **changes):
    """One image with one instance and one text, in no format yet."""
    neutral = {"number": number, "file_name": f"{'abc'[number - 1]}.jpg", "width": WIDTH, "height": HEIGHT}
    neutral |= {"bbox": [4, 6, 8, 10], "segmentation": [SQUARE], "category": 1, "text": "the cup"}
    neutral |= {"of_image": number, "target": number, "misspelled": False, "mask_field": "segmentation"}
    return {**neutral, **changes}


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000))
    return path


def text_field(one, name):
    """The name of the field with the text, two letters of it exchanged where it is to be misspelled."""
    return name[:-3] + name[-2] + name[-3] + name[-1] if one["misspelled"] else name


def image_of(one):
    return {"id": one["number"], "file_name": one["file_name"], "width": one["width"], "height": one["height"]}


def annotation_of(one, of_image=False):
    ids = {"id": one["number"], "image_id": one["of_image"] if of_image else one["number"]}
    shape = {"bbox": one["bbox"], one["mask_field"]: one["segmentation"]}
    return {**ids, "category_id": one["category"], "iscrowd": 0, **shape}


def coco_of(records, of_image=False):
    annotations = [annotation_of(one, of_image) for one in records]
    categories = [{"id": 1, "name": "cup"}]
    return {"images": [image_of(one) for one in records], "annotations": annotations, "categories": categories}


def write_lines(path, lines):
    path.write_text(
        "".join(json.dumps(line).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000) + "\n" for line in lines)
    )
    return path


def write_coco(folder, records):
    write_json(folder / "instances.json", coco_of(records))
    lines = [
        {"image_id": one["of_image"], "annotation_ids": [one["target"]], text_field(one, "simple"): [one["text"]]}
        for one in records
    ]
    return write_lines(folder / "instructions.jsonl", lines).parent


def write_plain_coco(folder, records):
    return write_json(folder / "plain.json", coco_of(records, of_image=True))


def write_official(folder, records):
    data = coco_of(records, of_image=True)
    for image, one in zip(data["images"], records, strict=True):
        image["text_inst_input"] = {"concept": ["cup"], text_field(one, "simple_query"): [one["text"]]}
    return write_json(folder / "official.json", data)


def row_of(one):
    masks = "masks" if one["mask_field"] == "segmentation" else "mask"
    fields = ("file_name", "width", "height")
    return {name: one[name] for name in fields} | {
        text_field(one, "simple"): [one["text"]], masks: [one["segmentation"]], "boxes": [one["bbox"]]
    }  # fmt: skip


def write_jsonl(folder, records):
    return write_lines(folder / "rows.jsonl", [row_of(one) for one in records])


def write_parquet(folder, records):
    columns = sorted({name for one in records for name in row_of(one)})
    rows = [{name: row_of(one).get(name) for name in columns} for one in records]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def refs_of(records, several):
    return [
        {
            "ref_id": one["number"],
            "ann_id": [one["target"]] if several else one["target"],
            "category_id": [one["category"]] if several else one["category"],
            "image_id": one["of_image"],
            "split": "train",
            text_field(one, "sentences"): [{"sent_id": one["number"], "sent": one["text"]}],
        }
        for one in records
    ]


def write_refer(folder, records):
    write_json(folder / "instances.json", coco_of(records))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs_of(records, several=False)))
    return folder


def write_grefcoco(folder, records):
    write_json(folder / "instances.json", coco_of(records))
    write_json(folder / "grefs(unc).json", refs_of(records, several=True))
    return folder


def write_ref_zom(folder, records):
    write_json(folder / "instances.json", coco_of(records))
    refs = [{**ref, "source": "one"} for ref in refs_of(records, several=True)]
    (folder / "Ref-ZOM(final).p").write_bytes(pickle.dumps(refs))
    return folder


def write_refer_coco(folder, records):
    data = coco_of(records, of_image=True)
    for image, one in zip(data["images"], records, strict=True):
        image |= {"original_id": one["number"], text_field(one, "caption"): one["text"], "dataset_name": "refcoco"}
    return write_json(folder / "finetune_refcoco_train.json", data)


def write_mmr(folder, records):
    data = [
        {
            **{name: one[name] for name in ("file_name", "width", "height")},
            "image_id": one["number"],
            text_field(one, "questions"): [one["text"]],
            "answers": [[{"bbox": one["bbox"], one["mask_field"]: one["segmentation"], "category_name": "cup"}]],
        }
        for one in records
    ]
    return write_json(folder / "MMR_train.json", data)


def write_reason_seg(folder, records):
    for one in records:
        points = one["segmentation"]
        if points != DEEP:
            points = [list(pair) for pair in zip(points[0][::2], points[0][1::2], strict=True)]
        shape = {"label": "target", "points" if one["mask_field"] == "segmentation" else "point": points}
        data = {text_field(one, "text"): [one["text"]], "is_sentence": False, "shapes": [shape]}
        write_json(folder / f"{'abc'[one['number'] - 1]}.json", data)
    return folder


# format: (how it is written, what a fault calls its second record, what it has no field for)
NOT_NAMED = {"unknown instance", "instance of another image"}
IDS = NOT_NAMED | {"unknown image", "unknown category"}
FORMATS = {
    "JSON Lines": (write_jsonl, ("line 2", "row 2"), IDS),
    "parquet": (write_parquet, ("row 1", "row 2"), IDS | {"deep JSON"}),
    "COCO with instructions": (write_coco, ("line 2", "row 2", "instances.json: image 2:"), set()),
    "COCO": (write_plain_coco, ("[1] (id 2)", "row 2"), NOT_NAMED | {"no text", "misspelled text"}),
    "official": (write_official, ("[1] (id 2)", "row 2"), NOT_NAMED),
    "RefCOCO": (write_refer, ("refs[1] (ref_id 2)", "row 2"), set()),
    "gRefCOCO": (write_grefcoco, ("refs[1] (ref_id 2)", "row 2"), set()),
    "Ref-ZOM": (write_ref_zom, ("refs[1] (ref_id 2)", "row 2"), set()),
    "MDETR": (write_refer_coco, ("[1] (id 2)", "row 2"), NOT_NAMED),
    "MMR": (write_mmr, ("[1]", "row 2"), IDS),
    "ReasonSeg": (write_reason_seg, ("b.json", "row b"), IDS | {
        "box of another place", "box as corners", "box with x and y swapped", "box in fractions", "other size",
        "path ../..", "absolute path", "remote address",
    }),
}  # fmt: skip


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-200])


def link_out(path):
    path.unlink()
    path.symlink_to(path.parent.parent / "not-yours" / "x.jpg")


def resize(path):
    Image.new("RGB", (WIDTH + 8, HEIGHT), "red").save(path)


# kind: (what changes in the record, what is done to its image, what the line has to say)
KINDS = {
    "box of another place": ({"bbox": [20, 6, 8, 10]}, None, "their IoU is 0.00"),
    "box as corners": ({"bbox": [4, 6, 12, 16]}, None, "looks like corners"),
    "box with x and y swapped": ({"bbox": [6, 4, 10, 8]}, None, r"looks like \[y, x, h, w\]"),
    "box in fractions": ({"bbox": [0.125, 0.25, 0.25, 0.4167]}, None, "looks like fractions"),
    "mask outside": ({"segmentation": [[34, 6, 38, 6, 38, 9, 34, 9]]}, None, "(covers no pixel|outside)"),
    "huge coordinate": ({"segmentation": [[4, 6, 1e9, 6, 12, 16]]}, None, "far outside the image"),
    "misspelled mask": ({"mask_field": "segmentatoin"}, None, "(did you mean|expected a list of|found missing)"),
    "other size": ({}, resize, "40 x 24 pixels"),
    "missing image": ({}, Path.unlink, "(no file|no such file)"),
    "cut-off image": ({}, cut_off, "(?i)(truncated|broken)"),
    "link out of the folder": ({}, link_out, "is a link out of"),
    "path ../..": ({"file_name": "../not-yours/x.jpg"}, None, "leads out of the folders"),
    "absolute path": ({"file_name": "/etc/passwd"}, None, "lies outside"),
    "remote address": ({"file_name": "http://127.0.0.1:9/x.jpg"}, None, "lies outside"),
    "unknown image": ({"of_image": 77}, None, "77"),
    "unknown instance": ({"target": 77}, None, "77"),
    "instance of another image": ({"target": 1}, None, "(expected ids of|expected the image)"),
    "unknown category": ({"category": 99}, None, "found 99, expected the id of a category"),
    "no text": ({"text": " "}, None, "(non-empty|a text in)"),
    "misspelled text": ({"misspelled": True}, None, "(unknown field|missing|no instruction)"),
    "deep JSON": ({"segmentation": DEEP}, None, "(nested too deeply|recursion)"),
}  # fmt: skip


def cells():
    """(format, kind) of every fault that the format has a field for."""
    return [(name, kind) for name, (_, _, lacks) in FORMATS.items() for kind in KINDS if kind not in lacks]


def table():
    """Kinds by formats, as Markdown."""
    lines = ["| | " + " | ".join(FORMATS) + " |", "|---" * (len(FORMATS) + 1) + "|"]
    for kind in KINDS:
        marks = ["fault" if (name, kind) in set(cells()) else "-" for name in FORMATS]
        lines.append(f"| {kind} | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def write_data(tmp_path, name, records):
    folder = tmp_path / "data"
    for place in (folder, tmp_path / "not-yours"):
        place.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "blue").save(tmp_path / "not-yours" / "x.jpg")
    for letter in "abc":
        Image.new("RGB", (WIDTH, HEIGHT), "red").save(folder / f"{letter}.jpg")
    return FORMATS[name][0](folder, records)


def read(path):
    """The rows of a file, its faulty records left out, and the account."""
    options = ReadOptions()
    items = list(iterate_items(*find_source(path), options))
    return [item for item in items if not isinstance(item, RecordFault)], options.account


def validate(path):
    result = CliRunner().invoke(app, ["data", "validate", str(path)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result, result.stdout.splitlines()


@pytest.mark.parametrize("name", FORMATS)
def test_a_right_file_has_no_fault(tmp_path, name):
    result, lines = validate(write_data(tmp_path, name, [record(number) for number in (1, 2, 3)]))
    assert (result.exit_code, lines) == (0, []) and "3 rows kept, 0 records left out, 0 faults" in result.stderr


@pytest.mark.parametrize(("name", "kind"), cells())
def test_one_wrong_record_is_a_line_that_names_it(tmp_path, name, kind):
    changes, spoil, says = KINDS[kind]
    path = write_data(tmp_path, name, [record(1), record(2, **changes), record(3)])
    if spoil is not None:
        spoil(tmp_path / "data" / "b.jpg")
    result, lines = validate(path)
    assert result.exit_code == 1 and lines, result.output
    assert all(line.startswith(f"{tmp_path / 'data'}") and ": found " in line and len(line) < 1000 for line in lines)
    assert any(re.search(says, line) for line in lines), lines
    if kind != "deep JSON":  # where a whole file is one JSON value, what follows cannot be read
        assert any(label in line for line in lines for label in FORMATS[name][1]), lines
        assert "2 rows kept" in result.stderr, result.stderr
    assert all(row["masks"] for row in read(path)[0])  # what is left of the record does not read as no target


# What becomes of the second annotation of three, each of an image of its own.
LOSSES = {
    "an image that is unknown": lambda data: data["annotations"][1].update(image_id=77),
    "no image": lambda data: data["annotations"][1].pop("image_id"),
    "no id": lambda data: data["annotations"][1].pop("id"),
    "the id of another": lambda data: data["annotations"][1].update(id=3),
    "no object": lambda data: data["annotations"].__setitem__(1, "x"),
    "an image id that is used twice": lambda data: data["images"][1].update(id=3),
    "no list": lambda data: data.pop("annotations"),
    "a list that breaks off": lambda data: data["annotations"].__setitem__(2, "BREAK"),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["official", "COCO", "MDETR"])
def test_an_image_that_may_miss_an_annotation_is_left_out_and_never_read_as_no_target(tmp_path, name, loss):
    path = write_data(tmp_path, name, [record(number) for number in (1, 2, 3)])
    data = json.loads(path.read_text())
    data = {"categories": data.pop("categories"), **data}
    LOSSES[loss](data)
    path.write_text(json.dumps(data).replace('"BREAK"', "{"))
    rows, account = read(path)
    images = 1 if loss == "an image id that is used twice" else 3  # nobody knows which of the two is meant
    assert account.faults and all(row["masks"] for row in rows)
    assert len(rows) < 3 and len(rows) + account.left_out[INCOMPLETE] == images


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "ReasonSeg"])
def test_a_file_without_a_record_is_an_error(tmp_path, name):
    path = write_data(tmp_path, name, [])
    result, lines = validate(path)
    assert result.exit_code == 1 and len(lines) == 1 and str(tmp_path / "data") in lines[0], result.output


def test_the_guide_has_this_table():
    assert table() in GUIDE.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())  # noqa: T201
