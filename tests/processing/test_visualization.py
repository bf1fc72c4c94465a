# SPDX-License-Identifier: Apache-2.0
"""Pictures and JSON of results."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from sam3i.processing.drawing.legend import LEVEL_COLOURS
from sam3i.processing.drawing.overlay import PALETTE, contact_sheet, draw_instances, results_to_json


def _instance(size, box, score=0.9, label="the dog on the left", level="simple"):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    edges = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return {"score": score, "label": label, "level": level, "box": edges, "mask": mask}


def _grey(size):
    return Image.new("RGB", size, (128, 128, 128))


@pytest.mark.parametrize("size", [(600, 400), (400, 600), (64, 48), (1, 1), (2000, 40), (3, 900)])
def test_any_size(size):
    width, height = size
    results = [_instance(size, (0, 0, width - 1, height - 1))]
    picture = draw_instances(_grey(size), results, title="A title")
    factor = picture.width // width
    assert picture.mode == "RGB" and picture.width == width * factor and picture.height > height * factor
    assert max(picture.width, height * factor) >= 480


def test_large_images_keep_their_size():
    size = (4000, 2600)
    picture = draw_instances(_grey(size), [_instance(size, (1000, 700, 3000, 2000))])
    assert picture.width == 4000 and 2600 < picture.height < 3200
    line = np.abs(np.asarray(picture.crop((990, 1330, 1040, 1331))).astype(int) - PALETTE[0]).sum(-1) < 12
    assert 8 <= line[0].sum() <= 30  # the outline and box grow with the image


def test_masks_are_translucent_inside_sharp_at_the_edge_and_absent_outside():
    size = (600, 400)
    image = Image.fromarray(np.random.default_rng(0).integers(90, 160, (400, 600, 3), dtype=np.uint8))
    picture = np.asarray(draw_instances(image, [_instance(size, (150, 100, 450, 300))])).astype(int)
    original, colour = np.asarray(image).astype(int), np.array(PALETTE[0])
    inside, outside = np.s_[180:220, 280:320], np.s_[330:390, 10:590]
    expected = original[inside] + 0.42 * (colour - original[inside])
    assert np.abs(picture[inside] - expected).max() <= 1
    assert np.array_equal(picture[outside], original[outside])
    assert np.abs(picture[100:104, 300] - colour).sum(-1).min() < 40


def test_the_better_score_is_drawn_on_top():
    size = (600, 400)
    results = [_instance(size, (100, 100, 400, 300), 0.95), _instance(size, (150, 120, 450, 320), 0.6)]
    picture, alone = (np.asarray(draw_instances(_grey(size), rows)) for rows in (results, results[:1]))
    assert (
        np.abs(picture[180:220, 200:300].astype(int) - PALETTE[0]).mean()
        < np.abs(picture[180:220, 200:300].astype(int) - PALETTE[1]).mean()
    )
    assert not np.array_equal(picture, alone)


def test_several_instructions_and_nothing_found():
    size = (600, 400)
    rows = [[_instance(size, (50, 50, 200, 200))], [], [_instance(size, (300, 50, 500, 200), 0.7, "cat", "concept")]]
    one = draw_instances(_grey(size), rows[0])
    three = draw_instances(
        _grey(size), rows, instructions=["a", "something to drink", "b"], levels=["simple", "complex", "concept"]
    )
    assert three.height > one.height
    pixels = {tuple(pixel) for pixel in np.asarray(three)[400:].reshape(-1, 3)}
    assert set(LEVEL_COLOURS.values()) <= pixels  # every level is named in the legend
    assert {PALETTE[0], PALETTE[2]} <= pixels
    empty = draw_instances(_grey(size), [], instructions=["something to drink"], levels=["complex"])
    assert np.array_equal(np.asarray(empty)[:400], np.asarray(_grey(size)))
    assert draw_instances(_grey(size), []).height > 400


@pytest.mark.parametrize("label", ["w" * 500, "the dog " * 100, "猫", "a\nb", "x"])
def test_long_and_odd_labels_stay_in_the_picture(label):
    size = (300, 200)
    picture = draw_instances(_grey(size), [_instance(size, (0, 0, 90, 90), label=label)] * 12)
    assert picture.width == 600 and picture.height < 900


def test_an_empty_mask_and_a_box_on_the_border():
    size = (600, 400)
    empty = _instance(size, (590, 390, 600, 400)) | {"mask": Image.new("L", size)}
    assert draw_instances(_grey(size), [empty]).width == 600


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
        draw_instances(_grey((60, 40)), results)


def test_captions_must_match_rows():
    with pytest.raises(ValueError, match="`instructions` for each of 1 rows"):
        draw_instances(_grey((60, 40)), [], instructions=["a", "b"])


def test_contact_sheet():
    images = [_grey((600, 400)), _grey((100, 300)), _grey((50, 50)), _grey((10, 700)), _grey((600, 400))]
    sheet = contact_sheet(images, 2, cell=120, gap=10)
    assert sheet.width == 2 * 130 + 10 and sheet.height == 120 * 3 - 40 + 40  # the last line is 80 high
    assert contact_sheet(images[:1], 5, cell=120, gap=10).size == (140, 100)
    for arguments in (([], 2), (images, 0)):
        with pytest.raises(ValueError, match="at least one column"):
            contact_sheet(*arguments)


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
