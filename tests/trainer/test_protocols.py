# SPDX-License-Identifier: Apache-2.0
import json
import time

import numpy as np
import pytest

from sam3i.processing.masks import encode_mask
from sam3i.trainer.evaluation.mask_scores import encode_prediction, encode_reference, score_masks
from sam3i.trainer.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from sam3i.trainer.predictions.files import PredictionFileError, pair_files, read_annotations, read_predictions

SIDE = 10


def block(width: int, left: int = 0) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[:, left : left + width] = True
    return mask


def scores_of(*pairs, ignore=None, groups=None):
    """Samples from (predicted mask or None, target mask or None) pairs."""
    predictions, references = [], []
    for index, (found, target) in enumerate(pairs):
        found, target = ([] if mask is None else [mask] for mask in (found, target))
        stack = np.array(found, dtype=bool).reshape(-1, SIDE, SIDE)
        predictions.append(encode_prediction({"masks": stack, "scores": [0.7] * len(found)}))
        references.append(
            encode_reference(
                np.array(target, dtype=bool).reshape(-1, SIDE, SIDE),
                sample_id=str(index),
                group=groups[index] if groups else str(index),
                ignore_masks=[] if ignore is None or ignore[index] is None else [ignore[index]],
            )
        )
    return score_masks(predictions, references)


# IoU 1/2; false alarm; correct empty answer; miss
MIXED = ((block(2), block(4)), (block(3), None), (None, None), (None, block(5)))


@pytest.mark.parametrize(("mode", "protocol"), [("1to1", "sam3i-1to1"), ("multi_inst", "sam3i-multi")])
def test_authors_figures_to_the_printed_digits(reference_dir, mode, protocol):
    expected = json.loads((reference_dir / "metrics_expected.json").read_text())
    protocol = get_protocol(protocol)
    pairs = pair_files(
        protocol,
        read_predictions(reference_dir / "metrics_pred.json"),
        read_annotations(reference_dir / "metrics_gt.json"),
    )
    figures = protocol.compute(score_masks(*pairs[:2]))
    ours = {
        "gIoU": "gIoU",
        "mIoU": "cIoU",
        "Precision @ 0.50": "P@0.5",
        "AP (COCO 0.5:0.95)": "AP",
        "AP @ 0.50": "AP50",
        "n": "n",
    }
    for name, value in expected["printed"][mode].items():
        assert round(figures[ours[name]], 2) == value, name
    for name, value in expected["unrounded"][mode].items():
        assert figures[ours[name]] == pytest.approx(value, abs=1e-10), name


def test_grefcoco():
    figures = get_protocol("grefcoco").compute(scores_of(*MIXED))
    assert figures["gIoU"] == pytest.approx(100 * (0.5 + 0 + 1 + 0) / 4)
    assert figures["cIoU"] == pytest.approx(100 * 20 / (40 + 30 + 0 + 50))
    assert figures["P@0.5"] == 50  # of the two with a target
    assert figures["N-acc"] == 50
    assert figures["T-acc"] == 50


def test_refcoco():
    figures = get_protocol("refcoco").compute(scores_of((block(2), block(4)), (block(3), block(3)), (None, block(5))))
    assert figures["gIoU"] == figures["mIoU"] == pytest.approx(50)
    assert figures["cIoU"] == figures["oIoU"] == pytest.approx(100 * 50 / 120)
    assert figures["P@0.9"] == pytest.approx(100 / 3)
    assert "AP" not in figures and "N-acc" not in figures


def test_reasonseg_leaves_ignored_pixels_out():
    pairs = ((block(4), block(2)), (block(3), None), (block(2), block(4)))
    ignore = (block(2, left=2), block(4), None)  # the surplus of the first, all of the second
    figures = get_protocol("reasonseg").compute(scores_of(*pairs, ignore=ignore))
    assert figures["gIoU"] == pytest.approx(100 * (1 + 1 + 0.5) / 3)
    assert figures["cIoU"] == pytest.approx(100 * (20 + 0 + 20) / (20 + 0 + 40))


def test_refzom_scores_targets_and_silence_apart():
    figures = get_protocol("refzom").compute(scores_of(*MIXED))
    assert figures["mIoU"] == figures["gIoU"] == pytest.approx(25)
    assert figures["oIoU"] == figures["cIoU"] == pytest.approx(100 * 20 / 90)
    assert figures["Acc"] == 50


def test_sam3i_multi_averages_within_image_records_and_counts_silence_as_zero():
    pairs = ((block(4), block(4)), (block(2), block(4)), (None, None))
    figures = get_protocol("sam3i-multi").compute(scores_of(*pairs, groups=("a", "a", "b")))
    assert figures["gIoU"] == pytest.approx(100 * ((1 + 0.5) / 2 + 0) / 2)
    assert figures["n"] == 2


def test_default_counts_right_silence_and_breaks_down():
    protocol = get_protocol("default")
    scores = scores_of(*MIXED)
    assert protocol.compute(scores)["gIoU"] == pytest.approx(37.5)
    assert protocol.compute(scores)["gIoU-nothing"] == 50
    assert {name: part["n"] for name, part in protocol.compute_breakdown(scores)["size"].items()} == {
        "none": 2,
        "small": 2,
    }


def test_without_samples_says_so():
    scores = scores_of(*MIXED)
    with pytest.raises(ValueError, match="'default' has no samples"):
        get_protocol("default").compute(scores.take(np.zeros(len(scores), dtype=bool)))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_states_itself(name):
    text = str(get_protocol(name))
    assert text.startswith(f"{name}: ") and "Source: " in text


def test_every_protocol_has_a_name_of_its_own_and_own_ones_are_taken_as_they_are():
    assert len(PROTOCOLS) == 7
    own = Protocol(name="own", statement="", source="")
    assert get_protocol(own) is own


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


RLE = encode_mask(block(4))
GOOD = {"annotation_id": 1, "image_id": 1, "predictions": [{"rle": RLE, "score": 0.5}]}
FAULTY_PREDICTIONS = {
    "list": ({"a": 1}, r"\(file\): .*expected a list of prediction records"),
    "syntax": ("[{]", r"line 1, column 3: \(syntax\)"),
    "record": ([GOOD, 7], r"record \[1\]: \(record\): found 7, expected an object"),
    "image_id": ([{**GOOD, "image_id": "one"}], r"record \[0\].*image_id: found 'one', expected a whole number"),
    "no image_id": ([{"annotation_id": 1, "predictions": []}], r"image_id: found missing"),
    "annotation_id": ([{**GOOD, "annotation_id": 1.5}], r"annotation_id: found 1.5"),
    "twice": ([GOOD, GOOD], r"record \[1\] \(annotation_id 1\): annotation_id: found 1, used by record \[0\]"),
    "predictions": ([{**GOOD, "predictions": None}], r"predictions: found None, expected a list"),
    "entry": ([{**GOOD, "predictions": ["x"]}], r"predictions\[0\]: found 'x'"),
    "score": ([{**GOOD, "predictions": [{"rle": RLE}]}], r"predictions\[0\].score: found missing"),
    "nan": ('[{"annotation_id":1,"image_id":1,"predictions":[{"rle":1,"score":NaN}]}]', r"\[0\].score: found nan"),
    "rle": ([{**GOOD, "predictions": [{"rle": [1], "score": 1}]}], r"predictions\[0\].rle: found \[1\]"),
    "size": (
        [{**GOOD, "predictions": [{"rle": {**RLE, "size": [10, 0]}, "score": 1}]}],
        r"predictions\[0\].rle: found \{.*'size': \[10, 0\]",
    ),
    "counts": (
        [{**GOOD, "predictions": [{"rle": {**RLE, "counts": "\x01"}, "score": 1}]}],
        r"predictions\[0\].rle: found counts are no run lengths",
    ),
    "bool": ([{**GOOD, "predictions": [{"rle": RLE, "score": True}]}], r"predictions\[0\].score: found True"),
    "encoding": (b'["\xff"]', r"byte 2: \(encoding\)"),
}


@pytest.mark.parametrize("name", FAULTY_PREDICTIONS)
def test_faulty_prediction_files_are_named_by_record_and_field(tmp_path, name):
    content, message = FAULTY_PREDICTIONS[name]
    path = tmp_path / "p.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content)
    with pytest.raises(PredictionFileError, match=message) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


def test_all_faults_of_a_file_are_collected(tmp_path):
    records = [{**GOOD, "annotation_id": index, "image_id": None} for index in range(30)]
    with pytest.raises(PredictionFileError, match="and 10 more") as error:
        read_predictions(write(tmp_path / "p.json", records))
    assert len(error.value.faults) == 30


ANNOTATION = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": RLE}
IMAGE = {"id": 1, "height": SIDE, "width": SIDE, "file_name": "a.jpg"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], r"expected an object with the lists images and annotations"),
        ({"images": []}, r"annotations: found missing"),
        ({"images": [{"id": 1}], "annotations": []}, r"images\[0\]: height: found missing"),
        ({"images": [IMAGE, IMAGE], "annotations": []}, r"images\[1\]: id: found 1, expected an id used once"),
        ({"images": [IMAGE], "annotations": [{**ANNOTATION, "image_id": 9}]}, r"\[0\] \(id 1\): image_id: found 9"),
        ({"images": [IMAGE], "annotations": [{**ANNOTATION, "segmentation": [[1, 2]]}]}, r"segmentation: found a pol"),
    ],
)
def test_faulty_annotation_files_are_named(tmp_path, content, message):
    with pytest.raises(PredictionFileError, match=message):
        read_annotations(write(tmp_path / "g.json", content))


def test_predictions_must_fit_their_images(tmp_path):
    annotations = read_annotations(write(tmp_path / "g.json", {"images": [IMAGE], "annotations": [ANNOTATION]}))
    small = encode_mask(np.ones((2, 2), dtype=bool))
    records = [{**GOOD, "predictions": [{"rle": small, "score": 1.0}]}]
    path = write(tmp_path / "p.json", records)
    with pytest.raises(PredictionFileError, match=r"predictions.rle.size: found size \[2, 2\], expected .*\[10, 10\]"):
        pair_files(get_protocol("default"), read_predictions(path), annotations, str(path))


def test_annotation_files_bring_every_encoding_ignore_regions_and_empty_masks(tmp_path):
    images = [IMAGE, {**IMAGE, "id": 2, "sam3i": {"ignore_masks": [encode_mask(block(2))], "target_kind": "1-to-N"}}]
    annotations = [
        {**ANNOTATION, "segmentation": [[0, 0, 4, 0, 4, 10, 0, 10]]},
        {**ANNOTATION, "id": 2, "image_id": 2, "segmentation": {"size": [SIDE, SIDE], "counts": [0, 40, 60]}},
        {**ANNOTATION, "id": 3, "image_id": 2, "ignore": 1, "segmentation": encode_mask(block(1, left=9))},
        {**ANNOTATION, "id": 4, "image_id": 2, "segmentation": {"size": [SIDE, SIDE], "counts": ""}},
    ]
    file = read_annotations(write(tmp_path / "g.json", {"images": images, "annotations": annotations}))
    records = [
        {**GOOD, "predictions": [{"rle": RLE, "score": 0.5}], "prompt_type": "simple_query_0"},
        {"annotation_id": None, "image_id": 2, "predictions": [{"rle": encode_mask(block(10)), "score": 0.5}]},
    ]
    path = write(tmp_path / "p.json", records)
    scores = score_masks(*pair_files(get_protocol("reasonseg"), read_predictions(path), file)[:2])
    assert scores.iou(0).tolist() == pytest.approx([1, 20 / 70])
    assert list(scores.levels) == ["simple", ""]
    assert list(scores.kinds) == ["", "1-to-N"]


@pytest.mark.slow
def test_ten_thousand_predictions_a_minute(tmp_path):
    count, rng = 10_000, np.random.default_rng(0)
    y, x = np.mgrid[:480, :640]
    shapes = []
    for _ in range(200):
        cx, cy, radius, waves = rng.integers(80, 560), rng.integers(80, 400), rng.integers(20, 120), rng.integers(3, 9)
        edge = radius * (1 + 0.25 * np.sin(waves * np.arctan2(y - cy, x - cx)))
        shapes.append(encode_mask((x - cx) ** 2 + (y - cy) ** 2 < edge**2))
    drawn = rng.integers(len(shapes), size=(count, 4))
    images = [{"id": i, "height": 480, "width": 640} for i in range(count)]
    annotations = [{"id": i, "image_id": i, "iscrowd": 0, "segmentation": shapes[drawn[i, 0]]} for i in range(count)]
    predictions = [
        {
            "annotation_id": i,
            "image_id": i,
            "predictions": [{"rle": shapes[s], "score": float(s) / 200} for s in drawn[i, 1:]],
        }
        for i in range(count)
    ]
    files = [
        write(tmp_path / "p.json", predictions),
        write(tmp_path / "g.json", {"images": images, "annotations": annotations}),
    ]
    start = time.monotonic()
    protocol = get_protocol("sam3i-1to1")
    scores = score_masks(
        *pair_files(protocol, read_predictions(files[0]), read_annotations(files[1]))[:2], check=False
    )
    assert protocol.compute(scores)["n"] == count
    assert time.monotonic() - start < 60
