# SPDX-License-Identifier: Apache-2.0
"""COCO with an instruction file, JSON Lines, parquet, saved datasets and Hub repositories."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from sam3i.processing.datasets import loading
from sam3i.processing.datasets.conversion import convert_dataset, push_to_hub
from sam3i.processing.datasets.faults import DatasetFormatError
from sam3i.processing.datasets.loading import detect_format, load_instruction_dataset
from sam3i.processing.datasets.schema import make_row, row_features
from sam3i.processing.masks import decode_mask, encode_mask

WIDTH, HEIGHT = 16, 12


def block(left):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2:6, left : left + 3] = True
    return mask


def rows(count=4):
    """Rows with their pictures inside, as a generator of synthetic data has them."""
    made = []
    for number in range(count):
        masks = [encode_mask(block(2 + 4 * k)) for k in range(number % 3)]
        made.append(
            make_row(
                image=Image.new("RGB", (WIDTH, HEIGHT), (50 * number, 0, 100)),
                width=WIDTH,
                height=HEIGHT,
                row_id=f"r{number}",
                image_id=f"i{number}",
                masks=masks,
                boxes=[[2 + 4 * k, 2, 3, 4] for k in range(number % 3)],
                concept=["block"],
                simple=[f"block {number}"],
                complex=["what one builds with"],
                target_kind=("none", "1-to-1", "1-to-N")[number % 3],
                dataset="blocks",
                split="train" if number < 3 else "val",
            )
        )
    return made


@pytest.fixture
def coco_folder(tmp_path):
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(folder / "images" / "a.png")
    instances = {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            {
                "id": 5,
                "image_id": 1,
                "category_id": 2,
                "bbox": [2, 2, 3, 4],
                "iscrowd": 0,
                "segmentation": encode_mask(block(2)),
            },
            {
                "id": 6,
                "image_id": 1,
                "category_id": 2,
                "bbox": [6, 2, 3, 4],
                "iscrowd": 0,
                "segmentation": [[6, 2, 9, 2, 9, 6, 6, 6]],
            },
        ],
        "categories": [{"id": 2, "name": "block"}],
    }
    (folder / "instances_train.json").write_text(json.dumps(instances))
    lines = [
        {"image_id": 1, "annotation_ids": [6], "simple": ["the right block"], "target_kind": "1-to-1"},
        {"image_id": 1, "annotation_ids": [], "simple": ["the ball"], "concept": ["ball"], "split": "val"},
        {"image_id": 1, "annotation_ids": [5, 6], "complex": ["what one builds with"], "row_id": "all"},
    ]
    (folder / "instructions.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return folder


def test_coco_with_an_instruction_file(coco_folder, tmp_path):
    assert detect_format(coco_folder) == detect_format(coco_folder / "instructions.jsonl") == "coco"
    dataset = load_instruction_dataset(coco_folder)
    one, none, several = dataset
    assert (one["concept"], one["annotation_ids"], one["row_id"]) == ([], [6], "1")
    assert np.array_equal(decode_mask(one["masks"][0]), block(6)) and one["image"].size == (WIDTH, HEIGHT)
    assert (none["target_kind"], none["masks"], none["concept"]) == ("none", [], ["ball"])
    assert (several["target_kind"], several["concept"], len(several["masks"])) == (None, ["block"], 2)
    assert load_instruction_dataset(coco_folder, split="val")["row_id"][:] == ["2"]
    before = list(dataset.remove_columns("image"))
    for format, name in (("official", "o.json"), ("jsonl", "j.jsonl"), ("parquet", "p.parquet")):
        convert_dataset(dataset, tmp_path / "out" / name, format)
        again = load_instruction_dataset(tmp_path / "out" / name, image_root=coco_folder / "images")
        assert sorted(again.remove_columns("image"), key=lambda r: r["row_id"]) == before


@pytest.mark.parametrize(("format", "name"), [("official", "o.json"), ("jsonl", "j.jsonl"), ("parquet", "p.parquet")])
@pytest.mark.parametrize("source", ["list", "dataset"])
def test_pictures_held_in_rows_travel_with_them(tmp_path, format, name, source):
    made = rows()
    data = made if source == "list" else Dataset.from_list(made, features=row_features())
    convert_dataset(data, tmp_path / name, format)
    again = sorted(load_instruction_dataset(tmp_path / name), key=lambda row: row["row_id"])
    for old, new in zip(made, again, strict=True):
        assert np.array_equal(np.asarray(old["image"]), np.asarray(new["image"]))
        assert {k: v for k, v in old.items() if k not in ("image", "file_name")} == {
            k: v for k, v in new.items() if k not in ("image", "file_name")
        }


def test_a_minimal_line_is_enough(tmp_path):
    line = {"file_name": "x.png", "width": WIDTH, "height": HEIGHT, "simple": ["the block"]}
    polygons = [[[2, 2, 5, 2, 5, 6, 2, 6]]]
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({**line, "masks": polygons}) + "\n\n" + json.dumps({**line, "masks": []}) + "\n")
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(tmp_path / "x.png")
    first, second = load_instruction_dataset(path)
    assert np.array_equal(decode_mask(first["masks"][0]), block(2)) and first["boxes"] == [[2, 2, 3, 4]]
    assert (first["row_id"], second["row_id"], first["image_id"], first["dataset"]) == ("1", "3", "x.png", "mine")
    assert (first["target_kind"], second["target_kind"], first["image"].size) == (None, "none", (WIDTH, HEIGHT))
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(DatasetFormatError, match=r"masks: found missing.*\[\] where the instruction denotes nothing"):
        load_instruction_dataset(path)


def test_saved_and_split_datasets(tmp_path):
    dataset = Dataset.from_list(rows(), features=row_features())
    dataset.save_to_disk(tmp_path / "saved")
    assert detect_format(tmp_path / "saved") == "arrow"
    assert load_instruction_dataset(tmp_path / "saved")["row_id"][:] == ["r0", "r1", "r2", "r3"]
    assert load_instruction_dataset(tmp_path / "saved", split="val")["row_id"][:] == ["r3"]
    convert_dataset(dataset, tmp_path / "tables" / "a.parquet", "parquet")
    assert detect_format(tmp_path / "tables") == "parquet"
    streamed = load_instruction_dataset(tmp_path / "tables", split="train", streaming=True)
    assert [row["row_id"] for row in streamed] == ["r0", "r1", "r2"]


def test_hub_repositories(tmp_path, monkeypatch):
    """What is pushed is what is read; the two calls of `datasets` that need a network are replaced by a folder."""
    import datasets

    pushed = {}
    monkeypatch.setattr(DatasetDict, "push_to_hub", lambda self, repo, private: pushed.update({repo: (self, private)}))
    monkeypatch.setattr(datasets, "load_dataset", lambda repo, streaming: pushed[repo][0])
    push_to_hub(Dataset.from_list(rows(), features=row_features()), "me/blocks", private=True)
    assert pushed["me/blocks"][1] and sorted(pushed["me/blocks"][0]) == ["train", "val"]
    assert detect_format("me/blocks") == "hub"
    assert load_instruction_dataset("me/blocks")["row_id"][:] == ["r0", "r1", "r2", "r3"]
    assert load_instruction_dataset("me/blocks", split="val")["row_id"][:] == ["r3"]


def test_tables_without_the_columns_are_refused(tmp_path):
    Dataset.from_dict({"image": [1], "text": ["a"]}).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(DatasetFormatError, match="lacks the columns file_name, width"):
        load_instruction_dataset(tmp_path / "a.parquet")


def test_every_reader_is_listed_among_the_formats():
    assert set(loading.READERS) < set(loading.FORMATS) and loading.FORMATS[0] == "auto"
