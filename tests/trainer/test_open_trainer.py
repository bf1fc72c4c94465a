# SPDX-License-Identifier: Apache-2.0
"""What whoever knows the Trainer of Transformers expects of ours: it works, or is refused in one sentence."""

import re

import pytest
import torch
from training_fixtures import (
    assert_equal,
    tiny_arguments,
    tiny_dataset,
    tiny_model,
    tiny_processor,
    tiny_trainer,
    weights,
)
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments

from sam3i import Sam3ITrainer, Sam3ITrainingArguments
from sam3i.trainer.collator import InstructionCollator
from sam3i.trainer.curriculum import TrainingStage
from sam3i.trainer.plan import PlanError

SIMPLE = TrainingStage.SIMPLE
EVALUATING = {"eval_strategy": "steps", "eval_steps": 1}


def test_own_collators_make_the_batches(tmp_path):
    seen = []
    inner = InstructionCollator(tiny_processor(), "simple", texts_per_row=2)

    def collate(rows):
        seen.append(len(rows))
        return inner(rows)

    tiny_trainer(tmp_path, stages="simple", max_steps=2, options={"data_collator": collate}).train()
    assert set(seen) == {4} and len(seen) >= 2
    with pytest.raises(ValueError, match="samples 'joint' for stage 'joint', found one that samples {'simple'"):
        tiny_trainer(tmp_path, stages="joint", options={"data_collator": inner})


def test_own_metrics_get_instances_and_targets(tmp_path):
    def compute(answers):
        found, wanted = answers.predictions, answers.label_ids
        assert len(found) == len(wanted) and {"masks", "height", "width"} <= wanted[0].keys()
        return {"answered": len(found)}

    settings = {"stages": "simple", "max_steps": 1, "calibrate": False, **EVALUATING}
    trainer = tiny_trainer(tmp_path, None, tiny_dataset(2), options={"compute_metrics": compute}, **settings)
    trainer.train()
    figures = next(entry for entry in trainer.state.log_history if "eval_answered" in entry)
    assert figures["eval_answered"] == 12 and "eval_simple_gIoU" in figures


def test_several_evaluation_sets_have_their_names(tmp_path):
    sets = {"near": tiny_dataset(2), "far": tiny_dataset(3)}
    settings = {"stages": "simple", "max_steps": 1, "save_strategy": "steps", "save_steps": 1, **EVALUATING}
    settings |= {"load_best_model_at_end": True, "calibrate": False}
    trainer = tiny_trainer(tmp_path, None, sets, metric_for_best_model="far_stage_gIoU", **settings)
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"eval_near_stage_gIoU", "eval_far_stage_gIoU"} <= logged
    with pytest.raises(PlanError, match="begin with one of the evaluation sets near, far"):
        tiny_trainer(tmp_path / "other", None, sets, metric_for_best_model="stage_gIoU", **settings).train()


def test_own_optimizers_serve_one_stage_and_classes_all(tmp_path):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.adapter_parameters().values(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    before = weights(model)
    given = {"optimizers": (optimizer, schedule)}
    trainer = tiny_trainer(tmp_path, model, stages="simple", max_steps=1, options=given)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    with pytest.raises(ValueError, match="`optimizers` hold the parameters of one stage"):
        tiny_trainer(tmp_path, model, options=given)
    given = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"momentum": 0.5})}
    trainer = tiny_trainer(tmp_path / "class", stages=("simple", "complex"), max_steps=1, options=given)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["momentum"] == 0.5


def test_hyperparameters_are_searched_each_trial_with_a_fresh_model(tmp_path):
    pytest.importorskip("optuna")
    made = []

    def model_init(trial):
        made.append(tiny_model())
        return made[-1]

    trainer = Sam3ITrainer(
        None,
        tiny_arguments(tmp_path, stages="simple", max_steps=1),
        tiny_dataset(2),
        tiny_dataset(2),
        tiny_processor(),
        model_init=model_init,
    )

    def space(trial):
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}

    best = trainer.hyperparameter_search(hp_space=space, n_trials=2, backend="optuna")
    assert len(made) == 3 and best.objective >= 0 and set(best.hyperparameters) == {"learning_rate"}
    assert (tmp_path / "run-0" / SIMPLE.folder / "final").is_dir() and (tmp_path / "run-1").is_dir()
    with pytest.raises(ValueError, match="argument in the search space, found 'speed'"):
        trainer.hyperparameter_search(hp_space=lambda trial: {"speed": 1}, n_trials=1, backend="optuna")


def test_rows_are_predicted(tmp_path):
    output = tiny_trainer(tmp_path, stages="simple").predict(tiny_dataset(2))
    assert len(output.predictions) == len(output.label_ids) == 12
    assert "test_simple_gIoU" in output.metrics and output.metrics["test_stage_gIoU"] >= 0


def test_data_loaders_give_batches_of_the_stage(tmp_path):
    trainer = tiny_trainer(tmp_path, None, tiny_dataset(3))
    loaders = [
        trainer.get_train_dataloader(),
        trainer.get_eval_dataloader(),
        trainer.get_test_dataloader(tiny_dataset(2)),
    ]
    for loader, rows in zip(loaders, (12, 6, 4), strict=True):
        batches = list(loader)
        assert sum(len(batch["labels"]) for batch in batches) == rows
        assert {"pixel_values", "input_ids", "concept_names"} <= batches[0].keys()


def test_callbacks_see_every_stage(tmp_path):
    class Watch(TrainerCallback):
        begun = 0

        def on_train_begin(self, args, state, control, **kwargs):
            self.begun += 1

    watch = Watch()
    tiny_trainer(tmp_path, stages=("simple", "complex"), max_steps=1, callbacks=[watch]).train()
    assert watch.begun == 2


def test_arguments_are_read_from_a_command_line(tmp_path):
    parser = HfArgumentParser(Sam3ITrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--use_cpu", "true"])
    assert args.learning_rate == (5e-4, 5e-4, 1.5e-4) and args.max_steps == -1
    command = ["--output_dir", str(tmp_path), "--learning_rate", "1e-3", "--max_steps", "1", "2", "3"]
    command += ["--stages", "simple", "joint", "--allow_changed", "data", "--text_learning_rate", "1e-5"]
    (args,) = parser.parse_args_into_dataclasses([*command, "--use_cpu", "true"])
    assert args.learning_rate == 1e-3 and args.max_steps == (1, 2, 3) and args.text_learning_rate == 1e-5
    assert args.stages == (TrainingStage.SIMPLE, TrainingStage.JOINT) and args.allow_changed == ["data"]


@pytest.mark.parametrize("wrapped", [True, False])
def test_lora_beside_the_adapters_is_named_as_untrained(tmp_path, wrapped, caplog):
    from peft import LoraConfig, get_peft_model, inject_adapter_in_model

    config = LoraConfig(target_modules=r"detr_encoder.*\.q_proj", r=2)
    model = get_peft_model(tiny_model(), config) if wrapped else inject_adapter_in_model(config, tiny_model())
    before = weights(model)
    if not wrapped:
        model.peft_config = {"default": config}
    tiny_trainer(tmp_path, model, stages="simple", max_steps=2).train()
    assert "The PEFT adapter 'default' (LORA) stays as it is" in caplog.text
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved and not [name for name in moved if "lora_" in name]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"compute_loss_func": print}, "`compute_loss_func` is not supported: the loss is the model's own"),
        ({"preprocess_logits_for_metrics": print}, "`compute_metrics` gets instances, not logits"),
        ({"replay": [1]}, "Expected `replay` as a datasets.Dataset of instruction rows, found list"),
    ],
)
def test_what_does_not_work_is_refused_in_a_sentence(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tiny_trainer(tmp_path, options=options)


def test_a_stock_model_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(TypeError, match="Expected a Sam3IForInstructionSegmentation to train, found Linear"):
        tiny_trainer(tmp_path, torch.nn.Linear(1, 1))


def test_the_plain_trainer_trains_and_evaluates_the_model(tmp_path):
    model = tiny_model()
    model.freeze_stock()
    before = weights(model)
    args = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, remove_unused_columns=False, report_to="none", disable_tqdm=True
    )
    collator = InstructionCollator(tiny_processor(), {"simple": 1.0, "complex": 1.0})
    trainer = Trainer(model, args, collator, tiny_dataset(), tiny_dataset(2))
    assert trainer.train().training_loss > 0
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved and moved <= model.adapter_parameters().keys()
    assert trainer.evaluate()["eval_loss"] > 0


# Replay


def test_replay_holds_the_old_answers_and_reads_no_labels(tmp_path):
    """Without new rows to learn from, replay alone: what a step changed, the next ones take back."""
    old = tiny_dataset(3).map(lambda row: row | {"masks": [], "boxes": [], "is_crowd": [], "annotation_ids": []})
    drift = {}
    for name, replay in (("without", None), ("with", old)):
        model = tiny_model()
        inputs = InstructionCollator(tiny_processor(), "simple", labels=False)([old[index] for index in range(6)])
        inputs = {key: value for key, value in inputs.items() if torch.is_tensor(value)}
        with torch.no_grad():
            before = model.eval()(**inputs).pred_logits
        settings = {"stages": "simple", "max_steps": 12, "learning_rate": 5e-3, "text_learning_rate": 5e-3}
        trainer = tiny_trainer(tmp_path / name, model, options={"replay": replay}, replay_weight=200.0, **settings)
        trainer.train()
        assert any("replay" in entry for entry in trainer.state.log_history) == (replay is not None)
        with torch.no_grad():
            drift[name] = (model.eval()(**inputs).pred_logits - before).abs().mean().item()
    assert drift["with"] < 0.7 * drift["without"]


def test_replay_with_kept_features_is_the_same_and_resumes_exactly(tmp_path):
    settings = {"stages": "simple", "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    old = tiny_dataset(3, split="old")
    models = {name: tiny_model() for name in ("whole", "cached", "resumed")}

    class KilledError(Exception):
        pass

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KilledError

    def run(folder, name, callbacks=None, resume=None, **more):
        model = models.get(name) or tiny_model()
        trainer = tiny_trainer(tmp_path / folder, model, None, callbacks, options={"replay": old}, **settings, **more)
        trainer.train(resume_from_checkpoint=resume)

    run("whole", "whole")
    run("cached", "cached", feature_cache=str(tmp_path / "features"))
    with pytest.raises(KilledError):
        run("cut", "other", [Kill()])
    run("cut", "resumed", resume=True)
    assert_equal(weights(models["resumed"]), weights(models["whole"]))
    for name, tensor in weights(models["whole"]).items():
        torch.testing.assert_close(weights(models["cached"])[name], tensor, rtol=1e-4, atol=1e-5)
