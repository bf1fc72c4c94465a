# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import json
import multiprocessing

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam3i.trainer.evaluation.mask_scores import average_precision, encode_prediction, encode_reference, score_masks
from sam3i.trainer.evaluation.metrics import METRIC_FOLDER, InstructionSegmentationMetric

SIDE = 20


def square(left: int, top: int, size: int = 6) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


def masks(*items: np.ndarray) -> np.ndarray:
    return np.array(items, dtype=bool).reshape(-1, SIDE, SIDE)


def random_samples(count: int = 60) -> tuple[list, list]:
    """Rectangles of all sizes, near misses, duplicates, crowds, empty targets and empty answers."""
    rng = np.random.default_rng(5)
    predictions, references = [], []
    for index in range(count):
        targets, answers = [], []
        for _ in range(rng.integers(0, 4)):
            left, top, size = rng.integers(0, 12), rng.integers(0, 12), rng.integers(2, 8)
            targets.append(square(left, top, size))
            if rng.random() < 0.8:
                answers.append(square(left + rng.integers(0, 2), top, size))
        if rng.random() < 0.4:
            answers.append(square(*rng.integers(0, 12, size=2)))
        scores = rng.random(len(answers)).round(3)
        crowd = [bool(rng.random() < 0.1) for _ in targets]
        predictions.append(encode_prediction({"masks": masks(*answers), "scores": scores}))
        references.append(
            encode_reference(
                masks(*targets),
                sample_id=str(index),
                level=("concept", "simple", "complex")[index % 3],
                target_kind="none" if not targets else ("1-to-1" if len(targets) == 1 else "1-to-N"),
                is_crowd=crowd,
            )
        )
    return predictions, references


def dense(counts: list[str]) -> np.ndarray:
    found = [coco_mask.decode({"size": [SIDE, SIDE], "counts": c.encode()}).astype(bool) for c in counts]
    return np.any(masks(*found), axis=0) if found else np.zeros((SIDE, SIDE), dtype=bool)


def test_hand_computed_figures(tmp_path):
    metric = InstructionSegmentationMetric(cache_dir=str(tmp_path))
    half = square(0, 0)
    half[3:] = False
    pairs = [
        (masks(square(0, 0)), masks(square(0, 0)), "simple", "1-to-1"),  # IoU 1
        (masks(half), masks(square(0, 0)), "simple", "1-to-1"),  # IoU 18 / 36
        (masks(), masks(square(0, 0), square(10, 10)), "complex", "1-to-N"),  # IoU 0, union 72
        (masks(), masks(), "complex", "none"),  # rightly silent
        (masks(square(0, 0)), masks(), "complex", "none"),  # IoU 0, union 36
    ]
    for found, target, level, kind in pairs:
        metric.add(
            prediction=encode_prediction({"masks": torch.tensor(found), "scores": torch.full((len(found),), 0.9)}),
            reference=encode_reference(torch.tensor(target), level=level, target_kind=kind),
        )
    figures = metric.compute()
    assert figures["n"] == 5
    assert figures["gIoU"] == pytest.approx(100 * 2.5 / 5)
    assert figures["cIoU"] == pytest.approx(100 * (36 + 18) / (36 + 36 + 72 + 0 + 36))
    assert [figures[f"P@{t}"] for t in (0.5, 0.6, 0.9)] == [60, 40, 40]
    assert figures["N-acc"] == 50
    assert figures["T-acc"] == pytest.approx(200 / 3)
    assert figures["gIoU-nothing"] == 40
    assert figures["per_level"]["simple"]["gIoU"] == 75
    assert figures["per_level"]["complex"]["gIoU"] == pytest.approx(100 / 3)
    assert figures["per_kind"]["none"]["n"] == 2
    assert figures["per_kind"]["1-to-1"]["N-acc"] is None
    assert set(figures["per_size"]) == {"none", "small"}
    json.dumps(figures)


def test_run_length_scores_equal_dense_ones():
    predictions, references = random_samples()
    rng = np.random.default_rng(1)
    for reference in references[::4]:
        reference["ignore_masks"] = [encode_reference(masks(square(*rng.integers(0, 12, size=2))))["masks"][0]]
    scores = score_masks(predictions, references)
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        counted = ~dense(reference["ignore_masks"])
        found, target = dense(prediction["masks"]) & counted, dense(reference["masks"]) & counted
        assert scores.intersection[index] == (found & target).sum()
        assert scores.union[index] == (found | target).sum()
        assert scores.predicted_area[index] == found.sum()
        assert scores.target_area[index] == target.sum()
        assert scores.no_target[index] == (not reference["masks"])


def coco_by_the_book(predictions, references) -> list[float]:
    images = [{"id": i + 1, "height": SIDE, "width": SIDE} for i in range(len(references))]
    annotations, detections = [], []
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        for counts, crowd in zip(reference["masks"], reference["is_crowd"], strict=True):
            rle = {"size": [SIDE, SIDE], "counts": counts}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": 1,
                    "iscrowd": int(crowd),
                    "segmentation": rle,
                    "area": float(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                }
            )
        for counts, score in zip(prediction["masks"], prediction["scores"], strict=True):
            rle = {"size": [SIDE, SIDE], "counts": counts}
            detections.append({"image_id": index + 1, "category_id": 1, "segmentation": rle, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_average_precision_equals_pycocotools():
    predictions, references = random_samples()
    expected = coco_by_the_book(predictions, references)
    found = average_precision(score_masks(predictions, references), merged=False)
    assert 0.1 < expected[0] < 0.95
    assert found["AP"] == expected[0]
    assert found["AP50"] == expected[1]


def test_average_precision_without_an_instance_is_none():
    scores = score_masks([{"masks": [], "scores": []}], [encode_reference(masks(), sample_id="a")])
    assert average_precision(scores, merged=False)["AP"] is None


def test_add_batch_add_and_compute_agree(tmp_path):
    predictions, references = random_samples(20)
    whole = InstructionSegmentationMetric(cache_dir=str(tmp_path)).compute(
        predictions=predictions, references=references
    )
    pieces = InstructionSegmentationMetric(cache_dir=str(tmp_path), experiment_id="pieces")
    pieces.add_batch(predictions=predictions[:12], references=references[:12])
    for prediction, reference in zip(predictions[12:], references[12:], strict=True):
        pieces.add(prediction=prediction, reference=reference)
    assert pieces.compute() == whole
    other = InstructionSegmentationMetric("refzom", keep_in_memory=True, cache_dir=str(tmp_path))
    other.add_batch(predictions=predictions, references=references)
    figures = other.compute(breakdown=False)
    assert "Acc" in figures and "per_level" not in figures


def test_the_pipelines_output_is_a_prediction(tmp_path):
    def found(*pairs):
        image = [Image.fromarray(np.uint8(mask) * 255) for mask, _ in pairs]
        return [
            {"score": s, "label": "x", "level": "simple", "mask": m} for m, (_, s) in zip(image, pairs, strict=True)
        ]

    metric = InstructionSegmentationMetric(cache_dir=str(tmp_path))
    references = [encode_reference(masks(square(0, 0), square(10, 10))), encode_reference(masks())]
    twice = found((square(0, 0), 0.9), (square(0, 0), 0.8), (square(10, 10), 0.7))
    figures = metric.compute(predictions=[twice, []], references=references)
    assert figures["gIoU"] == 100 and figures["count_ratio"] == 1.5 and figures["exact"] == 50
    assert figures["N-acc"] == 100 and figures["failures"] == 0
    with pytest.raises(TypeError, match="pipeline's list"):
        metric.add(prediction=3, reference=references[0])


def test_the_metric_loads_by_path(tmp_path):
    metric = evaluate.load(METRIC_FOLDER, "grefcoco", cache_dir=str(tmp_path))
    metric.add(prediction={"masks": masks(), "scores": [], "error": "no reply"}, reference=encode_reference(masks()))
    figures = metric.compute(breakdown=False)
    assert figures["gIoU"] == figures["N-acc"] == 0 and figures["failures"] == 1


@pytest.mark.parametrize(
    ("found", "target", "crowd", "counts"),
    [
        ([(0, 0)], [(0, 0)], [False], (1, 1, 1)),
        ([(0, 0), (1, 0)], [(0, 0)], [False], (2, 1, 1)),  # found twice: one of them is extra
        ([(1, 0), (0, 0)], [(0, 0), (1, 0)], [False] * 2, (2, 2, 2)),  # each takes the one it fits best
        ([(10, 10)], [(0, 0)], [False], (1, 0, 1)),
        ([(0, 0), (10, 10)], [(0, 0), (10, 10)], [False, True], (1, 1, 1)),  # what lies in a crowd does not count
        ([], [(0, 0)], [False], (0, 0, 1)),
    ],
)
def test_instances_are_matched_one_to_one(found, target, crowd, counts):
    prediction = encode_prediction(
        {"masks": masks(*(square(*at) for at in found)), "scores": [0.9, 0.8][: len(found)]}
    )
    scores = score_masks([prediction], [encode_reference(masks(*(square(*at) for at in target)), is_crowd=crowd)])
    assert (scores.found[0], scores.matched[0], scores.instances[0]) == counts
    assert scores.exact[0] == (counts[0] == counts[1] == counts[2])


def compute_share(process: int, cache: str, predictions: list, references: list, answers) -> None:
    metric = InstructionSegmentationMetric(
        num_process=2, process_id=process, experiment_id="two", cache_dir=cache, timeout=60
    )
    metric.add_batch(predictions=predictions[process::2], references=references[process::2])
    answers.put((process, metric.compute()))


def test_two_processes_give_the_figures_of_one(tmp_path):
    predictions, references = random_samples(21)
    fork = multiprocessing.get_context("fork")  # nothing is imported anew
    answers = fork.Queue()
    shares = [(process, str(tmp_path / "cache"), predictions, references, answers) for process in (0, 1)]
    workers = [fork.Process(target=compute_share, args=share) for share in shares]
    for worker in workers:
        worker.start()
    found = dict(answers.get(timeout=200) for _ in workers)
    for worker in workers:
        worker.join()
    assert found[1] is None
    expected = InstructionSegmentationMetric(cache_dir=str(tmp_path)).compute(
        predictions=predictions, references=references
    )
    for name, value in expected.items():
        if not name.startswith("per_"):
            assert found[0][name] == pytest.approx(value), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": ["zz"]}, r"Sample 'x', predictions.masks\[0\]: counts are no run lengths: 'zz'"),
        ({"masks": ["04"]}, r"predictions.masks\[0\]: the runs cover 4 pixels, the image has 400"),
        ({"scores": []}, r"Sample 'x': expected one score per mask, found 1 masks and 0 scores"),
    ],
)
def test_broken_run_lengths_are_refused_before_the_c_library_sees_them(change, message):
    prediction = {**encode_prediction({"masks": masks(square(1, 1)), "scores": [0.5]}), **change}
    with pytest.raises(ValueError, match=message):
        score_masks([prediction], [encode_reference(masks(square(0, 0)), sample_id="x")])


def test_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="expected one of default, sam3i-1to1.*found 'coco'"):
        InstructionSegmentationMetric("coco")
