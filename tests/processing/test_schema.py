# SPDX-License-Identifier: Apache-2.0
import copy

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from sam3i.processing.datasets.schema import ROW_FIELDS, make_row, row_features, validate_row
from sam3i.processing.masks import (
    box_of_rle,
    decode_box,
    decode_mask,
    decode_masks,
    encode_mask,
    rle_area,
    run_lengths,
    segmentation_to_rle,
    union_mask,
)

HEIGHT, WIDTH = 12, 20


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def good_row(**changes):
    masks = [encode_mask(rectangle(2, 3, 6, 9)), encode_mask(rectangle(7, 10, 10, 15))]
    row = make_row(
        image=None,
        width=WIDTH,
        height=HEIGHT,
        row_id=5,
        image_id="img",
        masks=masks,
        boxes=[box_of_rle(mask) for mask in masks],
        concept=["cup"],
        simple=["the cups on the left"],
        complex=["what one drinks from"],
        target_kind="1-to-N",
        annotation_ids=[4, 9],
        file_name="a/b.jpg",
        dataset="own",
        split="train",
    )
    row.update(changes)
    return row


@pytest.mark.parametrize("seed", range(5))
def test_every_encoding_gives_the_same_mask(seed):
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) > 0.6
    rle = encode_mask(mask)
    runs = run_lengths(rle["counts"])
    assert sum(runs) == HEIGHT * WIDTH and rle_area(rle) == mask.sum() == sum(runs[1::2])
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": runs}
    for segmentation in (rle, uncompressed, {**rle, "counts": rle["counts"].encode()}):
        converted = segmentation_to_rle(segmentation, HEIGHT, WIDTH)
        assert converted == rle
        assert np.array_equal(decode_mask(converted), mask)


def test_the_box_of_a_mask_is_decoded_alone():
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:9, 4:11] = np.random.default_rng(0).random((6, 7)) > 0.4
    mask[3, 5] = mask[8, 6] = mask[5, 4] = mask[5, 10] = True
    top, left, block = decode_box(encode_mask(mask))
    assert (top, left) == (3, 4) and np.array_equal(block, mask[3:9, 4:11])
    assert decode_box(encode_mask(np.zeros_like(mask)))[2].size == 0
    assert decode_box(encode_mask(np.ones_like(mask)))[2].all()
    with pytest.raises(ValueError, match="the image has"):
        decode_box({"size": [HEIGHT, WIDTH + 1], "counts": encode_mask(mask)["counts"]})


def test_polygons_of_one_annotation_are_merged():
    polygons = [[3, 2, 9, 2, 9, 6, 3, 6], [10, 7, 15, 7, 15, 10, 10, 10]]
    rle = segmentation_to_rle(polygons, HEIGHT, WIDTH)
    assert np.array_equal(decode_mask(rle), rectangle(2, 3, 6, 9) | rectangle(7, 10, 10, 15))


def test_empty_masks():
    assert segmentation_to_rle([], HEIGHT, WIDTH) is None and segmentation_to_rle(None, HEIGHT, WIDTH) is None
    empty = {"size": [HEIGHT, WIDTH], "counts": ""}
    assert segmentation_to_rle(empty, HEIGHT, WIDTH) == empty
    assert not decode_mask(empty).any() and rle_area(empty) == 0 and box_of_rle(empty) == [0, 0, 0, 0]
    assert decode_masks([], HEIGHT, WIDTH).shape == (0, HEIGHT, WIDTH)


def test_union():
    masks = [encode_mask(rectangle(0, 0, 3, 3)), encode_mask(rectangle(2, 2, 5, 5))]
    assert np.array_equal(union_mask(masks, HEIGHT, WIDTH), rectangle(0, 0, 3, 3) | rectangle(2, 2, 5, 5))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "at least 6 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ({"size": [HEIGHT, WIDTH], "counts": [10]}, "does not fit"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}, "whole numbers >= 0"),
        ({"size": [WIDTH, HEIGHT], "counts": "0"}, "is not \\[height, width\\]"),
        ({"size": [HEIGHT, WIDTH], "counts": "\x00"}, "no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "P"}, "no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "P" * 20 + "0"}, "no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "O"}, "negative length -1"),
        ({"counts": "1"}, "needs size"),
        ("text", "list of polygons"),
    ],
)
def test_bad_segmentations_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        segmentation_to_rle(segmentation, HEIGHT, WIDTH)


def test_rows_survive_datasets_unchanged():
    rows = [good_row(), good_row(masks=[], boxes=[], is_crowd=[], annotation_ids=[], target_kind="none")]
    rows.append(good_row(masks=[None, rows[0]["masks"][1]], ignore_masks=rows[0]["masks"][:1], split=None))
    assert [list(validate_row(row)) for row in rows] == [[], [], []]
    dataset = Dataset.from_list(copy.deepcopy(rows), features=row_features())
    assert list(dataset) == rows
    assert tuple(dataset.column_names) == ROW_FIELDS


def test_images_are_decoded_only_when_read(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(tmp_path / "here.png")
    rows = [good_row(image=str(tmp_path / name)) for name in ("here.png", "absent.png")]
    dataset = Dataset.from_list(rows, features=row_features())
    assert dataset[0]["image"].getpixel((0, 0)) == (255, 0, 0)
    assert dataset.remove_columns("image")[1]["simple"] == ["the cups on the left"]
    with pytest.raises(FileNotFoundError):
        dataset[1]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"width": 0}, "width"),
        ({"height": "12"}, "height"),
        ({"simple": "no list"}, "simple"),
        ({"simple": [" "]}, "simple[0]"),
        ({"complex": [None]}, "complex[0]"),
        ({"concept": [], "simple": [], "complex": []}, "concept/simple/complex"),
        ({"masks": None}, "masks"),
        ({"masks": [{"size": [1, 1], "counts": "1"}, None]}, "masks[0]"),
        ({"ignore_masks": [None]}, "ignore_masks[0]"),
        ({"boxes": [[3, 2, 6, 4]]}, "boxes"),
        ({"boxes": [[0, 0, 1], [10, 7, 5, 3]]}, "boxes[0]"),
        ({"boxes": [[3, 2, 6, 4], [15, 2, 9, 2]]}, "boxes[1]"),
        ({"boxes": [[0, 0, -1, 1], [10, 7, 5, 3]]}, "boxes[0]"),
        ({"boxes": [[3, 2, 6, 4], [10, 7, 15, 10]]}, "boxes[1]"),
        ({"boxes": [[3, 2, 6, 4], [0.5, 0.58, 0.25, 0.25]]}, "boxes[1]"),
        ({"boxes": [[3, 2, 6, 4], [3, 2, 6, 4]]}, "boxes[1]"),
        ({"masks": [encode_mask(rectangle(2, 3, 6, 9)), encode_mask(rectangle(0, 0, 0, 0))]}, "masks[1]"),
        ({"is_crowd": [False]}, "is_crowd"),
        ({"annotation_ids": [1]}, "annotation_ids"),
        ({"annotation_ids": [1, "2"]}, "annotation_ids[1]"),
        ({"target_kind": "one"}, "target_kind"),
        ({"target_kind": "none"}, "target_kind"),
        ({"target_kind": "1-to-1"}, "target_kind"),
        ({"row_id": 5}, "row_id"),
        ({"image_id": ""}, "image_id"),
        ({"dataset": None}, "dataset"),
        ({"split": 1}, "split"),
    ],
)
def test_each_fault_is_named(change, field):
    assert [fault.field for fault in validate_row(good_row(**change))] == [field]


@pytest.mark.parametrize("field", ROW_FIELDS)
def test_a_missing_field_is_named(field):
    row = good_row()
    del row[field]
    assert field in [fault.field for fault in validate_row(row)]


def test_a_row_that_is_no_object():
    assert [fault.field for fault in validate_row([1, 2])] == ["(row)"]
