# SPDX-License-Identifier: Apache-2.0
"""Nothing learned is lost or mistaken: hand-over, folders, stops, identities, checksums."""

import json
import os
import signal

import pytest
import torch
from training_fixtures import assert_equal, tiny_dataset, tiny_model, tiny_processor, tiny_trainer, weights
from transformers import EarlyStoppingCallback, TrainerCallback

from sam3i.processing.atomic import FolderInUseError, folder_lock
from sam3i.trainer.checkpoints import (
    CheckpointNotFoundError,
    OtherTrainingError,
    find_checkpoint,
    list_checkpoints,
    read_checkpoint,
)
from sam3i.trainer.curriculum import TrainingStage, complex_is_fresh

SIMPLE, COMPLEX, JOINT = TrainingStage
SAVING = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "max_steps": 3}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True


class KilledError(Exception):
    pass


def trained_model(design="selective"):
    model = tiny_model(adapter_design=design)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.adapter_parameters().values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


# The hand-over


@pytest.mark.parametrize("design", ["cascade", "selective"])
def test_fresh_complex_adapters_are_told_from_trained_ones(design):
    model = tiny_model(adapter_design=design)
    assert complex_is_fresh(model) and not complex_is_fresh(trained_model(design))
    model.start_complex_from_simple()  # from a simple path that is fresh, too
    assert complex_is_fresh(model)


@pytest.mark.parametrize(
    ("start", "trained", "copied"),
    [("auto", True, False), ("auto", False, True), ("simple", True, True), ("own", False, False)],
)
def test_a_trained_complex_path_is_kept_unless_asked(tmp_path, start, trained, copied):
    model = trained_model() if trained else tiny_model(adapter_design="selective")
    with torch.no_grad():
        for name, parameter in model.adapter_parameters().items():
            if ".simple." in name and ".up_proj." in name:
                parameter.add_(0.1)
    before = weights(model)
    rate = {"learning_rate": 1e-12, "text_learning_rate": 1e-12, "weight_decay": 0.0, "selector_steps": 0}
    tiny_trainer(tmp_path, model, stages="complex", max_steps=1, start_complex_from=start, **rate).train()
    changed = max((tensor - before[name]).abs().max() for name, tensor in weights(model).items())
    assert (changed > 1e-3) == copied


# Stages and folders


def test_a_stage_starts_from_the_finished_one_in_the_folder_which_stays(tmp_path):
    tiny_trainer(tmp_path, stages="simple", max_steps=3).train()
    expected = tiny_model()
    tiny_trainer(tmp_path / "whole", expected, stages=("simple", "complex"), max_steps=3).train()
    model = tiny_model()
    tiny_trainer(tmp_path, model, stages="complex", max_steps=3).train(resume_from_checkpoint=True)
    assert_equal(weights(model), weights(expected))
    assert [item.stage for item in list_checkpoints(tmp_path, TrainingStage)] == [SIMPLE, COMPLEX]


def test_a_stage_does_not_start_from_one_that_is_not_finished(tmp_path):
    tiny_trainer(tmp_path, stages="simple", callbacks=[StopAt(2)], **SAVING).train()
    with pytest.raises(CheckpointNotFoundError, match="'simple' has reached checkpoint-2"):
        tiny_trainer(tmp_path, stages="complex", **SAVING).train(resume_from_checkpoint=True)


def test_one_run_at_a_time_in_a_folder(tmp_path):
    with folder_lock(tmp_path), pytest.raises(FolderInUseError, match="one writer"):
        tiny_trainer(tmp_path, stages="simple").train()


def test_a_failed_start_does_not_refuse_the_next(tmp_path, monkeypatch):
    def fail(trainer, stage, checkpoint):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr("sam3i.trainer.trainer_sam3i.Sam3ITrainer._train_stage", fail)
        tiny_trainer(tmp_path, stages="simple", **SAVING).train()
    assert tiny_trainer(tmp_path, stages="simple", **SAVING).train().global_step == 3


# Stopped is not finished


def test_a_stage_that_a_callback_stops_is_not_finished_and_goes_on_exactly(tmp_path):
    settings = {**SAVING, "max_steps": 4, "save_steps": 100, "stages": ("simple", "complex")}
    whole, model = tiny_model(0.2), tiny_model(0.2)
    tiny_trainer(tmp_path / "whole", whole, **settings).train()
    output = tiny_trainer(tmp_path / "cut", model, callbacks=[StopAt(2)], **settings).train()
    assert output.metrics["simple"]["completed"] == 0.0 and "complex" not in output.metrics
    assert find_checkpoint(tmp_path / "cut", TrainingStage).folder.name == "checkpoint-2"
    model = tiny_model(0.2)
    tiny_trainer(tmp_path / "cut", model, **settings).train(resume_from_checkpoint=True)
    assert_equal(weights(model), weights(whole))


def test_sigterm_ends_the_run_after_its_step_and_it_goes_on_exactly(tmp_path):
    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    settings = {**SAVING, "max_steps": 4, "save_steps": 100, "stages": "simple", "enable_jit_checkpoint": True}
    whole, model = tiny_model(0.2), tiny_model(0.2)
    tiny_trainer(tmp_path / "whole", whole, **settings).train()
    before = signal.getsignal(signal.SIGTERM)
    output = tiny_trainer(tmp_path / "cut", tiny_model(0.2), callbacks=[Terminate()], **settings).train()
    assert output.global_step == 2 and signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "cut" / SIMPLE.folder / "final").exists()
    tiny_trainer(tmp_path / "cut", model, **settings).train(resume_from_checkpoint=True)
    assert_equal(weights(model), weights(whole))


def test_patience_is_a_completion_and_recorded_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sam3i.trainer.stage.trainer.evaluate_levels", lambda *args, **kwargs: {"stage_best_gIoU": 1.0}
    )
    settings = {**SAVING, "max_steps": 8, "eval_strategy": "steps", "eval_steps": 1, "early_stopping_patience": 2}
    trainer = tiny_trainer(tmp_path, None, tiny_dataset(4, "validation"), stages="simple", calibrate=False, **settings)
    output = trainer.train()
    assert output.metrics["simple"]["completed"] == 1.0 and output.global_step == 3
    assert json.loads((tmp_path / "training.json").read_text())["stages"][0]["ended_by"] == "patience"
    # Killed while the stage is finished: its patience is over still, no further step is taken.
    (tmp_path / SIMPLE.folder / "final" / "curriculum.json").unlink()
    again = tiny_trainer(tmp_path, None, tiny_dataset(4, "validation"), stages="simple", calibrate=False, **settings)
    assert again.train(resume_from_checkpoint=True).global_step == 3
    assert not any(isinstance(each, EarlyStoppingCallback) for each in again.callback_handler.callbacks)


# What a run goes on with


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 7}, "seed 7 (was 42)"),
        ({"learning_rate": 1e-3}, "learning_rate 0.001 (was 0.002)"),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size 2 (was 4)"),
        ({"max_steps": 5}, "max_steps 5 (was 3)"),
    ],
)
def test_other_settings_are_named_and_refused_or_allowed(tmp_path, changes, name):
    tiny_trainer(tmp_path, stages="simple", callbacks=[StopAt(2)], **SAVING).train()
    settings = {**SAVING, **changes}
    with pytest.raises(OtherTrainingError) as caught:
        tiny_trainer(tmp_path, stages="simple", **settings).train(resume_from_checkpoint=True)
    assert name in str(caught.value) and f"--allow-changed {next(iter(changes))}" in str(caught.value)
    allowed = tiny_trainer(tmp_path, stages="simple", allow_changed=list(changes), **settings)
    assert allowed.train(resume_from_checkpoint=True).global_step == settings["max_steps"]


def test_another_setting_of_a_stage_that_is_finished_is_refused_or_said_to_come_too_late(tmp_path, caplog):
    settings = {**SAVING, "stages": ("simple", "complex"), "max_steps": 1}
    tiny_trainer(tmp_path, **settings).train()
    settings["learning_rate"] = (1e-4, 2e-3, 2e-3)
    with pytest.raises(OtherTrainingError, match=r"stage-1-simple/final .* learning_rate 0.0001 \(was 0.002\)"):
        tiny_trainer(tmp_path, **settings).train(resume_from_checkpoint=True)
    tiny_trainer(tmp_path, **settings, allow_changed=["learning_rate"]).train(resume_from_checkpoint=True)
    assert "Stage 'simple' is finished and stays as it was trained" in caplog.text


def test_other_data_weights_and_processors_are_named_and_refused(tmp_path):
    tiny_trainer(tmp_path, stages="simple", **SAVING).train()

    def resumed(**changes):
        trainer = tiny_trainer(tmp_path, stages="simple", **SAVING)
        for name, value in changes.items():
            setattr(trainer, name, value)
        return trainer.train(resume_from_checkpoint=True)

    rows = tiny_dataset()
    image = rows[0]["image"].copy()
    image.putpixel((0, 0), (1, 2, 3))
    repainted = rows.map(lambda row, index: row | {"image": image} if index == 0 else row, with_indices=True)
    with pytest.raises(OtherTrainingError, match="found other data"):
        resumed(all_rows=repainted)
    with pytest.raises(OtherTrainingError, match="found other data"):
        resumed(all_rows=rows.select(range(11)))
    model = tiny_model()
    model.detr_encoder.layers[0].mlp.fc1.weight.data[0, 0] += 1
    with pytest.raises(OtherTrainingError, match="found other weights"):
        resumed(instruction_model=model)
    processor = tiny_processor()
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    with pytest.raises(OtherTrainingError, match="found other processor"):
        resumed(processing_class=processor)
    assert resumed().global_step == 0


def test_a_finished_run_takes_more_steps_when_told(tmp_path):
    tiny_trainer(tmp_path, stages="simple", **SAVING).train()
    more = {**SAVING, "max_steps": 5, "allow_changed": ["max_steps"]}
    output = tiny_trainer(tmp_path, stages="simple", **more).train(resume_from_checkpoint=True)
    assert output.global_step == 5 and output.metrics["simple"]["completed"] == 1.0
    assert read_checkpoint(tmp_path / SIMPLE.folder / "final.replaced").step == 3
    assert read_checkpoint(tmp_path / SIMPLE.folder / "final").step == 5


# Checkpoints


def test_a_flipped_bit_is_found_and_the_fall_back_is_said(tmp_path, caplog):
    tiny_trainer(tmp_path, stages="simple", callbacks=[StopAt(2)], **SAVING).train()
    path = tmp_path / SIMPLE.folder / "checkpoint-2" / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert find_checkpoint(tmp_path, [SIMPLE]).folder.name == "checkpoint-1"
    assert "checkpoint-2 is not used: the content of optimizer.pt has changed" in caplog.text


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    from sam3i.trainer.stage import trainer as stage_trainer

    seal = stage_trainer.seal_checkpoint

    def kill_at_the_second(folder, *args):
        if folder.name == "checkpoint-2":
            raise KilledError
        seal(folder, *args)

    settings = {**SAVING, "save_total_limit": 1}
    whole, model = tiny_model(0.2), tiny_model(0.2)
    tiny_trainer(tmp_path / "whole", whole, stages="simple", **settings).train()
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(stage_trainer, "seal_checkpoint", kill_at_the_second)
        tiny_trainer(tmp_path / "cut", tiny_model(0.2), stages="simple", **settings).train()
    assert find_checkpoint(tmp_path / "cut", [SIMPLE]).folder.name == "checkpoint-1"
    tiny_trainer(tmp_path / "cut", model, stages="simple", **settings).train(resume_from_checkpoint=True)
    assert_equal(weights(model), weights(whole))
    left = [path.name for path in (tmp_path / "cut" / SIMPLE.folder).glob("checkpoint-*")]
    assert left == ["checkpoint-3"]


def test_checkpoints_are_rotated_by_step_whatever_their_times(tmp_path):
    folder = tmp_path / SIMPLE.folder
    tiny_trainer(tmp_path, stages="simple", callbacks=[StopAt(2)], **SAVING).train()
    os.utime(folder / "checkpoint-1", (2e9, 2e9))  # restored from a backup, say
    tiny_trainer(tmp_path, stages="simple", **{**SAVING, "save_total_limit": 2}).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
