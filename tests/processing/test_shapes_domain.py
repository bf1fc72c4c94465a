# SPDX-License-Identifier: Apache-2.0
"""Domains beside the shapes world, and clips of it: good rows, balanced, the same every time."""

from collections import Counter

import numpy as np
import pytest

from sam3i.processing.datasets.schema import TARGET_KINDS, validate_row
from sam3i.processing.language.lexicon import COLOR_REFERENCES
from sam3i.processing.shapes.clips import moving_clips
from sam3i.processing.shapes.domain import OUTDOORS
from sam3i.processing.shapes.lexicon import PLURALS, vocabulary
from sam3i.processing.shapes.rendering import COLORS, NOUNS


@pytest.fixture(scope="module")
def rows():
    return list(OUTDOORS.rows("test", 40))


def test_rows_are_valid_and_of_every_kind(rows):
    assert [fault for row in rows for fault in validate_row(row)] == []
    assert len({row["row_id"] for row in rows}) == len(rows)
    simple = Counter(row["target_kind"] for row in rows if row["simple"])
    concept = Counter(row["target_kind"] for row in rows if not row["simple"])
    assert set(simple) == set(TARGET_KINDS) and set(concept) == set(TARGET_KINDS) - {"1-to-N"}
    for counts in (simple, concept):
        assert max(counts.values()) - min(counts.values()) <= 2


def test_rows_are_a_function_of_the_split(rows):
    again, other = list(OUTDOORS.rows("test", 40)), list(OUTDOORS.rows("train", 40))
    assert [row["masks"] for row in again] == [row["masks"] for row in rows]
    assert [row["simple"] for row in again] == [row["simple"] for row in rows]
    assert [row["masks"] for row in other] != [row["masks"] for row in rows]


def test_masks_are_what_a_concept_names(rows):
    for row in rows:
        if not row["simple"]:
            index = int(row["image_id"].rpartition("-")[2])
            objects = OUTDOORS.scene("test", index).objects
            assert len(row["masks"]) == sum(item.noun == row["concept"][0] for item in objects)


def test_shapes_and_colors_are_new_and_the_words_are_known(rows):
    assert not set(OUTDOORS.shapes) & set(NOUNS) and not set(OUTDOORS.colors) & set(COLORS)
    named = {*PLURALS, *PLURALS.values(), *COLOR_REFERENCES}
    assert not {*OUTDOORS.shapes, *OUTDOORS.colors} & named
    words = {word for row in rows for text in (*row["concept"], *row["simple"]) for word in text.split()}
    assert words <= set(vocabulary())


def test_a_level_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="concept and simple"):
        next(OUTDOORS.rows("train", 1, levels=["complex"]))


def test_clips_move_and_keep_their_targets():
    clips = moving_clips(4, num_frames=5)
    for clip in clips:
        assert clip.frames.shape == (5, 112, 112, 3) and clip.frames.dtype == np.uint8
        assert clip.masks.shape[0] == 5 and clip.masks.any((2, 3)).all()
        assert clip.targets and max(clip.targets) < clip.masks.shape[1]
        assert (clip.masks[0] != clip.masks[-1]).any()
    again = moving_clips(4, num_frames=5)
    assert all(np.array_equal(a.frames, b.frames) and a.text == b.text for a, b in zip(clips, again, strict=True))


def test_what_moves_is_only_the_objects():
    (clip,) = moving_clips(1, num_frames=3)
    nothing = ~clip.masks.any((0, 1))
    for _ in range(10):  # away from shadows and edges
        nothing[1:-1, 1:-1] &= nothing[:-2, 1:-1] & nothing[2:, 1:-1] & nothing[1:-1, :-2] & nothing[1:-1, 2:]
    assert nothing.sum() > 500
    assert np.array_equal(clip.frames[0][nothing], clip.frames[2][nothing])
