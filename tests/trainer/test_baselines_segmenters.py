# SPDX-License-Identifier: Apache-2.0
"""Stock SAM3 and SAM3-I behind the interface of systems under evaluation, and the pieces the agent is made of."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Sam3Model, Sam3Processor

from sam3i.processing.chat.endpoint import EndpointChatModel
from sam3i.processing.drawing.style import PALETTE
from sam3i.processing.masks import decode_masks
from sam3i.processing.processing_sam3i import Sam3IProcessor
from sam3i.processing.shapes.dataset import shapes_rows
from sam3i.processing.shapes.world import ShapesWorld
from sam3i.trainer.baselines.agent.agent import AgentSegmenter
from sam3i.trainer.baselines.agent.conversation import AgentPrompts
from sam3i.trainer.baselines.agent.mask_candidates import MaskCandidates
from sam3i.trainer.baselines.agent.oracle import OracleAgent
from sam3i.trainer.baselines.segmenters import (
    EncodedImages,
    PhraseDetector,
    Sam3ISegmenter,
    SegmentationResult,
    StockSam3Segmenter,
)

THRESHOLD = 0.2  # low enough that a random model finds something
TEXTS = ["the dog", "cat", "a red dog on the left"]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 50), (64, 30), (33, 33))
    ]


@pytest.fixture
def stock(tiny_stock_repos):
    path = tiny_stock_repos["sam3"]
    model = Sam3Model.from_pretrained(path)
    with torch.no_grad():  # a random model is sure that nothing is there
        model.detr_decoder.presence_head.layer3.bias.fill_(10.0)
    return model.eval(), Sam3Processor.from_pretrained(path)


@pytest.fixture
def detector(stock):
    return PhraseDetector(*stock, threshold=THRESHOLD, batch_size=2)


def assert_same(result, expected):
    """Equal up to the order of instances."""
    masks, scores, boxes = (expected[key] for key in ("masks", "scores", "boxes"))
    order = scores.argsort(descending=True, stable=True)
    np.testing.assert_allclose(result.scores, scores[order].numpy(), atol=1e-5)
    np.testing.assert_allclose(result.boxes, boxes[order].numpy(), atol=1e-3)
    assert result.masks.shape == masks.shape
    assert (result.masks == masks[order].bool().numpy()).mean() > 0.999


def stock_answer(model, processor, image, text):
    inputs = processor(images=image, text=text, return_tensors="pt")
    sizes = inputs.pop("original_sizes").tolist()
    with torch.no_grad():
        outputs = model(**inputs)
    return processor.post_process_instance_segmentation(outputs, threshold=THRESHOLD, target_sizes=sizes)[0]


class TestStockSam3:
    def test_equals_stock_run_row_by_row(self, stock, detector, images):
        instructions = [TEXTS, [], ["man"]]
        found = StockSam3Segmenter(detector).segment_images(images, instructions, [[None] * 3, [], [None]])
        assert [len(group) for group in found] == [3, 0, 1]
        count = 0
        for image, texts, group in zip(images, instructions, found, strict=True):
            for text, result in zip(texts, group, strict=True):
                expected = stock_answer(*stock, image, text)
                assert_same(result, expected)
                count += len(result.masks)
        assert count > 0

    def test_sam3i_at_the_concept_level_answers_the_same(self, stock, detector, images, tiny_stock_repos):
        from sam3i import Sam3IForInstructionSegmentation

        ours = Sam3IForInstructionSegmentation.from_pretrained(tiny_stock_repos["sam3"])
        ours.load_state_dict(stock[0].state_dict(), strict=False)
        processor = Sam3IProcessor.from_pretrained(tiny_stock_repos["sam3"])
        other = PhraseDetector(ours, processor, threshold=THRESHOLD, batch_size=3)
        for theirs, mine in zip(
            StockSam3Segmenter(detector).segment(images[0], TEXTS, [None] * 3),
            StockSam3Segmenter(other).segment(images[0], TEXTS, [None] * 3),
            strict=True,
        ):
            np.testing.assert_array_equal(theirs.masks, mine.masks)
            np.testing.assert_allclose(theirs.scores, mine.scores, atol=1e-6)
        assert other.num_parameters == detector.num_parameters == sum(p.numel() for p in stock[0].parameters())

    def test_cost_shares_the_vision_pass(self, detector, images):
        results = StockSam3Segmenter(detector).segment(images[0], TEXTS, [None] * 3)
        assert [result.cost.passes for result in results] == [1, 1, 1]
        assert sum(result.cost.vision_passes for result in results) == pytest.approx(1)
        assert all(result.cost.seconds > 0 and result.cost.calls == 0 for result in results)

    def test_long_instructions_are_cut_with_a_warning(self, detector, images, monkeypatch):
        from sam3i.trainer.baselines import segmenters

        warnings = []
        monkeypatch.setattr(segmenters.logger, "warning", lambda text, *values: warnings.append(text % values))
        (result,) = StockSam3Segmenter(detector).segment(images[0], ["the dog on the left " * 10], [None])
        assert result.masks.shape[1:] == (40, 50)
        assert len(warnings) == 1 and "reads 32 tokens" in warnings[0]
        StockSam3Segmenter(detector).segment(images[0], ["dog"], [None])
        assert len(warnings) == 1

    def test_nothing_found_has_the_shape_of_the_image(self, stock, images):
        (result,) = StockSam3Segmenter(PhraseDetector(*stock, threshold=0.9999)).segment(images[1], ["dog"], [None])
        assert result.masks.shape == (0, 64, 30) and result.boxes.shape == (0, 4) and result.error is None

    def test_half_precision(self, stock, images):
        detector = PhraseDetector(stock[0].to(torch.bfloat16), stock[1], threshold=0.0)
        (result,) = StockSam3Segmenter(detector).segment(images[0], ["dog"], [None])
        assert result.masks.shape == (6, 40, 50) and np.isfinite(result.scores).all()

    def test_names(self, detector):
        assert StockSam3Segmenter(detector).name == "sam3"
        told = StockSam3Segmenter(detector, text_source="concept")
        assert (told.name, told.text_source) == ("sam3-concept", "concept")
        with pytest.raises(ValueError, match="text_source.*'noun'"):
            StockSam3Segmenter(detector, text_source="noun")

    def test_faulty_settings_are_named(self, stock):
        for option in ({"batch_size": 0}, {"threshold": 1.0}, {"mask_threshold": 0.0}):
            with pytest.raises(ValueError, match=next(iter(option))):
                PhraseDetector(*stock, **option)


class TestSam3I:
    @pytest.fixture
    def segmenter(self, tiny_model, train_adapters, tiny_stock_repos):
        train_adapters(tiny_model)
        with torch.no_grad():
            tiny_model.detr_decoder.presence_head.layer3.bias.fill_(10.0)
        processor = Sam3IProcessor.from_pretrained(tiny_stock_repos["sam3"])
        return Sam3ISegmenter(tiny_model, processor, threshold=THRESHOLD, batch_size=2)

    def test_equals_the_processor_and_model_row_by_row(self, segmenter, images):
        instructions = [TEXTS, [], ["the red dog", "animal"]]
        levels = [["simple", "concept", "complex"], [], ["complex", "simple"]]
        found = segmenter.segment_images(images, instructions, levels)
        count = 0
        for image, texts, names, group in zip(images, instructions, levels, found, strict=True):
            for text, level, result in zip(texts, names, group, strict=True):
                inputs = segmenter.detector.processor(
                    images=image, text=text, instruction_levels=level, return_tensors="pt"
                )
                with torch.no_grad():
                    outputs = segmenter.detector.model(**inputs)
                (expected,) = segmenter.detector.processor.post_process_instruction_segmentation(
                    outputs, threshold=THRESHOLD, target_sizes=[(image.height, image.width)]
                )
                assert_same(result, expected)
                assert result.level == level
                count += len(result.masks)
        assert count > 0
        assert [r.cost.vision_passes for r in found[0]] == [pytest.approx(1 / 3)] * 3

    def test_levels_matter_and_none_means_auto(self, segmenter, images):
        text = "the dog on the left"
        simple, concept, auto = segmenter.segment(images[0], [text] * 3, ["simple", "concept", None])
        assert simple.scores.shape != concept.scores.shape or not np.allclose(simple.scores, concept.scores)
        assert auto.level == "simple"
        np.testing.assert_allclose(auto.scores, simple.scores, atol=1e-5)

    def test_half_precision(self, segmenter, images):
        segmenter.detector.model.to(torch.bfloat16)
        segmenter.detector.threshold = 0.0
        (result,) = segmenter.segment(images[0], ["the red dog"], ["simple"])
        assert result.masks.shape == (6, 40, 50) and np.isfinite(result.scores).all()

    def test_no_instructions(self, segmenter, images):
        assert segmenter.segment_images(images, [[], [], []], [[], [], []]) == [[], [], []]

    def test_parameters(self, segmenter):
        assert segmenter.num_parameters == sum(p.numel() for p in segmenter.detector.model.parameters())


class TestMaskCandidates:
    def test_overlaps_go_to_the_higher_score(self):
        masks = np.zeros((5, 10, 10), dtype=bool)
        masks[0, :, :4] = True  # 40 pixels
        masks[1, :, 3:6] = True  # 30 pixels, 10 shared with 0: a third of the smaller one
        masks[2, :3, 6:] = True  # 12 pixels
        masks[3, :, 5:] = True  # 50 pixels, holds 2
        found = MaskCandidates(masks, np.array([0.9, 0.8, 0.3, 0.5, 0.99]), np.arange(20.0).reshape(5, 4))
        kept = found.without_overlaps()
        assert kept.scores.tolist() == [0.9, 0.5]
        np.testing.assert_array_equal(kept.masks, masks[[0, 3]])
        np.testing.assert_array_equal(kept.boxes, found.boxes[[0, 3]])

    def test_a_small_overlap_is_kept(self):
        masks = np.zeros((2, 10, 10), dtype=bool)
        masks[0, :, :5] = True
        masks[1, :, 4:8] = True  # a quarter of 40 pixels shared
        kept = MaskCandidates(masks, np.array([0.5, 0.6]), np.zeros((2, 4))).without_overlaps()
        assert kept.scores.tolist() == [0.6, 0.5]

    def test_none(self):
        empty = MaskCandidates(np.zeros((0, 5, 5), dtype=bool), np.zeros(0), np.zeros((0, 4)))
        assert len(empty.without_overlaps()) == 0

    def test_close_up_shows_the_mask_with_its_surroundings(self):
        scene = ShapesWorld(0, "test").scene(1)
        candidates = MaskCandidates(scene.masks, np.linspace(0.9, 0.5, len(scene.masks)), np.zeros((9, 4)))
        image = Image.fromarray(scene.image)
        whole, close_up = candidates.draw_alone(image, 0)
        share = np.stack([(np.abs(np.asarray(x, int) - PALETTE[0]).max(-1) < 6).mean() for x in (whole, close_up)])
        assert whole.size == (448, 448) and share[1] > 2 * share[0] > 0  # the outline fills more of the close-up

    def test_the_image_is_not_changed(self):
        scene = ShapesWorld(0, "test").scene(1)
        image = Image.fromarray(scene.image.copy())
        MaskCandidates(scene.masks, np.ones(len(scene.masks)), np.zeros((9, 4))).draw(image)
        np.testing.assert_array_equal(np.asarray(image), scene.image)


def perfect_detector(scenes):
    """SAM3 without fault in the shapes world: all masks of the noun, in an image it looks up."""

    class Perfect:
        num_parameters = 0

        def encode(self, images):
            return EncodedImages([np.asarray(i).tobytes() for i in images], [(i.height, i.width) for i in images], 0.0)

        def detect(self, encoded, phrases, image_ids):
            scene = scenes[encoded.vision_embeds[image_ids[0]]]
            chosen = [i for i, item in enumerate(scene.objects) if phrases[0] in (item.noun, "object")]
            masks = scene.masks[chosen]
            return [SegmentationResult(masks, np.linspace(0.9, 0.6, len(masks)), np.zeros((len(masks), 4)))]

    return Perfect()


def test_the_oracle_answers_the_shapes_world():
    world = ShapesWorld(0, "test")
    scenes = {scene.image.tobytes(): scene for scene in map(world.scene, range(8))}
    rows = list(shapes_rows("test", 8))
    assert {row["target_kind"] for row in rows} == {"1-to-1", "1-to-N", "1-to-all", "none"}
    correct = total = 0
    agent = OracleAgent.from_rows(perfect_detector(scenes), rows)
    for row in rows:
        texts = [*row["simple"], *row["complex"]]
        for result in agent.segment(row["image"], texts, [None] * len(texts)):
            assert result.error is None
            expected = decode_masks(row["masks"], row["height"], row["width"]).any(0)
            correct += np.array_equal(result.masks.any(0), expected)
            total += 1
    assert total >= 40 and correct == total


class TestPrompts:
    def test_every_file_states_its_version_and_every_turn_fills_in(self):
        prompts = AgentPrompts.load()
        assert set(prompts.versions) == {"agent_system", "agent_examine", "agent_turns"}
        values = {"instruction": "a {b}", "phrase": "c", "phrases": "d", "count": 2, "reason": "e."}
        for name in prompts.turns:
            assert "{instruction}" not in prompts.turn(name, **values)
        assert "a {b}" in prompts.turn("request", instruction="a {b}")
        for tool in ("segment_phrase", "examine_each_mask", "select_masks_and_return", "report_no_mask"):
            assert f'"name": "{tool}"' in prompts.system

    def test_own_prompts_are_read_and_faulty_ones_named(self, tmp_path):
        from sam3i.trainer.baselines.agent.conversation import PROMPT_FOLDER

        for path in PROMPT_FOLDER.glob("*.md"):
            (tmp_path / path.name).write_text(re.sub(r"version: \d+", "version: mine-2", path.read_text()))
        assert AgentPrompts.load(tmp_path).versions["agent_system"] == "mine-2"
        turns = (tmp_path / "agent_turns.md").read_text()
        (tmp_path / "agent_turns.md").write_text(turns.replace("## no_masks", "## nothing"))
        with pytest.raises(ValueError, match="lacks the sections no_masks"):
            AgentPrompts.load(tmp_path)
        (tmp_path / "agent_system.md").write_text("You find things.")
        with pytest.raises(ValueError, match="agent_system.md: expected a first line"):
            AgentPrompts.load(tmp_path)


def test_the_agent_runs_on_a_real_sam3(detector, images):
    """The whole chain with transformers' own model: HTTP, SAM3, drawing, selection."""
    from scripted_chat import ScriptedChatServer, texts_of

    def script(request, index):
        last = texts_of(request["messages"][-1])
        if "numbered from 1" in last:
            return '<tool>{"name": "select_masks_and_return", "parameters": {"final_answer_masks": [1]}}</tool>'
        return '<tool>{"name": "segment_phrase", "parameters": {"text_prompt": "dog"}}</tool>'

    with ScriptedChatServer(script) as server:
        agent = AgentSegmenter(detector, EndpointChatModel(server.base_url, "tiny"))
        (result,) = agent.segment(images[0], ["the dog on the left"], ["simple"])
    (expected,) = StockSam3Segmenter(detector).segment(images[0], ["dog"], [None])
    best = int(np.argmax(expected.scores * expected.masks.any((1, 2))))
    assert result.error is None and result.cost.calls == 2
    np.testing.assert_array_equal(result.masks, expected.masks[[best]])
    np.testing.assert_allclose(result.boxes, expected.boxes[[best]])
