# SPDX-License-Identifier: Apache-2.0
import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_fixtures import (
    assert_equal,
    tiny_arguments,
    tiny_dataset,
    tiny_model,
    tiny_processor,
    tiny_trainer,
    weights,
)
from transformers import TrainerCallback

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor, Sam3ITrainer
from sam3i.modeling_sam3i.losses.alignment import Sam3IAlignmentLoss
from sam3i.modeling_sam3i.peft.loading import load_instruction_adapter
from sam3i.trainer.checkpoints import CheckpointNotFoundError, OtherTrainingError, find_checkpoint, read_checkpoint
from sam3i.trainer.collator import InstructionCollator
from sam3i.trainer.curriculum import TrainingStage, freeze_for_stage, is_trained
from sam3i.trainer.stage.module import StageModule, pool_tokens
from sam3i.trainer.transforms import InstructionTransform

SIMPLE, COMPLEX, JOINT = TrainingStage
LOSS_ITEMS = {"kl_weight": 0.5, "margin_weight": 2.0}


class KilledError(Exception):
    pass


class KillAt(TrainerCallback):
    """Ends the process, as far as a test can, after a step of a stage."""

    def __init__(self, stage: TrainingStage, step: int):
        self.folder, self.step = stage.folder, step

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith(self.folder) and state.global_step == self.step:
            raise KilledError


def joint_batch(rows: int = 4) -> dict:
    dataset = tiny_dataset()
    return InstructionCollator(tiny_processor(), "joint")([dataset[index] for index in range(rows)])


# What trains


@pytest.mark.parametrize(
    ("stage", "design"), [(SIMPLE, "cascade"), (COMPLEX, "selective"), (JOINT, "cascade"), (JOINT, "selective")]
)
def test_after_8_steps_every_trainable_tensor_has_moved_and_nothing_else(tmp_path, stage, design):
    model = tiny_model(adapter_design=design)
    if stage is not SIMPLE:  # as after the first stage: the adapters are not the identity
        generator = torch.Generator().manual_seed(1)
        for parameter in model.adapter_parameters().values():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    trainer = tiny_trainer(tmp_path, model, stages=stage.value, max_steps=8, start_complex_from="own")
    before = weights(model)
    projectors = []
    trainer.add_callback(RememberProjector(projectors))
    trainer.train()
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    expected = {name for name in dict(model.named_parameters()) if is_trained(name, stage)}
    if stage is JOINT:  # which begins with the router
        expected |= {name for name in before if name.startswith("text_encoder.sam3i_adapter.")}
    assert moved == expected
    if stage is JOINT:
        start, end = projectors
        assert all(not torch.equal(start[name], end[name]) for name in start) and len(start) == 6
    else:
        assert projectors == [None, None]


class RememberProjector(TrainerCallback):
    def __init__(self, states: list):
        self.states = states

    def _remember(self, model) -> None:
        projector = model.projector
        self.states.append(None if projector is None else copy.deepcopy(projector.state_dict()))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._remember(model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._remember(model)


def test_curriculum_runs_in_order_and_hands_over(tmp_path):
    model = tiny_model()
    stock = {name: tensor for name, tensor in weights(model).items() if name not in model.adapter_parameters()}
    seen = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            batch = InstructionCollator(tiny_processor(), "simple")([tiny_dataset()[index] for index in range(4)])
            inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask", "image_ids")}
            outputs = []
            for level in (1, 2):
                model.model.eval()
                with torch.no_grad():
                    levels = torch.full_like(batch["instruction_levels"], level)
                    outputs.append(model.model(**inputs, instruction_levels=levels))
            seen.append((args.output_dir.rsplit("/")[-1], outputs))

    trainer = tiny_trainer(tmp_path, model, max_steps=(3, 2, 1), callbacks=[Watch()])
    output = trainer.train()
    assert [name for name, _ in seen] == ["stage-1-simple", "stage-2-complex", "stage-3-joint"]
    simple, complex_ = seen[1][1]
    for name in ("pred_masks", "pred_logits", "pred_boxes", "presence_logits"):
        torch.testing.assert_close(complex_[name], simple[name], rtol=1e-5, atol=1e-5)
    simple, complex_ = seen[2][1]
    assert (complex_["pred_logits"] - simple["pred_logits"]).abs().max() > 1e-3
    assert output.global_step == 6 and set(output.metrics) == {"simple", "complex", "joint"}
    after = weights(model)
    assert_equal({name: after[name] for name in stock}, stock)
    assert trainer.model is model


def test_stage_values_reach_the_optimizer_and_the_logs(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        max_steps=(2, 3, 1),
        learning_rate=(1e-3, 2e-3, 3e-3),
        text_learning_rate=1e-4,
        weight_decay=(0.1, 0.2, 0.3),
        warmup_steps=0,
        per_device_train_batch_size=(4, 2, 2),
    )
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == 0:
                seen.append(sorted({(g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups}))

    trainer.add_callback(Watch())
    trainer.train()
    assert seen == [
        [(1e-4, 0.0), (1e-4, decay), (rate, 0.0), (rate, decay)]
        for rate, decay in ((1e-3, 0.1), (2e-3, 0.2), (3e-3, 0.3))
    ]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [(entry["stage"], entry["step"]) for entry in logs] == [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 1)]
    parts = {"bbox", "giou", "ce", "presence", "mask", "dice", "semantic_seg", "semantic_dice"}
    assert all(parts <= entry.keys() for entry in logs)
    alignment = {"kl", "hard_region", "info_nce", "margin"}
    assert [bool(alignment & entry.keys()) for entry in logs] == [False] * 5 + [True]


def test_no_target_rows_are_trained():
    rows = tiny_dataset().filter(lambda kind: kind == "none", input_columns="target_kind")
    model = tiny_model()
    freeze_for_stage(model, SIMPLE)
    batch = InstructionCollator(tiny_processor(), "simple")([rows[index] for index in range(4)])
    StageModule(model, SIMPLE).train()(**batch)["loss"].backward()
    assert any("detr_decoder" in name for name, p in model.named_parameters() if p.grad is not None and p.grad.any())


# The joint stage


def test_joint_loss_is_the_paper_s_two_passes_and_their_alignment():
    model = tiny_model(loss_config=LOSS_ITEMS, router_dim=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.adapter_parameters().values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    batch = joint_batch()
    stage_module = StageModule(model, JOINT).train()
    found = stage_module(**batch)

    text = {name: batch.pop(name) for name in ("concept_input_ids", "concept_attention_mask")}
    rows = ("input_ids", "attention_mask", "instruction_levels", "image_ids")
    passes, features = [], []
    for first in (0, 1):
        inputs = {name: batch[name][first::2] for name in rows}
        outputs = model(pixel_values=batch["pixel_values"], labels=batch["labels"][first::2], **inputs)
        passes.append(outputs)
        features.append(stage_module.projector(pool_tokens(outputs.text_features, inputs["attention_mask"])))
    concept = model.get_text_features(text["concept_input_ids"], text["concept_attention_mask"]).pooler_output
    features.append(stage_module.projector(pool_tokens(concept, text["concept_attention_mask"])))
    semantic = [outputs.semantic_seg for outputs in passes]
    alignment = Sam3IAlignmentLoss(LOSS_ITEMS)
    aligned, parts = alignment(*semantic, batch["labels"][0::2], *features, batch["concept_names"][0::2])
    expected = passes[0].loss + passes[1].loss + aligned
    torch.testing.assert_close(found["loss"], expected, rtol=1e-5, atol=1e-5)
    for name, value in parts.items():
        torch.testing.assert_close(found["loss_dict"][name], value, rtol=1e-4, atol=1e-6)
    assert parts["loss_margin"] > 0 and parts["loss_info_nce"] > 0


def test_pooling_leaves_padding_out():
    tokens = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [50.0], [50.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert pool_tokens(tokens, mask).tolist() == [[2.0], [2.0]]


def test_images_are_encoded_once_for_all_their_rows():
    model = tiny_model()
    stage_module = StageModule(model, JOINT).train()
    shapes = []
    model.vision_encoder.backbone.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[0]))
    batch = joint_batch(4)  # two images with two targets each
    stage_module(**batch)
    assert len(batch["input_ids"]) == 8 and shapes == [2]


def test_without_contrastive_losses_there_is_no_projector():
    model = tiny_model(loss_config={"info_nce_weight": 0.0, "margin_weight": 0.0})
    stage_module = StageModule(model, JOINT).train()
    assert stage_module.projector is None
    parts = stage_module(**joint_batch())["loss_dict"]
    assert "loss_kl" in parts and "loss_info_nce" not in parts


def test_the_router_learns_in_the_joint_stage_and_is_used_from_then_on(tmp_path, monkeypatch):
    monkeypatch.setattr("sam3i.trainer.heads.selector.HEAD_STEPS_PER_STAGE_STEP", 100)
    model = tiny_model(adapter_design="selective")
    trainer = tiny_trainer(tmp_path, model, max_steps=(1, 1, 2), selector_steps=2)
    assert trainer.processing_class.auto_levels == "rules"
    metrics = trainer.train().metrics
    assert metrics["joint"]["router_accuracy"] > 0.5 and "router_accuracy" not in metrics["complex"]
    saved = Path(trainer.curriculum_args.output_dir) / JOINT.folder / "final"
    assert Sam3IProcessor.from_pretrained(saved).auto_levels == "router"
    assert Sam3IProcessor.from_pretrained(saved.parent.parent / SIMPLE.folder / "final").auto_levels == "rules"
    rows = tiny_dataset()[0]
    texts = [rows["concept"][0], rows["simple"][0], rows["complex"][0]]
    inputs = trainer.processing_class(images=[rows["image"]] * 3, text=texts, return_tensors="pt")
    assert inputs["instruction_levels"].tolist() == [-1] * 3
    with torch.no_grad():
        chosen = model.eval()(**inputs).instruction_levels
        expected = model.predict_levels(inputs["input_ids"], inputs["attention_mask"]).argmax(-1)
    assert torch.equal(chosen, expected) and chosen[0] == 0


# Evaluation


def test_evaluation_covers_levels_and_kinds_and_checks_the_concept_path(tmp_path):
    model = tiny_model()
    trainer = tiny_trainer(
        tmp_path,
        model,
        tiny_dataset(4, "validation"),
        stages=("simple", "complex"),
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_stage_gIoU" in entry]
    assert [(entry["stage"], entry["step"]) for entry in entries] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    for entry in entries:
        level = ("simple", "complex")[entry["stage"] - 1]
        assert entry["eval_stage_gIoU"] == entry[f"eval_{level}_gIoU"]
        assert entry["eval_concept_unchanged"] == 1.0
        for name in ("simple", "complex"):
            assert {f"eval_{name}_{figure}" for figure in ("gIoU", "cIoU", "P@0.5", "N-acc")} <= entry.keys()
            assert {f"eval_{name}_1-to-1_gIoU", f"eval_{name}_none_gIoU"} <= entry.keys()
    assert not list(tmp_path.rglob("evaluation.tmp"))
    with torch.no_grad():
        model.text_encoder.text_model.final_layer_norm.weight[0] += 1e-3
    assert trainer.evaluate()["eval_concept_unchanged"] == 0.0


def test_the_best_weights_of_each_stage_are_kept_and_patience_ends_it(tmp_path, monkeypatch):
    figures = iter([5.0, 9.0, 7.0, 8.0] + [1.0, 0.5, 0.2])
    monkeypatch.setattr(
        "sam3i.trainer.stage.trainer.evaluate_levels", lambda *args, **kwargs: {"stage_best_gIoU": next(figures)}
    )
    model = tiny_model()
    trainer = tiny_trainer(
        tmp_path,
        model,
        tiny_dataset(4, "validation"),
        stages=("simple", "complex"),
        max_steps=8,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        early_stopping_patience=2,
        save_total_limit=None,
    )
    output = trainer.train()
    assert output.global_step == 4 + 3  # two evaluations after the best one: at step 2, at step 1
    for stage, best in ((SIMPLE, 2), (COMPLEX, 1)):
        final, kept = (tmp_path / stage.folder / name for name in ("final", f"checkpoint-{best}"))
        tensors = [load_file(folder / "adapter_model.safetensors") for folder in (final, kept)]
        assert_equal(*tensors)


def test_patience_is_remembered_by_checkpoints(tmp_path, monkeypatch):
    figures = {1: 5.0, 2: 9.0, 3: 7.0, 4: 8.0}  # a run that starts counting anew would go on to step 5
    settings = {
        "stages": "simple",
        "max_steps": 8,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
    }
    settings |= {"save_steps": 1, "early_stopping_patience": 2, "save_total_limit": None}

    def run(callbacks, resume):
        trainer = tiny_trainer(tmp_path, None, tiny_dataset(4, "validation"), callbacks, **settings)
        monkeypatch.setattr(
            "sam3i.trainer.stage.trainer.evaluate_levels",
            lambda *args, **kwargs: {"stage_best_gIoU": figures[trainer.state.global_step]},
        )
        return trainer.train(resume_from_checkpoint=resume)

    with pytest.raises(KilledError):
        run([KillAt(SIMPLE, 4)], False)
    assert run(None, True).global_step == 4


# Checkpoints and resuming


def test_checkpoints_hold_adapters_only_and_load_as_repositories(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": (2, 1, 2)}
    trainer = tiny_trainer(tmp_path / "run", model, **settings)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run" / "stage-3-joint" / "checkpoint-2"):
        assert len(load_file(folder / "adapter_model.safetensors")) == len(model.adapter_parameters())
        assert not (folder / "model.safetensors").exists() and not (folder / "pytorch_model.bin").exists()
        loaded = Sam3IForInstructionSegmentation.from_pretrained(
            folder, base_model_name_or_path=str(tmp_path / "base")
        )
        assert_equal(weights(loaded), weights(model))
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "stage-1-simple").glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-2"]


def test_weights_gathered_from_shards_are_written(tmp_path):
    trainer = tiny_trainer(tmp_path, stages="joint")
    stage_module = StageModule(tiny_model(), JOINT)
    gathered = {name: tensor + 1.0 for name, tensor in stage_module.state_dict().items() if tensor.is_floating_point()}
    trainer.model = stage_module
    trainer._save(str(tmp_path / "saved"), gathered)
    projector = load_file(tmp_path / "saved" / "projector.safetensors")
    assert_equal(projector, {name: gathered[f"projector.{name}"] for name in projector})
    loaded = load_instruction_adapter(tiny_model(), tmp_path / "saved")
    assert all(torch.equal(p, gathered[f"model.{name}"]) for name, p in loaded.adapter_parameters().items())


# One checkpoint per step; an epoch is three steps.
RESUMABLE = {"max_steps": (4, 2, 4), "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "inverse_sqrt"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training with dropout that was never interrupted, all its checkpoints, and its weights."""
    model, folder = tiny_model(dropout=0.2), tmp_path_factory.mktemp("whole")
    tiny_trainer(folder, model, save_total_limit=None, **RESUMABLE).train()
    return folder, weights(model)


@pytest.fixture(scope="module")
def uninterrupted(whole):
    return whole[1]


@pytest.mark.parametrize(("stage", "step"), [(SIMPLE, 3), (COMPLEX, 1), (JOINT, 4)])
def test_a_resumed_training_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path, uninterrupted, stage, step):
    with pytest.raises(KilledError):
        tiny_trainer(tmp_path, tiny_model(dropout=0.2), callbacks=[KillAt(stage, step)], **RESUMABLE).train()
    torch.manual_seed(step)  # the new process knows nothing of the old one's random state
    model = tiny_model(dropout=0.2)
    tiny_trainer(tmp_path, model, **RESUMABLE).train(resume_from_checkpoint=True)
    assert_equal(weights(model), uninterrupted)


def test_from_its_last_step_a_stage_takes_no_more_steps(tmp_path, uninterrupted, monkeypatch):
    stage = JOINT

    def killed(trainer):
        if trainer.stage is stage:
            raise KilledError
        return {}

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr("sam3i.trainer.trainer_sam3i.end_joint_stage", killed)
        tiny_trainer(tmp_path, tiny_model(dropout=0.2), **RESUMABLE).train()
    steps = RESUMABLE["max_steps"][stage.index]
    assert find_checkpoint(tmp_path, TrainingStage).folder == tmp_path / stage.folder / f"checkpoint-{steps}"
    model = tiny_model(dropout=0.2)
    output = tiny_trainer(tmp_path, model, **RESUMABLE).train(resume_from_checkpoint=True)
    assert output.global_step == sum(RESUMABLE["max_steps"][stage.index :])
    assert_equal(weights(model), uninterrupted)


def test_resuming_from_a_named_checkpoint_and_from_a_finished_run(tmp_path, whole):
    folder, uninterrupted = whole
    model = tiny_model(dropout=0.2)
    named = folder / "stage-3-joint" / "checkpoint-2"
    tiny_trainer(tmp_path / "other", model, **RESUMABLE).train(resume_from_checkpoint=str(named))
    assert_equal(weights(model), uninterrupted)
    model = tiny_model(dropout=0.2)
    output = tiny_trainer(folder, model, **RESUMABLE).train(resume_from_checkpoint=True)
    assert output.global_step == 0
    assert_equal(weights(model), uninterrupted)


def test_a_checkpoint_that_was_cut_off_does_not_count(tmp_path):
    stages = tuple(TrainingStage)
    tiny_trainer(tmp_path, stages="simple", save_strategy="steps", save_steps=1, save_total_limit=None).train()
    folder = tmp_path / "stage-1-simple"
    assert find_checkpoint(tmp_path, stages).folder == folder / "final"
    (folder / "final" / "curriculum.json").unlink()
    assert find_checkpoint(tmp_path, stages).folder == folder / "checkpoint-4"
    optimizer = folder / "checkpoint-4" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    assert find_checkpoint(tmp_path, stages).folder == folder / "checkpoint-3"
    (folder / "checkpoint-3" / "curriculum.json").write_text('{"stage": ')
    (folder / "checkpoint-2" / "rng_state.pth").unlink()
    (folder / "checkpoint-1" / "adapter_model.safetensors").unlink()
    assert find_checkpoint(tmp_path, stages) is None and read_checkpoint(folder / "checkpoint-2") is None
    with pytest.raises(CheckpointNotFoundError, match="found none"):
        tiny_trainer(tmp_path).train(resume_from_checkpoint=str(folder / "checkpoint-2"))


def test_checkpoints_of_an_earlier_run_in_the_folder_do_not_count(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "max_steps": (1, 3, 1)}
    tiny_trainer(tmp_path, **settings).train()
    named = tmp_path / "stage-2-complex" / "checkpoint-2"
    with pytest.raises(KilledError):  # goes on from a named checkpoint: what lies beyond it was another run
        trainer = tiny_trainer(tmp_path, callbacks=[KillAt(COMPLEX, 3)], **settings)
        trainer.train(resume_from_checkpoint=str(named))
    assert find_checkpoint(tmp_path, tuple(TrainingStage)).folder == named
    # Nothing is overwritten without being told, and what was set aside is all there.
    assert read_checkpoint(tmp_path / "stage-3-joint" / "final.replaced").finished
    with pytest.raises(OtherTrainingError, match="holds another training, up to .*checkpoint-2"):
        tiny_trainer(tmp_path, **settings).train()


# Refusals


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="processor as `processing_class`, found None"):
        Sam3ITrainer(tiny_model(), tiny_arguments(tmp_path), tiny_dataset())
    with pytest.raises(ValueError, match="give the views rows of their own"):
        tiny_trainer(tmp_path, transform=InstructionTransform(), feature_cache=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="Expected `train_dataset` to train, found None"):
        Sam3ITrainer(tiny_model(), tiny_arguments(tmp_path), None, None, tiny_processor()).train()
    with pytest.raises(ValueError, match="Expected `eval_dataset` to evaluate"):
        tiny_trainer(tmp_path).evaluate()
    with pytest.raises(ValueError, match="as a datasets.Dataset of instruction rows, found list"):
        Sam3ITrainer(tiny_model(), tiny_arguments(tmp_path), list(tiny_dataset()), None, tiny_processor())
    with pytest.raises(ValueError, match="found a stream"):
        stream = tiny_dataset().to_iterable_dataset()
        Sam3ITrainer(tiny_model(), tiny_arguments(tmp_path), stream, None, tiny_processor())
    rows = tiny_dataset().map(lambda row: row | {"complex": []})
    trainer = Sam3ITrainer(tiny_model(), tiny_arguments(tmp_path, stages="complex"), rows, None, tiny_processor())
    with pytest.raises(ValueError, match="None of the 12 rows has what stage 'complex' trains"):
        trainer.train()


# Ways to run


def test_activation_checkpointing_gives_the_same_weights(tmp_path):
    models, passes = [tiny_model(), tiny_model()], [0, 0]
    for index, model in enumerate(models):

        def count(*_, index=index):
            passes[index] += 1

        model.detr_decoder.layers[0].mlp.register_forward_hook(count)
        settings = {"stages": "joint", "max_steps": 2, "activation_checkpointing": bool(index)}
        tiny_trainer(tmp_path / str(index), model, **settings).train()
    assert passes == [3, 5]  # one concept check; 2 steps, each computed once or twice
    for name, tensor in weights(models[0]).items():
        torch.testing.assert_close(weights(models[1])[name], tensor, rtol=1e-4, atol=1e-5)


def test_bf16_keeps_master_weights_in_float32(tmp_path):
    model = tiny_model()
    trainer = tiny_trainer(tmp_path, model, max_steps=2, bf16=True)
    output = trainer.train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0 < output.training_loss < 1e4
    assert trainer.concept_check.is_unchanged(model)


def test_curves_of_every_stage_are_written_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny_trainer(tmp_path, report_to="tensorboard", max_steps=2).train()
    for stage in TrainingStage:
        (run,) = (tmp_path / stage.folder / "runs").iterdir()
        events = EventAccumulator(str(run)).Reload()
        assert {"train/loss", "train/dice", "train/stage", "train/learning_rate"} <= set(events.Tags()["scalars"])
        assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
