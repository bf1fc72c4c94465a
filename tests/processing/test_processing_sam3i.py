# SPDX-License-Identifier: Apache-2.0
"""The processor: layout of rows, levels, overlong text, boxes, post-processing, and equality with stock."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer, Sam3ImageProcessor, Sam3Processor

from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel
from sam3i.processing.processing_sam3i import Sam3IProcessor

LONG = "the dog and " * 12 + "something red that sits left of the cat"


@pytest.fixture(scope="module")
def tiny_tokenizer():
    """A CLIP tokenizer that knows whole words, so that lengths can be counted."""
    vocab, merges = {}, []
    for word in sorted({*LONG.split(), "man", "a"}):
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for piece in pieces:
            vocab.setdefault(piece, len(vocab))
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
            vocab.setdefault(pieces[0], len(vocab))
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=32)


def _image(height=40, width=60, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def image_processor():
    return Sam3ImageProcessor(size={"height": 56, "width": 56}, mask_size={"height": 16, "width": 16})


@pytest.fixture
def processor(image_processor, tiny_tokenizer):
    return Sam3IProcessor(image_processor, tiny_tokenizer)


@pytest.fixture
def stock(image_processor, tiny_tokenizer):
    return Sam3Processor(image_processor, tiny_tokenizer)


def test_equals_stock_on_stock_calls(processor, stock):
    images = [_image(), _image(30, 30, seed=1)]
    boxes = [[[5, 5, 20, 20]], [[1, 2, 10, 20], [3, 3, 9, 9]]]
    call = {"images": images, "text": ["dog", "a cat"], "input_boxes": boxes, "return_tensors": "pt"}
    ours, theirs = processor(**call), stock(**call)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert set(ours) - set(theirs) == {"instruction_levels", "image_ids"}


@pytest.mark.parametrize(
    ("images", "text", "image_ids"),
    [
        (1, "dog", [0]),
        (1, ["dog", "cat", "man"], [0, 0, 0]),
        (3, "dog", [0, 1, 2]),
        (2, ["dog", "cat"], [0, 1]),
        (2, [["dog", "cat"], ["man"]], [0, 0, 1]),
        (1, [["dog", "cat"]], [0, 0]),
        (2, (("dog",), ("cat", "man")), [0, 1, 1]),
    ],
)
def test_rows_and_their_images(processor, images, text, image_ids):
    images = [_image(seed=index) for index in range(images)]
    inputs = processor(images=images[0] if len(images) == 1 else images, text=text, return_tensors="pt")
    assert inputs["image_ids"].tolist() == image_ids and inputs["image_ids"].dtype == torch.int64
    assert inputs["input_ids"].shape == (len(image_ids), 32) == inputs["attention_mask"].shape
    assert inputs["instruction_levels"].tolist() == [0] * len(image_ids)
    assert inputs["pixel_values"].shape == (len(images), 3, 56, 56)


def test_model_input_names_are_what_it_returns(processor):
    inputs = processor(images=_image(), text="dog", return_tensors="pt")
    assert set(inputs) == set(processor.model_input_names)


@pytest.mark.parametrize(("kind", "expected"), [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_return_types(processor, kind, expected):
    inputs = processor(images=_image(), text=["dog", "cat"], return_tensors=kind)
    for name in ("input_ids", "attention_mask", "instruction_levels", "image_ids"):
        assert isinstance(inputs[name], expected), name
        assert len(inputs[name]) == 2


def test_moves_like_any_batch(processor):
    inputs = processor(images=_image(), text="dog", input_boxes=[[[1, 1, 9, 9]]], return_tensors="pt")
    assert inputs.to("cpu")["input_boxes"].device.type == "cpu"


def test_text_alone_and_images_alone(processor):
    text = processor(text=["dog", "the red dog"], return_tensors="pt")
    assert set(text) == {"input_ids", "attention_mask", "instruction_levels"}
    assert text["instruction_levels"].tolist() == [0, 1]
    nested = processor(text=[["dog"], ["cat", "man"]], return_tensors="pt")
    assert nested["image_ids"].tolist() == [0, 1, 1]
    assert set(processor(images=_image(), return_tensors="pt")) == {"pixel_values", "original_sizes"}


def test_images_as_arrays_batches_and_paths(processor, tmp_path):
    image = _image()
    image.save(tmp_path / "image.png")
    expected = processor(images=image, text="dog", return_tensors="pt")["pixel_values"]
    path = tmp_path / "image.png"
    for form in (np.array(image), torch.from_numpy(np.array(image)).permute(2, 0, 1), str(path), path):
        assert torch.equal(processor(images=form, text="dog", return_tensors="pt")["pixel_values"], expected)
    gray = image.convert("L")
    expected = processor(images=gray.convert("RGB"), text="dog", return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images=np.array(gray), text="dog", return_tensors="pt")["pixel_values"], expected)
    batch = np.stack([np.array(image)] * 2)
    assert processor(images=batch, text=["dog", "cat"], return_tensors="pt")["image_ids"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (None, [0, 1, 2]),
        ("auto", [0, 1, 2]),
        ("complex", [2, 2, 2]),
        (1, [1, 1, 1]),
        (InstructionLevel.SIMPLE, [1, 1, 1]),
        (["complex", "auto", "concept"], [2, 1, 0]),
        ([["simple", None], [0]], [1, 1, 0]),
        (torch.tensor([2, -1, 0]), [2, 1, 0]),
        (np.array([0, 0, 1]), [0, 0, 1]),
    ],
)
def test_levels(processor, levels, expected):
    text = [["dog", "the red dog"], ["something that sits"]]
    inputs = processor(images=[_image(), _image()], text=text, instruction_levels=levels, return_tensors="pt")
    assert inputs["instruction_levels"].tolist() == expected


def test_router_gets_the_automatic_rows(image_processor, tiny_tokenizer, tmp_path):
    Sam3IProcessor(image_processor, tiny_tokenizer, auto_levels="router").save_pretrained(tmp_path)
    processor = Sam3IProcessor.from_pretrained(tmp_path)
    inputs = processor(images=_image(), text=["dog", "cat"], instruction_levels=["auto", "simple"])
    assert inputs["instruction_levels"] == [-1, 1]


@pytest.mark.parametrize("size", [(40, 60), (56, 56), (3, 500), (700, 9), (1, 1)])
def test_pixels_equal_stock_to_the_last_bit(processor, image_processor, size):
    images = [_image(*size, seed=seed) for seed in range(2)]
    expected = image_processor(images=images, return_tensors="pt")
    found = processor(images=images, return_tensors="pt")
    for name in ("pixel_values", "original_sizes"):
        assert torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype


def test_other_image_processors_prepare_images_their_own_way(image_processor, tiny_tokenizer):
    image_processor.do_normalize = False
    found = Sam3IProcessor(image_processor, tiny_tokenizer)(images=_image(), return_tensors="pt")["pixel_values"]
    assert torch.equal(found, image_processor(images=_image(), return_tensors="pt")["pixel_values"])
    assert 0 <= found.min() and found.max() <= 1


def _warnings(caplog):
    return [record.message for record in caplog.records if "cut to" in record.message]


def test_overlong_text_is_cut_with_one_warning_that_names_the_words(processor, tiny_tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        inputs = processor(text=[LONG, "dog", LONG + " a man"], return_tensors="pt")
    ids = inputs["input_ids"]
    assert ids.shape == (3, 32)
    assert ids[0, 0] == tiny_tokenizer.bos_token_id and ids[0, -1] == tiny_tokenizer.eos_token_id
    assert inputs["attention_mask"][0].all()
    (message,) = _warnings(caplog)
    kept = tiny_tokenizer.decode(ids[0, 1:-1]).split()
    lost = LONG.split()[len(kept) :]
    assert LONG.split()[: len(kept)] == kept and lost
    assert f"loses {' '.join(lost)!r}" in message and "a man" in message and "instruction 1" not in message


def test_text_that_just_fits_is_whole_and_quiet(processor, caplog):
    text = " ".join(["dog"] * 30)
    with caplog.at_level(logging.WARNING):
        inputs = processor(text=text, return_tensors="pt")
    assert inputs["attention_mask"].sum() == 32 and not _warnings(caplog)


def test_longer_instructions_leave_short_ones_alone(image_processor, tiny_tokenizer, caplog):
    processor = Sam3IProcessor(image_processor, tiny_tokenizer, max_instruction_length=64)
    short = processor(text="dog", return_tensors="pt")
    assert short["input_ids"].shape == (1, 32)
    with caplog.at_level(logging.WARNING):
        assert processor(text=["dog", LONG], return_tensors="pt")["input_ids"].shape == (2, 64)
    assert not _warnings(caplog)
    small = Sam3IProcessor(image_processor, tiny_tokenizer, max_instruction_length=8)
    assert small(text="dog", return_tensors="pt")["input_ids"].shape == (1, 8)


def test_threads_may_share_a_tokenizer(processor, tiny_tokenizer):
    """A fast tokenizer keeps padding and truncation between calls, where another thread would find them."""
    processor(text=["a man", LONG], return_tensors="pt")
    assert tiny_tokenizer.backend_tokenizer.padding is None
    assert tiny_tokenizer.backend_tokenizer.truncation is None


def test_the_tokenizer_says_how_to_pad(image_processor, tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # as converted checkpoints have it
    Sam3IProcessor(image_processor, tokenizer).save_pretrained(tmp_path / "saved")
    loaded = Sam3IProcessor.from_pretrained(tmp_path / "saved")
    ids = loaded(text="dog", return_tensors="pt")["input_ids"][0]
    assert loaded.tokenizer.pad_token_id == 0 != tiny_tokenizer.pad_token_id
    assert ids[:3].all() and not ids[3:].any()


@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]])
def test_a_repository_without_its_tokenizer_is_refused(processor, tmp_path, left):
    processor.save_pretrained(tmp_path)
    for path in tmp_path.glob("*token*"):
        if path.name not in left:
            path.unlink()
    with pytest.raises((OSError, ValueError), match="Expected a tokenizer with its vocabulary, found none in .*Copy"):
        Sam3IProcessor.from_pretrained(tmp_path)


def test_fields_are_saved(image_processor, tiny_tokenizer, tmp_path):
    processor = Sam3IProcessor(image_processor, tiny_tokenizer, max_instruction_length=48, auto_levels="router")
    processor.save_pretrained(tmp_path)
    loaded = Sam3IProcessor.from_pretrained(tmp_path)
    assert (loaded.max_instruction_length, loaded.auto_levels) == (48, "router")
    assert loaded.to_dict() == processor.to_dict()


@pytest.mark.parametrize("layout", ["processor_config", "preprocessor_config", "video"])
def test_stock_processor_repositories_load(stock, tmp_path, layout):
    stock.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    config = json.loads(path.read_text())
    if layout == "preprocessor_config":
        path.unlink()
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config["image_processor"]))
    if layout == "video":
        config["processor_class"] = "Sam3VideoProcessor"
        config["video_processor"] = {"video_processor_type": "Sam2VideoVideoProcessor"}
        path.write_text(json.dumps(config))
    loaded = Sam3IProcessor.from_pretrained(tmp_path)
    assert loaded.max_instruction_length == 32 and loaded.auto_levels == "rules"
    inputs, expected = (call(images=_image(), text="dog", return_tensors="pt") for call in (loaded, stock))
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])


def test_adapters_saved_alone_have_the_processor_of_their_base(processor, tmp_path):
    from sam3i import InstructionAdapterConfig

    processor.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    base = str(tmp_path / "base")
    InstructionAdapterConfig(base_model_name_or_path=base, max_instruction_length=48).save_pretrained(
        tmp_path / "adapter"
    )
    found = Sam3IProcessor.from_pretrained(tmp_path / "adapter")
    assert found.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert found.max_instruction_length == 48
    assert Sam3IProcessor.from_pretrained(tmp_path / "adapter", max_instruction_length=40).max_instruction_length == 40
    InstructionAdapterConfig().save_pretrained(tmp_path / "adapter")
    with pytest.raises(OSError, match="names no base model"):
        Sam3IProcessor.from_pretrained(tmp_path / "adapter")


def test_boxes_by_row_by_image_and_nested(processor):
    images = [_image(40, 60), _image(20, 30)]
    text = [["dog", "cat"], ["man"]]
    one, two = [6, 4, 30, 20], [3, 2, 15, 10]  # the same box relative to either image
    relative = torch.tensor([0.3, 0.3, 0.4, 0.4])
    for boxes in ([[one], [one], [two]], [[one], [two]], [[[one], [one]], [[two]]], [[tuple(one)], [two]]):
        inputs = processor(images=images, text=text, input_boxes=boxes, return_tensors="pt")
        assert torch.allclose(inputs["input_boxes"], relative.expand(3, 1, 4))
        assert inputs["input_boxes_labels"].tolist() == [[1]] * 3
    inputs = processor(
        images=images,
        text=text,
        input_boxes=[[one, one], None, [two]],
        input_boxes_labels=[[1, 0], None, [0]],
        return_tensors="pt",
    )
    assert inputs["input_boxes_labels"].tolist() == [[1, 0], [-10, -10], [0, -10]]
    assert inputs["input_boxes"][1].tolist() == [[-10, -10, 0, 0]] * 2


def test_boxes_alone_and_with_sizes_alone(processor, stock):
    call = {"images": _image(), "input_boxes": [[[5, 5, 20, 20]]], "return_tensors": "pt"}
    ours, theirs = processor(**call), stock(**call)
    assert torch.equal(ours["input_ids"], theirs["input_ids"]) and ours["instruction_levels"].tolist() == [0]
    sized = processor(text="dog", original_sizes=[(40, 60)], input_boxes=[[[5, 5, 20, 20]]], return_tensors="pt")
    assert torch.equal(sized["input_boxes"], ours["input_boxes"])
    mixed = processor(images=_image(), text=["dog", None], input_boxes=[None, [[5, 5, 20, 20]]], return_tensors="pt")
    assert mixed["input_boxes_labels"].tolist() == [[-10], [1]]


def test_a_box_may_round_over_the_edge(processor):
    inputs = processor(images=_image(40, 60), text="dog", input_boxes=[[[-0.4, 0, 60.7, 40]]], return_tensors="pt")
    assert torch.equal(inputs["input_boxes"], torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]))


def test_segmentation_maps_as_stock(processor, stock):
    call = {"images": _image(), "segmentation_maps": np.eye(40, 60, dtype=np.uint8), "return_tensors": "pt"}
    assert torch.equal(processor(**call)["labels"], stock(**call)["labels"])


GOOD = {"images": _image(), "text": "dog"}
TWO = [_image(), _image(30, 30)]
NAN = np.full((3, 20, 20), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": None, "text": None}, ValueError, "at least"),
        ({"images": "no/such/image.png"}, ValueError, "Cannot read image 'no/such/image.png'"),
        ({"images": np.zeros((0, 8, 3), np.uint8)}, ValueError, r"found shape \(0, 8, 3\)"),
        ({"images": torch.rand(1, 1, 3, 8, 8)}, ValueError, r"found shape \(1, 1, 3, 8, 8\)"),
        ({"text": ""}, ValueError, "is empty"),
        ({"text": "  \n"}, ValueError, "is empty"),
        ({"text": []}, ValueError, "empty list"),
        ({"text": [["dog"], []], "images": TWO}, ValueError, "none for image 1"),
        ({"text": ["dog", ""]}, ValueError, "Instruction 1 is empty"),
        ({"text": 3}, TypeError, "found int"),
        ({"text": b"dog"}, TypeError, "found bytes"),
        ({"text": {"dog"}}, TypeError, "found set"),
        ({"text": ["dog", 3]}, TypeError, "found int"),
        ({"text": [["dog"], "cat"], "images": TWO}, TypeError, "one depth"),
        ({"text": [[["dog"]]]}, TypeError, "one depth"),
        ({"text": ["dog", None]}, ValueError, "needs `input_boxes`"),
        ({"text": "dog \ud83d"}, ValueError, "Unicode"),
        ({"text": ["dog", "cat", "man"], "images": TWO}, ValueError, "each of 2 images, found 3"),
        ({"text": [["dog"]], "images": TWO}, ValueError, "each of 2 images, found 1"),
        ({"images": []}, ValueError, "empty list"),
        ({"images": 3}, TypeError, "found int"),
        ({"images": {"image": _image()}}, TypeError, "found dict"),
        ({"images": NAN}, ValueError, "NaN"),
        ({"images": [_image(), NAN * np.inf], "text": "dog"}, ValueError, "Image 1: .* NaN or infinite"),
        ({"original_sizes": [(3, 3)]}, ValueError, "not both"),
        ({"images": None, "original_sizes": [(0, 3)]}, ValueError, "height, width"),
        ({"instruction_levels": "easy"}, ValueError, "Unknown instruction level 'easy'"),
        ({"instruction_levels": 3}, ValueError, "Unknown instruction level 3"),
        ({"instruction_levels": True}, ValueError, "Unknown instruction level True"),
        ({"instruction_levels": 1.0}, TypeError, "found float"),
        ({"instruction_levels": ["simple", "simple"]}, ValueError, "each of 1 instructions, found 2"),
        ({"instruction_levels": []}, ValueError, "found 0"),
        ({"instruction_levels": [["simple", "simple"]]}, ValueError, "nested like"),
        ({"text": None, "instruction_levels": "simple"}, ValueError, "need `text`"),
        ({"input_boxes": [[[5, 5, 200, 20]]]}, ValueError, "leaves its image of 60x40"),
        ({"input_boxes": [[[-5, 5, 20, 20]]]}, ValueError, "leaves its image"),
        ({"input_boxes": [[[20, 5, 5, 20]]]}, ValueError, "x1 < x2"),
        ({"input_boxes": [[[5, 5, 5, 20]]]}, ValueError, "x1 < x2"),
        ({"input_boxes": [[[5, 5, 20]]]}, ValueError, "expected \\(x1"),
        ({"input_boxes": [[[5, 5, 20, float("nan")]]]}, ValueError, "finite"),
        ({"input_boxes": [[["5", 5, 20, 20]]]}, ValueError, "finite"),
        ({"input_boxes": [5, 5, 20, 20]}, ValueError, "1 levels of lists instead of 3"),
        ({"input_boxes": [[5, 5, 20, 20]]}, ValueError, "2 levels"),
        ({"input_boxes": [[[5, 5, 20, 20]], [[5, 5, 20, 20]]]}, ValueError, "each of 1 instructions, found 2"),
        ({"input_boxes": [[[[5, 5, 20, 20]], None]]}, ValueError, "nested like `text`"),
        ({"input_boxes": [[[5, 5, 20, 20]]], "input_boxes_labels": [[1, 1]]}, ValueError, "label for each box"),
        ({"input_boxes": [[[5, 5, 20, 20]]], "input_boxes_labels": [[2]]}, ValueError, "label 1"),
        ({"input_boxes_labels": [[1]]}, ValueError, "need `input_boxes`"),
        ({"images": None, "input_boxes": [[[5, 5, 20, 20]]]}, ValueError, "need `images`"),
        ({"images": None, "segmentation_maps": np.eye(3)}, ValueError, "need `images`"),
        ({"text": None, "input_boxes": [None]}, ValueError, "neither a text nor a box"),
        ({"padding": True}, TypeError, "max_instruction_length"),
        ({"truncation": True}, TypeError, "max_instruction_length"),
        ({"images": None, "size": 3}, TypeError, "Unexpected keyword"),
        ({"colour": "red"}, TypeError, "colour"),
    ],
)
def test_malformed_calls(processor, change, error, message):
    with pytest.raises(error, match=message):
        processor(**(GOOD | change), return_tensors="pt")


@pytest.mark.parametrize(
    ("field", "error"),
    [
        ({"max_instruction_length": 2}, ValueError),
        ({"max_instruction_length": "32"}, TypeError),
        ({"max_instruction_length": True}, TypeError),
        ({"auto_levels": "oracle"}, ValueError),
        ({"colour": "red"}, TypeError),
    ],
)
def test_malformed_fields(image_processor, tiny_tokenizer, field, error):
    with pytest.raises(error, match=next(iter(field))):
        Sam3IProcessor(image_processor, tiny_tokenizer, **field)


def _outputs(rows=3, queries=20, size=24, seed=0, presence=True, levels=None):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(rows, queries, 2, 2, generator=generator).sort(dim=2).values
    return SimpleNamespace(
        pred_logits=torch.randn(rows, queries, generator=generator) * 2,
        pred_boxes=corners.flatten(2),
        pred_masks=torch.randn(rows, queries, size, size, generator=generator) * 4,
        presence_logits=torch.randn(rows, 1, generator=generator) + 2 if presence else None,
        instruction_levels=levels,
    )


@pytest.mark.parametrize("presence", [True, False])
@pytest.mark.parametrize("sizes", [None, [(37, 51), (64, 20), (100, 100)]])
def test_scores_and_boxes_equal_stock(processor, sizes, presence):
    outputs = _outputs(presence=presence)
    ours = processor.post_process_instruction_segmentation(outputs, 0.4, 0.6, target_sizes=sizes)
    stock = processor.post_process_instance_segmentation(outputs, 0.4, 0.6, target_sizes=sizes)
    for row, reference in zip(ours, stock, strict=True):
        order = reference["scores"].argsort(descending=True, stable=True)
        assert len(order) > 3
        assert torch.equal(row["scores"], reference["scores"][order])
        assert torch.equal(row["boxes"], reference["boxes"][order])
        assert row["masks"].dtype == torch.bool and row["masks"].shape == reference["masks"][order].shape
        if sizes is None:  # nothing is resized: stock's masks, too
            assert torch.equal(row["masks"].long(), reference["masks"][order])
        assert row["level"] == "concept" and torch.equal(row["labels"], torch.zeros(len(order), dtype=torch.long))


def test_sizes_per_image_per_row_and_shared(processor):
    outputs = _outputs(levels=torch.tensor([0, 1, 2]))
    sizes, ids = [(30, 40), (50, 60)], torch.tensor([1, 0, 1])
    by_image = processor.post_process_instruction_segmentation(outputs, target_sizes=sizes, image_ids=ids)
    by_row = processor.post_process_instruction_segmentation(outputs, target_sizes=[sizes[i] for i in ids])
    tensor = processor.post_process_instruction_segmentation(
        outputs, target_sizes=torch.tensor(sizes), image_ids=ids.tolist()
    )
    for rows in zip(by_image, by_row, tensor, strict=True):
        assert all(torch.equal(rows[0]["masks"], row["masks"]) for row in rows)
    assert [row["level"] for row in by_image] == ["concept", "simple", "complex"]
    shared = processor.post_process_instruction_segmentation(outputs, target_sizes=[(30, 40)])
    assert {tuple(row["masks"].shape[1:]) for row in shared} == {(30, 40)}


def test_nothing_found_keeps_its_shape(processor):
    rows = processor.post_process_instruction_segmentation(_outputs(), threshold=1.0, target_sizes=[(30, 40)])
    assert [tuple(row["masks"].shape) for row in rows] == [(0, 30, 40)] * 3
    assert rows[0]["boxes"].shape == (0, 4)


def test_half_precision_outputs(processor):
    outputs = _outputs()
    for name in ("pred_logits", "pred_boxes", "pred_masks", "presence_logits"):
        setattr(outputs, name, getattr(outputs, name).bfloat16())
    rows = processor.post_process_instruction_segmentation(outputs, target_sizes=[(30, 40)])
    assert rows[0]["scores"].dtype == rows[0]["boxes"].dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"threshold": 1.5}, ValueError, "`threshold` in"),
        ({"threshold": -0.1}, ValueError, "`threshold` in"),
        ({"threshold": "0.5"}, TypeError, "`threshold` as a number"),
        ({"threshold": float("nan")}, ValueError, "`threshold` in"),
        ({"mask_threshold": 2}, ValueError, "`mask_threshold` in"),
        ({"max_overlap": 1.5}, ValueError, "`max_overlap` in"),
        ({"target_sizes": [(3, 3), (4, 4)]}, ValueError, "each of 3 instructions"),
        ({"target_sizes": (30, 40)}, ValueError, "found entry 30"),
        ({"target_sizes": [(0, 4)]}, ValueError, "found entry"),
        ({"target_sizes": [(3, 4, 5)]}, ValueError, "found entry"),
        ({"target_sizes": 3}, TypeError, "found int"),
        ({"target_sizes": [(float("inf"), 4)]}, ValueError, "found entry"),
        ({"target_sizes": [("a", 4)]}, ValueError, "found entry"),
        ({"outputs": None}, TypeError, "outputs of the model, found NoneType"),
        ({"outputs": (1, 2)}, TypeError, "outputs of the model, found tuple"),
        ({"target_sizes": [(3, 4)], "image_ids": [0]}, ValueError, "`image_ids` for each of 3"),
    ],
)
def test_malformed_post_processing(processor, call, error, message):
    with pytest.raises(error, match=message):
        processor.post_process_instruction_segmentation(**{"outputs": _outputs()} | call)


def test_outputs_without_masks_or_with_nan(processor):
    outputs = _outputs()
    outputs.pred_logits[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        processor.post_process_instruction_segmentation(outputs)
    outputs.pred_masks = None
    with pytest.raises(ValueError, match="no masks"):
        processor.post_process_instruction_segmentation(outputs)
