# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from training_fixtures import tiny_arguments

from sam3i.trainer.arguments import STAGED_ARGUMENTS
from sam3i.trainer.curriculum import TrainingStage


def test_every_staged_argument_takes_one_value_or_three(tmp_path):
    one = dict.fromkeys(STAGED_ARGUMENTS, 2)
    three = dict.fromkeys(STAGED_ARGUMENTS, (2, 3, 4))
    for stage in TrainingStage:
        single = tiny_arguments(tmp_path, **one).for_stage(stage)
        staged = tiny_arguments(tmp_path, **three).for_stage(stage)
        for name in STAGED_ARGUMENTS:
            assert getattr(single, name) == 2, name
            assert getattr(staged, name) == 2 + stage.index, name


def test_each_stage_has_a_folder_and_the_original_stays(tmp_path):
    args = tiny_arguments(tmp_path, learning_rate=[1e-3, 2e-3, 3e-3])
    assert args.for_stage(TrainingStage.JOINT).output_dir == str(tmp_path / "stage-3-joint")
    assert args.for_stage(TrainingStage.JOINT).learning_rate == 3e-3
    assert args.output_dir == str(tmp_path) and args.learning_rate == (1e-3, 2e-3, 3e-3)


def test_text_adapters_learn_at_a_sixteenth_unless_told(tmp_path):
    args = tiny_arguments(tmp_path, learning_rate=(1.6, 3.2, 4.8), text_learning_rate=None)
    assert [args.for_stage(stage).text_learning_rate for stage in TrainingStage] == pytest.approx([0.1, 0.2, 0.3])
    args = tiny_arguments(tmp_path, text_learning_rate=(1e-4, None, 1e-5), learning_rate=1.6)
    assert [args.for_stage(stage).text_learning_rate for stage in TrainingStage] == pytest.approx([1e-4, 0.1, 1e-5])


def test_arguments_can_be_written_as_json(tmp_path):
    written = json.loads(tiny_arguments(tmp_path, max_steps=(1, 2, 3)).to_json_string())
    assert written["max_steps"] == [1, 2, 3] and written["stages"] == ["simple", "complex", "joint"]


def test_the_figure_of_the_stage_decides_by_default(tmp_path):
    args = tiny_arguments(tmp_path, eval_strategy="steps", save_strategy="steps", early_stopping_patience=2)
    assert args.metric_for_best_model == "stage_best_gIoU" and args.greater_is_better and args.load_best_model_at_end


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": (1e-3, 1e-3)}, r"one for each of 3 stages, found \(0.001, 0.001\)"),
        ({"learning_rate": 0}, "`learning_rate` above 0, found 0"),
        ({"learning_rate": "fast"}, "one number or three, found 'fast'"),
        ({"per_device_train_batch_size": (4, 0, 4)}, r"above 0, found \(4, 0, 4\)"),
        ({"weight_decay": -0.1}, "of at least 0, found -0.1"),
        ({"max_steps": True}, "one number or three, found True"),
        ({"eval_threshold": 1.5}, "found 1.5"),
        ({"feature_cache_limit_gb": 0}, "found 0"),
        ({"early_stopping_patience": 0}, "found 0"),
        ({"remove_unused_columns": True}, "found True"),
        ({"stages": "third"}, "Unknown training stage 'third'"),
        ({"stages": ("joint", "simple")}, r"found \['joint', 'simple'\]"),
    ],
)
def test_wrong_arguments_are_refused_with_their_value(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_arguments(tmp_path, **changes)
