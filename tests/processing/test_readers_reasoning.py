# SPDX-License-Identifier: Apache-2.0
"""ReasonSeg (github.com/dvlab-research/LISA) and MMR (github.com/jdg900/MMR) in their published layouts."""

import json

import numpy as np
import pytest
from PIL import Image

from sam3i.processing.datasets.conversion import convert_dataset
from sam3i.processing.datasets.faults import DatasetFormatError, RecordFault
from sam3i.processing.datasets.image_roots import ReadOptions
from sam3i.processing.datasets.loading import detect_format, load_instruction_dataset, read_items
from sam3i.processing.datasets.readers.reasonseg import fill_polygon
from sam3i.processing.masks import decode_mask, decode_masks, encode_mask

WIDTH, HEIGHT = 40, 30


def square(left, top, side):
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]


def painted(left, top, side):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + side + 1, left : left + side + 1] = True
    return mask


@pytest.fixture
def reason_seg(tmp_path):
    """A split folder: overlapping targets, an ignore region above and one below them, an obsolete flag."""
    folder = tmp_path / "ReasonSeg" / "val"
    folder.mkdir(parents=True)
    files = {
        "1_a": {
            "text": ["the thing to sit on", "Where would a tired person rest?"],
            "is_sentence": True,
            "shapes": [
                {"label": "target", "labels": ["target"], "shape_type": "polygon", "points": square(5, 5, 10)},
                {"label": "target", "points": square(12, 5, 6)},
                {"label": "ignore", "points": square(5, 5, 4)},
                {"label": "Ignore2", "points": square(2, 2, 20)},
                {"label": "flag", "points": [[0, 0]]},
            ],
        },
        "2_b": {"text": ["a dragon"], "is_sentence": False, "shapes": []},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
        Image.new("RGB", (WIDTH, HEIGHT), "white").save(folder / f"{name}.jpg")
    (folder / "3_c.json").write_bytes('{"text": ["café"], "is_sentence": false, "shapes": []}'.encode("cp1252"))
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "3_c.jpg")
    return tmp_path / "ReasonSeg"


def test_reason_seg(reason_seg):
    assert detect_format(reason_seg) == detect_format(reason_seg / "val") == "reasonseg"
    row, empty, latin = load_instruction_dataset(reason_seg)
    assert row["complex"] == ["the thing to sit on", "Where would a tired person rest?"] and row["simple"] == []
    assert (row["split"], row["row_id"], row["dataset"], row["target_kind"]) == ("val", "1_a", "reasonseg", None)
    assert (empty["target_kind"], empty["masks"], latin["complex"]) == ("none", [], ["café"])
    # From large to small: Ignore2, the first target, the second target, the small ignore.
    union = decode_masks(row["masks"], HEIGHT, WIDTH).any(0)
    ignored = decode_masks(row["ignore_masks"], HEIGHT, WIDTH).any(0)
    small = painted(5, 5, 4)
    target = (painted(5, 5, 10) | painted(12, 5, 6)) & ~small
    assert np.array_equal(union, target)
    assert np.array_equal(ignored, (painted(2, 2, 20) & ~target) | small)
    assert len(row["masks"]) == 2 and row["boxes"][0] == [5, 5, 11, 11] and row["boxes"][1] == [12, 5, 7, 7]


def test_reason_seg_round_trip(reason_seg, tmp_path):
    dataset = load_instruction_dataset(reason_seg, split="val")
    before = list(dataset.remove_columns("image"))
    for format, name in (("official", "o.json"), ("jsonl", "j.jsonl"), ("parquet", "p.parquet")):
        convert_dataset(dataset, tmp_path / "out" / name, format)
        again = load_instruction_dataset(tmp_path / "out" / name, image_root=reason_seg / "val")
        assert sorted(again.remove_columns("image"), key=lambda r: r["row_id"]) == before
        assert all(row["image"].size == (WIDTH, HEIGHT) for row in again)


def test_reason_seg_split_that_is_not_there(reason_seg):
    with pytest.raises(DatasetFormatError, match="no usable row of split 'test'"):
        load_instruction_dataset(reason_seg, split="test")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": []}, "concept/simple/complex"),
        ({"text": "one"}, "text"),
        ({"text": ["a", 3]}, "text[1]"),
        ({"shapes": None}, "shapes"),
        ({"shapes": [{"label": "target", "points": [[1]]}]}, "shapes.points"),
        ({"shapes": [{"points": [[1, 2]]}]}, "shapes"),
    ],
)
def test_reason_seg_faults(reason_seg, change, field):
    file = reason_seg / "val" / "1_a.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    items = list(read_items(reason_seg, "reasonseg", ReadOptions()))
    faults = [item for item in items if isinstance(item, RecordFault)]
    assert [(fault.file, fault.field) for fault in faults] == [(str(file), field)]
    assert len(items) - len(faults) == 2


# Drawn by OpenCV 5.0 (polylines + fillPoly) on 16 x 20 pixels.
@pytest.mark.parametrize(
    ("points", "counts"),
    [
        ([[3.7, 2.2], [16.1, 1.0], [11.9, 9.8], [5.0, 14.5]], "b14<6J3MO1O100O001O1O1N2N2O1Na1"),
        ([[1, 1], [18, 13], [18, 1], [1, 13]], "a0=4N101N2N2N101N2N10O2N2O0O2N2N2O0O2>"),
        ([[7, 7]], "g31X6"),
        ([[2, 3], [15, 3]], "S11?0000000000000000000000000m1"),
    ],
)
def test_polygons_are_drawn_as_opencv_draws_them(points, counts):
    assert encode_mask(fill_polygon(points, 16, 20))["counts"] == counts


def mmr_picture(**changes):
    masks = [painted(3, 3, 5), painted(20, 10, 8)]
    annotations = [
        {
            "bbox": [3.0, 3.0, 6.0, 6.0],
            "segmentation": encode_mask(masks[0]),
            "image_id": 77,
            "category_name": "trash_can:rim",
            "category_id": 4,
            "sorted_category_id": 2,
        },
        {"bbox": [20, 10, 9, 9], "segmentation": encode_mask(masks[1]), "image_id": 77, "category_name": "mug"},
    ]
    return {
        "file_name": "train2017/000000000077.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 77,
        "not_exhaustive_category_ids": [],
        "neg_category_ids": [3],
        "coco_url": "http://images.cocodataset.org/train2017/000000000077.jpg",
        "questions": ["What keeps the lid?", "Which things hold something?"],
        "annotations": annotations,
        "answers": [annotations[:1], annotations],
        "text_answers": ["The {seg}.", "{seg} and {seg}."],
        "raw_answers": ["...", "..."],
        **changes,
    }


def test_mmr(tmp_path):
    path = tmp_path / "MMR_test_mixed.json"
    path.write_text(json.dumps([mmr_picture()]))
    images = tmp_path / "coco" / "train2017"
    images.mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT), "yellow").save(images / "000000000077.jpg")
    assert detect_format(path) == "mmr"
    dataset = load_instruction_dataset(path, image_root=tmp_path / "coco")
    part, both = dataset
    assert part["complex"] == ["What keeps the lid?"] and part["concept"] == ["trash can rim"]
    assert (part["row_id"], part["image_id"], part["split"]) == ("77-0", "77", "test_mixed")
    assert (part["target_kind"], both["target_kind"], both["concept"]) == ("1-to-1", "1-to-N", [])
    assert np.array_equal(decode_mask(both["masks"][1]), painted(20, 10, 8)) and part["image"].size == (WIDTH, HEIGHT)
    before = list(dataset.remove_columns("image"))
    for format, name in (("official", "o.json"), ("jsonl", "j.jsonl"), ("parquet", "p.parquet")):
        convert_dataset(dataset, tmp_path / "out" / name, format)
        again = load_instruction_dataset(tmp_path / "out" / name, image_root=tmp_path / "coco")
        assert list(again.remove_columns("image")) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"answers": [[]]}, "answers"),
        ({"questions": [" ", "b"]}, "questions[0]"),
        ({"answers": [[], None]}, "answers[1]"),
        ({"answers": [[{"bbox": [0, 0, 1, 1], "segmentation": {"size": [1, 1], "counts": "1"}}], []]}, "segmentation"),
        ({"answers": [[7], []]}, "(record)"),
        ({"height": 0}, "height"),
        ({"file_name": None}, "file_name"),
    ],
)
def test_mmr_faults(tmp_path, change, field):
    path = tmp_path / "MMR_val.json"
    path.write_text(json.dumps([mmr_picture(**change), mmr_picture(image_id=78)]))
    items = list(read_items(path, "mmr", ReadOptions()))
    faults = [item for item in items if isinstance(item, RecordFault)]
    assert [fault.field for fault in faults] == [field] and "[0]" in faults[0].record
    assert {"78-0", "78-1"} <= {item["row_id"] for item in items if not isinstance(item, RecordFault)}
