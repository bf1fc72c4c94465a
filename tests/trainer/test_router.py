# SPDX-License-Identifier: Apache-2.0
"""The training of the level router: from texts alone, each counted once, and nothing else moves."""

import pytest
import torch
from training_fixtures import (
    assert_equal,
    at_stage,
    tiny_dataset,
    tiny_model,
    tiny_processor,
    tiny_trainer,
    weights,
)

from sam3i import InstructionLevel
from sam3i.trainer.curriculum import TrainingStage
from sam3i.trainer.heads.router import TEXTS_PER_LEVEL, texts_by_level, train_router

CONCEPT, SIMPLE, COMPLEX = InstructionLevel


def test_every_text_counts_once():
    texts = texts_by_level(tiny_dataset(12))
    assert texts[CONCEPT] == ["bar", "square"]
    assert texts[COMPLEX] == sorted(set(texts[COMPLEX])) and "the thing that is not long and not red" in texts[COMPLEX]
    assert sum(len(row["complex"]) for row in tiny_dataset(12)) > len(texts[COMPLEX])


def test_a_level_without_instructions_may_be_null():
    texts = texts_by_level(tiny_dataset().map(lambda row: {"simple": None}))
    assert texts[SIMPLE] == [] and texts[COMPLEX] == texts_by_level(tiny_dataset())[COMPLEX]


@pytest.mark.parametrize("design", ["cascade", "selective"])
def test_it_learns_the_levels_and_nothing_else_moves(design):
    model, processor, rows = tiny_model(adapter_design=design), tiny_processor(), tiny_dataset(12)
    before, state = weights(model), torch.random.get_rng_state()
    assert train_router(model, processor, rows, steps=100, seed=0, progress=False) > 0.7  # chance is 1/3
    assert torch.equal(torch.random.get_rng_state(), state)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(moved) == 6 and all(name.startswith("text_encoder.sam3i_adapter.") for name in moved)
    assert not any(parameter.requires_grad for parameter in model.text_encoder.sam3i_adapter.parameters())
    texts = [*texts_by_level(rows)[CONCEPT], "the red square", "a thing that is on the left"]
    tokens = processor(text=texts, return_tensors="pt")
    assert model.predict_levels(tokens["input_ids"], tokens["attention_mask"]).argmax(-1).tolist() == [0, 0, 1, 2]


def test_rows_without_a_concept_leave_it_out():
    rows = tiny_dataset().map(lambda row: {"concept": []})
    seen = []
    model = tiny_model()
    model.predict_levels = lambda ids, mask: seen.append(len(ids)) or type(model).predict_levels(model, ids, mask)
    train_router(model, tiny_processor(), rows, steps=2, seed=0, progress=False)
    assert seen == [2 * TEXTS_PER_LEVEL] * 2


@pytest.mark.parametrize(("steps", "expected"), [(4, [20]), (1000, [800])])
def test_a_short_joint_stage_trains_it_briefly(tmp_path, monkeypatch, steps, expected):
    taken = []
    monkeypatch.setattr("sam3i.trainer.trainer_sam3i.train_router", lambda *given: taken.append(given[3]) or 1.0)
    trainer = tiny_trainer(tmp_path, max_steps=steps)
    assert at_stage(trainer, TrainingStage.JOINT).begin_heads() == {"router_accuracy": 1.0}
    assert at_stage(trainer, TrainingStage.COMPLEX).begin_heads() == {}
    assert taken == expected


def test_it_learns_from_what_only_one_level_can_ask(tmp_path, monkeypatch):
    rows = tiny_dataset(12)
    rows = rows.map(lambda row, index: {"simple": [] if index % 2 else row["simple"]}, with_indices=True)
    texts_of = []
    monkeypatch.setattr("sam3i.trainer.trainer_sam3i.train_router", lambda *given: texts_of.append(given[2]) or 1.0)
    trainer = tiny_trainer(tmp_path, rows=rows)
    at_stage(trainer, TrainingStage.JOINT).begin_heads()
    assert len(trainer.train_dataset) < len(rows)  # the stage itself takes pairs
    assert texts_by_level(texts_of[0])[COMPLEX] == texts_by_level(rows)[COMPLEX]


def test_a_model_without_router_trains_none(tmp_path):
    trainer = at_stage(tiny_trainer(tmp_path, tiny_model(router_dim=0)), TrainingStage.JOINT)
    before = weights(trainer.instruction_model)
    assert trainer.begin_heads() == {}
    assert_equal(weights(trainer.instruction_model), before)


def test_a_run_that_goes_on_from_the_stage_before_ends_the_same(tmp_path):
    whole, resumed = tiny_model(), tiny_model()
    tiny_trainer(tmp_path / "whole", whole, max_steps=1).train()
    tiny_trainer(tmp_path / "parts", resumed, stages=("simple", "complex"), max_steps=1).train()
    tiny_trainer(tmp_path / "parts", resumed, max_steps=1).train(resume_from_checkpoint=True)
    assert_equal(weights(resumed), weights(whole))
