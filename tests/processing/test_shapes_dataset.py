# SPDX-License-Identifier: Apache-2.0
"""The shapes world as samples, evaluation sets, rows and official files."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel
from sam3i.processing.datasets.loading import load_instruction_dataset
from sam3i.processing.datasets.schema import row_features, validate_row
from sam3i.processing.masks import box_of_rle, decode_mask
from sam3i.processing.shapes.dataset import ShapesInstructionDataset, shapes_rows, write_official_json
from sam3i.processing.shapes.questions import denotation
from sam3i.processing.shapes.writer import kinds_of


@pytest.fixture(scope="module")
def dataset():
    return ShapesInstructionDataset("train", num_scenes=40)


def test_samples_hold_what_the_instruction_denotes(dataset):
    assert {sample["level"] for sample in map(dataset.__getitem__, range(len(dataset)))} == set(
        "concept simple complex".split()
    )
    for position in range(0, len(dataset), 3):
        sample, case = dataset[position], dataset.cases[position]
        scene = dataset.scene(case.scene_index)
        wanted = sorted(denotation(case.target.meaning, scene.objects))
        np.testing.assert_array_equal(sample["masks"], scene.masks[wanted])
        np.testing.assert_array_equal(sample["boxes"], scene.boxes[wanted])
        assert sample["masks"].shape == (len(wanted), 112, 112) and sample["masks"].dtype == bool
        assert sample["boxes"].shape == (len(wanted), 4) and sample["boxes"].dtype == np.float32
        assert (sample["kind"] == "none") == (len(wanted) == 0)
        assert sample["image"] is scene.image and sample["text"] == case.text
        assert sample["level"] == case.level.value


def test_simple_and_complex_are_paired_where_both_can_be_said(dataset):
    texts = defaultdict(dict)
    for position in range(len(dataset)):
        sample = dataset[position]
        texts[sample["row_id"]][sample["level"]] = sample
    pairs = [entry for entry in texts.values() if {"simple", "complex"} <= set(entry)]
    assert len(pairs) > 50
    for entry in pairs:
        assert entry["simple"]["pair_text"] == entry["complex"]["text"]
        assert entry["complex"]["pair_text"] == entry["simple"]["text"]
        np.testing.assert_array_equal(entry["simple"]["masks"], entry["complex"]["masks"])
    alone = [entry["complex"] for entry in texts.values() if set(entry) == {"complex"}]
    assert alone and all(sample["pair_text"] is None for sample in alone)


def test_mirrored_samples_stay_true(dataset):
    swapped = 0
    for case in dataset.cases[:120]:
        plain, mirrored = dataset.sample(case), dataset.sample(case, mirrored=True)
        np.testing.assert_array_equal(mirrored["masks"], plain["masks"][:, :, ::-1])
        objects = dataset.scene(case.scene_index).mirror().objects
        assert denotation(case.target.mirror().meaning, objects) == set(case.target.targets)
        swapped += mirrored["text"] != plain["text"]
    assert swapped > 5


def test_evaluation_fills_every_cell_and_never_changes():
    first = ShapesInstructionDataset.evaluation("test", cases_per_cell=100)
    counts = Counter((case.level, case.target.kind) for case in first.cases)
    assert set(counts) == {(level, kind) for level in InstructionLevel for kind in kinds_of(level)}
    assert min(counts.values()) == 100
    assert counts[InstructionLevel.CONCEPT, "none"] / sum(
        count for (level, _), count in counts.items() if level is InstructionLevel.CONCEPT
    ) == pytest.approx(0.2)
    assert len({case.scene_index for case in first.cases}) >= 500
    assert sum(case.is_held_out for case in first.cases) > 300
    second = ShapesInstructionDataset.evaluation("test", cases_per_cell=100)
    assert [(case.scene_index, case.text) for case in first.cases] == [(c.scene_index, c.text) for c in second.cases]
    concepts = ShapesInstructionDataset.evaluation("validation", 20, levels=("concept",))
    assert {case.level for case in concepts.cases} == {InstructionLevel.CONCEPT}


def test_rows_fit_the_common_schema():
    from datasets import Dataset

    rows = list(shapes_rows("validation", 12))
    assert not [fault for row in rows for fault in validate_row(row)]
    assert len({row["row_id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["boxes"] == [box_of_rle(mask) for mask in row["masks"]]
        assert row["complex"] and row["concept"]
    assert any(not row["simple"] for row in rows) and {row["target_kind"] for row in rows} >= {"none", "1-to-1"}
    stored = Dataset.from_list(rows, features=row_features())
    assert stored[0]["image"].size == (112, 112) and stored[0]["simple"] == rows[0]["simple"]


def test_official_files_come_back_through_the_real_reader(tmp_path):
    path = write_official_json(tmp_path, "test", 10)
    read = load_instruction_dataset(path, streaming=True)
    wanted = {row["row_id"]: row for row in shapes_rows("test", 10) if row["simple"]}
    found = {row["row_id"]: row for row in read}
    assert set(found) == set(wanted) and len(found) > 10
    for row_id, row in found.items():
        expected = wanted[row_id]
        for field in ("concept", "simple", "complex", "target_kind", "boxes", "width", "height"):
            assert row[field] == expected[field]
        for mask, other in zip(row["masks"], expected["masks"], strict=True):
            np.testing.assert_array_equal(decode_mask(mask), decode_mask(other))
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(expected["image"]))


def test_emphasized_families_are_asked_more_often():
    def relations(emphasis):
        return sum("-distance-" in row["row_id"] for row in shapes_rows("train", 200, emphasis=emphasis))

    assert relations({"distance": 6.0}) > 2 * relations(None) > 0


@pytest.mark.parametrize(
    "emphasis", [{"distence": 6.0}, {"distance": 0.0}, {"distance": -1.0}, {"distance": math.nan}]
)
def test_an_emphasis_that_would_do_nothing_or_harm_is_refused(emphasis):
    with pytest.raises(ValueError, match="emphasis"):
        next(shapes_rows("train", 4, emphasis=emphasis))
