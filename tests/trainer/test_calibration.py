# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from training_fixtures import tiny_dataset, tiny_model, tiny_trainer

from sam3i import InstructionLevel, Sam3IForInstructionSegmentation
from sam3i.trainer.heads.calibration import choose_calibration, read_candidates, set_calibration, split_by_image
from sam3i.trainer.record import read_record

SIMPLE = InstructionLevel.SIMPLE


def logit(probability):
    return math.log(probability / (1 - probability))


def mask(*cells):
    found = torch.zeros(len(cells), 2, 2, dtype=torch.bool)
    for index, places in enumerate(cells):
        for row, column in places:
            found[index, row, column] = True
    return found


def test_candidates_by_hand():
    masks = mask([(0, 0), (0, 1)], [(1, 1)], [(0, 0)])
    targets = mask([(0, 0), (0, 1)])
    found = read_candidates(torch.tensor([0.0, 2.0, -1.0]), logit(0.9), masks, targets)
    assert found.logits.tolist() == [2.0, 0.0, -1.0]
    assert found.correct.tolist() == [False, True, False]  # the last holds what another holds already
    torch.testing.assert_close(found.iou, torch.tensor([0.0, 0.0, 2 / 3, 2 / 3]))
    nothing = read_candidates(torch.tensor([1.0]), logit(0.9), mask([(0, 0)]), mask())
    assert nothing.iou.tolist() == [1.0, 0.0]
    missed = read_candidates(torch.zeros(0), logit(0.1), mask(), targets)
    assert missed.iou.tolist() == [0.0]


def test_half_becomes_the_best_threshold():
    """The true instance of each row has a score about .3, the others about .1: at .5 nothing is found."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(40):
        logits = torch.tensor([-0.85, -2.2]) + 0.2 * torch.randn(2, generator=generator)
        rows.append(read_candidates(logits, logit(0.95), mask([(0, 0)], [(1, 1)]), mask([(0, 0)])))
    (scale, bias, presence_bias), before, after = choose_calibration(rows)
    assert before == 0.0 and after > 0.97
    presence = torch.sigmoid(torch.tensor(logit(0.95) + presence_bias))
    scores = [(torch.sigmoid(scale * row.logits + bias) * presence).tolist() for row in rows]
    assert sum(first > 0.5 > second for first, second in scores) >= 38


def test_half_is_the_best_threshold_where_presence_is_doubted():
    """True instances of half of the rows score .27 for want of presence, which no change of their logits can mend."""
    rows = [
        read_candidates(torch.tensor([2.0, -2.0]), logit(presence), mask([(0, 0)], [(1, 1)]), mask([(0, 0)]))
        for presence in (0.3, 0.9)
        for _ in range(20)
    ]
    rows += [read_candidates(torch.tensor([-2.0]), logit(0.1), mask([(1, 1)]), mask()) for _ in range(20)]
    (scale, bias, presence_bias), before, after = choose_calibration(rows)
    assert before == pytest.approx(2 / 3) and after == 1.0
    assert presence_bias > 0 and scale > 0 and math.isfinite(bias)


def test_levels_are_set_one_by_one_and_saved(tmp_path):
    model = tiny_model()
    set_calibration(model, SIMPLE, (2.0, 0.5, 1.0))
    set_calibration(model, InstructionLevel.COMPLEX, (1.0, -0.5, 2.0))
    set_calibration(model, SIMPLE, None)
    assert model.config.score_calibration == {"complex": [1.0, -0.5, 2.0]}
    model.save_pretrained(tmp_path)
    loaded = Sam3IForInstructionSegmentation.from_pretrained(tmp_path)
    assert loaded.config.score_calibration == {"complex": [1.0, -0.5, 2.0]}


def test_images_that_choose_checkpoints_calibrate_nothing_unless_there_are_too_few(tmp_path, monkeypatch):
    rows = tiny_dataset(5, "validation")
    chosen, others = split_by_image(rows)
    assert (len(chosen), len(others)) == (6, 4) and not set(chosen["image_id"]) & set(others["image_id"])
    again, _ = split_by_image(rows.select(range(9, -1, -1)))
    assert set(again["image_id"]) == set(chosen["image_id"])
    settings = {"stages": "simple", "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
    for least, rows_used, shared in ((4, 4, False), (5, 10, True)):
        monkeypatch.setattr("sam3i.trainer.heads.calibration.LEAST_ROWS", least)
        monkeypatch.setattr("sam3i.trainer.heads.calibration.LOWEST_SCORE", 0.0)
        trainer = tiny_trainer(tmp_path / str(least), None, rows, **settings)
        trainer.train()
        assert "6 validation rows choose checkpoints, 4 others calibrate scores" in str(trainer.plan)
        recorded = read_record(tmp_path / str(least))["stages"][0]["calibration"]
        assert recorded == {"simple": {"rows": rows_used, "chose_checkpoints": shared}}


def test_a_stage_calibrates_its_levels_and_its_result_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sam3i.trainer.heads.calibration.LEAST_ROWS", 4)
    model = tiny_model()
    trainer = tiny_trainer(tmp_path, model, tiny_dataset(4, "validation"), stages="simple", max_steps=1)
    metrics = trainer.train().metrics["simple"]
    assert metrics["calibration_simple_gIoU_after"] >= metrics["calibration_simple_gIoU_before"]
    numbers = [metrics[f"calibration_simple_{name}"] for name in ("scale", "bias", "presence_bias")]
    assert model.config.score_calibration == {"simple": numbers}
    again = tiny_model()
    tiny_trainer(tmp_path, again, tiny_dataset(4, "validation"), stages="simple", max_steps=1).train(True)
    assert again.config.score_calibration == {"simple": numbers}
