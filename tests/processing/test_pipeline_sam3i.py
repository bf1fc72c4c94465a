# SPDX-License-Identifier: Apache-2.0
"""The pipeline: forms of input, pairing, batches, errors, and the command-line functions on top of it."""

import json
import shutil
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Sam3ImageProcessor, Sam3Model, Sam3Processor, pipeline

import sam3i
from sam3i.hub.repo_info import repo_info
from sam3i.modeling_sam3i.adapter_io import BaseModelNotFoundError, save_adapter
from sam3i.modeling_sam3i.fast_vision import Int8Linear
from sam3i.processing.pipeline.loading import load_pipeline
from sam3i.processing.pipeline.pipeline_sam3i import InstructionSegmentationPipeline
from sam3i.processing.predict import PredictionSettings, predict_images
from sam3i.processing.predict_tasks import read_tasks
from sam3i.processing.processing_sam3i import Sam3IProcessor
from sam3i.registration import TASK, register_pipeline


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


EASY = {"threshold": 0.0, "max_overlap": None}  # random weights: keep every query


def _image(height=40, width=60, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def processor(tiny_tokenizer):
    return Sam3IProcessor(Sam3ImageProcessor(size={"height": 56, "width": 56}), tiny_tokenizer)


@pytest.fixture
def pipe(tiny_model, processor, train_adapters):
    return pipeline(TASK, model=train_adapters(tiny_model), processor=processor, device="cpu")


@pytest.fixture
def encoded_images(pipe, monkeypatch):
    """The number of images in each call of the vision encoder."""
    sizes = []
    encoder = pipe.model.vision_encoder
    forward = encoder.forward

    def count(pixel_values, *args, **kwargs):
        sizes.append(len(pixel_values))
        return forward(pixel_values, *args, **kwargs)

    monkeypatch.setattr(encoder, "forward", count)
    return sizes


def _same(first, second, tolerance=1e-5):
    assert [item["label"] for item in first] == [item["label"] for item in second]
    assert [item["level"] for item in first] == [item["level"] for item in second]
    assert np.allclose([item["score"] for item in first], [item["score"] for item in second], atol=tolerance)
    for one, two in zip(first, second, strict=True):
        assert all(abs(one["box"][key] - two["box"][key]) <= 1 for key in one["box"])
        assert np.mean(np.array(one["mask"]) != np.array(two["mask"])) < 0.01


def test_registered_once_and_again():
    from transformers.pipelines import PIPELINE_REGISTRY

    entry = PIPELINE_REGISTRY.supported_tasks[TASK]
    register_pipeline()
    assert PIPELINE_REGISTRY.supported_tasks[TASK] == entry
    assert sam3i.InstructionSegmentationPipeline is InstructionSegmentationPipeline


def test_an_instance_is_what_image_segmentation_returns(pipe):
    image = _image()
    result = pipe(image, text="the red dog", **EASY)
    assert isinstance(result, list) and len(result) == 6
    for instance in result:
        assert set(instance) == {"score", "label", "level", "box", "mask"}
        assert isinstance(instance["score"], float) and 0 <= instance["score"] <= 1
        assert instance["label"] == "the red dog" and instance["level"] == "simple"
        assert instance["mask"].mode == "L" and instance["mask"].size == image.size
        assert set(np.unique(np.array(instance["mask"]))) <= {0, 255}
        box = instance["box"]
        assert list(box) == ["xmin", "ymin", "xmax", "ymax"] and all(type(value) is int for value in box.values())
        assert 0 <= box["xmin"] <= box["xmax"] <= 60 and 0 <= box["ymin"] <= box["ymax"] <= 40
    scores = [instance["score"] for instance in result]
    assert scores == sorted(scores, reverse=True)
    assert pipe(image, text="the red dog", threshold=1.0) == []


def test_equals_processor_and_model(pipe, processor):
    image = _image()
    inputs = processor(images=image, text="the red dog", return_tensors="pt")
    with torch.no_grad():
        outputs = pipe.model(**inputs)
    (row,) = processor.post_process_instruction_segmentation(outputs, 0.0, 0.6, target_sizes=[(40, 60)])
    result = pipe(image, text="the red dog", threshold=0.0, mask_threshold=0.6)
    assert [instance["score"] for instance in result] == row["scores"].tolist()
    for instance, mask in zip(result, row["masks"], strict=True):
        assert np.array_equal(np.array(instance["mask"]) == 255, mask.numpy())


def test_several_instructions_encode_the_image_once(pipe, encoded_images):
    texts = ["dog", "the red dog", "something that sits"]
    results = pipe(_image(), text=texts, **EASY)
    assert encoded_images == [1]
    assert [row[0]["level"] for row in results] == ["concept", "simple", "complex"]
    for text, row in zip(texts, results, strict=True):
        _same(row, pipe(_image(), text=text, **EASY))


def test_levels(pipe):
    assert pipe(_image(), text="dog", level="complex", **EASY)[0]["level"] == "complex"
    rows = pipe(_image(), text=["dog", "dog"], level=["simple", "auto"], **EASY)
    assert [row[0]["level"] for row in rows] == ["simple", "concept"]


def test_forms_of_an_image(pipe, tmp_path):
    image = _image()
    image.save(tmp_path / "image.png")
    expected = pipe(image, text="dog", **EASY)
    array = np.array(image)
    for form in (
        str(tmp_path / "image.png"),
        tmp_path / "image.png",
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array),
        (array / 255).astype(np.float32),
        image.convert("RGBA"),
        {"image": image},
    ):
        _same(pipe(form, text="dog", **EASY), expected)
    gray = image.convert("L")
    _same(pipe(np.array(gray), text="dog", **EASY), pipe(gray, text="dog", **EASY))
    _same(pipe(image=image, text="dog", **EASY), expected)
    _same(pipe(images=image, text="dog", **EASY), expected)


def test_urls(pipe, tmp_path):
    image = _image()
    image.save(tmp_path / "image.png")
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        _same(pipe(f"{url}/image.png", text="dog", timeout=10, **EASY), pipe(image, text="dog", **EASY))
        with pytest.raises(ValueError, match="Cannot read image 'http"):
            pipe(f"{url}/missing.png", text="dog", timeout=10)
        server.shutdown()


def test_lists_pair_with_lists(pipe):
    images = [_image(), _image(30, 50, seed=1)]
    shared = pipe(images, text="dog", **EASY)
    assert [row[0]["mask"].size for row in shared] == [(60, 40), (50, 30)]
    paired = pipe(images, text=["dog", "the red cat"], **EASY)
    assert [row[0]["label"] for row in paired] == ["dog", "the red cat"]
    nested = pipe(images, text=[["dog", "cat"], ["man"]], level=[["simple", "auto"], ["complex"]], **EASY)
    assert [[row[0]["label"] for row in rows] for rows in nested] == [["dog", "cat"], ["man"]]
    assert [[row[0]["level"] for row in rows] for rows in nested] == [["simple", "concept"], ["complex"]]
    alone = pipe([images[0]], text=["dog", "cat"], **EASY)
    assert [row[0]["label"] for row in alone[0]] == ["dog", "cat"]
    assert pipe([], text="dog") == []
    _same(pipe(tuple(images), text="dog", **EASY)[1], shared[1])


def test_dict_inputs_override_what_is_shared(pipe):
    inputs = [{"image": _image(), "text": "cat"}, {"image": _image(), "text": ["dog", "man"], "level": "simple"}]
    first, second = pipe(inputs, text="animal", level="complex", **EASY)
    assert (first[0]["label"], first[0]["level"]) == ("cat", "complex")
    assert [row[0]["label"] for row in second] == ["dog", "man"]
    assert {row[0]["level"] for row in second} == {"simple"}
    assert pipe({"image": _image(), "text": "cat", "id": 7}, **EASY)[0]["label"] == "cat"


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_equal_single_calls(pipe, encoded_images, batch_size):
    inputs = [
        {"image": _image(30 + 5 * index, 50, seed=index), "text": text}
        for index, text in enumerate(["dog", ["cat", "the red dog", "man"], "something", ["left"], "a man"])
    ]
    results = pipe(inputs, batch_size=batch_size, **EASY)
    assert len(results) == 5 and encoded_images == [len(inputs[i : i + batch_size]) for i in range(0, 5, batch_size)]
    for item, result in zip(inputs, results, strict=True):
        alone = pipe(item, **EASY)
        if isinstance(item["text"], str):
            result, alone = [result], [alone]
        for row, reference in zip(result, alone, strict=True):
            _same(row, reference)


def test_generators_and_datasets_stream(pipe):
    from datasets import Dataset

    drawn = []

    def stream():
        for seed in range(3):
            drawn.append(seed)
            yield _image(seed=seed)

    results = pipe(stream(), text=["dog", "cat"], batch_size=2, **EASY)
    assert drawn in ([], [0])  # nothing but the first is read before it is asked for
    results = list(results)
    assert len(results) == 3 and [row[0]["label"] for row in results[2]] == ["dog", "cat"]

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"image": _image(seed=index), "text": "dog"}

    streamed = pipe(Images(), batch_size=2, **EASY)
    assert len(streamed) == 3 and len(list(streamed)) == 3
    table = Dataset.from_list([{"image": np.array(_image(seed=seed)).tolist(), "text": "dog"} for seed in range(2)])
    table = table.map(lambda row: row).with_transform(
        lambda rows: rows | {"image": [Image.fromarray(np.array(image, dtype=np.uint8)) for image in rows["image"]]}
    )
    assert [row[0]["label"] for row in pipe(table, **EASY)] == ["dog", "dog"]


def test_boxes(pipe):
    image, box = _image(), [5, 5, 30, 30]
    plain = pipe(image, text="dog", **EASY)
    boxed = pipe(image, text="dog", boxes=[box], **EASY)
    assert [item["score"] for item in boxed] != [item["score"] for item in plain]
    negative = pipe(image, text="dog", boxes=[box], box_labels=[0], **EASY)
    assert [item["score"] for item in boxed] != [item["score"] for item in negative]
    both = pipe(image, text=["dog", "cat"], boxes=[box], **EASY)
    _same(both[0], boxed)
    own = pipe(image, text=["dog", "cat"], boxes=[[box], [[1, 1, 9, 9], box]], **EASY)
    _same(own[1], pipe(image, text="cat", boxes=[[1, 1, 9, 9], box], **EASY))
    assert pipe(image, boxes=[box], **EASY)[0]["label"] == "visual"
    mixed = pipe(
        [{"image": image, "text": "dog", "boxes": [box]}, {"image": image, "text": "dog"}], batch_size=2, **EASY
    )
    _same(mixed[0], boxed, 1e-4)


BROKEN = [
    ({"image": b"\x00"}, ValueError, "Cannot read image <bytes>"),
    ({"image": np.zeros((0, 5, 3), np.uint8)}, ValueError, "no pixels"),
    ({"image": [_image()], "batch_size": 0}, ValueError, "`batch_size` of at least 1, found 0"),
    ({"image": [_image()], "batch_size": -1}, ValueError, "`batch_size` of at least 1, found -1"),
    ({"text": ""}, ValueError, "is empty"),
    ({"text": None}, ValueError, "Give an instruction"),
    ({"text": []}, ValueError, "at least one instruction"),
    ({"text": ["dog", " "]}, ValueError, "Instruction 1 is empty"),
    ({"text": 3}, TypeError, "found int"),
    ({"level": "easy"}, ValueError, "Unknown instruction level 'easy'"),
    ({"level": ["simple", "complex"]}, ValueError, "Expected"),
    ({"threshold": 1.2}, ValueError, "`threshold`"),
    ({"threshold": "high"}, TypeError, "`threshold`"),
    ({"mask_threshold": -1}, ValueError, "`mask_threshold`"),
    ({"image": "missing.png"}, ValueError, "Cannot read image 'missing.png'"),
    ({"image": "http://127.0.0.1:9/none.png", "timeout": 1}, ValueError, "Cannot read image"),
    ({"image": 3}, TypeError, "Expected an image"),
    ({"image": None}, ValueError, "Give an image"),
    ({"image": np.full((4, 4, 3), np.nan)}, ValueError, "NaN"),
    ({"image": np.zeros((4, 4, 7))}, ValueError, "Cannot read image"),
    ({"image": {"picture": 3}}, ValueError, "key 'image'"),
    ({"image": [_image(), _image()], "text": ["a", "b", "c"]}, ValueError, "each of 2 images, found 3"),
    ({"image": [_image(), _image()], "level": ["simple"]}, ValueError, "`level` for each of 2 images"),
    ({"boxes": [[5, 5, 300, 30]]}, ValueError, "leaves its image"),
    ({"boxes": [5, 5, 30, 30]}, ValueError, "a list of boxes"),
    ({"boxes": [[[5, 5, 30, 30]], [[5, 5, 30, 30]]]}, ValueError, "each of 1 instructions"),
    ({"colour": "red"}, TypeError, "colour"),
]


@pytest.mark.parametrize(("change", "error", "message"), BROKEN)
def test_malformed_calls(pipe, change, error, message):
    call = {"image": _image(), "text": "dog"} | change
    with pytest.raises(error, match=message):
        pipe(call.pop("image"), **call)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_files_that_are_no_images(pipe, tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Cannot read image"):
        pipe(path, text="dog")


@pytest.mark.parametrize("layout", ["sam3", "sam3_video"])
def test_stock_repositories(tiny_stock_repos, layout):
    repo = tiny_stock_repos[layout]
    pipe = pipeline(TASK, model=str(repo), device="cpu")
    image = _image()
    result = pipe(image, text="dog", **EASY)
    processor = Sam3Processor.from_pretrained(tiny_stock_repos["sam3"])
    model = Sam3Model.from_pretrained(tiny_stock_repos["sam3"]).eval()
    with torch.no_grad():
        outputs = model(**processor(images=image, text="dog", return_tensors="pt"))
    (reference,) = processor.post_process_instance_segmentation(outputs, threshold=0.0, target_sizes=[(40, 60)])
    scores = sorted(reference["scores"].tolist(), reverse=True)
    assert np.allclose([item["score"] for item in result], scores, atol=1e-6)
    assert isinstance(pipe.processor, Sam3IProcessor)


def test_saved_repositories_load(pipe, tmp_path):
    expected = pipe(_image(), text="the red dog", **EASY)
    pipe.processor.auto_levels = "router"
    pipe.save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert loaded.processor.auto_levels == "router"
    _same(loaded(_image(), text="the red dog", level="simple", **EASY), expected)


def test_half_precision(pipe):
    pipe.model.to(torch.bfloat16)
    result = pipe(_image(), text="the red dog", boxes=[[5, 5, 30, 30]], **EASY)
    assert len(result) == 6


def test_fast_is_close_and_cannot_be_saved(pipe, processor, tmp_path):
    expected = pipe(_image(), text="the red dog", **EASY)
    fast = pipeline(TASK, model=pipe.model, processor=processor, device="cpu", fast=True)
    result = fast(_image(), text="the red dog", **EASY)
    assert any(isinstance(module, Int8Linear) for module in fast.model.modules())
    assert np.allclose(*([item["score"] for item in items] for items in (result, expected)), atol=0.1)
    with pytest.raises(ValueError, match="without fast=True to save"):
        fast.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_model_is_an_error(tiny_sam3_config, processor):
    with pytest.raises(TypeError, match="Expected a Sam3IForInstructionSegmentation, found Sam3Model"):
        InstructionSegmentationPipeline(Sam3Model(tiny_sam3_config), processor=processor)


def test_without_a_processor_is_an_error(tiny_model):
    with pytest.raises(ValueError, match="Give the pipeline a `processor`"):
        InstructionSegmentationPipeline(tiny_model)


def test_info_of_repositories(pipe, tiny_stock_repos, tmp_path):
    pipe.save_pretrained(tmp_path / "full")
    info = repo_info(tmp_path / "full")
    model = pipe.model
    assert (info.kind, info.levels, info.base) == ("SAM3-I", ["concept", "simple", "complex"], None)
    assert info.parameters == sum(parameter.numel() for parameter in model.state_dict().values())
    expected = sum(p.numel() for name, p in model.named_parameters() if ".sam3i_adapter." in name)
    assert info.adapter_parameters == expected == sum(sum(site.values()) for site in info.adapters.values())
    assert list(info.adapters) and set(info.adapters["detr_encoder"]) == {
        "s_adapter",
        "cascade_s_adapter",
        "c_adapter",
    }
    assert info.settings["adapter_dim"] == 8 and info.settings["image_size"] == 56 and info.settings["queries"] == 6
    assert "detr_decoder" in str(info) and "SAM3-I" in str(info)
    for layout, kind in (("sam3", "stock SAM3"), ("sam3_video", "stock SAM3 video")):
        stock = repo_info(tiny_stock_repos[layout])
        assert (stock.kind, stock.levels, stock.adapters) == (kind, ["concept"], {})
        assert "none" in str(stock)


def test_info_counts_every_adapter_of_the_selective_design(tiny_stock_repos, tmp_path):
    from sam3i import Sam3IForInstructionSegmentation

    model = Sam3IForInstructionSegmentation.from_pretrained(tiny_stock_repos["sam3"], adapter_design="selective")
    model.save_pretrained(tmp_path)
    info = repo_info(tmp_path)
    assert info.adapter_parameters == sum(parameter.numel() for parameter in model.adapter_parameters().values())
    assert set(info.adapters["dot_product_scoring"]) == {"simple", "complex"}


def test_info_of_adapters_alone(pipe, tmp_path):
    from safetensors.torch import save_file

    state = {
        key: value for key, value in pipe.model.state_dict().items() if "s_adapter" in key and "cascade" not in key
    }
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/sam3"}))
    info = repo_info(tmp_path)
    assert (info.kind, info.base, info.levels) == ("SAM3-I adapters", "org/sam3", ["concept", "simple"])


def test_info_of_broken_repositories(tiny_stock_repos, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither config.json"):
        repo_info(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert'"):
        repo_info(tmp_path)
    with pytest.raises(FileNotFoundError, match="found no folder"):
        repo_info(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="found the file"):
        repo_info(tmp_path / "config.json")
    shutil.copytree(tiny_stock_repos["sam3"], tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (b"", b"abc", whole[:100], whole[:-10], struct.pack("<Q", 9) + b"not json!"):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match="fetch or save it again"):
            repo_info(tmp_path / "cut")


def test_the_video_processor_of_stock_gives_its_parts(tiny_stock_repos, tiny_tokenizer, tmp_path):
    from transformers import Sam2VideoVideoProcessor, Sam3VideoProcessor

    repo = tmp_path / "video"
    shutil.copytree(tiny_stock_repos["sam3_video"], repo)
    image_processor = Sam3ImageProcessor(size={"height": 56, "width": 56})
    Sam3VideoProcessor(image_processor, Sam2VideoVideoProcessor(), tiny_tokenizer).save_pretrained(repo)
    pipe = pipeline(TASK, model=str(repo), device="cpu")
    assert isinstance(pipe.processor, Sam3IProcessor) and len(pipe(_image(), text="dog", **EASY)) == 6


@pytest.fixture
def adapters_alone(tiny_stock_repos, train_adapters, tmp_path):
    """A function that saves trained adapters without SAM3 and without processor: (model, folder)."""

    def save(base="sam3", **settings):
        model = sam3i.Sam3IForInstructionSegmentation.from_pretrained(
            tiny_stock_repos[base], adapter_dim=8, **settings
        )
        save_adapter(train_adapters(model), tmp_path / "adapters")
        return model, tmp_path / "adapters"

    return save


@pytest.mark.parametrize("base", ["sam3", "sam3_video"])
def test_adapters_alone_have_the_processor_of_their_base(adapters_alone, tiny_stock_repos, base):
    model, folder = adapters_alone(base, max_instruction_length=48)
    pipe = pipeline(TASK, model=str(folder), device="cpu")
    assert type(pipe.processor) is Sam3IProcessor and pipe.processor.max_instruction_length == 48
    whole = pipeline(TASK, model=model, processor=Sam3IProcessor.from_pretrained(tiny_stock_repos[base]), device="cpu")
    image, text = _image(), ["dog", "the dog on the left", "something that sits"]
    for found, expected in zip(pipe(image, text=text, **EASY), whole(image, text=text, **EASY), strict=True):
        _same(found, expected)


def test_adapters_with_a_processor_use_it(adapters_alone, processor):
    _, folder = adapters_alone()
    processor.auto_levels, processor.max_instruction_length = "router", 20
    processor.save_pretrained(folder)
    for found in (Sam3IProcessor.from_pretrained(folder), pipeline(TASK, model=str(folder)).processor):
        assert (found.auto_levels, found.max_instruction_length) == ("router", 20)
    given = Sam3IProcessor(processor.image_processor, processor.tokenizer)
    assert pipeline(TASK, model=str(folder), processor=given).processor is given


def test_the_base_of_the_processor(adapters_alone, tiny_stock_repos, tmp_path):
    _, folder = adapters_alone(max_instruction_length=40)
    config = json.loads((folder / "adapter_config.json").read_text())
    for base, message in ((str(tmp_path / "moved"), "moved cannot be loaded"), (None, "names no base model")):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(BaseModelNotFoundError, match=message) as caught:
            Sam3IProcessor.from_pretrained(folder)
        assert "no processor" in str(caught.value) and "pass `base_model" in str(caught.value).lower()
    found = Sam3IProcessor.from_pretrained(folder, base_model_name_or_path=tiny_stock_repos["sam3_video"])
    assert found.max_instruction_length == 40


def test_predict_and_info_with_adapters_alone(adapters_alone, tiny_stock_repos, tmp_path):
    model, folder = adapters_alone()
    _image().save(tmp_path / "image.png")
    tasks = read_tasks([str(tmp_path / "image.png")], ["the dog on the left"])
    (done,) = predict_images(folder, tasks, tmp_path / "out", PredictionSettings(0.0, max_overlap=None)).predictions
    assert [(found.text, found.level, found.count) for found in done.found] == [("the dog on the left", "simple", 6)]
    assert json.loads(done.record.read_text())["model"] == str(folder)
    info = repo_info(folder)
    assert (info.kind, info.base) == ("SAM3-I adapters", str(tiny_stock_repos["sam3"]))
    assert info.levels == ["concept", "simple", "complex"]
    expected = sum(parameter.numel() for parameter in model.adapter_parameters().values())
    assert info.parameters == info.adapter_parameters == expected


def test_a_named_model_runs_in_float32_on_a_cpu_however_it_is_stored(tiny_model, processor, tmp_path):
    tiny_model.half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_pipeline(tmp_path, device="cpu").model.dtype == torch.float32
