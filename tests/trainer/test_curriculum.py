# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from training_fixtures import tiny_model

from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel
from sam3i.trainer.curriculum import (
    RATE_FACTORS,
    TRAINED_NAMES,
    StageSampler,
    TrainingStage,
    freeze_for_stage,
    parameter_groups,
    read_stages,
    stage_values,
)

SIMPLE, COMPLEX, JOINT = TrainingStage


def test_stages_know_their_place_levels_and_data():
    assert [stage.index for stage in TrainingStage] == [0, 1, 2]
    assert [stage.folder for stage in TrainingStage] == ["stage-1-simple", "stage-2-complex", "stage-3-joint"]
    assert [stage.sampling for stage in TrainingStage] == ["simple", "complex", "joint"]
    assert JOINT.levels == (InstructionLevel.SIMPLE, InstructionLevel.COMPLEX)


@pytest.mark.parametrize("design", ["cascade", "selective"])
def test_the_stages_part_the_adapters_of_both_designs(design):
    model = tiny_model(adapter_design=design)
    trained = {stage: set(freeze_for_stage(model, stage)) for stage in TrainingStage}
    adapters = set(model.adapter_parameters())
    router = {name for name in adapters if name.startswith("text_encoder.sam3i_adapter.")}  # trained by itself
    assert len(router) == 6 and not trained[SIMPLE] & trained[COMPLEX]
    assert trained[SIMPLE] | trained[COMPLEX] == trained[JOINT] == adapters - router


def test_each_stage_trains_its_own_adapters_and_nothing_else():
    model = tiny_model()
    names = dict(model.named_parameters())
    trained = {stage: set(freeze_for_stage(model, stage)) for stage in TrainingStage}
    layer = "text_encoder.text_model.encoder.layers.0.sam3i_adapter"
    assert f"{layer}.s_adapter.down_proj.weight" in trained[SIMPLE]
    assert {f"{layer}.cascade_s_adapter.down_proj.weight", f"{layer}.c_adapter.qkv_proj.bias"} <= trained[COMPLEX]
    embedder = "mask_decoder.mask_embedder.sam3i_adapter"
    assert f"{embedder}.simple.layers.0.weight" in trained[SIMPLE]
    assert f"{embedder}.complex.layers.2.bias" in trained[COMPLEX]
    assert {name for name in names if names[name].requires_grad} == trained[JOINT]  # the last stage that was set


def test_freezing_is_undone_by_the_next_stage():
    model = tiny_model()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    trained = freeze_for_stage(model, SIMPLE)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_a_rule_that_trains_sam3_or_nothing_is_refused(monkeypatch):
    model = tiny_model()
    monkeypatch.setitem(TRAINED_NAMES, SIMPLE, (".s_adapter.", "text_projection"))
    with pytest.raises(ValueError, match="found 'text_.*weight', a weight of SAM3"):
        freeze_for_stage(model, SIMPLE)
    monkeypatch.setitem(TRAINED_NAMES, SIMPLE, (".no_such_adapter.",))
    with pytest.raises(ValueError, match="found nothing"):
        freeze_for_stage(model, SIMPLE)


def test_parameter_groups_part_text_from_the_rest_and_matrices_from_vectors():
    model = tiny_model()
    trained = freeze_for_stage(model, JOINT)
    groups = parameter_groups(model, learning_rate=1.0, text_learning_rate=0.1, weight_decay=0.5)
    assert sorted((group["lr"], group["weight_decay"]) for group in groups) == [
        (0.1, 0.0),
        (0.1, 0.5),
        (1.0, 0.0),
        (1.0, 0.5),
    ]
    placed = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(placed) == len(trained) == sum(len(group["params"]) for group in groups)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = placed[id(parameter)]
            assert group["lr"] == (0.1 if name.startswith("text_encoder.text_model.") else 1.0)
            assert group["weight_decay"] == (0.0 if name.endswith("bias") or "norm" in name else 0.5)


def test_the_instance_selector_has_a_rate_of_its_own():
    model = tiny_model(adapter_design="selective")
    freeze_for_stage(model, SIMPLE)
    groups = parameter_groups(model, learning_rate=1.0, text_learning_rate=0.1, weight_decay=0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            selector, text = "dot_product_scoring" in name, "text_encoder" in name
            expected = RATE_FACTORS["dot_product_scoring."][1] if selector else 0.1 if text else 1.0
            assert rates[id(parameter)] == expected != 1.0 or not (selector or text), name


def test_sampler_is_a_function_of_seed_stage_and_epoch():
    def order(seed=1, stage=SIMPLE, epoch=0):
        sampler = StageSampler(20, seed, stage)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(0)
    first = order()
    torch.manual_seed(1)
    assert order() == first and sorted(first) == list(range(20))
    assert len({tuple(o) for o in (first, order(seed=2), order(stage=JOINT), order(epoch=1))}) == 4


@pytest.mark.parametrize("every", [2, 3])
def test_every_so_many_steps_one_is_of_replay_rows_alone_and_all_rows_are_seen(every):
    sampler = StageSampler(10, seed=1, stage=SIMPLE, replay=3, step=4, every=every)
    order = list(sampler)
    steps = [order[start : start + 4] for start in range(0, len(order), 4)]
    old = [step for step in steps if min(step) >= 10]
    new = [step for step in steps if max(step) < 10]
    assert len(sampler) == len(order) and len(old) + len(new) == len(steps) and len(new) == 3
    assert steps.index(old[0]) == 0 and len(old) == (3 if every == 2 else 2)
    assert set(sum(new, [])) == set(range(10)) and set(sum(old, [])) == {10, 11, 12}
    sampler.set_epoch(1)
    assert list(sampler) != order


@pytest.mark.parametrize(
    ("given", "expected"),
    [("complex", (COMPLEX,)), (["simple", JOINT], (SIMPLE, JOINT)), (tuple(TrainingStage), tuple(TrainingStage))],
)
def test_stages_are_read_from_names(given, expected):
    assert read_stages(given) == expected


@pytest.mark.parametrize("given", [[], ["joint", "simple"], ["simple", "simple"]])
def test_stages_in_another_order_are_refused(given):
    with pytest.raises(ValueError, match="in this order, found"):
        read_stages(given)


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="Unknown training stage 'stage 4': expected one of 'simple'"):
        read_stages("stage 4")


def test_stage_values():
    assert stage_values("learning_rate", 1e-3) == (1e-3,) * 3
    assert stage_values("learning_rate", [1, 2, 3]) == (1, 2, 3)
    with pytest.raises(ValueError, match=r"`learning_rate` as one value or one for each of 3 stages, found \[1, 2\]"):
        stage_values("learning_rate", [1, 2])
