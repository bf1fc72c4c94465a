# SPDX-License-Identifier: Apache-2.0
"""Instructions through stock's video model, with its own tracker: concepts as stock has them, levels in force."""

import numpy as np
import pytest
import torch
from transformers import (
    Sam2VideoVideoProcessor,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3TrackerVideoConfig,
    Sam3VideoConfig,
    Sam3VideoModel,
    Sam3VideoProcessor,
)

from sam3i.modeling_sam3i.adapter_io import save_adapter
from sam3i.modeling_sam3i.configuration_sam3i import Sam3IConfig
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.video import add_instructions, follow_instructions, track_instructions
from sam3i.processing.processing_sam3i import Sam3IProcessor

SIZE = {"height": 56, "width": 56}
WIDTH, MEMORY = 128, 64
FRAMES = list(np.random.default_rng(0).integers(0, 255, size=(3, 56, 56, 3), dtype=np.uint8))


@pytest.fixture
def detector_config(tiny_sam3_config):
    """The tiny SAM3 in the least width that stock's tracker has a place for."""
    config = tiny_sam3_config
    config.vision_config.fpn_hidden_size = WIDTH
    parts = (config.geometry_encoder_config, config.detr_encoder_config, config.detr_decoder_config)
    for part in (*parts, config.mask_decoder_config):
        part.hidden_size = WIDTH
    return config


@pytest.fixture
def video_model(detector_config):
    """A stock video model with random weights whose detector finds something in every frame."""
    vision = detector_config.vision_config.to_dict()
    tracker = Sam3TrackerVideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": WIDTH, "patch_size": 14},
        mask_decoder_config={"hidden_size": WIDTH, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
        memory_attention_hidden_size=WIDTH,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_encoder_hidden_size=WIDTH,
        memory_encoder_output_channels=MEMORY,
        mask_downsampler_embed_dim=WIDTH,
        memory_fuser_embed_dim=WIDTH,
        memory_fuser_intermediate_dim=32,
        image_size=56,
    )
    torch.manual_seed(0)
    config = Sam3VideoConfig(
        detector_config=Sam3Config(**detector_config.to_dict()),
        tracker_config=tracker,
        score_threshold_detection=0.0,
        new_det_thresh=0.0,
        hotstart_delay=0,
        det_nms_thresh=0.0,
        fill_hole_area=0,
    )
    return Sam3VideoModel(config).eval()


@pytest.fixture
def processor(tiny_tokenizer):
    return Sam3IProcessor(Sam3ImageProcessor(size=SIZE), tiny_tokenizer)


@pytest.fixture
def video_processor(tiny_tokenizer):
    return Sam3VideoProcessor(Sam3ImageProcessor(size=SIZE), Sam2VideoVideoProcessor(size=SIZE), tiny_tokenizer)


@pytest.fixture
def instruction_config(detector_config):
    return Sam3IConfig.from_dict(
        detector_config.to_dict()
        | {"model_type": "sam3i", "adapter_design": "cascade", "adapter_dim": 8, "adapter_heads": 4}
    )


@pytest.fixture
def native(video_model, instruction_config, train_adapters):
    """SAM3-I on the very weights of the video model's detector."""
    model = Sam3IForInstructionSegmentation(instruction_config)
    report = model.load_state_dict(video_model.detector_model.state_dict(), strict=False, assign=True)
    assert not report.unexpected_keys and all("sam3i_adapter" in name for name in report.missing_keys)
    return train_adapters(model).eval()


@pytest.fixture(params=["native", "repository"])
def source(request, native, tmp_path):
    if request.param == "native":
        return native
    save_adapter(native, tmp_path / "adapter", base_model_name_or_path="org/sam3")
    return tmp_path / "adapter"


def stock_track(video_model, video_processor, text):
    session = video_processor.init_video_session(video=FRAMES)
    video_processor.add_text_prompt(session, text)
    outputs = video_model.propagate_in_video_iterator(session)
    return [video_processor.postprocess_outputs(session, output) for output in outputs]


def assert_equal(found, expected):
    assert len(found) == len(expected) == len(FRAMES)
    for ours, stock in zip(found, expected, strict=True):
        for name in ("object_ids", "scores", "boxes", "masks"):
            assert torch.equal(ours[name], stock[name]), name
        assert ours["prompt_to_obj_ids"] == stock["prompt_to_obj_ids"]


def test_concepts_are_exactly_those_of_stock(video_model, video_processor, processor, source):
    expected = stock_track(video_model, video_processor, "dog")
    assert sum(len(frame["object_ids"]) for frame in expected) > len(FRAMES)
    follow_instructions(video_model, source)
    assert_equal(list(track_instructions(video_model, video_processor, processor, FRAMES, "dog", "concept")), expected)
    assert_equal(stock_track(video_model, video_processor, "dog"), expected)  # and by stock's own way


def test_levels_reach_the_detector(video_model, video_processor, processor, native, source):
    levels = ("concept", "simple", "complex")
    inputs = processor(images=FRAMES[0], text=[["the red dog"] * 3], instruction_levels=[levels], return_tensors="pt")
    with torch.no_grad():
        outputs = native(**inputs)
    expected = outputs.pred_logits.sigmoid() * outputs.presence_logits.sigmoid()
    follow_instructions(video_model, source)
    for row, level in enumerate(levels):
        found = next(track_instructions(video_model, video_processor, processor, FRAMES, "the red dog", level))
        # Objects with empty masks are left out, so each score is looked for among those of a level.
        apart = [(found["scores"][:, None] - scores).abs().amin(1).max() for scores in expected]
        assert apart[row] < 2e-4
        assert all(other > 1e-3 for number, other in enumerate(apart) if number != row)


def test_several_instructions_at_levels_of_their_own(video_model, video_processor, processor, native):
    follow_instructions(video_model, native)
    texts, levels = ["dog", "the red dog", "something that sits"], ["concept", "simple", "auto"]
    frames = list(track_instructions(video_model, video_processor, processor, FRAMES, texts, levels))
    assert [frame["frame"] for frame in frames] == [0, 1, 2]
    assert set(frames[0]["prompt_to_obj_ids"]) == set(texts)
    alone = next(track_instructions(video_model, video_processor, processor, FRAMES, "the red dog", "simple"))
    chosen = torch.tensor(frames[0]["prompt_to_obj_ids"]["the red dog"])
    kept = torch.isin(frames[0]["object_ids"], chosen)
    torch.testing.assert_close(frames[0]["scores"][kept], alone["scores"], atol=1e-5, rtol=1e-4)


def test_levels_left_to_the_router(video_model, video_processor, processor, native, source):
    processor.auto_levels = "router"
    texts = ["dog", "the red dog", "something that sits"]
    encoded = processor(text=texts, return_tensors="pt")
    assert encoded["instruction_levels"].tolist() == [-1, -1, -1]
    with torch.no_grad():
        expected = native.predict_levels(encoded["input_ids"], encoded["attention_mask"]).argmax(-1)
    follow_instructions(video_model, source)
    session = video_processor.init_video_session(video=FRAMES)
    numbers = add_instructions(video_model, processor, session, texts)
    found = [session.prompt_embeddings[number].instruction_levels.item() for number in numbers]
    assert found == expected.tolist()


def test_what_does_not_fit_is_refused(video_model, video_processor, processor, native, instruction_config):
    session = video_processor.init_video_session(video=FRAMES)
    with pytest.raises(ValueError, match="follow_instructions"):
        add_instructions(video_model, processor, session, "dog")
    with pytest.raises(TypeError, match="Expected a Sam3VideoModel, found Sam3IFor"):
        follow_instructions(native, native)
    instruction_config.detr_decoder_config.num_queries = 7
    with pytest.raises(ValueError, match="weights of other sizes"):
        follow_instructions(video_model, Sam3IForInstructionSegmentation(instruction_config))
    follow_instructions(video_model, native)
    assert add_instructions(video_model, processor, session, "dog", "concept") == [0]
    with pytest.raises(ValueError, match="at another level"):
        add_instructions(video_model, processor, session, "dog", "simple")
