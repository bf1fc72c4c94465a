# SPDX-License-Identifier: Apache-2.0
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel
from sam3i.processing.data_engine.checks import (
    ACCEPTED,
    DROPPED,
    FAIL,
    PASS,
    REVIEW,
    UNSURE,
    Candidate,
    CheckResult,
    DuplicateCheck,
    check_denotation,
    check_length,
    check_level,
    decide,
    estimate_tokens,
    grounding_result,
)
from sam3i.processing.data_engine.review.view import SEGMENTED, TARGET, marked_image
from sam3i.processing.data_engine.scene.facts import Facts
from sam3i.processing.data_engine.scene.scene import AnnotatedScene, SceneInstance
from sam3i.processing.data_engine.scene.sources import CocoSource, RowSource
from sam3i.processing.data_engine.writers.chat_writer import ChatChecker, engine_prompts
from sam3i.processing.data_engine.writers.template_writer import TargetPlan
from sam3i.processing.datasets.schema import make_row
from sam3i.processing.language.meaning import Filter, Meaning, Selector, denote
from sam3i.processing.language.nouns import NounForms, plural_of
from sam3i.processing.language.reading import read_simple
from sam3i.processing.masks import decode_mask, encode_mask

CONCEPT, SIMPLE, COMPLEX = InstructionLevel
FORMS = NounForms()
CUPS = ((10, 40, "red"), (60, 40, "red"), (110, 40, "blue"), (160, 40, "red"))


def scene_of(boxes, **fields):
    """A 200 x 100 scene of colored rectangles: (noun, x, y, width, height, color)."""
    picture = Image.new("RGB", (200, 100), (120, 120, 120))
    draw, instances = ImageDraw.Draw(picture), []
    for number, (noun, x, y, width, height, color, *rest) in enumerate(boxes, start=1):
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        mask = np.zeros((100, 200), bool)
        mask[y : y + height, x : x + width] = True
        instances.append(SceneInstance(number, noun, encode_mask(mask), *rest))
    return AnnotatedScene("s", 200, 100, tuple(instances), lambda: picture, **fields)


@pytest.fixture
def cups():
    boxes = [("cup", x, y, 20, 20, color) for x, y, color in CUPS]
    return Facts(scene_of([*boxes, ("plate", 55, 75, 30, 20, "white")]))


def candidate(level, text, targets=(1,), noun="cup", meaning=None):
    kind = "none" if not targets else "1-to-1" if len(targets) == 1 else "1-to-N"
    return Candidate(level, text, TargetPlan(tuple(targets), kind, noun, "object", meaning))


@pytest.mark.parametrize(
    ("text", "targets", "verdict"),
    [
        ("the leftmost cup", (1,), PASS),
        ("the leftmost cup", (2,), FAIL),
        ("the cup", (1,), FAIL),
        ("the red cups", (1, 2, 4), PASS),
        ("the red cup", (1, 2, 4), FAIL),  # speaks of one
        ("the blue mug", (3,), PASS),
        ("the second cup from the left", (2,), PASS),
        ("please find the two leftmost cups", (1, 2), PASS),
        ("all the cups except the rightmost one", (1, 2, 3), PASS),
        ("the cups on the right side of the picture", (3, 4), PASS),
        ("the red cup on the right", (4,), PASS),
        ("the cup closest to the plate", (2,), PASS),
        ("the cups that are not red", (3,), PASS),
        ("the four cups", (1, 2, 3, 4), PASS),
        ("the green cup", (), PASS),
        ("the green cup", (1,), FAIL),
        ("the cup that looks lonely", (1,), UNSURE),
        ("the largest cup", (1,), UNSURE),
        ("the cups above the plate", (1, 2, 3, 4), PASS),
        ("the cups left of the plate", (1,), UNSURE),  # one cup is right above it
    ],
)
def test_denotation_is_read_and_measured(cups, text, targets, verdict):
    result = check_denotation(candidate(SIMPLE, text, targets), cups, ("cup", "plate"), FORMS)
    assert result.verdict == verdict, result
    assert result.verdict == PASS or result.reason


def test_denotation_says_what_is_wrong(cups):
    result = check_denotation(candidate(SIMPLE, "the red cups", (1, 3)), cups, ("cup", "plate"), FORMS)
    assert result.evidence["denotes"] == [1, 2, 4] and result.evidence["target"] == [1, 3]
    assert "fits 2 other" in result.reason and "not fit 1" in result.reason


@pytest.mark.parametrize(
    ("level", "text", "noun", "verdict"),
    [
        (SIMPLE, "the red cup on the left", "cup", PASS),
        (SIMPLE, "the red mugs on the left", "cup", PASS),
        (SIMPLE, "the red thing on the left", "cup", FAIL),
        (SIMPLE, "cup", "cup", FAIL),
        (SIMPLE, "which cup could hold coffee?", "cup", FAIL),
        (COMPLEX, "something to drink coffee from", "cup", PASS),
        (COMPLEX, "the cup to drink coffee from", "cup", FAIL),
        (COMPLEX, "the mugs to drink coffee from", "cup", FAIL),
        (COMPLEX, "people who wait to cross the street", "person", FAIL),
        (COMPLEX, "a glass that holds something red", "wine glass", FAIL),
        (COMPLEX, "the surface where the family eats", "dining table", PASS),
        (COMPLEX, "the cupboard that holds the plates", "cup", PASS),
        (CONCEPT, "cup", "cup", PASS),
        (CONCEPT, "the cup that stands on the left", "cup", FAIL),
        (CONCEPT, "plate", "cup", FAIL),
    ],
)
def test_levels_name_the_noun_or_do_not(level, text, noun, verdict):
    assert check_level(candidate(level, text, noun=noun), FORMS).verdict == verdict


def test_own_synonyms_count():
    forms = NounForms({"cup": ["chalice"]})
    assert check_level(candidate(COMPLEX, "the chalices that a king drinks from"), FORMS).verdict == PASS
    assert check_level(candidate(COMPLEX, "the chalices that a king drinks from"), forms).verdict == FAIL


@pytest.mark.parametrize(
    ("noun", "plural"),
    [("cup", "cups"), ("wine glass", "wine glasses"), ("person", "people"), ("knife", "knives"), ("sheep", "sheep"),
     ("teddy bear", "teddy bears"), ("bus", "buses"), ("cherry", "cherries"), ("toy", "toys"), ("bench", "benches")],
)  # fmt: skip
def test_plurals(noun, plural):
    assert plural_of(noun) == plural


def test_length_counts_tokens():
    assert check_length(candidate(SIMPLE, "the red cup"), estimate_tokens).verdict == PASS
    long = check_length(candidate(SIMPLE, "the cup " * 20), estimate_tokens)
    assert long.verdict == FAIL and long.evidence["tokens"] == 42
    for text in ("", "  ", "two\nlines", "bad \ufffd"):
        assert check_length(candidate(SIMPLE, text), estimate_tokens).verdict == FAIL


def test_duplicates():
    check = DuplicateCheck()
    check.keep(candidate(SIMPLE, "the red cup on the left side"))
    assert check(candidate(SIMPLE, "The red cup on the left side.")).evidence["same_target"]
    assert not check(candidate(SIMPLE, "the red cup on the left side", (2,))).evidence["same_target"]
    assert "nearly" in check(candidate(SIMPLE, "find the red cup on the left side")).reason
    assert check(candidate(SIMPLE, "the blue cup on the left side")).verdict == PASS
    assert check(candidate(SIMPLE, "find the red cup on the left side", (2,))).verdict == PASS


def test_unclear_scenes_give_no_answer():
    near = Facts(scene_of([("cup", 10, 40, 20, 20, "red"), ("cup", 12, 75, 20, 20, "blue")]))
    assert denote(Meaning("cup", (), Selector("extreme", "left")), near) is None
    assert denote(Meaning("cup", (), Selector("extreme", "top")), near) == {0}
    crowded = Facts(scene_of([("cup", 10, 40, 20, 20, "red")], partial_nouns=frozenset({"cup"})))
    assert denote(Meaning("cup"), crowded) is None
    unknown = Facts(scene_of([("cup", 10, 40, 20, 20, "red")], absent_nouns=frozenset({"dog"})))
    assert denote(Meaning("dog"), unknown) == frozenset() and denote(Meaning("cat"), unknown) is None


def test_containment_and_parts():
    boxes = [("box", 10, 10, 80, 80, "red"), ("ball", 30, 30, 20, 20, "blue"), ("ball", 150, 30, 20, 20, "blue")]
    facts = Facts(scene_of(boxes))
    assert denote(Meaning("ball", (Filter("inside", reference="box"),)), facts) == {1}
    bottles = [("bottle", 10, 30, 30, 60, "red"), ("bottle", 120, 30, 30, 60, "blue")]
    caps = [("cap", 15, 10, 20, 20, "white", "part", 1), ("cap", 125, 10, 20, 20, "white", "part", 2)]
    facts = Facts(scene_of([*bottles, *caps]))
    reading = read_simple("the cap of the blue bottle", ("bottle", "cap"), FORMS)
    assert denote(reading.meaning, facts) == {3}


def result(check, verdict):
    return CheckResult(check, verdict, f"{check} {verdict}")


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        ([result("length", FAIL), result("checker", PASS)], DROPPED),
        ([result("denotation", PASS)], ACCEPTED),
        ([result("denotation", UNSURE)], REVIEW),
        ([result("denotation", UNSURE), result("checker", PASS)], ACCEPTED),
        ([result("denotation", UNSURE), result("checker", FAIL)], DROPPED),
        ([result("denotation", PASS), result("checker", FAIL)], REVIEW),
        ([result("denotation", UNSURE), result("checker", PASS), result("grounding", FAIL)], REVIEW),
        ([result("checker", FAIL), result("grounding", FAIL)], DROPPED),
    ],
)
def test_decisions(results, outcome):
    assert decide(results)[0] == outcome


def test_the_review_page_outlines_what_the_segmenter_found(cups):
    first, second = (cups.scene.by_id[number].pixels() for number in (1, 2))
    failed = grounding_result(candidate(SIMPLE, "x", (1,)), cups, second[None], 0.5)
    pair = {"checks": [{"check": "grounding", "evidence": failed.evidence}]}
    entries = [{"annotation_id": 1, "mask": encode_mask(first)}]
    item = SimpleNamespace(target={"targets": [1]}, pair=pair, picture={"instances": entries})
    image = Image.new("RGB", (cups.scene.width, cups.scene.height), (128, 128, 128))
    colors = {tuple(pixel) for pixel in np.asarray(marked_image(item, image, {1: 1})).reshape(-1, 3)}
    assert {TARGET, SEGMENTED} <= colors


def test_grounding_compares_unions(cups):
    masks = np.stack([cups.scene.by_id[number].pixels() for number in (1, 2)])
    both = candidate(SIMPLE, "the two leftmost cups", (1, 2))
    assert grounding_result(both, cups, masks, 0.5).evidence["iou"] == 1.0
    failed = grounding_result(candidate(SIMPLE, "x", (1,)), cups, masks, 0.6)
    assert failed.verdict == FAIL and np.array_equal(decode_mask(failed.evidence["mask"]), masks.any(axis=0))
    assert grounding_result(candidate(SIMPLE, "x", ()), cups, masks[:0], 0.5).verdict == PASS
    with pytest.raises(ValueError, match="K, 100, 200"):
        grounding_result(both, cups, masks[:, :50], 0.5)


def test_coco_lvis_and_paco_fields(tmp_path):
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    annotation = {"image_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0, "segmentation": square}
    data = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 64, "height": 48, "neg_category_ids": [4],
             "not_exhaustive_category_ids": [3]},
            {"id": 2, "file_name": "b.png", "width": 64, "height": 48},
        ],
        "annotations": [
            annotation | {"id": 7, "category_id": 1},
            annotation | {"id": 8, "category_id": 2, "obj_ann_id": 7},
            annotation | {"id": 9, "category_id": 3},
            annotation | {"id": 10, "category_id": 5, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "bottle"}, {"id": 2, "name": "bottle:cap"}, {"id": 3, "name": "cup"},
                       {"id": 4, "name": "baseball_bat"}, {"id": 5, "name": "person"}],
    }  # fmt: skip
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(data))
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    source = CocoSource(path, crowd="skip")
    scene, empty = source.scenes()
    assert not empty.instances and empty.image_id == "2"
    assert source.nouns == ("baseball bat", "bottle", "cap", "cup", "person")
    assert [(item.noun, item.granularity, item.whole) for item in scene.instances] == [
        ("bottle", "object", None), ("cap", "part", 7), ("cup", "object", None)
    ]  # fmt: skip
    assert scene.partial_nouns == {"cup", "person"} and scene.is_absent("baseball bat")
    assert not scene.is_absent("person") and scene.open_image().size == (64, 48)
    data["annotations"][0]["category_id"] = 99
    path.write_text(json.dumps(data))
    changed = CocoSource(path, crowd="skip")
    assert changed.fingerprint != source.fingerprint
    scene = next(changed.scenes())
    assert [item.annotation_id for item in scene.instances] == [8, 9]
    assert scene.left_out["annotation of an unknown category"][0] == 1


def test_rows_become_scenes(cups):
    masks = [item.mask for item in cups.scene.instances]
    common = {"image": Image.new("RGB", (200, 100)), "width": 200, "height": 100, "image_id": "i"}

    def row(number, numbers, kind, concept):
        chosen = [masks[i] for i in numbers]
        boxes = [cups.scene.instances[i].box for i in numbers]
        return make_row(**common, row_id=number, masks=chosen, boxes=boxes, concept=[concept], target_kind=kind)

    (scene,) = RowSource([row(1, [0, 1], "1-to-N", "cup"), row(2, [1, 2], "1-to-N", "cup")]).scenes()
    assert len(scene.instances) == 3 and scene.partial_nouns == {"cup"}
    (scene,) = RowSource([row(1, [0, 1, 2, 3], "1-to-all", "cup"), row(2, [], "none", "dog")]).scenes()
    assert not scene.partial_nouns and scene.is_absent("dog") and not scene.is_absent("cat")
    crowded = row(1, [0, 1, 2, 3], "1-to-all", "cup") | {"is_crowd": [True, False, False, False]}
    (scene,) = RowSource([crowded]).scenes()
    assert len(scene.instances) == 3 and scene.partial_nouns == {"cup"}


def test_what_a_checker_may_answer_is_bounded(cups):
    _, schema = ChatChecker(engine_prompts()).request(cups.scene, {1: 1, 2: 2, 3: 3}, ["the cup", "the red cup"])
    answers = schema["properties"]["answers"]
    matches = answers["items"]["properties"]["matches"]
    assert answers["minItems"] == answers["maxItems"] == 2
    assert matches["items"]["enum"] == [1, 2, 3] and matches["maxItems"] == 3
