# SPDX-License-Identifier: Apache-2.0
"""What is checked and said before the first step."""

from collections import Counter

import pytest
from PIL import Image
from tqdm import tqdm
from training_fixtures import tiny_dataset, tiny_model, tiny_trainer

from sam3i.processing.datasets.faults import RowAccount
from sam3i.trainer.curriculum import TrainingStage
from sam3i.trainer.plan import PlanError, make_plan
from sam3i.trainer.record import read_record

SIMPLE, COMPLEX, JOINT = TrainingStage


def planned(folder, rows=None, eval_dataset=None, **changes):
    return tiny_trainer(folder, eval_dataset=eval_dataset, rows=rows, **changes)


def changed(**fields):
    return tiny_dataset().map(
        lambda row, index: row | {k: f(row, index) for k, f in fields.items()}, with_indices=True
    )


def test_the_plan_says_what_every_stage_uses_leaves_out_and_trains(tmp_path):
    rows = changed(complex=lambda row, index: row["complex"] if index < 5 else [])
    trainer = planned(tmp_path, rows, learning_rate=(1e-3, 2e-3, 3e-3), text_learning_rate=1e-4, max_steps=(4, 2, 2))
    plan = make_plan(trainer)
    assert [stage.rows for stage in plan.stages] == [12, 5, 5]
    assert plan.stage(COMPLEX).left_out == {"no instruction of the level complex": 7}
    assert plan.stage(JOINT).left_out == {"joint training needs an instruction of every level, complex is empty": 7}
    assert plan.stage(SIMPLE).epochs == pytest.approx(4 / 3) and plan.stage(COMPLEX).epochs == 1
    assert plan.stage(COMPLEX).rates == {"text": 1e-4, "adapters": 2e-3}
    text = str(plan)
    assert "stage 2 of 3, complex: 5 rows (2 that denote nothing), 2 steps of 4 (1 epochs)" in text
    assert "left out: 7 rows: no instruction of the level complex" in text
    assert "no evaluation data" in text and "no checkpoints within a stage" in text


@pytest.mark.parametrize("held_out", [False, True])
def test_scores_that_keep_an_earlier_calibration_are_named(tmp_path, held_out):
    model = tiny_model()
    model.calibrate_scores({"simple": [1.0, -2.0], "complex": [1.0, 1.0]})
    rows = tiny_dataset(3, "validation") if held_out else None
    text = str(make_plan(tiny_trainer(tmp_path, model, rows, stages="simple", eval_strategy="no")))
    note = "scores of simple instructions keep the calibration of the model before this training"
    assert (note in text) is not held_out


def test_the_plan_counts_steps_on_replay_rows_and_opens_their_images(tmp_path):
    settings = {"stages": "simple", "num_train_epochs": 2, "max_steps": -1, "replay_every": 3}
    model = tiny_model(adapter_design="selective")
    trainer = tiny_trainer(tmp_path, model, options={"replay": tiny_dataset(2)}, **settings)
    plan = make_plan(trainer)
    assert plan.stage(SIMPLE).selector_steps == 0 and "no selector learns alone" in str(plan)
    assert plan.stage(SIMPLE).steps == 2 * (3 + 2) and plan.stage(SIMPLE).epochs == 2
    assert "replay: 4 rows to answer as before, in one of 3 steps" in str(plan)
    assert trainer.train().global_step == 10
    lost = tiny_dataset(2).map(lambda row: row | {"image": None})
    with pytest.raises(PlanError, match="4 of 4 sampled images of replay"):
        make_plan(tiny_trainer(tmp_path, options={"replay": lost}, **settings))


def test_crowds_and_tiny_instances_in_used_rows_are_counted(tmp_path):
    def doubled(row, key, value):
        return row[key] + [value if value is not None else row[key][0]] if row["masks"] else row[key]

    rows = changed(
        masks=lambda row, index: doubled(row, "masks", None),
        boxes=lambda row, index: doubled(row, "boxes", None),
        is_crowd=lambda row, index: doubled(row, "is_crowd", True),
    )
    plan = make_plan(planned(tmp_path, rows, stages="simple"))
    assert plan.stage(SIMPLE).small_instances == 6 and "6 crowds and instances" in str(plan)


def test_data_with_simple_instructions_alone_fails_before_stage_1(tmp_path):
    rows = changed(complex=lambda row, index: [])
    with pytest.raises(PlanError, match="None of the 12 rows has what stage 'complex' trains"):
        planned(tmp_path, rows).train()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_boxes_alone_would_only_teach_to_answer_nothing(tmp_path):
    rows = changed(masks=lambda row, index: [None] * len(row["masks"]))
    with pytest.raises(PlanError, match="could only learn to answer nothing .left out: 6: an instance has a box"):
        planned(tmp_path, rows, stages="simple").train()


def test_missing_columns_and_levels_to_evaluate_are_named(tmp_path):
    with pytest.raises(PlanError, match="in train_dataset, found none named masks"):
        planned(tmp_path, tiny_dataset().remove_columns("masks")).train()
    evaluation = changed(simple=lambda row, index: [])
    with pytest.raises(PlanError, match="instructions of the level simple in eval_dataset, found none in 12 rows"):
        planned(tmp_path, None, evaluation, eval_strategy="steps").train()


def test_a_metric_that_nobody_computes_is_named_before(tmp_path):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    with pytest.raises(PlanError, match="found 'accuracy'"):
        planned(tmp_path, None, tiny_dataset(), metric_for_best_model="accuracy", **settings).train()


def test_images_that_cannot_be_used_are_named_before(tmp_path):
    rows = changed(width=lambda row, index: 57 if index == 3 else row["width"])
    with pytest.raises(PlanError, match="1 of 12 sampled images of train_dataset .*'1-absent' says 57 x 56"):
        planned(tmp_path, rows, stages="simple").train()
    path = tmp_path / "broken.png"
    Image.new("RGB", (56, 56)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    from datasets import Image as ImageFeature

    broken = tiny_dataset().remove_columns("image").add_column("image", [str(path)] * 12)
    with pytest.raises(PlanError, match="12 of 12 sampled images of train_dataset cannot be used"):
        planned(tmp_path, broken.cast_column("image", ImageFeature()), stages="simple").train()


def test_a_full_disk_is_named_before(tmp_path, monkeypatch):
    monkeypatch.setattr("sam3i.trainer.plan.shutil.disk_usage", lambda place: type("Usage", (), {"free": 10}))
    with pytest.raises(PlanError, match="keep fewer"):
        planned(tmp_path, save_strategy="steps", save_steps=1).train()


def test_the_selector_s_steps_and_rate_are_planned(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_model(adapter_design="selective"), max_steps=4)
    plan = make_plan(trainer)
    assert [stage.selector_steps for stage in plan.stages] == [20, 20, 20]
    assert plan.stage(SIMPLE).rates == {"text": 2e-3, "adapters": 2e-3, "selector": 1e-3}
    assert "the selector alone, before: 20 steps at 0.003" in str(plan)
    assert "both selectors alone, at the end: 20 steps at 0.003" in str(plan)


def test_what_the_loader_left_out_is_said_and_recorded(tmp_path):
    account = RowAccount(kept=12, left_out=Counter({"no annotations": 3}))
    rows = tiny_dataset()
    rows.info.description = account.to_json()
    trainer = planned(tmp_path, rows, stages="simple", max_steps=1)
    trainer.train()
    assert "train_dataset as it was loaded: 12 rows kept, 3 records left out" in str(trainer.plan)
    assert "left out: 3 x no annotations" in str(trainer.plan)
    assert read_record(tmp_path)["not_loaded"]["train_dataset"]["left_out"] == {"no annotations": 3}


def test_a_run_has_one_progress_bar(tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr("sam3i.trainer.stage.callbacks.tqdm", Bar)
    settings = {"stages": ("simple", "complex"), "max_steps": (2, 3, 1), "disable_tqdm": False}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    tiny_trainer(tmp_path, **settings).train()
    assert [(bar.total, bar.n, bar.desc) for bar in bars] == [(5, 5, "stage 2 of 3, complex: ")]
    (tmp_path / COMPLEX.folder / "final" / "curriculum.json").unlink()
    tiny_trainer(tmp_path, **settings).train(resume_from_checkpoint=True)
    assert (bars[1].initial, bars[1].total, bars[1].n) == (5, 5, 5)
