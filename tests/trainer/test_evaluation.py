# SPDX-License-Identifier: Apache-2.0
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from segmenter_fixtures import HEIGHT, WIDTH, HalfSegmenter, square_rows

from sam3i.processing.datasets.schema import row_features
from sam3i.trainer.baselines.segmenters import SegmentationResult, Segmenter
from sam3i.trainer.evaluation.evaluate import evaluate_segmenter, group_questions
from sam3i.trainer.evaluation.protocols import get_protocol
from sam3i.trainer.evaluation.result import NoAnswerError, choose_threshold, score_run
from sam3i.trainer.evaluation.tables import format_results
from sam3i.trainer.predictions.log import PredictionLog, PredictionLogError, read_records

FOLDER = Path(__file__).parent


def run(rows, segmenter=None, protocol="default", **options):
    return evaluate_segmenter(segmenter or HalfSegmenter(rows), rows, protocol, progress=False, **options)


def test_figures_of_a_known_segmenter():
    result = run(square_rows(4))
    # per image: simple 1/2, 1/2 and 1, complex 0 and 1
    assert result.figures["gIoU"] == pytest.approx(60)
    assert result.figures["n"] == result.instructions == 20
    assert result.images == 4
    assert result.breakdown["level"]["complex"]["gIoU"] == 50
    assert result.cost["seconds"] == 0.5
    assert result.cost["vision_passes"] == pytest.approx(1 / 5)
    assert result.parameters == 7
    assert result.datasets == ["squares"]
    json.dumps(result.to_dict())


@pytest.mark.parametrize(
    ("protocol", "level", "expected", "n"),
    [
        ("sam3i-1to1", "simple", 50, 4),  # the first instruction, one annotation each
        ("sam3i-1to1", "complex", 0, 4),
        ("sam3i-multi", "simple", 25, 8),  # a correct empty answer counts 0
        ("grefcoco", "simple", 100 * (0.5 + 0.5 + 1) / 3, 12),
        ("refzom", "simple", 50, 12),
        ("reasonseg", "complex", 50, 8),
    ],
)
def test_protocols_choose_their_samples(protocol, level, expected, n):
    result = run(square_rows(4), protocol=protocol, level=level)
    assert result.figures["gIoU"] == pytest.approx(expected)
    assert result.figures["n"] == n


def test_a_concept_is_asked_when_asked_for_or_alone():
    rows = square_rows(2)
    assert run(rows, level="concept").figures["gIoU"] == 100
    alone = [{**row, "simple": [], "complex": []} for row in rows]
    result = run(alone)
    assert result.figures["n"] == 4 and set(result.breakdown["level"]) == {"concept"}


def test_instructions_of_an_image_are_asked_together():
    rows = square_rows(5)
    segmenter = HalfSegmenter(rows)
    run(rows, segmenter, batch_size=2)
    assert len(segmenter.seen) == 5
    assert all(len(instructions) == 5 for _, instructions, _ in segmenter.seen)


def test_images_are_collected_up_to_the_batch_size():
    rows, sizes = square_rows(6), []

    class Counting(HalfSegmenter):
        def segment_images(self, images, instructions, levels):
            sizes.append(len(images))
            return super().segment_images(images, instructions, levels)

    run(rows, Counting(rows), batch_size=14)
    assert sizes == [3, 3]


def test_a_datasets_dataset_gives_the_same_as_a_list():
    rows = square_rows(3)
    dataset = Dataset.from_list(rows, features=row_features())
    found = evaluate_segmenter(HalfSegmenter(rows), dataset, progress=False)
    assert found.figures == run(rows).figures


def test_auto_leaves_the_level_to_the_system_and_reports_how_often_it_was_right():
    rows = square_rows(2)
    segmenter = HalfSegmenter(rows)
    result = run(rows, segmenter, level="auto")
    assert {level for _, _, levels in segmenter.seen for level in levels} == {None}
    assert result.level_accuracy == pytest.approx(60)  # it always says "simple"


def test_a_system_fed_the_concept_hears_the_noun_and_is_scored_on_the_instruction():
    rows = square_rows(2)
    segmenter = HalfSegmenter(rows, text_source="concept")
    result = run(rows, segmenter, level="complex")
    assert {text for _, texts, _ in segmenter.seen for text in texts} == {"square", "circle"}
    assert result.figures["gIoU"] == 100
    rows[0]["concept"] = []
    with pytest.raises(ValueError, match="Row '0-square' has no concept"):
        run(rows, segmenter, level="complex")


def test_faults_of_the_request_are_named():
    rows = square_rows(1)
    with pytest.raises(ValueError, match="Unknown instruction level 'hard'"):
        run(rows, level="hard")
    with pytest.raises(ValueError, match="Unknown protocol"):
        run(rows, protocol="coco")
    with pytest.raises(ValueError, match="no instruction at level 'simple'"):
        run([{**row, "simple": []} for row in rows], level="simple")
    with pytest.raises(ValueError, match="resume needs output_dir"):
        run(rows, resume=True)
    with pytest.raises(ValueError, match="dataset of known length"):
        run(iter(rows), HalfSegmenter(rows))


def test_masks_of_another_size_are_refused():
    class Wrong(Segmenter):
        num_parameters = None

        def segment(self, image, instructions, levels):
            return [SegmentationResult.empty(3, 4) for _ in instructions]

    with pytest.raises(ValueError, match=r"masks of \(3, 4\) pixels, expected \(24, 32\)"):
        run(square_rows(1), Wrong())


class Failing(HalfSegmenter):
    """Gives no answer to some instructions."""

    def __init__(self, rows, failing=lambda text: True):
        super().__init__(rows)
        self.failing = failing

    def segment(self, image, instructions, levels):
        found = super().segment(image, instructions, levels)
        empty = SegmentationResult.empty(HEIGHT, WIDTH, error="no reply")
        return [empty if self.failing(text) else one for text, one in zip(instructions, found, strict=True)]


def test_a_failure_is_never_right_not_even_where_nothing_is_asked_for():
    rows = square_rows(2)
    result = run(rows, Failing(rows, lambda text: "circle" in text))
    assert result.errors == result.figures["failures"] == 2 and result.first_error == "no reply"
    assert result.figures["N-acc"] == 50  # "what has no corner" was answered
    assert result.figures["gIoU"] == pytest.approx(100 * (0.5 + 0.5 + 0 + 0 + 1) / 5)
    assert result.figures["exact"] == pytest.approx(100 * (1 + 1 + 0 + 0 + 1) / 5)
    assert "2 of 10 instructions without an answer" in format_results([result])


def test_a_system_that_fails_throughout_is_an_error_not_a_score(tmp_path):
    rows = square_rows(2)
    with pytest.raises(NoAnswerError, match="answered none of 10 instructions.*no reply") as caught:
        run(rows, Failing(rows), output_dir=tmp_path)
    assert caught.value.result.figures["gIoU"] == 0 and caught.value.result.figures["N-acc"] == 0
    again = run(rows, output_dir=tmp_path, resume=True)  # failures are asked again
    assert again.errors == 0 and again.figures["gIoU"] == pytest.approx(60)


class Doubting(HalfSegmenter):
    """Finds the whole square surely, and its upper half as a second thing with a score of .3."""

    lowest_score = 0.05

    def segment(self, image, instructions, levels):
        results = super().segment(image, instructions, ["concept"] * len(instructions))
        for result, level in zip(results, levels, strict=True):
            half = result.masks.copy()
            half[:, 8:] = False
            result.masks = np.concatenate([result.masks, half])
            low = 0.3 if level == "simple" else 0.45
            result.scores = np.concatenate([np.full(len(half), low), np.full(len(half), 0.1)])
        return results


def test_the_best_threshold_stands_beside_the_asked_one():
    rows = [row for row in square_rows(3) if row["target_kind"] != "none"]
    result = run(rows, Doubting(rows), threshold=0.5)
    assert result.threshold == 0.5 and result.figures["gIoU"] == 0 and result.figures["count_ratio"] == 0
    assert {level: entry["best"] for level, entry in result.thresholds.items()} == {"simple": 0.25, "complex": 0.4}
    simple = result.thresholds["simple"]
    assert simple["figures"]["gIoU"] == 100 and simple["figures"]["exact"] == 100 and simple["figures"]["AP50"] == 100
    assert simple["curve"][0.05] == 100  # merged, the second half is not seen,
    assert run(rows, Doubting(rows), threshold=0.05).figures["count_ratio"] == 2  # counted, it is
    assert simple["calibration_error"] == pytest.approx(100 * (0.7 + 0.1) / 2)  # .3 is always true, .1 never
    table = format_results([result])
    assert "Best threshold per level" in table and "0.25" in table


def test_of_equal_thresholds_the_one_nearest_to_half_is_chosen():
    assert choose_threshold({0.1: 70.0, 0.4: 70.0, 0.8: 70.0, 0.5: 60.0, 0.9: None}) == 0.4
    with pytest.raises(ValueError, match="at least one threshold"):
        choose_threshold({0.5: None})


def test_resuming_asks_only_what_is_left(tmp_path):
    rows = square_rows(4)
    whole = run(rows, output_dir=tmp_path / "whole")

    class Dying(HalfSegmenter):
        def segment_images(self, images, instructions, levels):
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().segment_images(images, instructions, levels)

    with pytest.raises(KeyboardInterrupt):
        run(rows, Dying(rows), batch_size=1, output_dir=tmp_path / "cut")
    part = next((tmp_path / "cut").glob("*.part-*"))
    with open(part, "ab") as file:
        file.write(b'{"place": [0, 0, 0], "torn')
    segmenter = HalfSegmenter(rows)
    result = run(rows, segmenter, output_dir=tmp_path / "cut", resume=True)
    assert len(segmenter.seen) == 2
    assert result.figures == whole.figures
    assert (tmp_path / "cut/predictions.jsonl").read_bytes() == (tmp_path / "whole/predictions.jsonl").read_bytes()
    assert not list((tmp_path / "cut").glob("*.part-*"))


def test_predictions_are_never_overwritten_or_mixed(tmp_path):
    rows = square_rows(1)
    run(rows, output_dir=tmp_path)
    with pytest.raises(PredictionLogError, match="holds predictions already"):
        run(rows, output_dir=tmp_path)
    with pytest.raises(PredictionLogError, match="other settings .*level: None there, 'simple' now"):
        run(rows, level="simple", output_dir=tmp_path, resume=True)
    other = [{**row, "simple": ["another text"]} for row in rows]
    with pytest.raises(PredictionLogError, match="data: "):
        run(other, HalfSegmenter(other), output_dir=tmp_path, resume=True)


class Identified(HalfSegmenter):
    def __init__(self, rows, weights):
        super().__init__(rows)
        self.weights = weights

    def identity(self):
        return {"weights": self.weights}


def test_a_run_goes_on_only_with_the_weights_data_and_images_it_began_with(tmp_path):
    rows = square_rows(2)
    run(rows, Identified(rows, "a"), output_dir=tmp_path)
    run(rows, Identified(rows, "a"), output_dir=tmp_path, resume=True)
    with pytest.raises(PredictionLogError, match=r"weights: 'a' there, 'b' now.*--allow-changed weights"):
        run(rows, Identified(rows, "b"), output_dir=tmp_path, resume=True)
    moved = [{**row, "image": row["image"].copy()} for row in rows]
    moved[0]["image"].putpixel((0, 0), (1, 2, 3))
    with pytest.raises(PredictionLogError, match="images: '"):
        run(moved, Identified(rows, "a"), output_dir=tmp_path, resume=True)
    masks = [{**row, "masks": row["masks"][:0]} for row in rows]
    with pytest.raises(PredictionLogError, match="data: '"):
        run(masks, Identified(rows, "a"), output_dir=tmp_path, resume=True)
    taken = run(rows, Identified(rows, "b"), output_dir=tmp_path, resume=True, allow_changed=["weights"])
    assert taken.changed == ["weights"] and "same weights" in format_results([taken])
    with pytest.raises(PredictionLogError, match="may have changed, found weight"):
        run(rows, Identified(rows, "b"), output_dir=tmp_path, resume=True, allow_changed=["weight"])


def test_rows_without_the_level_are_counted(tmp_path):
    rows = square_rows(2)
    rows[1]["simple"] = []
    result = run(rows, level="simple", left_out={"faulty": 3})
    assert result.left_out == {"faulty": 3, "rows without an instruction of the level simple": 1}
    assert "3 faulty" in format_results([result])


def test_a_target_known_by_its_box_alone_is_not_scored_as_no_target():
    rows = square_rows(2)
    segmenter = HalfSegmenter(rows)
    boxed = [{**row, "masks": [None] * len(row["masks"])} for row in rows[:1]]
    result = run([*boxed, *rows[1:]], segmenter)
    assert result.left_out == {"rows with an instance that has a box and no mask": 1} and result.instructions == 7
    with pytest.raises(ValueError, match="1 rows with an instance that has a box and no mask"):
        run(boxed, segmenter)


def test_a_run_is_scored_again_under_another_protocol(tmp_path):
    rows = square_rows(2)
    run(rows, output_dir=tmp_path)
    again = score_run(tmp_path / "predictions.jsonl", "sam3i-1to1")
    assert again.figures["n"] == 2 * 2
    assert again.figures["gIoU"] == pytest.approx(25)


def test_a_broken_record_is_named_by_line(tmp_path):
    rows = square_rows(1)
    run(rows, output_dir=tmp_path)
    path = tmp_path / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"{}\n", *lines[3:]]))
    with pytest.raises(PredictionLogError, match="line 4: expected a prediction record"):
        list(read_records(path))


def test_an_unfinished_run_does_not_merge(tmp_path):
    log = PredictionLog(tmp_path, {"a": 1})
    with pytest.raises(PredictionLogError, match="0 of 3 predictions"):
        log.merge(3)


def test_questions_follow_the_protocol():
    rows = square_rows(1)
    count = {name: len(group_questions(rows, get_protocol(name), "simple")[0]) for name in ("sam3i-1to1", "grefcoco")}
    assert count == {"sam3i-1to1": 2, "grefcoco": 3}


SCRIPT = """
import sys
from sam3i.trainer.evaluation.evaluate import evaluate_segmenter
from segmenter_fixtures import HalfSegmenter, square_rows
rows = square_rows(int(sys.argv[2]))
result = evaluate_segmenter(
    HalfSegmenter(rows, seconds=float(sys.argv[3])), rows, output_dir=sys.argv[1], resume=True, batch_size=1,
    progress=False,
)
sys.stdout.write(f"gIoU {result.figures['gIoU']} {result.instructions}\\n")  # in one piece: two processes write
"""


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def test_kill_9_loses_nothing_that_was_answered(tmp_path):
    folder, rows = tmp_path / "run", square_rows(12)
    slow = HalfSegmenter(rows, seconds=0.2)
    options = {"output_dir": folder, "batch_size": 1}
    process = multiprocessing.get_context("fork").Process(target=run, args=(rows, slow), kwargs=options)
    process.start()
    deadline = time.monotonic() + 120
    part = folder / "predictions.part-00000-of-00001.jsonl"
    while not (part.exists() and part.read_bytes().count(b"\n") > 14):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = len(list(read_records(part)))
    assert 14 <= kept < 60
    found = run(rows, resume=True, **options)
    expected = run(rows, output_dir=tmp_path / "whole")
    assert (found.figures["gIoU"], found.instructions) == (expected.figures["gIoU"], 60)
    merged = [folder / "predictions.jsonl", tmp_path / "whole" / "predictions.jsonl"]
    assert merged[0].read_bytes() == merged[1].read_bytes()


@pytest.mark.slow
def test_two_processes_merge_to_the_file_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    output = subprocess.run(
        [*command, str(folder), "5", "0"], env=environment(), capture_output=True, text=True, timeout=250
    )
    assert output.returncode == 0, output.stderr
    rows = square_rows(5)
    expected = run(rows, output_dir=tmp_path / "one")
    lines = [line.split() for line in output.stdout.splitlines() if line.startswith("gIoU")]
    assert lines == [["gIoU", str(expected.figures["gIoU"]), "25"]] * 2
    merged = [folder / "predictions.jsonl", tmp_path / "one" / "predictions.jsonl"]
    assert merged[0].read_bytes() == merged[1].read_bytes()


def test_result_shapes_are_checked():
    with pytest.raises(ValueError, match="masks .K, H, W. and scores .K. of one K"):
        SegmentationResult(np.zeros((2, 3, 4)), np.zeros(1))
