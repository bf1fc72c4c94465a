# SPDX-License-Identifier: Apache-2.0
"""Nothing is left out in silence, read from elsewhere, or known by its name alone."""

import gzip
import json
import os
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from sam3i.cli import app
from sam3i.processing.data_engine.scene.sources import CocoSource
from sam3i.processing.datasets.faults import DatasetFormatError, RowAccount
from sam3i.processing.datasets.image_roots import ImageRoots, OutsideRootsError, ReadOptions
from sam3i.processing.datasets.loading import load_instruction_dataset, validate_dataset

WIDTH, HEIGHT = 32, 24
BOX = [4, 6, 8, 10]
SQUARE = [4, 6, 12, 6, 12, 16, 4, 16]
OTHER = [20, 6, 28, 6, 28, 16, 20, 16]


def annotation(**changes):
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "segmentation": [SQUARE], "iscrowd": 0, **changes}


def coco(**changes):
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [annotation()],
        "categories": [{"id": 1, "name": "cup", "supercategory": "kitchen"}],
        **changes,
    }


def line(**changes):
    row = {"file_name": "a.png", "width": WIDTH, "height": HEIGHT, "simple": ["the cup"]}
    return {**row, "masks": [[SQUARE]], "boxes": [BOX], **changes}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(folder / "a.png")
    return folder


def write(folder, data, name="instances.json"):
    path = folder / name
    text = json.dumps(data) if isinstance(data, dict) else "\n".join(json.dumps(one) for one in data)
    path.write_text(text)
    return path


def check(path, *arguments):
    options = ReadOptions(*arguments)
    return list(validate_dataset(path, options=options)), options.account


def run(*arguments):
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    ("field", "meant"), [("simpel", "simple"), ("bboxes", "boxes"), ("mask", "masks"), ("filename", "file_name")]
)
def test_a_misspelled_field_is_a_fault_that_says_what_was_meant(folder, field, meant):
    data = line()
    data[field] = data.pop(meant, ["x"])
    faults, _ = check(write(folder, [data], "a.jsonl"))
    assert any(fault.field == field and meant in fault.expected for fault in faults)


def test_a_misspelled_field_of_an_instruction_or_an_annotation_is_a_fault(folder):
    data = coco(annotations=[annotation(is_crowd=1)])
    del data["annotations"][0]["iscrowd"]
    write(folder, data)
    write(folder, [{"image_id": 1, "annotation_ids": [1], "simpel": ["a"], "complex": ["b"]}], "instructions.jsonl")
    faults, account = check(folder)
    assert [fault.field for fault in faults] == ["simpel"] and account.kept == 0
    faults, _ = check(folder / "instances.json")
    assert [(fault.field, fault.expected) for fault in faults] == [("is_crowd", "did you mean 'iscrowd'?")]


def test_the_category_is_the_concept_only_where_the_target_is_all_of_it(folder):
    two = [annotation(), annotation(id=2, segmentation=[OTHER], bbox=[20, 6, 8, 10])]
    write(folder, coco(annotations=two))
    lines = [{"image_id": 1, "annotation_ids": ids, "simple": ["x"]} for ids in ([1], [1, 2])]
    write(folder, lines, "instructions.jsonl")
    assert load_instruction_dataset(folder)["concept"][:] == [[], ["cup"]]


def test_plain_coco_reads_as_one_concept_row_for_each_category(folder):
    categories = [{"id": 0, "name": "things"}, {"id": 1, "name": "cup", "supercategory": "things"}]
    categories.append({"id": 2, "name": "_background_"})
    annotations = [annotation(), annotation(id=2, category_id=2), annotation(id=3, segmentation=[OTHER], bbox=None)]
    path = write(folder, coco(categories=categories, annotations=annotations))
    account = RowAccount()
    (row,) = load_instruction_dataset(path, account=account)
    assert (row["concept"], row["target_kind"], row["annotation_ids"]) == (["cup"], "1-to-all", [1, 3])
    assert account.left_out == {"annotation whose category is no noun": 1}
    assert RowAccount.of(load_instruction_dataset(path).select([0])) == account


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"segmentation": 5}, ["1-cup", "2-cup", "2-dog"]),
        ({"category_id": 9}, ["1-cup", "1-dog", "2-cup", "2-dog"]),  # a category of its own, whatever it is
        ({"category_id": None}, ["2-cup", "2-dog"]),
        ({"id": 1}, ["2-cup", "2-dog"]),
    ],
)
def test_where_one_dog_cannot_be_read_no_row_says_that_the_others_are_all(folder, change, left):
    images = [{"id": number, "file_name": "a.png", "width": WIDTH, "height": HEIGHT} for number in (1, 2)]
    annotations = [
        annotation(id=10 * image + number, image_id=image, category_id=category)
        for image in (1, 2)
        for number, category in enumerate((1, 2, 2))
    ]
    annotations[2] |= change
    if "id" in change:
        annotations[0]["id"] = 1
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}]
    path = write(folder, coco(images=images, annotations=annotations, categories=categories))
    account = RowAccount()
    rows = load_instruction_dataset(path, skip_faulty=True, account=account)
    assert [f"{row['image_id']}-{row['concept'][0]}" for row in rows] == left
    assert account.num_faults == 1 and (account.left_out.total() > 0 or len(left) == 4)
    if "segmentation" in change:
        assert account.left_out["category of an image with an annotation that has a fault"] == 1
    scene = next(CocoSource(path).scenes())
    complete = {noun for noun in scene.nouns if noun not in scene.partial_nouns}
    assert complete == {row.split("-")[1] for row in left if row.startswith("1")}


@pytest.mark.parametrize(
    ("flag", "crowd", "expected"),
    [
        (1, None, False), (1, "skip", True), ("true", "skip", True), (True, "skip", True), (2, "skip", True),
        ("false", "skip", False), (0, "skip", False), ("0", "skip", False), (None, "skip", False),
    ],
)  # fmt: skip
def test_a_crowd_is_what_the_flag_means(folder, flag, crowd, expected):
    path = write(folder, coco(annotations=[annotation(iscrowd=flag)]))
    account = RowAccount()
    (row,) = load_instruction_dataset(path, crowd=crowd, account=account)
    assert row["is_crowd"] == [expected]
    assert bool(account.notes) == (crowd is None or expected)


def test_a_crowd_of_several_pieces_stays_one(folder):
    path = write(folder, coco(annotations=[annotation(iscrowd=1, segmentation=[SQUARE, OTHER], bbox=None)]))
    (row,) = load_instruction_dataset(path)
    assert row["is_crowd"] == [True] and row["target_kind"] is None


@pytest.mark.parametrize(
    ("box", "word"),
    [
        ([4, 6, 12, 16], "corners"),
        ([8, 11, 8, 10], "center"),
        ([6, 4, 10, 8], "[y, x, h, w]"),
        ([4 / 32, 6 / 24, 8 / 32, 10 / 24], "fractions"),
        ([400 / 32, 600 / 24, 800 / 32, 1000 / 24], "percent"),
        ([20, 6, 8, 10], "IoU is 0.00"),
        ([-9, 6, 21, 10], "outside"),
    ],
)
def test_the_mask_decides_about_the_box(folder, box, word):
    for faults, _ in (
        check(write(folder, coco(annotations=[annotation(bbox=box)]))),
        check(write(folder, [line(boxes=[box])], "a.jsonl")),
    ):
        assert len(faults) == 1 and word in faults[0].found


@pytest.mark.parametrize("box", [[3, 5, 10, 12], [4, 6, 8, 4], [2.4, 4.6, 11, 12], [4, 6, 7, 9]])
def test_loose_and_rounded_boxes_are_no_faults(folder, box):
    assert check(write(folder, coco(annotations=[annotation(bbox=box)])))[0] == []


def test_a_missing_annotations_key_is_a_fault(folder):
    data = coco()
    del data["annotations"]
    assert [fault.field for fault in check(write(folder, data))[0]] == ["annotations"]


def test_faulty_records_are_left_out_when_asked_and_counted(folder):
    path = write(folder, [line(row_id="1"), line(row_id="2", boxes=[[1, 2]]), line(row_id="3")], "a.jsonl")
    with pytest.raises(DatasetFormatError, match=r"line 2: boxes\[0\].* \(1 faults in all"):
        load_instruction_dataset(path)
    account = RowAccount()
    assert len(load_instruction_dataset(path, skip_faulty=True, account=account)) == account.kept == 2
    assert account.num_faults == 1 and account.left_out == {"record with a fault in boxes": 1}
    result = run("convert", path, folder / "b.jsonl", "--skip-faulty")
    assert result.exit_code == 0 and "left out: 1 x record with a fault in boxes" in result.output
    result = run("convert", path, folder / "c.jsonl")
    assert result.exit_code == 1 and not (folder / "c.jsonl").exists() and result.output.count("Error:") == 1


def test_splits_are_counted_and_nothing_left_is_an_error(folder):
    path = write(folder, [line(row_id="1", split="train"), line(row_id="2", split="val")], "a.jsonl")
    account = RowAccount()
    load_instruction_dataset(path, split="val", account=account)
    assert account.kept == 1 and account.left_out == {"not of split 'val'": 1}
    for command in (["validate", path], ["inspect", path], ["convert", path, folder / "x.jsonl"]):
        result = run(*command, "--split", "test")
        assert result.exit_code == 1 and "no usable row" in result.output


def test_an_image_put_in_place_later_is_found(folder):
    path = write(folder, [line(file_name="late.png")], "a.jsonl")
    account = RowAccount()
    assert load_instruction_dataset(path, account=account)[0]["image"] is None
    assert account.notes == {"image not found": 1}
    with pytest.raises(DatasetFormatError, match="no file 'late.png'"):
        load_instruction_dataset(path, check_images=True)
    shutil.copy(folder / "a.png", folder / "late.png")
    assert load_instruction_dataset(path, check_images=True)[0]["image"].size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("happens", ["removed", "another size"])
def test_what_happens_to_an_image_after_its_rows_were_kept_is_noticed(folder, happens):
    path = write(folder, [line()], "a.jsonl")
    for _ in range(2):
        assert len(load_instruction_dataset(path, check_images=True)) == 1
    if happens == "removed":
        (folder / "a.png").unlink()
    else:
        Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "a.png")
    with pytest.raises(DatasetFormatError, match="row 1: image: "):
        load_instruction_dataset(path, check_images=True)


def test_an_image_of_another_size_is_a_fault_of_its_row(folder):
    path = write(folder, [line(), line(file_name="b.png")], "a.jsonl")
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "b.png")
    with pytest.raises(DatasetFormatError, match="row 2: image: found 24 x 32 pixels"):
        load_instruction_dataset(path, check_images=True)
    assert len(load_instruction_dataset(path, check_images=True, skip_faulty=True)) == 1


def test_kept_rows_find_their_images_from_any_working_folder(folder, monkeypatch):
    write(folder, coco())
    for place, path in ((folder.parent, "data/instances.json"), (folder, "instances.json")):
        monkeypatch.chdir(place)
        assert load_instruction_dataset(path)[0]["image"].size == (WIDTH, HEIGHT)
    monkeypatch.chdir(folder.parent.parent)
    assert load_instruction_dataset(folder / "instances.json")[0]["image"].size == (WIDTH, HEIGHT)


def test_rows_are_kept_by_the_content_of_every_file_they_come_from(folder):
    write(folder, coco())
    write(folder, [{"image_id": 1, "annotation_ids": [1], "simple": ["one"]}], "instructions.jsonl")
    assert load_instruction_dataset(folder)["simple"][:] == [["one"]]
    state = os.stat(folder / "instructions.jsonl")
    write(folder, [{"image_id": 1, "annotation_ids": [1], "simple": ["two"]}], "instructions.jsonl")
    os.utime(folder / "instructions.jsonl", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert load_instruction_dataset(folder)["simple"][:] == [["two"]]
    write(folder, coco(annotations=[annotation(segmentation=[OTHER], bbox=None)]))
    assert load_instruction_dataset(folder)[0]["boxes"] == [[20, 6, 8, 10]]


@pytest.mark.parametrize(
    "name",
    [
        "/proc/self/environ", "../secret.png", "x/../../secret.png", "..\\secret.png", "/etc/passwd", "link.png",
        "linked/secret.png", "file:///etc/passwd", "https://example.org/x.png", "\\\\host\\share\\x.png", "a\0.png",
        "C:\\Windows\\win.ini", "//etc/passwd", "./..", "~/x/../../a.png", "", "/", ".",
    ],
)  # fmt: skip
def test_nothing_outside_the_folders_of_the_data_is_opened(folder, tmp_path, name, monkeypatch):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    opened = []
    monkeypatch.setattr("sam3i.processing.datasets.image_roots.read_image", lambda path: opened.append(path))
    faults, account = check(write(folder, [line(file_name=name)], "a.jsonl"))
    assert len(faults) == 1 and account.kept == 0 and opened == []
    result = run("convert", folder / "a.jsonl", tmp_path / "out" / "b.parquet")
    assert result.exit_code == 1 and not (tmp_path / "out" / "b.parquet").exists()


def test_paths_of_other_machines_are_found_by_their_end(folder, tmp_path):
    (folder / "train").mkdir()
    shutil.copy(folder / "a.png", folder / "train" / "a.png")
    for name in ("/home/x/train/a.png", "D:\\x\\train\\a.png", "http://h/y/train/a.png", str(folder / "train/a.png")):
        assert ImageRoots(folder).path(name) == str(folder / "train" / "a.png")
    assert ImageRoots(None, (folder,)).path("train\\a.png") == f"{folder}/train/a.png"
    roots = ImageRoots({"train": folder / "train", "cups": tmp_path})
    assert roots.path("train/a.png") == f"{folder}/train/a.png" and roots.path("data/a.png", "cups")
    with pytest.raises(DatasetFormatError, match="no image root for 'val/a.png'"):
        roots.path("val/a.png")
    with pytest.raises(OutsideRootsError):
        ImageRoots(folder).path("/home/x/absent.png")


def test_a_path_in_a_table_is_looked_for_like_any_other(folder, tmp_path):
    import pyarrow
    import pyarrow.parquet

    row = {"image": {"bytes": None, "path": "/proc/self/environ"}, "width": WIDTH, "height": HEIGHT, "simple": ["x"]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "t.parquet")
    faults, account = check(folder / "t.parquet")
    assert account.kept == 0 and "lies outside" in faults[0].found


def test_a_table_needs_no_more_columns_than_lines_need_fields(folder):
    import pyarrow
    import pyarrow.parquet

    row = {"image": {"bytes": (folder / "a.png").read_bytes(), "path": "a.png"}, "width": WIDTH, "height": HEIGHT}
    row |= {"simple": ["the cup"], "masks": [], "label": 3}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "t.parquet")
    account = RowAccount()
    (loaded,) = load_instruction_dataset(folder / "t.parquet", account=account)
    assert loaded["target_kind"] == "none" and loaded["image"].size == (WIDTH, HEIGHT)
    assert account.notes == {"column 'label' is not used": 1}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**row, "width": 7}]), folder / "t.parquet")
    assert [fault.field for fault in check(folder / "t.parquet")[0]] == ["image"]


def test_a_source_is_never_its_own_target(folder):
    path = write(folder, [line()], "a.jsonl")
    before = path.read_text()
    result = run("convert", path, path)
    assert result.exit_code == 1 and "Error: Expected a target other than the source" in result.output
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["b.jsonl", "b.json", "b.parquet"])
def test_what_is_converted_is_read_back_where_it_lies(folder, tmp_path, name):
    path = write(folder, [line(row_id="1")], "a.jsonl")
    assert run("convert", path, tmp_path / "out" / name).exit_code == 0
    shutil.rmtree(folder)
    result = run("validate", tmp_path / "out" / name)
    assert result.exit_code == 0, result.output
    assert load_instruction_dataset(tmp_path / "out")[0]["image"].size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["a.ndjson", "a.jsonl.gz"])
def test_lines_by_other_names(folder, name):
    text = (json.dumps(line()) + "\n").encode()
    (folder / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert check(folder / name)[1].kept == 1


def test_a_cut_off_gzip_file_is_a_fault(folder):
    (folder / "a.jsonl.gz").write_bytes(gzip.compress((json.dumps(line()) + "\n").encode() * 50)[:60])
    assert "gzip" in check(folder / "a.jsonl.gz")[0][-1].expected


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.zip", "PK", "archive"),
        ("a.json.gz", "x", "archive"),
        ("a.json", '{"shapes": [], "imagePath": "a.png"}', "labelme"),
        ("a.json", '{"categories": {"label": 1}, "items": [], "media_type": 2}', "datumaro"),
        ("a.xml", "<annotations><image ", "CVAT"),
    ],
)
def test_files_of_other_tools_are_refused_by_name(tmp_path, name, content, word):
    (tmp_path / name).write_text(content)
    result = run("validate", tmp_path / name)
    assert result.exit_code == 1 and word in result.output


def test_a_roboflow_folder_is_read_as_it_lies(folder):
    write(folder, coco(), "_annotations.coco.json")
    assert load_instruction_dataset(folder)["concept"][:] == [["cup"]]


def nested(depth):
    return "[" * depth + "]" * depth


HOSTILE = {
    "far polygon": {"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]},
    "wide polygon": {"segmentation": [[0, 0, 1e7, 0, 1e7, 1e7]]},
    "huge number": {"segmentation": [[10**400, 0, 5, 0, 5, 5]]},
    "infinite": {"segmentation": [[float("inf"), 0, 5, 0, 5, 5]]},
    "text in polygon": {"segmentation": [["4", 0, 5, 0, 5, 5]]},
    "bool in polygon": {"segmentation": [[True, 0, 5, 0, 5, 5]]},
    "zigzag": {"segmentation": [[0, 0, WIDTH, HEIGHT] * 200_000]},
    "huge box": {"bbox": [10**400, 0, 5, 5]},
    "negative runs": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]}},
    "huge runs": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [10**30]}},
    "counts of lists": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [[1]]}},
    "cut counts": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "o"}},
    "long counts": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "o" * 100_000}},
    "alien counts": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "\u00e9\ud800"}},
    "negative run": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "O0"}},
    "size of lists": {"segmentation": {"size": [[1], [2]], "counts": "0"}},
    "size of text": {"segmentation": {"size": ["a", "b"], "counts": "0"}},
    "null counts": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": None}},
    "number as mask": {"segmentation": 5},
    "object as box": {"bbox": {"x": 1}},
    "flag as list": {"iscrowd": [1]},
    "flag as NaN": {"iscrowd": float("nan")},
    "area as object": {"area": {}},
    "category as list": {"category_id": [1]},
    "category as huge": {"category_id": 10**30},
    "id as list": {"id": [1]},
    "image as null": {"image_id": None},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_annotations_are_one_line_each(folder, name):
    images = [*coco()["images"], {"id": 2, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}]
    annotations = [annotation(**HOSTILE[name]), annotation(id=2), annotation(id=3, image_id=2)]
    path = write(folder, coco(images=images, annotations=annotations))
    result = run("validate", path)
    assert result.exit_code == 1
    faults = [text for text in result.stdout.splitlines() if text.strip()]
    assert 1 <= len(faults) <= 2 and all(len(text) < 700 for text in faults)
    left = load_instruction_dataset(path, skip_faulty=True)["image_id"][:]
    assert left == (["1", "2"] if name == "image as null" else ["2"])


@pytest.mark.parametrize(
    "change", [{"width": 10**30}, {"width": 1 << 20, "height": 1 << 20}, {"height": float("nan")}]
)
def test_hostile_sizes(folder, change):
    data = coco()
    data["images"][0].update(change)
    assert run("validate", write(folder, data)).exit_code == 1


TEXTS = {
    "deep": '{"images": [' + nested(100_000) + "]}",
    "deep inside": '{"images": [], "annotations": [{"id": 1, "image_id": 1, "bbox": ' + nested(900) + "}]}",
    "digits": '{"images": [{"id": ' + "9" * 5000 + "}]}",
    "key as number": "{1: 2}",
    "twice": '{"images": []}{"images": []}',
    "nothing": "",
    "zeros": "\0" * 64,
    "text": "hello",
    "null": "null",
    "open": '{"images": [{"id": 1, "file_name": "',
    "literals": '{"images": [NaN, Infinity], "annotations": [-Infinity], "categories": [null]}',
    "surrogate": '{"images": [{"id": 1, "file_name": "\\ud800"}], "annotations": [], "categories": []}',
    "categories as object": '{"images": [], "annotations": [], "categories": {"1": "cup"}}',
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("format", ["auto", "coco", "official", "refer-coco", "mmr", "jsonl"])
def test_hostile_json_is_named(folder, name, format):
    path = folder / ("a.jsonl" if format == "jsonl" else "a.json")
    path.write_text(TEXTS[name])
    result = run("validate", path, "--format", format)
    assert result.exit_code == 1 and result.stdout.strip()
    assert all(len(text) < 700 for text in result.stdout.splitlines())


def test_hostile_texts_of_rows(folder):
    texts = ["\ud800", "\ufffd", "", " ", None, 5, [], "x\ud800"]
    path = write(folder, [line(row_id=str(n), simple=[text]) for n, text in enumerate(texts)], "a.jsonl")
    faults, account = check(path)
    assert account.kept == 0 and [fault.field for fault in faults] == ["simple[0]"] * len(texts)


def test_a_decompression_bomb_is_a_fault_of_its_row(folder):
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    path = write(folder, [line(file_name="bomb.png"), line()], "a.jsonl")
    faults, account = check(path)
    assert len(faults) == 1 and account.kept == 1


def test_reason_seg_points_far_outside_are_faults_at_once(folder):
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "x.jpg")
    shapes = [{"label": "target", "points": [[0, 0], [1e9, 5], [5, 1e9]]}]
    write(folder, {"text": ["what"], "is_sentence": True, "shapes": shapes}, "x.json")
    faults, _ = check(folder)
    assert [fault.field for fault in faults] == ["shapes.points"]
