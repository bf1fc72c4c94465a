# SPDX-License-Identifier: Apache-2.0
"""Pictures and JSON of results."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from sam3i.processing.drawing.instances import draw_boxes, draw_instances, draw_masks
from sam3i.processing.drawing.sheet import contact_sheet, draw_comparison
from sam3i.processing.drawing.style import (
    LEVEL_COLORS,
    NEGATIVE,
    PALETTE,
    POSITIVE,
    SMALLEST_FONT,
    TRUTH,
    PictureScale,
)
from sam3i.processing.result_formats import results_to_json


def _instance(size, box, score=0.9, label="the dog on the left", level="simple"):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    edges = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return {"score": score, "label": label, "level": level, "box": edges, "mask": mask}


def _gray(size):
    return Image.new("RGB", size, (128, 128, 128))


@pytest.mark.parametrize("size", [(600, 400), (400, 600), (64, 48), (1, 1), (2000, 40), (3, 900)])
def test_any_size(size):
    width, height = size
    results = [_instance(size, (0, 0, width - 1, height - 1))]
    picture = draw_masks(_gray(size), [results[0]["mask"]])
    factor = picture.width // width
    assert picture.mode == "RGB" and picture.size == (width * factor, height * factor) and max(picture.size) >= 480
    whole = draw_instances(_gray(size), results, title="A title")
    assert whole.width == max(480, picture.width) and whole.height > picture.height


def test_large_images_keep_their_size():
    size = (4000, 2600)
    picture = draw_instances(_gray(size), [_instance(size, (1000, 700, 3000, 2000))])
    assert picture.width == 4000 and 2600 < picture.height < 3200
    line = np.abs(np.asarray(picture.crop((990, 1330, 1040, 1331))).astype(int) - PALETTE[0]).sum(-1) < 12
    assert 8 <= line[0].sum() <= 30  # the outline and box grow with the image


def test_colors_inside_a_mask_stay_and_what_is_outside_is_dimmed():
    size = (600, 400)
    image = Image.fromarray(np.random.default_rng(0).integers(90, 160, (400, 600, 3), dtype=np.uint8))
    picture = np.asarray(draw_instances(image, [_instance(size, (150, 100, 450, 300))])).astype(int)
    original, color = np.asarray(image).astype(int), np.array(PALETTE[0])
    inside, outside = np.s_[140:260, 220:380], np.s_[330:390, 10:590]
    assert np.array_equal(picture[inside], original[inside])
    assert 0.4 < picture[outside].mean() / original[outside].mean() < 0.6
    assert np.abs(picture[97:104, 300] - color).sum(-1).min() < 40


def test_an_object_thinner_than_a_line_is_outlined():
    mask = np.zeros((400, 600), bool)
    mask[200, 100:500] = True
    picture = np.asarray(draw_masks(_gray((600, 400)), [mask])).astype(int)
    assert np.abs(picture[195:206, 300] - PALETTE[0]).sum(-1).min() < 60


def test_masks_come_as_arrays_tensors_or_pictures():
    size, masks = (60, 40), np.zeros((2, 40, 60), bool)
    masks[0, 5:20, 5:20] = masks[1, 10:30, 30:50] = True
    pictures = [Image.fromarray(mask) for mask in masks]
    drawn = [draw_masks(_gray(size), form, tags=["1", "2"]) for form in (masks, torch.as_tensor(masks), pictures)]
    assert drawn[0].size == (480, 320) and drawn[0].tobytes() == drawn[1].tobytes() == drawn[2].tobytes()
    inside = draw_masks(_gray(size), masks, tags=["1", "2"], tags_inside=True, side=300)
    assert inside.size == (300, 200) and inside.tobytes() != draw_masks(_gray(size), masks, side=300).tobytes()
    with pytest.raises(ValueError, match="image's size"):
        draw_masks(_gray((61, 40)), masks)


def test_an_instance_without_a_mask_is_its_box():
    size = (600, 400)
    box = {"score": None, "label": "a", "level": None, "box": _instance(size, (50, 50, 200, 200))["box"], "mask": None}
    picture = np.asarray(draw_instances(_gray(size), [box])).astype(int)
    assert np.abs(picture[120, 45:55] - PALETTE[0]).sum(-1).min() < 40
    assert picture[120, 120].tolist() == [128] * 3


def test_box_exemplars_are_told_apart_by_color_and_sign():
    picture = draw_boxes(_gray((60, 40)), [(5, 5, 20, 20), (30, 5, 50, 20)], [1, 0], corner=(30, 35), side=600)
    colors = {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3)}
    assert picture.size == (600, 400) and {POSITIVE, NEGATIVE} <= colors


def test_colors_differ_for_color_blind_readers():
    """Machado et al. 2009, table 1: what people without red, green or blue cones see, in linear light."""
    deficiencies = [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
    linear = (np.array(PALETTE) / 255) ** 2.2
    for matrix in [np.eye(3), *deficiencies]:
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2) * 255
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
        assert distance.min() > 25


@pytest.mark.parametrize("side", [240, 480, 1280])
def test_text_is_legible_at_the_size_shown(side):
    scale = PictureScale((side, side))
    assert min(scale.font.size, scale.tag_font.size) >= SMALLEST_FONT
    picture = draw_instances(_gray((1000, 1000)), [], side=side, title="A title")
    assert picture.width == max(side, min(480, side))


def test_a_long_word_does_not_hang_the_legend():
    start = time.process_time()
    picture = draw_instances(_gray((600, 400)), [], instructions=["w" * 20_000], title="x" * 20_000)
    assert time.process_time() - start < 2 and picture.height < 800


def test_the_better_score_is_drawn_on_top():
    size = (600, 400)
    results = [_instance(size, (100, 100, 400, 300), 0.95), _instance(size, (100, 100, 400, 300), 0.6)]
    picture = np.asarray(draw_instances(_gray(size), results)).astype(int)[200, 96:104]
    assert np.abs(picture - PALETTE[0]).sum(-1).min() < 20 < np.abs(picture - PALETTE[1]).sum(-1).min()


def test_several_instructions_and_nothing_found():
    size = (600, 400)
    rows = [[_instance(size, (50, 50, 200, 200))], [], [_instance(size, (300, 50, 500, 200), 0.7, "cat", "concept")]]
    one = draw_instances(_gray(size), rows[0])
    three = draw_instances(
        _gray(size), rows, instructions=["a", "something to drink", "b"], levels=["simple", "complex", "concept"]
    )
    assert three.height > one.height
    pixels = {tuple(pixel) for pixel in np.asarray(three)[400:].reshape(-1, 3)}
    assert set(LEVEL_COLORS.values()) <= pixels  # every level is named in the legend
    assert {PALETTE[0], PALETTE[2]} <= pixels
    empty = draw_instances(_gray(size), [], instructions=["something to drink"], levels=["complex"])
    assert np.array_equal(np.asarray(empty)[:400], np.asarray(_gray(size)))
    noted = draw_instances(_gray(size), [], instructions=["a"], notes=["nothing found; best score 0.49"])
    assert noted.tobytes() != draw_instances(_gray(size), [], instructions=["a"]).tobytes()
    assert draw_instances(_gray(size), []).height > 400


@pytest.mark.parametrize("label", ["w" * 500, "the dog " * 100, "猫", "a\nb", "x"])
def test_long_and_odd_labels_stay_in_the_picture(label):
    size = (300, 200)
    picture = draw_instances(_gray(size), [_instance(size, (0, 0, 90, 90), label=label)] * 12)
    assert picture.width == 600 and picture.height < 900


def test_an_empty_mask_and_a_box_on_the_border():
    size = (600, 400)
    empty = _instance(size, (590, 390, 600, 400)) | {"mask": Image.new("L", size)}
    assert draw_instances(_gray(size), [empty]).width == 600


@pytest.mark.parametrize(
    ("results", "error"),
    [
        (None, TypeError),
        ([{"score": 1.0}], TypeError),
        ([_instance((10, 10), (0, 0, 5, 5)), []], TypeError),
        ([_instance((10, 10), (0, 0, 5, 5))], ValueError),
    ],
)
def test_other_results_are_errors(results, error):
    with pytest.raises(error, match="Expected"):
        draw_instances(_gray((60, 40)), results)


def test_captions_must_match_rows():
    with pytest.raises(ValueError, match="`instructions` for each of 1 rows"):
        draw_instances(_gray((60, 40)), [], instructions=["a", "b"])


def test_contact_sheet():
    images = [_gray((600, 400)), _gray((100, 300)), _gray((50, 50)), _gray((10, 70)), _gray((600, 400))]
    sheet = contact_sheet(images, 2, cell=120, gap=10)
    assert sheet.size == (2 * 130 + 10, 300 + 70 + 80 + 40)
    assert contact_sheet(images[:1], 5, cell=120, gap=10).size == (140, 100)
    captioned = contact_sheet(images[:2], 2, captions=["a\nb", "c"], title="T", cell=120, gap=10)
    assert captioned.size == (270, 34 + 300 + 2 * 20 + 20)
    for arguments in (([], 2), (images, 0)):
        with pytest.raises(ValueError, match="at least one column"):
            contact_sheet(*arguments)
    with pytest.raises(ValueError, match="a caption for each of 5"):
        contact_sheet(images, 2, captions=["a"])


def test_truth_and_answers_stand_side_by_side_under_their_names():
    mask = np.zeros((1, 40, 60), bool)
    mask[0, 10:30, 10:30] = True
    answers = {"ours": (mask, [0.9]), "stock": (mask[:0], [])}
    page = np.asarray(draw_comparison(_gray((60, 40)), mask, answers, side=300, gap=8))
    assert page.shape == (226, 3 * 300 + 2 * 8, 3)
    assert np.array_equal(page[26:, :300], np.asarray(draw_masks(_gray((60, 40)), mask, colors=[TRUTH], side=300)))
    assert np.array_equal(page[26:, 616:], np.full((200, 300, 3), 128))  # nothing found: the picture as it is
    assert all((page[:26, x : x + 300] > 200).any() for x in (0, 308, 616))


def test_a_tag_stands_at_the_largest_piece_of_its_mask():
    mask = np.zeros((400, 600), bool)
    mask[20:26, 20:26] = mask[250:380, 400:560] = True
    picture = np.asarray(draw_masks(_gray((600, 400)), [mask], tags=["0.86"])).astype(int)
    filled = (np.abs(picture - PALETTE[0]).sum(-1) < 12).sum(axis=1)
    assert filled[225:246].max() > 25 > filled[:200].max()


def test_json_decodes_to_the_same_masks():
    size = (60, 40)
    rows = [[_instance(size, (5, 5, 30, 20)), _instance(size, (40, 2, 59, 39), 0.5)], []]
    document = json.loads(json.dumps(results_to_json(rows)))
    assert [len(row) for row in document] == [2, 0]
    for entry, instance in zip(document[0], rows[0], strict=True):
        decoded = coco_mask.decode(entry["segmentation"])
        assert np.array_equal(decoded.astype(bool), np.asarray(instance["mask"]) > 0)
        assert entry["area"] == decoded.sum() and entry["box"] == instance["box"] and "mask" not in entry
    assert results_to_json(rows[0]) == document[0] and results_to_json([]) == []
