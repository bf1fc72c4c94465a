# SPDX-License-Identifier: Apache-2.0
import copy
import pickle
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPTokenizer, Sam3ImageProcessor

from sam3i.modeling_sam3i.losses.targets import validate_labels
from sam3i.processing.datasets.schema import make_row, row_features
from sam3i.processing.masks import encode_mask
from sam3i.processing.processing_sam3i import Sam3IProcessor
from sam3i.trainer.collator import InstructionCollator, read_sampling, row_problem, select_rows
from sam3i.trainer.transforms import InstructionTransform

WIDTH, HEIGHT, INPUT = 40, 30, 56


@pytest.fixture(scope="module")
def processor():
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocab = {piece: place for place, piece in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    size = {"height": INPUT, "width": INPUT}
    return Sam3IProcessor(Sam3ImageProcessor(size=size), CLIPTokenizer(vocab=vocab, merges=[], model_max_length=32))


def row(number, place=0, instances=1, **changes):
    masks, boxes = [], []
    for k in range(instances):
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[4 : 4 + 10, 3 + 12 * k : 3 + 12 * k + 8] = True
        masks.append(encode_mask(mask))
        boxes.append([3 + 12 * k, 4, 8, 10])
    made = make_row(
        image=Image.new("RGB", (WIDTH, HEIGHT), (40 * place, 100, 200)),
        width=WIDTH,
        height=HEIGHT,
        row_id=f"r{number}",
        image_id=f"i{place}",
        masks=masks,
        boxes=boxes,
        concept=[f"Noun {number}"],
        simple=[f"s{number} {k}" for k in range(4)],
        complex=[f"c{number} {k}" for k in range(4)],
        target_kind="none" if not instances else None,
        dataset="d",
        split="train",
    )
    made.update(changes)
    return made


def texts_of(processor, batch, name="input_ids"):
    return [processor.tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") for ids in batch[name]]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize(("level", "index"), [("concept", 0), ("simple", 1), ("complex", 2)])
def test_one_level(processor, level, index):
    rows = [row(0, place=0), row(1, place=1, instances=2), row(2, place=0, instances=0)]
    batch = InstructionCollator(processor, level)(rows)
    assert batch["pixel_values"].shape == (2, 3, INPUT, INPUT)
    assert batch["image_ids"].tolist() == [0, 0, 1] and batch["image_keys"] == ["d/train/i0", "d/train/i1"]
    assert batch["instruction_levels"].tolist() == [index] * 3
    assert batch["concept_names"] == ["noun 0", "noun 2", "noun 1"]
    own = {"concept": "noun", "simple": "s", "complex": "c"}[level]
    assert [text.startswith(f"{own}{n}") for text, n in zip(texts_of(processor, batch), (0, 2, 1), strict=True)] == [
        True
    ] * 3
    assert [len(label["boxes"]) for label in batch["labels"]] == [1, 0, 2]
    validate_labels(batch["labels"], num_rows=3)


def test_labels_lie_where_the_object_is(processor):
    label = InstructionCollator(processor)([row(0)])["labels"][0]
    assert torch.allclose(label["boxes"], torch.tensor([[7 / 40, 9 / 30, 8 / 40, 10 / 30]]))
    assert label["masks"].shape == (1, INPUT, INPUT) and label["masks"].dtype == torch.bool
    expected = torch.zeros(INPUT, INPUT, dtype=torch.bool)
    expected[round(4 * INPUT / 30) : round(14 * INPUT / 30), round(3 * INPUT / 40) : round(11 * INPUT / 40)] = True
    both = (expected & label["masks"][0]).sum() / (expected | label["masks"][0]).sum()
    assert both > 0.9


def test_images_without_augmentation_are_those_of_inference(processor):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    batch = InstructionCollator(processor)([row(0, image=image)])
    assert torch.equal(batch["pixel_values"], processor(images=image, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("texts_per_row", [1, 2, 9])
def test_joint_batches_hold_pairs_of_one_target(processor, texts_per_row):
    rows = [row(0, place=0), row(1, place=1, simple=["s1 0"], instances=0), row(2, place=0, instances=2)]
    batch = InstructionCollator(processor, "joint", texts_per_row=texts_per_row)(rows)
    counts = [min(texts_per_row, 4), min(texts_per_row, 4), 1]
    pairs = sum(counts)
    levels = batch["instruction_levels"].tolist()
    assert levels == [1, 2] * pairs and batch["concept_input_ids"].shape[0] == pairs
    texts, owners = texts_of(processor, batch), [n for n, k in zip((0, 2, 1), counts, strict=True) for _ in range(k)]
    for pair, owner in enumerate(owners):
        assert texts[2 * pair].startswith(f"s{owner}") and texts[2 * pair + 1].startswith(f"c{owner}")
        first, second = batch["labels"][2 * pair : 2 * pair + 2]
        assert equal(first, second) and len(first["boxes"]) == {0: 1, 1: 0, 2: 2}[owner]
        assert batch["concept_names"][2 * pair] == batch["concept_names"][2 * pair + 1] == f"noun {owner}"
    assert texts_of(processor, batch, "concept_input_ids") == [f"noun{owner}" for owner in owners]
    assert len(set(texts)) == len(texts)
    assert batch["image_ids"].tolist() == [0] * 2 * (counts[0] + counts[1]) + [1] * 2 * counts[2]


def test_several_texts_of_a_row_are_distinct_and_share_the_image(processor):
    batch = InstructionCollator(processor, "simple", texts_per_row=3)([row(0), row(1, simple=["only"])])
    texts = texts_of(processor, batch)
    assert len(texts) == 4 == len(set(texts)) and texts[-1] == "only"
    assert batch["pixel_values"].shape[0] == 1 and batch["image_ids"].tolist() == [0] * 4


def test_weights_choose_among_the_levels_a_row_has(processor):
    rows = [row(n, place=n) for n in range(60)] + [row(99, place=99, simple=[])]
    batch = InstructionCollator(processor, {"simple": 3, "complex": 1, "concept": 0})(rows)
    levels = batch["instruction_levels"].tolist()
    assert levels[-1] == 2 and set(levels) == {1, 2}
    assert 35 <= levels.count(1) <= 55


def test_same_epoch_same_draws_whatever_the_batch(processor):
    rows = [row(n, place=n // 2) for n in range(8)]
    transform = InstructionTransform(flip_probability=0.5)
    collator = InstructionCollator(processor, "simple", transform=transform, seed=7)
    alone = [collator([one]) for one in rows]
    together = collator(rows)
    random.seed(1), torch.manual_seed(1), np.random.seed(1)
    resumed = pickle.loads(pickle.dumps(collator))
    assert equal(resumed(rows), together) and equal(collator(rows), together)
    assert torch.equal(torch.cat([batch["input_ids"] for batch in alone]), together["input_ids"])
    assert equal([batch["labels"][0] for batch in alone], together["labels"])


def test_epochs_and_seeds_differ(processor):
    rows = [row(n, place=n) for n in range(12)]
    collator = InstructionCollator(processor, "simple", transform=InstructionTransform())
    first = collator(rows)
    collator.set_epoch(1)
    second = collator(rows)
    assert collator.epoch == 1 and not torch.equal(first["input_ids"], second["input_ids"])
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    collator.set_epoch(0)
    assert equal(collator(rows), first)
    assert not equal(InstructionCollator(processor, "simple", seed=1)(rows)["input_ids"], first["input_ids"])


def test_nothing_global_is_drawn_from(processor):
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    InstructionCollator(processor, "joint", transform=InstructionTransform(flip_probability=0.5))([row(0), row(1)])
    assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())
    assert np.array_equal(states[2], np.random.get_state()[1])


def test_flips_are_left_out_when_any_instruction_of_the_image_names_a_side(processor):
    collator = InstructionCollator(processor, transform=InstructionTransform(min_scale=1.0, flip_probability=1.0))
    plain = InstructionCollator(processor)([row(0)])["labels"][0]["boxes"]
    assert not torch.allclose(collator([row(0)])["labels"][0]["boxes"], plain)
    sided = collator([row(0), row(1, complex=["what lies on the left"])])
    assert torch.allclose(sided["labels"][0]["boxes"], plain)


def test_cached_features_need_no_image(processor):
    rows = [row(0, place=0), row(1, place=1), row(2, place=0)]
    with_images = InstructionCollator(processor, "complex")(rows)
    blind = [{name: value for name, value in one.items() if name != "image"} for one in rows]
    without = InstructionCollator(processor, "complex", load_images=False)(blind)
    assert "pixel_values" not in without
    assert equal(without, {name: value for name, value in with_images.items() if name != "pixel_values"})


def test_crowds_and_specks_are_no_targets(processor):
    one = row(0, instances=2, is_crowd=[True, False])
    assert len(InstructionCollator(processor)([one])["labels"][0]["masks"]) == 1
    with pytest.raises(ValueError, match="crowds or smaller than a pixel"):
        InstructionCollator(processor)([row(0, is_crowd=[True])])


@pytest.mark.parametrize(
    ("changes", "sampling", "message"),
    [
        ({"simple": []}, "simple", "no instruction of the level simple"),
        ({"simple": [], "complex": []}, {"simple": 1, "complex": 1}, "simple or complex"),
        ({"concept": []}, "joint", "concept is empty"),
        ({"masks": [None]}, "simple", "box and no mask"),
        ({"image": None}, "simple", "image_root="),
        ({"image": Image.new("RGB", (5, 5))}, "simple", "5 x 5 pixels"),
    ],
)
def test_rows_that_cannot_be_trained(processor, changes, sampling, message):
    with pytest.raises(ValueError, match=message):
        InstructionCollator(processor, sampling)([row(0), row(1, place=1, **changes)])


@pytest.mark.parametrize(
    "arguments", [{"texts_per_row": 0}, {"load_images": False, "transform": InstructionTransform()}]
)
def test_arguments_are_checked(processor, arguments):
    with pytest.raises(ValueError):
        InstructionCollator(processor, **arguments)
    with pytest.raises(ValueError, match="empty batch"):
        InstructionCollator(processor)([])


@pytest.mark.parametrize("sampling", [{}, {"simple": -1}, {"simple": 0}, "easy", {"hard": 1}])
def test_samplings_are_checked(sampling):
    with pytest.raises(ValueError):
        read_sampling(sampling)


def test_selecting_rows():
    rows = [row(0), row(1, simple=[]), row(2, concept=[]), row(3, is_crowd=[True]), row(4, instances=0)]
    dataset = Dataset.from_list(copy.deepcopy(rows), features=row_features())
    assert select_rows(dataset, "simple")["row_id"][:] == ["r0", "r2", "r4"]
    assert select_rows(dataset, "joint")["row_id"][:] == ["r0", "r4"]
    assert select_rows(dataset, {"simple": 1, "complex": 1})["row_id"][:] == ["r0", "r1", "r2", "r4"]
    assert row_problem(rows[4], {"simple": 1.0}) is None


def test_workers_that_outlive_an_epoch_see_the_next(processor):
    dataset = Dataset.from_list([row(n, place=n) for n in range(4)], features=row_features())
    collator = InstructionCollator(processor, "simple")
    loader = DataLoader(dataset, batch_size=2, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 2):
        collator.set_epoch(epoch)
        for batch, start in zip(loader, (0, 2), strict=True):
            assert equal(batch, collator([dataset[start], dataset[start + 1]]))
