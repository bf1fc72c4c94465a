# SPDX-License-Identifier: Apache-2.0
"""The pictogram world: its scenes, what is said of them, and what training never hears."""

from collections import Counter
from functools import partial

import numpy as np
import pytest

from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel
from sam3i.processing.datasets.schema import row_features, validate_row
from sam3i.processing.language.meaning import Filter, Meaning
from sam3i.processing.language.phrasing import say
from sam3i.processing.pictograms import KINDS, NOUNS, PICTOGRAM_WORDS, PictogramsInstructionDataset, PictogramsWorld
from sam3i.processing.pictograms.lexicon import DESCRIPTORS, KIND_CLAUSES
from sam3i.processing.pictograms.world import PICTURES, pictogram
from sam3i.processing.shapes import MAX_TOKENS, ShapeObject, ShapesWorld, vocabulary
from sam3i.processing.shapes.dataset import world_rows
from sam3i.processing.shapes.questions import FAMILIES, denotation, one_of
from sam3i.processing.shapes.writer import UNHEARD, kinds_of

LEVELS = tuple(InstructionLevel)
COMPLEX = InstructionLevel.COMPLEX
SCENE = tuple(
    ShapeObject(noun, "red", "large", 20.0 + 25 * place, 50.0, 10.0, 0.0)
    for place, noun in enumerate(("bird", "cat", "plane", "cup"))
)


@pytest.fixture(scope="module")
def test_cases():
    return PictogramsInstructionDataset.evaluation("test", 24).cases


def test_a_scene_is_a_function_of_seed_split_and_index():
    first, second = PictogramsWorld(3, "test").scene(5), PictogramsWorld(3, "test").scene(5)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.masks, second.masks)
    assert first.objects == second.objects
    assert not np.array_equal(first.image, PictogramsWorld(4, "test").scene(5).image)


def test_every_noun_has_a_licensed_picture_of_its_own():
    assert sorted(path.stem for path in PICTURES.glob("*.png")) == sorted(NOUNS)
    listed = (PICTURES / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in listed and all(f"{noun}.png" in listed for noun in NOUNS)
    pixels = {pictogram(noun).tobytes() for noun in NOUNS}
    assert len(pixels) == len(NOUNS)


@pytest.mark.parametrize("mirrored", [False, True])
def test_masks_are_what_the_picture_shows_where_it_stands(mirrored):
    angle = 10.0
    item = ShapeObject("hat", "blue", "large", 60.0, 50.0, 20.0, -angle if mirrored else angle, mirrored)
    image, (mask,) = PictogramsWorld(0).paint((item,), np.random.default_rng(0))
    rows, columns = np.nonzero(mask)
    assert 0.35 * 40**2 < mask.sum() < 40**2
    assert abs(columns.mean() - 60) < 3 and abs(rows.mean() - 50) < 6
    assert abs(max(np.ptp(rows), np.ptp(columns)) - 40) <= 8
    blue = image[mask].astype(float).mean(0)
    assert blue[2] > blue[0] + 50  # its color can be named


def test_the_mirror_image_of_a_thing_is_the_thing_mirrored():
    item = ShapeObject("guitar", "red", "large", 40.0, 56.0, 18.0, 12.0)
    paint = PictogramsWorld(0).paint
    plain, other = (paint((each,), np.random.default_rng(0))[1][0] for each in (item, item.mirror()))
    assert (plain[:, ::-1] & other).sum() / (plain[:, ::-1] | other).sum() > 0.93


def test_later_things_hide_earlier_ones():
    scenes = [PictogramsWorld(0, "validation").scene(index) for index in range(6)]
    for scene in scenes:
        assert scene.masks.sum(0).max() <= 1 and scene.masks.any((1, 2)).all()
    behind = ShapeObject("shirt", "red", "large", 50.0, 50.0, 18.0, 0.0)
    before = ShapeObject("apple", "blue", "small", 50.0, 50.0, 10.0, 0.0)
    _, (covered, full) = PictogramsWorld(0).paint((behind, before), np.random.default_rng(0))
    assert not (covered & full).any() and full.sum() > 100


def test_training_combines_no_held_out_pair_and_hears_no_unheard_clause():
    train = PictogramsWorld(0, "train")
    pairs = {(item.color, item.noun) for index in range(1500) for item in train.layout(index)}
    assert not pairs & PICTOGRAM_WORDS.held_out_pairs and len(pairs) == 6 * len(NOUNS) - 6
    unheard = [clauses[-1] for clauses in (*DESCRIPTORS.values(), *KIND_CLAUSES.values())]
    texts = []
    for row in world_rows(train, 40, more_phrasings=3):
        validate_row(row)
        texts += [*(row["simple"] or []), *(row["complex"] or [])]
    assert len(texts) > 300
    assert not [text for text in texts if any(clause in text for clause in unheard)]
    new = {word for clause in unheard for word in clause.split()}
    assert len(new - {word for text in texts for word in text.split()}) > 30


def test_clauses_name_one_thing_or_one_kind_and_never_the_noun():
    clauses = [clause for table in (DESCRIPTORS, KIND_CLAUSES) for each in table.values() for clause in each]
    assert len(set(clauses)) == len(clauses)
    names = {*NOUNS, *map(PICTOGRAM_WORDS.lexicon.plural, NOUNS)}
    assert not [clause for clause in clauses if names & set(clause.split())]
    assert set(KINDS) == set(KIND_CLAUSES) and set().union(*KINDS.values()) == set(NOUNS)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("kind", "flying", {0, 2}),
        ("kind", "animal", {0, 1}),
        ("kind", "food", set()),
        ("not_kind", "animal", {2, 3}),
        ("not_kind", "food", {0, 1, 2, 3}),
    ],
)
def test_kinds_and_uses_of_things_are_asked_for(kind, value, expected):
    meaning = Meaning(None, (Filter(kind, value),))
    assert denotation(meaning, SCENE, PICTOGRAM_WORDS) == expected
    choose = partial(one_of, np.random.default_rng(0))
    text = say(meaning, "plural", COMPLEX, choose, PICTOGRAM_WORDS.lexicon).text
    assert any(clause in text for clause in KIND_CLAUSES[value])


def test_evaluation_has_every_level_kind_family_and_way_of_holding_out(test_cases):
    counts = Counter((case.level, case.target.kind) for case in test_cases)
    assert set(counts) == {(level, kind) for level in LEVELS for kind in kinds_of(level)}
    assert min(counts.values()) == 24
    families = {case.target.meaning.family for case in test_cases if case.level is COMPLEX}
    assert {"kind", "not_kind"} <= families and len(families) > 0.8 * len(FAMILIES)
    unheard = [case for case in test_cases if case.target.phrasings[case.level].template.endswith(UNHEARD)]
    assert all(case.level is COMPLEX and case.is_held_out for case in unheard)
    assert len(unheard) > 10
    for case in test_cases:
        objects = PictogramsWorld(0, "test").layout(case.scene_index)
        assert set(case.target.targets) == denotation(case.target.meaning, objects, PICTOGRAM_WORDS)


def test_every_word_is_known_and_every_sentence_fits_the_text_encoder(test_cases):
    words = set(PICTOGRAM_WORDS.vocabulary())
    texts = [case.text.split() for case in test_cases]
    texts += [text.split() for row in world_rows(PictogramsWorld(1), 30, more_phrasings=4) for text in row["complex"]]
    assert not {word for text in texts for word in text} - words
    assert ShapesWorld.words.vocabulary() == vocabulary()
    assert max(map(len, texts)) + 2 <= MAX_TOKENS


def test_samples_and_rows_are_those_of_the_other_world():
    dataset = PictogramsInstructionDataset("train", num_scenes=3)
    sample, row = dataset[0], dataset.rows()[0]
    assert sample["image"].shape == (112, 112, 3) and sample["masks"].shape[1:] == (112, 112)
    assert set(row) == set(row_features()) and row["dataset"] == "pictograms"
    mirrored = dataset.sample(dataset.cases[0], mirrored=True)
    np.testing.assert_array_equal(mirrored["masks"], sample["masks"][:, :, ::-1])
