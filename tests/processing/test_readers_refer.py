# SPDX-License-Identifier: Apache-2.0
"""RefCOCO, gRefCOCO and Ref-ZOM in the layout their interfaces read (github.com/lichengunc/refer and relatives)."""

import collections
import datetime
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from sam3i.processing.datasets.conversion import convert_dataset
from sam3i.processing.datasets.faults import DatasetFormatError, RecordFault, RowAccount
from sam3i.processing.datasets.image_roots import ReadOptions
from sam3i.processing.datasets.loading import detect_format, load_instruction_dataset, read_items
from sam3i.processing.datasets.readers.restricted_pickle import load_plain_pickle
from sam3i.processing.masks import decode_mask

WIDTH, HEIGHT = 32, 24
INSTANCES = {
    "info": {"description": "test"},
    "images": [
        {"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": WIDTH, "height": HEIGHT},
        {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": WIDTH, "height": HEIGHT},
    ],
    "annotations": [
        {
            "id": 1719310,
            "image_id": 581857,
            "category_id": 1,
            "iscrowd": 0,
            "area": 48.0,
            "bbox": [4, 2, 6, 8],
            "segmentation": [[4, 2, 10, 2, 10, 10, 4, 10]],
        },
        {
            "id": 7,
            "image_id": 581857,
            "category_id": 18,
            "iscrowd": 0,
            "area": 16.0,
            "bbox": [20, 12, 4, 4],
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [492, 4, 20, 4, 20, 4, 20, 4, 200]},
        },
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
}
REF = {
    "ref_id": 0,
    "ann_id": 1719310,
    "category_id": 1,
    "image_id": 581857,
    "file_name": "COCO_train2014_000000581857_16.jpg",
    "split": "train",
    "sent_ids": [0, 1],
    "sentences": [
        {"sent_id": 0, "sent": "navy blue shirt", "raw": "navy blue shirt", "tokens": ["navy", "blue", "shirt"]},
        {"sent_id": 1, "sent": "woman à gauche", "raw": "Woman à gauche", "tokens": ["woman", "à", "gauche"]},
    ],
}


def refs(**changes):
    return [REF, {**REF, "ref_id": 1, "ann_id": 7, "category_id": 18, "split": "testA", **changes}]


def write_layout(root, name, refs_name, content, protocol=2):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    if refs_name.endswith(".p"):
        (folder / refs_name).write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        (folder / refs_name).write_text(json.dumps(content))
    images = root / "images" / "mscoco" / "images" / "train2014"
    images.mkdir(parents=True, exist_ok=True)
    for image in INSTANCES["images"]:
        Image.new("RGB", (WIDTH, HEIGHT), (image["id"] % 256, 9, 9)).save(images / image["file_name"])
    return folder


def check_round_trips(dataset, folder, image_root):
    before = list(dataset.remove_columns("image"))
    for format, name in (("official", "o.json"), ("jsonl", "j.jsonl"), ("parquet", "p.parquet")):
        assert convert_dataset(dataset, folder / name, format) == len(before)
        again = load_instruction_dataset(folder / name, image_root=image_root)
        assert sorted(again.remove_columns("image"), key=lambda r: r["row_id"]) == before
        for old, new in zip(dataset, sorted(again, key=lambda r: r["row_id"]), strict=True):
            assert np.array_equal(np.asarray(old["image"]), np.asarray(new["image"]))
            for mask, other in zip(old["masks"], new["masks"], strict=True):
                assert np.array_equal(decode_mask(mask), decode_mask(other))


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_refcoco_family(tmp_path, name):
    folder = write_layout(tmp_path, name, "refs(unc).p", refs())
    assert detect_format(folder) == detect_format(folder / "refs(unc).p") == "refer"
    dataset = load_instruction_dataset(folder)
    first, second = dataset
    assert first["simple"] == ["navy blue shirt", "woman à gauche"] and first["concept"] == ["person"]
    assert (first["target_kind"], first["dataset"], first["split"]) == ("1-to-1", name, "train")
    assert (first["image_id"], first["row_id"], first["annotation_ids"]) == ("581857", "0", [1719310])
    assert first["image"].size == (WIDTH, HEIGHT) and first["boxes"] == [[4, 2, 6, 8]]
    mask = decode_mask(first["masks"][0])
    assert mask[2:10, 4:10].all() and mask.sum() == 48
    assert decode_mask(second["masks"][0])[12:16, 20:24].all()
    assert load_instruction_dataset(folder, split="testA")["row_id"][:] == ["1"]
    images = tmp_path / "images/mscoco/images/train2014"
    check_round_trips(dataset, tmp_path / "out", str(images))


@pytest.mark.parametrize("refs_name", ["grefs(unc).json", "grefs(unc).p"])
def test_grefcoco(tmp_path, refs_name):
    content = refs(ann_id=[1719310, 7], category_id=[1, 18], split="val")
    content[0] = {**content[0], "ann_id": [1719310], "category_id": [1]}
    content.append({**REF, "ref_id": 2, "ann_id": [-1], "category_id": [-1], "no_target": True, "split": "val"})
    folder = write_layout(tmp_path, "grefcoco", refs_name, content)
    dataset = load_instruction_dataset(folder)
    assert dataset["target_kind"][:] == ["1-to-1", "1-to-N", "none"]
    assert dataset["annotation_ids"][:] == [[1719310], [1719310, 7], []]
    assert dataset["concept"][:] == [["person"], ["person", "dog"], []]
    assert dataset[2]["masks"] == [] and dataset[2]["simple"] == REF["sentences"][0]["sent"].split("|") + [
        "woman à gauche"
    ]
    check_round_trips(dataset, tmp_path / "out", str(tmp_path / "images/mscoco/images/train2014"))


@pytest.mark.parametrize("refs_name", ["Ref-ZOM(final).p", "refs(final).p"])
def test_ref_zom(tmp_path, refs_name):
    content = [
        {**REF, "ann_id": [1719310], "source": "one"},
        {**REF, "ref_id": 1, "ann_id": [1719310, 7], "source": "many"},
        {**REF, "ref_id": 2, "ann_id": [7], "source": "zero"},
        {**REF, "ref_id": 3, "ann_id": [], "source": "zero"},
    ]
    folder = write_layout(tmp_path, "ref-zom", refs_name, content)
    dataset = load_instruction_dataset(folder)
    assert dataset["target_kind"][:] == ["1-to-1", "1-to-N", "none", "none"]
    assert [len(masks) for masks in dataset["masks"]] == [1, 2, 0, 0]
    (note,) = [note for note in RowAccount.of(dataset).notes if "'zero'" in note]
    assert RowAccount.of(dataset).notes[note] == 1
    check_round_trips(dataset, tmp_path / "out", str(tmp_path / "images/mscoco/images/train2014"))


def test_several_refs_files_need_a_choice(tmp_path):
    folder = write_layout(tmp_path, "refcocog", "refs(umd).p", refs())
    (folder / "refs(google).p").write_bytes((folder / "refs(umd).p").read_bytes())
    with pytest.raises(DatasetFormatError, match=r"refs\(google\).p, refs\(umd\).p; name one"):
        load_instruction_dataset(folder)
    assert len(load_instruction_dataset(folder / "refs(umd).p")) == 2


def test_mdetr_json(tmp_path):
    data = {
        "info": {},
        "images": [
            {
                "id": n,
                "original_id": 581857,
                "file_name": "COCO_train2014_000000581857.jpg",
                "width": WIDTH,
                "height": HEIGHT,
                "caption": caption,
                "dataset_name": "grefcoco",
                "tokens_negative": [[0, 3]],
            }
            for n, caption in enumerate(("the woman", "both", "the cat"))
        ],
        "annotations": [
            {**INSTANCES["annotations"][0], "id": 0, "image_id": 0, "original_id": 1719310, "empty": False},
            {**INSTANCES["annotations"][0], "id": 1, "image_id": 1, "original_id": 1719310, "empty": False},
            {**INSTANCES["annotations"][1], "id": 2, "image_id": 1, "original_id": 7, "empty": False},
            {
                "id": 3,
                "image_id": 2,
                "original_id": -1,
                "category_id": -1,
                "iscrowd": -1,
                "bbox": [0, 0, 0, 0],
                "empty": True,
            },
        ],
        "categories": INSTANCES["categories"],
    }
    path = tmp_path / "finetune_grefcoco_val.json"
    path.write_text(json.dumps(data))
    images = tmp_path / "train2014"
    images.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "green").save(images / "COCO_train2014_000000581857.jpg")
    assert detect_format(path) == "refer-coco"
    dataset = load_instruction_dataset(path)
    assert dataset["simple"][:] == [["the woman"], ["both"], ["the cat"]]
    assert dataset["target_kind"][:] == ["1-to-1", "1-to-N", "none"]
    assert dataset["annotation_ids"][:] == [[1719310], [1719310, 7], []]
    assert dataset["split"][:] == ["val"] * 3 and dataset["image_id"][:] == ["581857"] * 3
    with pytest.raises(DatasetFormatError, match="no usable row of split 'train'"):
        load_instruction_dataset(path, split="train")
    check_round_trips(dataset, tmp_path / "out", str(images))
    # No target by accident: "false" is its meaning, and a mask contradicts "true".
    first, second = data["annotations"][:2]
    first["empty"], second["empty"] = "false", True
    path.write_text(json.dumps(data))
    items = list(read_items(path, "refer-coco", ReadOptions()))
    assert [item.field for item in items if isinstance(item, RecordFault)] == ["empty"]
    assert [len(item["masks"]) for item in items if not isinstance(item, RecordFault)] == [1, 0]


class Payload:
    def __reduce__(self):
        return (os.system, ("exit 1",))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ([Payload()], r"(posix|nt)\.system"),
        ([np.float64(1.0)], r"numpy.*\.(scalar|dtype|_reconstruct)"),
        ([datetime.date(2020, 1, 1)], r"datetime\.date"),
        ([print], r"(builtins|__builtin__)\.print"),
        ([eval], r"(builtins|__builtin__)\.eval"),
        ([collections.Counter("aab")], r"collections\.Counter"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_with_anything_but_plain_data_are_refused_by_name(tmp_path, content, name, protocol):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(DatasetFormatError, match=f"asks for {name}, which was refused"):
        load_plain_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_are_read(tmp_path, protocol):
    content = [{"a": (1, 2.5, -(10**20)), "b": {"c"}, "d": frozenset([1]), "e": None, "f": True, "g": "é水"}]
    content.append(collections.OrderedDict(x=[1]))
    path = tmp_path / "x.p"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert load_plain_pickle(path) == content


@pytest.mark.parametrize(("raw", "text"), [(b"caf\xc3\xa9", "café"), (b"caf\xe9", "café")])
def test_byte_strings_of_python_2(tmp_path, raw, text):
    # protocol 2: PROTO, EMPTY_LIST, SHORT_BINSTRING (the str of Python 2), APPEND, STOP
    path = tmp_path / "x.p"
    path.write_bytes(b"\x80\x02]U" + bytes([len(raw)]) + raw + b"a.")
    assert load_plain_pickle(path) == [text]


@pytest.mark.parametrize("raw", [b"", b"\x80\x02]", b"garbage", b"\x80\x02]q\x00(K\x01"])
def test_broken_pickles_give_a_message(tmp_path, raw):
    path = tmp_path / "x.p"
    path.write_bytes(raw)
    with pytest.raises(DatasetFormatError, match="x.p"):
        load_plain_pickle(path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"ann_id": 8}, "ann_id"),
        ({"ann_id": "7"}, "ann_id"),
        ({"ann_id": [7, None]}, "ann_id"),
        ({"image_id": 10}, "image_id"),
        ({"split": None}, "split"),
        ({"sentences": []}, "concept/simple/complex"),
        ({"sentences": [{"sent": ""}]}, "sentences[0]"),
        ({"sentences": "text"}, "sentences"),
        ({"ref_id": None}, "ref_id"),
        ({"category_id": 99}, "category_id"),
        ({"image_id": 9}, "ann_id"),
    ],
)
def test_a_faulty_ref_is_named_and_the_others_are_read(tmp_path, changes, field):
    if field == "concept/simple/complex":
        changes = {**changes, "category_id": None}
    folder = write_layout(tmp_path, "refcoco", "refs(unc).p", refs(**changes))
    items = list(read_items(folder, "refer", ReadOptions()))
    faults = [item for item in items if isinstance(item, RecordFault)]
    assert [fault.field for fault in faults] == [field] and faults[0].record.startswith("refs[1]")
    assert [item["row_id"] for item in items if not isinstance(item, RecordFault)] == ["0"]
