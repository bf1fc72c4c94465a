# SPDX-License-Identifier: Apache-2.0
"""Any row that validates goes to each format and back equal; any change of a field is refused or read the same."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from sam3i.processing.datasets.conversion import convert_dataset
from sam3i.processing.datasets.faults import RecordFault
from sam3i.processing.datasets.image_roots import ReadOptions
from sam3i.processing.datasets.loading import find_source, read_items
from sam3i.processing.datasets.schema import ROW_FIELDS, make_row, row_features, validate_row
from sam3i.processing.masks import box_of_rle, encode_mask
from sam3i.trainer.collator import usable_rows
from sam3i.trainer.evaluation.evaluate import evaluate_model

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
texts = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda t: t.strip() and "\ufffd" not in t), max_size=2
)
sides = st.integers(3, 24)


@st.composite
def rows(draw):
    width, height = draw(sides), draw(sides)
    masks, boxes = [], []
    for _ in range(draw(st.integers(0, 3))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = True
        masks.append(encode_mask(mask) if draw(st.integers(0, 4)) or width < 8 else None)
        box = [float(left), float(top), float(right - left), float(bottom - top)]
        boxes.append(box if masks[-1] is None else box_of_rle(masks[-1]))
    count = len(masks)
    kinds = ["none"] if not count else ["1-to-1", "1-to-all", None] if count == 1 else ["1-to-N", "1-to-all", None]
    levels = {level: draw(texts) for level in ("concept", "simple", "complex")}
    levels["simple"] = levels["simple"] if any(levels.values()) else ["it"]
    return make_row(
        image=Image.new("RGB", (width, height), draw(st.sampled_from(["red", "blue"]))),
        width=width,
        height=height,
        row_id=draw(st.text("abc1", min_size=1)),
        image_id="i",
        masks=masks,
        boxes=boxes,
        is_crowd=[draw(st.booleans()) for _ in masks],
        annotation_ids=list(range(count)) if draw(st.booleans()) else [],
        target_kind=draw(st.sampled_from(kinds)),
        dataset="own",
        split=draw(st.sampled_from([None, "train"])),
        **levels,
    )


def read(path):
    return list(read_items(*find_source(path), ReadOptions()))


def without_image(row):
    return {name: value for name, value in row.items() if name not in ("image", "file_name")}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_row_that_validates_comes_back_equal(name):
    @QUICK
    @given(rows())
    def check(row):
        assert list(validate_row(row)) == []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            assert convert_dataset([row], path, {".json": "official"}.get(path.suffix, path.suffix[1:])) == 1
            (again,) = read(path)
            assert not isinstance(again, RecordFault), again
            assert without_image(again) == without_image(row)

    check()


@pytest.mark.slow
def test_rows_that_validate_train_two_steps_and_evaluate(tmp_path_factory, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "trainer")
    from training_fixtures import tiny_processor, tiny_trainer

    @settings(QUICK, max_examples=3)
    @given(st.lists(rows(), min_size=4, max_size=6))
    def check(found):
        for number, row in enumerate(found):
            row |= {"row_id": str(number), "image_id": str(number), "split": "train"}
            row["simple"] = row["simple"] or ["it"]
        dataset = Dataset.from_list(found, features=row_features())
        usable = usable_rows(dataset, "simple")
        assert len(usable.indices) + usable.left_out.total() == len(found)
        assume(usable.with_target)
        folder = tmp_path_factory.mktemp("run")
        settings = {"stages": ["simple"], "max_steps": 2, "per_device_train_batch_size": 2, "selector_steps": 0}
        trainer = tiny_trainer(folder, rows=dataset, **settings)
        assert all(np.isfinite(stage["train_loss"]) for stage in trainer.train().metrics.values())
        result = evaluate_model(trainer.instruction_model, tiny_processor(), dataset, level="simple")
        assert result.errors == 0 and result.instructions > 0

    check()


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([-1, 0.5, 1e9, "1"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(QUICK, max_examples=150)
@given(rows(), st.sampled_from([name for name in ROW_FIELDS if name not in ("image", "file_name")]), plain)
def test_a_changed_field_is_refused_or_gives_a_row_that_validates(row, field, value):
    line = {**without_image(row), field: value}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text(json.dumps(line))
        items = read(path)
    assert items
    for item in items:
        assert isinstance(item, RecordFault) or list(validate_row(item)) == []
        if not isinstance(item, RecordFault) and value is not None and field not in ("masks", "boxes", "ignore_masks"):
            assert item[field] == value or str(item[field]) == str(value) or float(value) == item[field]


@settings(QUICK, max_examples=150)
@given(st.sampled_from(["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"]), plain)
def test_a_changed_annotation_is_refused_or_read_as_a_row_that_validates(field, value):
    square = [4, 6, 12, 6, 12, 16, 4, 16]
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [4, 6, 8, 10],
        "segmentation": [square],
        field: value,
    }
    image = {"id": 1, "file_name": "a.png", "width": 32, "height": 24}
    data = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "cup"}]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(data))
        options = ReadOptions()
        items = list(read_items(*find_source(path), options))
    assert items or options.account.left_out
    for item in items:
        assert isinstance(item, RecordFault) or list(validate_row(item)) == []
