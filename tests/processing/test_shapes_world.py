# SPDX-License-Identifier: Apache-2.0
"""Scenes of the shapes world: determinism, exact masks, held-out pairs, mirroring."""

import random

import numpy as np
import pytest

from sam3i.processing.shapes.rendering import COLORS, IMAGE_SIZE, NOUNS, ShapeObject, outlines, render
from sam3i.processing.shapes.world import HELD_OUT_PAIRS, RADII, ShapesWorld, mask_boxes


def test_scenes_are_a_function_of_seed_split_and_index():
    first, second = ShapesWorld(3, "test").scene(17), ShapesWorld(3, "test").scene(17)
    assert first.objects == second.objects
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.masks, second.masks)
    others = [ShapesWorld(4, "test"), ShapesWorld(3, "validation")]
    assert all((other.scene(17).image != first.image).any() for other in others)
    assert (ShapesWorld(3, "test").scene(18).image != first.image).any()


def test_no_global_random_state_is_read_or_changed():
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].copy()
    image = ShapesWorld(0).scene(5).image
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    random.seed(2)
    np.random.seed(2)
    np.testing.assert_array_equal(ShapesWorld(0).scene(5).image, image)


def test_layouts_have_two_to_six_objects_of_every_kind_inside_the_picture():
    layouts = [ShapesWorld(0, "test").layout(index) for index in range(400)]
    assert {len(objects) for objects in layouts} == {2, 3, 4, 5, 6}
    items = [item for objects in layouts for item in objects]
    assert {item.noun for item in items} == set(NOUNS) and {item.color for item in items} == set(COLORS)
    for item in items:
        low, high = RADII[item.size]
        assert low <= item.radius <= high and abs(item.angle) <= 15
        assert item.radius <= item.cx <= IMAGE_SIZE - item.radius
        assert item.radius <= item.cy <= IMAGE_SIZE - item.radius
    assert 0.3 < np.mean([item.size == "large" for item in items]) < 0.6


def test_masks_are_disjoint_visible_and_boxes_tight():
    for index in range(25):
        scene = ShapesWorld(1).scene(index)
        assert scene.image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.objects), IMAGE_SIZE, IMAGE_SIZE)
        assert scene.masks.sum(0).max() == 1
        assert scene.masks.sum((1, 2)).min() > 100
        for mask, (cx, cy, w, h) in zip(scene.masks, scene.boxes * IMAGE_SIZE, strict=True):
            ys, xs = np.nonzero(mask)
            assert (xs.min(), xs.max() + 1) == pytest.approx((cx - w / 2, cx + w / 2), abs=1e-3)
            assert (ys.min(), ys.max() + 1) == pytest.approx((cy - h / 2, cy + h / 2), abs=1e-3)


def test_a_later_object_hides_an_earlier_one():
    behind = ShapeObject("circle", "red", "large", 50.0, 50.0, 18.0, 0.0)
    before = ShapeObject("circle", "blue", "large", 62.0, 50.0, 18.0, 0.0)
    _, alone = render((behind,), np.random.default_rng(0))
    _, other = render((before,), np.random.default_rng(0))
    _, both = render((behind, before), np.random.default_rng(0))
    np.testing.assert_array_equal(both[1], other[0])
    np.testing.assert_array_equal(both[0], alone[0] & ~other[0])
    assert 0 < both[0].sum() < alone[0].sum()


def test_mask_area_of_a_circle_and_a_ring_is_that_of_geometry():
    circle = ShapeObject("circle", "red", "large", 56.0, 56.0, 20.0, 0.0)
    ring = ShapeObject("ring", "red", "large", 56.0, 56.0, 20.0, 0.0)
    _, masks = render((circle,), np.random.default_rng(0))
    assert masks[0].sum() == pytest.approx(np.pi * 20**2, rel=0.03)
    _, masks = render((ring,), np.random.default_rng(0))
    assert masks[0].sum() == pytest.approx(np.pi * 20**2 * (1 - 0.52**2), rel=0.04)
    assert not masks[0, 56, 56]


def test_colors_on_the_mask_are_the_named_ones():
    scene = ShapesWorld(0, "test").scene(3)
    for item, mask in zip(scene.objects, scene.masks, strict=True):
        mean = scene.image[mask].mean(0)
        distance = {name: np.abs(mean - np.array(rgb)).sum() for name, rgb in COLORS.items()}
        assert min(distance, key=distance.get) == item.color


def test_held_out_pairs_are_kept_from_training_pictures_only():
    def pairs(split):
        return {(o.color, o.noun) for index in range(600) for o in ShapesWorld(0, split).layout(index)}

    assert {color for color, _ in HELD_OUT_PAIRS} == set(COLORS)
    assert len({noun for _, noun in HELD_OUT_PAIRS}) == len(HELD_OUT_PAIRS)
    assert len(pairs("train")) == len(COLORS) * len(NOUNS) - len(HELD_OUT_PAIRS)
    assert not pairs("train") & HELD_OUT_PAIRS
    assert HELD_OUT_PAIRS < pairs("test") and HELD_OUT_PAIRS < pairs("validation")


def test_mirroring_flips_picture_masks_boxes_and_objects():
    scene = ShapesWorld(0).scene(2)
    mirrored = scene.mirror()
    np.testing.assert_array_equal(mirrored.image, scene.image[:, ::-1])
    np.testing.assert_allclose(mirrored.boxes[:, 0], 1 - scene.boxes[:, 0], atol=1e-6)
    np.testing.assert_allclose(mirrored.boxes[:, 1:], scene.boxes[:, 1:], atol=1e-6)
    assert [item.cx for item in mirrored.objects] == [IMAGE_SIZE - item.cx for item in scene.objects]
    assert mirrored.is_mirrored and mirrored.mirror().objects == scene.objects
    # The mirrored description draws the mirrored mask (a pixel of the border may round the other way).
    _, redrawn = render(mirrored.objects, np.random.default_rng(0))
    assert (redrawn != mirrored.masks).sum() <= 0.03 * mirrored.masks.sum()


def test_outlines_fill_the_unit_square():
    for noun, polygons in outlines().items():
        reach = 0.88 if noun == "square" else 1.0
        assert np.abs(polygons[0]).max() == pytest.approx(reach)
        np.testing.assert_allclose(polygons[0].min(0), -polygons[0].max(0), atol=1e-9)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="validation.*'dev'"):
        ShapesWorld(0, "dev")
    with pytest.raises(ValueError, match="-1"):
        ShapesWorld(0).scene(-1)


def test_boxes_of_masks():
    masks = np.zeros((1, 10, 20), dtype=bool)
    masks[0, 2:6, 5:15] = True
    np.testing.assert_allclose(mask_boxes(masks), [[0.5, 0.4, 0.5, 0.4]])
