# SPDX-License-Identifier: Apache-2.0
"""The selector's head start: what is kept is what the model would read, and nothing else learns from it."""

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
from sam3i.trainer.collator import InstructionCollator
from sam3i.trainer.curriculum import TrainingStage
from sam3i.trainer.heads.selector import (
    KeptQueries,
    SelectorTraining,
    begin_stage,
    correct_queries,
    end_joint_stage,
    keep_queries,
    selection_loss,
    train_selector,
)


def selective_model(**changes):
    """A model whose adapters, the selector among them, change what the model says."""
    model = tiny_model(adapter_design="selective", **changes)
    with torch.no_grad():
        for parameter in model.adapter_parameters().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def prepared_trainer(folder, stage: TrainingStage, **changes):
    return at_stage(tiny_trainer(folder, selective_model(), **{"selector_steps": 3} | changes), stage)


def test_correct_queries_by_hand():
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.21, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0.1, 0.1]])
    targets = torch.tensor([[0.21, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]])
    # Two hold the first target, none the third: IoU 1/16.
    assert correct_queries(boxes, targets).tolist() == [True, False, True, False]
    assert correct_queries(boxes, targets[:0]).tolist() == [False] * 4


def test_selection_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [1.0, 0.5, 0.0]], requires_grad=True)
    odds = logits.detach().exp()
    whole = odds.sum(-1) + 1  # with nothing, of logit 0
    yes = odds / (1 + odds)
    first = -(odds[0, 0] / whole[0]).log() - (yes[0, 0] * (1 - yes[0, 1]) * (1 - yes[0, 2])).log()
    both = (-(odds[1, :2] / whole[1]).log()).mean() - (yes[1, 0] * yes[1, 1] * (1 - yes[1, 2])).log()
    nothing = whole[1].log() - (1 - yes[1]).log().sum()
    for correct, second in (([True, True, False], both), ([False, False, False], nothing)):
        found = selection_loss(logits, torch.tensor([[True, False, False], correct]))
        torch.testing.assert_close(found, (first + second) / 2)
        (gradient,) = torch.autograd.grad(found, logits)
        assert gradient.isfinite().all() and gradient[0, 0] < 0 and (gradient[1, 0] > 0) == (not correct[0])


@pytest.mark.parametrize("sampling", ["simple", "complex"])
@pytest.mark.parametrize("compared", [48, 4])
def test_what_is_kept_is_what_the_selector_reads_row_by_row(sampling, compared):
    model = selective_model(selector_queries=compared)
    rows = tiny_dataset()
    batch = InstructionCollator(tiny_processor(), sampling)([rows[index] for index in (5, 0, 4, 1)])
    kept = keep_queries(model, batch)
    assert len(kept) == 4 and kept.logits.shape[1] == min(compared, 6)
    inputs = {name: batch[name] for name in batch if name in ("pixel_values", "input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**inputs, instruction_levels=batch["instruction_levels"], image_ids=batch["image_ids"])
        words = model.text_encoder.text_model.embeddings.token_embedding(kept.input_ids)
        selector = getattr(model.dot_product_scoring.sam3i_adapter, sampling)
        for row in range(4):
            arguments = (kept.logits, kept.queries.float(), kept.boxes)
            arguments = [each[row, None, None] for each in arguments]
            found = selector(*arguments, words[row, None], kept.attention_mask[row, None])[0, 0]
            distance = (found[:, None] - expected.pred_logits[row]).abs().min(1).values
            assert distance.max() < 5e-3  # queries are kept in half precision


def test_the_selector_learns_from_what_is_kept_and_nothing_else_moves():
    """Six alike objects a picture; the word says which end of the picture is meant. Chance is 1/6."""
    model = tiny_model(adapter_design="selective")
    before = weights(model)
    generator = torch.Generator().manual_seed(0)
    rows = 2000
    boxes = torch.rand(rows, 6, 4, generator=generator) * 0.4 + 0.2
    word = torch.randint(1, 3, (rows, 1), generator=generator)
    ends = torch.stack([boxes[..., 0].argmin(-1), boxes[..., 0].argmax(-1)], dim=-1)
    kept = KeptQueries(
        logits=torch.zeros(rows, 6),
        queries=torch.randn(1, 1, 32, generator=generator).expand(rows, 6, -1).half(),
        boxes=boxes,
        input_ids=word,
        attention_mask=torch.ones(rows, 1, dtype=torch.bool),
        correct=torch.nn.functional.one_hot(ends.gather(1, word - 1)[:, 0], 6).bool(),
    )
    state = torch.random.get_rng_state()
    share = train_selector(model, InstructionLevel.SIMPLE, kept, SelectorTraining(250, progress=False))
    assert share > 0.8
    assert torch.equal(torch.random.get_rng_state(), state)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("dot_product_scoring.sam3i_adapter.simple.") for name in moved)


@pytest.mark.parametrize("stage", [TrainingStage.SIMPLE, TrainingStage.COMPLEX])
def test_a_stage_warms_up_its_own_selector(tmp_path, stage, monkeypatch):
    monkeypatch.setattr("sam3i.trainer.heads.selector.LEAST_IOU", 0.0)  # random boxes meet no target
    trainer = prepared_trainer(tmp_path, stage)
    model = trainer.instruction_model
    before = weights(model)
    assert 0 <= begin_stage(trainer)["selector_accuracy"] <= 1
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith(f"dot_product_scoring.sam3i_adapter.{stage.value}.") for name in moved)
    again = prepared_trainer(tmp_path, stage)
    begin_stage(again)
    assert_equal(weights(again.instruction_model), weights(model))


def test_after_the_joint_stage_both_selectors_learn_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr("sam3i.trainer.heads.selector.LEAST_IOU", 0.0)
    trainer = prepared_trainer(tmp_path, TrainingStage.JOINT)
    model, rows, collator = trainer.instruction_model, trainer.train_dataset, trainer.data_collator
    before = weights(model)
    assert end_joint_stage(trainer).keys() == {"selector_accuracy_simple", "selector_accuracy_complex"}
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    for level in ("simple", "complex"):
        own = {name for name in moved if name.startswith(f"dot_product_scoring.sam3i_adapter.{level}.")}
        assert own
        moved -= own
    assert not moved
    assert trainer.train_dataset is rows and trainer.data_collator is collator
    assert end_joint_stage(prepared_trainer(tmp_path, TrainingStage.COMPLEX)) == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 20),
        ({"max_steps": 1}, 5),
        ({"max_steps": -1, "num_train_epochs": 2}, 30),
        ({"selector_steps": 5}, 5),
    ],
)
def test_a_short_stage_has_a_short_head_start(tmp_path, monkeypatch, changes, expected):
    steps = []
    target = "sam3i.trainer.heads.selector.warm_up_selector"
    monkeypatch.setattr(target, lambda *given: steps.append(given[-1].steps))
    begin_stage(prepared_trainer(tmp_path, TrainingStage.SIMPLE, **{"selector_steps": 2000} | changes))
    assert steps == [expected]  # five times 4 steps, 1 step, or 2 epochs of 12 rows in batches of 4


def test_without_a_target_in_reach_the_selector_stays(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sam3i.trainer.heads.selector.LEAST_IOU", 1.0)
    trainer = prepared_trainer(tmp_path, TrainingStage.SIMPLE)
    before = weights(trainer.instruction_model)
    assert begin_stage(trainer) == {}
    assert_equal(weights(trainer.instruction_model), before)


def test_training_with_it_reports_how_well_it_chooses(tmp_path, monkeypatch):
    monkeypatch.setattr("sam3i.trainer.heads.selector.LEAST_IOU", 0.0)
    output = tiny_trainer(tmp_path, selective_model(), selector_steps=2, max_steps=1).train()
    trained = [stage for stage, metrics in output.metrics.items() if "selector_accuracy" in metrics]
    assert trained == ["simple", "complex"]
    assert {"selector_accuracy_simple", "selector_accuracy_complex"} <= output.metrics["joint"].keys()
