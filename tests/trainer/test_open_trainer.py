# SPDX-License-Identifier: Apache-2.0
"""What whoever knows the Trainer of Transformers expects of ours: it works, or is refused in one sentence."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import (
    SIDE,
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
from sam3i.processing.masks import decode_mask
from sam3i.trainer.collator import InstructionCollator
from sam3i.trainer.curriculum import TrainingStage
from sam3i.trainer.plan import PlanError
from sam3i.trainer.transforms import InstructionTransform

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
    for folder, metric in (("one", "far_stage_gIoU"), ("all", None)):
        trainer = tiny_trainer(tmp_path / folder, None, sets, metric_for_best_model=metric, **settings)
        trainer.train()
        logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
        of_each = [logged[f"eval_{name}_stage_best_gIoU"] for name in sets]
        assert logged["eval_stage_best_gIoU"] == pytest.approx(sum(of_each) / 2)
    with pytest.raises(PlanError, match="begin with one of stage_, near_stage_, .*, found 'simple_gIoU'"):
        tiny_trainer(tmp_path / "other", None, sets, metric_for_best_model="simple_gIoU", **settings).train()


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


# What the documentation says, of each feature


TABLE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "finetune.md"
FEATURES = dict(re.findall(r"^\| (.+?) \| ((?:works|stays|refused).+?) \|$", TABLE.read_text(), re.MULTILINE))
WORKS = {
    "`data_collator`": "test_own_collators_make_the_batches",
    "`compute_metrics`": "test_own_metrics_get_instances_and_targets",
    "`eval_dataset` as a dictionary": "test_several_evaluation_sets_have_their_names",
    "`optimizers`": "test_own_optimizers_serve_one_stage_and_classes_all",
    "`model_init`, `hyperparameter_search`": "test_hyperparameters_are_searched_each_trial_with_a_fresh_model",
    "`predict`": "test_rows_are_predicted",
    "`get_train_dataloader` and its like": "test_data_loaders_give_batches_of_the_stage",
    "`callbacks`": "test_callbacks_see_every_stage",
    "`HfArgumentParser`": "test_arguments_are_read_from_a_command_line",
    "LoRA beside the adapters": "test_lora_beside_the_adapters_is_named_as_untrained",
    "`transformers.Trainer` with `InstructionCollator`": "test_the_plain_trainer_trains_and_evaluates_the_model",
    "`transformers.Trainer` with `segmentation_maps`": "test_the_plain_trainer_trains_and_evaluates_on_maps",
    "`resume_from_checkpoint`": "test_replay_with_kept_features_is_the_same_and_resumes_exactly",
    "half precision": "test_adapters_train_in_float32_on_a_base_in_half_precision",
}


def _float16():
    return tiny_model().half()


def _sharded(folder):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ACCELERATE_USE_FSDP", "true")
        tiny_trainer(folder)


REFUSED = {
    "streamed data sets": lambda folder: tiny_trainer(folder, eval_dataset=tiny_dataset(2).to_iterable_dataset()),
    "lists as data sets": lambda folder: tiny_trainer(folder, options={"replay": [1]}),
    "stock SAM3 models": lambda folder: tiny_trainer(folder, torch.nn.Linear(1, 1)),
    "`compute_loss_func`": lambda folder: tiny_trainer(folder, options={"compute_loss_func": print}),
    "`preprocess_logits_for_metrics`": lambda folder: tiny_trainer(
        folder, options={"preprocess_logits_for_metrics": print}
    ),
    "`optimizers` for several stages": lambda folder: tiny_trainer(
        folder, options={"optimizers": (torch.optim.SGD([torch.zeros(1)]), None)}
    ),
    "`ignore_keys`": lambda folder: tiny_trainer(folder).train(ignore_keys_for_eval=["pred_masks"]),
    "`batch_eval_metrics` and its like": lambda folder: tiny_arguments(folder, batch_eval_metrics=True),
    "`label_smoothing_factor`": lambda folder: tiny_arguments(folder, label_smoothing_factor=0.1),
    "`neftune_noise_alpha`": lambda folder: tiny_arguments(folder, neftune_noise_alpha=5.0),
    "`train_sampling_strategy`": lambda folder: tiny_arguments(folder, train_sampling_strategy="group_by_length"),
    "`auto_find_batch_size`": lambda folder: tiny_arguments(folder, auto_find_batch_size=True),
    "`save_only_model`": lambda folder: tiny_arguments(folder, save_only_model=True),
    "`remove_unused_columns`": lambda folder: tiny_arguments(folder, remove_unused_columns=True),
    "`transform` with `feature_cache`": lambda folder: tiny_trainer(
        folder, transform=InstructionTransform(), feature_cache=str(folder)
    ),
    "float16 beside `bf16` on a CPU": lambda folder: tiny_trainer(folder, _float16(), bf16=True).train(),
    "FSDP on a CPU, where Accelerate would silently train whole copies": _sharded,
}


def test_the_documented_table_names_what_is_tested():
    refused = {name for name, says in FEATURES.items() if says.startswith("refused")}
    assert refused == REFUSED.keys() and FEATURES.keys() - refused == WORKS.keys()
    assert all(callable(globals()[test]) for test in WORKS.values())


@pytest.mark.parametrize("feature", REFUSED)
def test_what_does_not_work_is_refused_in_the_documented_sentence(tmp_path, feature):
    (sentence,) = re.findall(r'^refused: "(.+)"$', FEATURES[feature])
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
        REFUSED[feature](tmp_path)


@pytest.mark.parametrize(("dtype", "bf16"), [(torch.float16, False), (torch.bfloat16, True)])
def test_adapters_train_in_float32_on_a_base_in_half_precision(tmp_path, dtype, bf16):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "bf16": bf16, "selector_steps": 4}
    settings |= {"stages": ("simple", "joint")}
    models = [tiny_model(adapter_design="selective").to(dtype) for _ in range(2)]
    before = weights(models[0])
    output = tiny_trainer(tmp_path, models[0], **settings).train()
    assert 0 < output.training_loss < 1e4 and all(value.isfinite().all() for value in weights(models[0]).values())
    adapters = models[0].adapter_parameters()
    assert {parameter.dtype for parameter in adapters.values()} == {torch.float32}
    stock = {name: value for name, value in weights(models[0]).items() if name not in adapters}
    assert_equal(stock, {name: before[name] for name in stock})
    shutil.rmtree(tmp_path / TrainingStage.JOINT.folder / "final")
    tiny_trainer(tmp_path, models[1], **settings).train(resume_from_checkpoint=True)
    assert_equal(weights(models[1]), weights(models[0]))


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


def test_the_plain_trainer_trains_and_evaluates_on_maps(tmp_path):
    model, processor = tiny_model(), tiny_processor()
    model.freeze_stock()
    before = weights(model)

    def collate(rows):
        maps = [decode_mask(row["masks"][0]) if row["masks"] else np.zeros((SIDE, SIDE), bool) for row in rows]
        return processor(
            images=[row["image"] for row in rows],
            text=[row["simple"][0] for row in rows],
            instruction_levels="simple",
            segmentation_maps=[each.astype(np.uint8) for each in maps],
            return_tensors="pt",
        )

    settings = {"remove_unused_columns": False, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    args = TrainingArguments(str(tmp_path), max_steps=2, **settings)
    trainer = Trainer(model, args, collate, tiny_dataset(), tiny_dataset(2))
    assert trainer.train().training_loss > 0
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    assert trainer.evaluate()["eval_loss"] > 0


def test_pairs_are_trained_as_rows_by_the_plain_trainer_which_is_said(caplog):
    batch = InstructionCollator(tiny_processor(), "joint")([tiny_dataset()[0]])
    assert tiny_model()(**batch).loss > 0
    assert "only `Sam3ITrainer` has the losses that align them" in caplog.text


# Replay


def test_replay_holds_the_old_answers_and_reads_no_labels(tmp_path):
    """What a step on new rows changed, the next one takes back."""
    old = tiny_dataset(3).map(lambda row: row | {"masks": [], "boxes": [], "is_crowd": [], "annotation_ids": []})
    drift = {}
    for name, replay in (("without", None), ("with", old)):
        model = tiny_model()
        inputs = InstructionCollator(tiny_processor(), "simple", labels=False)([old[index] for index in range(6)])
        inputs = {key: value for key, value in inputs.items() if torch.is_tensor(value)}
        with torch.no_grad():
            before = model.eval()(**inputs).pred_logits
        settings = {"stages": "simple", "max_steps": 12, "learning_rate": 5e-3, "text_learning_rate": 5e-3}
        trainer = tiny_trainer(tmp_path / name, model, options={"replay": replay}, **settings)
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
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
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
