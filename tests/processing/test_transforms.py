# SPDX-License-Identifier: Apache-2.0
"""Placements are checked by drawing: what the mask and the box say must be where the color is."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from sam3i.processing.masks import encode_mask
from sam3i.trainer.transforms import InstructionTransform, Placement, keyed_random, names_sides

HEIGHT, WIDTH = 60, 90
CANVAS = (112, 112)
COLORS = [(220, 40, 40), (40, 200, 60)]


def scene():
    """Two objects that touch no border and tell left from right."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 160))
    masks = []
    for color, shape in zip(
        COLORS, ([(12, 10), (40, 14), (20, 50)], [(55, 20), (80, 20), (80, 45), (55, 45)]), strict=True
    ):
        ImageDraw.Draw(image).polygon(shape, fill=color)
        mask = Image.new("1", (WIDTH, HEIGHT))
        ImageDraw.Draw(mask).polygon(shape, fill=1)
        masks.append(np.asarray(mask))
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append([columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]])
    return image, masks, [[float(v) for v in box] for box in boxes]


def rles(masks):
    return [encode_mask(mask) for mask in masks]


def colored(image, color):
    """The pixels that are nearer to the color than half way to the background."""
    pixels = np.asarray(image).astype(float)
    distance = np.linalg.norm(pixels - np.array(color), axis=-1)
    others = [c for c in [*COLORS, (90, 90, 160), (0, 0, 0)] if c != color]
    return np.all([distance < np.linalg.norm(pixels - np.array(other), axis=-1) for other in others], axis=0)


def check_by_drawing(placement, minimum=0.93):
    image, masks, boxes = scene()
    placed = placement.place_image(image)
    assert placed.size == (placement.canvas[1], placement.canvas[0])
    moved = placement.place_masks(rles(masks)).numpy()
    fractions = placement.place_boxes(boxes, HEIGHT, WIDTH).numpy()
    for color, mask, (cx, cy, w, h) in zip(COLORS, moved, fractions, strict=True):
        seen = colored(placed, color)
        assert (seen & mask).sum() / (seen | mask).sum() > minimum
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * np.array([*placement.canvas[::-1]] * 2)
        assert np.abs(box - tight).max() <= 1.5
    return placed, moved


@pytest.mark.parametrize("seed", range(12))
def test_picture_masks_and_boxes_stay_in_step(seed):
    transform = InstructionTransform(flip_probability=0.5)
    placement = transform(CANVAS, ["the red triangle"], random.Random(seed))
    check_by_drawing(placement, minimum=0.85)
    top, left = placement.offset
    assert 0 <= top <= CANVAS[0] - placement.size[0] and 0 <= left <= CANVAS[1] - placement.size[1]
    assert placement.size[0] == placement.size[1] >= round(CANVAS[0] * 480 / 1008)


def test_what_the_picture_does_not_cover_is_black():
    placement = Placement(CANVAS, (60, 60), (40, 20))
    pixels = np.asarray(placement.place_image(scene()[0]))
    outside = np.ones(CANVAS, dtype=bool)
    outside[40:100, 20:80] = False
    assert not pixels[outside].any() and pixels[~outside].any(-1).all()


def test_flip_mirrors_everything():
    image, masks, boxes = scene()
    plain, mirrored = (Placement(CANVAS, CANVAS, flip=flip) for flip in (False, True))
    assert np.array_equal(np.asarray(plain.place_image(image))[:, ::-1], np.asarray(mirrored.place_image(image)))
    assert torch.equal(plain.place_masks(rles(masks)).flip(-1), mirrored.place_masks(rles(masks)))
    one, other = (placement.place_boxes(boxes, HEIGHT, WIDTH) for placement in (plain, mirrored))
    assert torch.allclose(other, torch.stack([1 - one[:, 0], *one[:, 1:].T], dim=1), atol=1e-6)
    check_by_drawing(mirrored)


def test_without_change_masks_are_pixel_equal():
    _, masks, boxes = scene()
    placement = Placement((HEIGHT, WIDTH), (HEIGHT, WIDTH))
    assert np.array_equal(placement.place_masks(rles(masks)).numpy(), np.stack(masks))
    expected = [[(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT] for x, y, w, h in boxes]
    assert np.allclose(placement.place_boxes(boxes, HEIGHT, WIDTH), expected)


@pytest.mark.parametrize(
    ("size", "offset", "flip"), [(CANVAS, (0, 0), False), ((90, 75), (11, 7), True), ((31, 31), (81, 0), False)]
)
def test_masks_are_resized_as_pytorch_resizes_the_whole_picture(size, offset, flip):
    generator = np.random.default_rng(0)
    placement = Placement(CANVAS, size, offset, flip)
    for height, width in [(60, 90), (97, 211), (300, 40), (9, 7)]:
        masks = np.zeros((4, height, width), dtype=bool)
        masks[0, height // 3 :, width // 2 : width // 2 + 3] = True
        masks[1, 1:-1, 1:-1] = generator.random((height - 2, width - 2)) < 0.7
        masks[2] = True
        masks[3, height // 2, 0] = masks[3, 0, -1] = True
        soft = torch.from_numpy((masks[..., ::-1] if flip else masks).astype(np.float32))[None]
        soft = F.interpolate(soft, size=size, mode="bilinear", antialias=True, align_corners=False)[0]
        top, left = offset
        soft = F.pad(soft, (left, CANVAS[1] - size[1] - left, top, CANVAS[0] - size[0] - top))
        clear = (soft - 0.5).abs() > 1e-5
        clear &= (soft > 0.5).flatten(1).any(1)[:, None, None]  # else the most covered pixel is kept
        placed = placement.place_masks(rles(masks))
        assert torch.equal(placed & clear, (soft > 0.5) & clear) and clear[1:3].float().mean() > 0.95


def test_small_objects_keep_a_pixel_and_empty_masks_stay_empty():
    speck = np.zeros((400, 400), dtype=bool)
    speck[200, 100] = True
    placed = Placement((100, 100), (60, 60), (10, 30)).place_masks(rles([speck, np.zeros_like(speck)]))
    assert placed[0].sum() == 1 and placed[1].sum() == 0
    row, column = np.argwhere(placed[0].numpy())[0]
    assert abs(row - (10 + 30)) <= 1 and abs(column - (30 + 15)) <= 1


def test_no_instances():
    placement = Placement(CANVAS, CANVAS)
    assert placement.place_masks([]).shape == (0, *CANVAS) and placement.place_boxes([], 5, 5).shape == (0, 4)


def test_boxes_that_reach_outside_are_cut():
    boxes = Placement(CANVAS, CANVAS).place_boxes([[-1, -1, 5, 5], [WIDTH - 2, 0, 3, HEIGHT + 1]], HEIGHT, WIDTH)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    assert low.min() >= 0 and high.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    "text",
    [
        "the dog on the left",
        "Leftmost cup",
        "the right-hand lamp",
        "RIGHT",
        "the hand at three o'clock",
        "turned clockwise",
        "the eastern tower",
        "the car driving westward",
        "左边的狗",
        "собака слева",
    ],
)
def test_texts_that_name_sides(text):
    assert names_sides(text)
    transform = InstructionTransform(flip_probability=1.0)
    assert not transform(CANVAS, ["a cup", text], random.Random(0)).flip


@pytest.mark.parametrize(
    "text", ["the brightest lamp", "leftover food", "feast on the table", "café crème", "upright"]
)
def test_texts_that_name_no_side(text):
    assert not names_sides(text)
    transform = InstructionTransform(flip_probability=1.0)
    assert transform(CANVAS, [text], random.Random(0)).flip


def test_draws_are_a_function_of_the_key():
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    assert keyed_random(1, "a").random() == keyed_random(1, "a").random() != keyed_random(1, "b").random()
    assert keyed_random(0, "key").randint(0, 10**9) == 394337992
    InstructionTransform(flip_probability=0.5)(CANVAS, ["x"], keyed_random(3))
    assert state[0] == random.getstate() and torch.equal(state[1], torch.get_rng_state())
    assert np.array_equal(state[2], np.random.get_state()[1])


@pytest.mark.parametrize("arguments", [{"min_scale": 0}, {"min_scale": 1.1}, {"flip_probability": 2}])
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match="must lie in"):
        InstructionTransform(**arguments)


def test_scales_cover_the_range():
    transform = InstructionTransform(min_scale=0.5)
    sides = [transform((1008, 1008), [], keyed_random(n)).size[0] for n in range(200)]
    assert 504 <= min(sides) < 540 and 970 < max(sides) <= 1008
    assert InstructionTransform(min_scale=1.0)((56, 56), [], keyed_random(0)) == Placement((56, 56), (56, 56))
