# SPDX-License-Identifier: Apache-2.0
"""Many instructions on one image: a few rows at a time, and the same results as all rows at once."""

import pytest
import torch

from sam3i.modeling_sam3i import shared_image as shared_image_sam3i
from sam3i.modeling_sam3i.configuration_sam3i import Sam3IConfig
from sam3i.modeling_sam3i.inputs import ModelInputs
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.shared_image import SharedImages, rows_at_once

OUTPUTS = (
    "pred_masks",
    "pred_boxes",
    "pred_logits",
    "presence_logits",
    "semantic_seg",
    "text_features",
    "decoder_reference_boxes",
)
LEVELS = [2, 0, 1, 2, 1, 0, 2]


@pytest.fixture(params=["cascade", "selective"])
def model(request, tiny_config, train_adapters):
    torch.manual_seed(0)
    config = Sam3IConfig.from_dict(tiny_config.to_dict() | {"adapter_design": request.param, "selector_queries": 4})
    model = train_adapters(Sam3IForInstructionSegmentation(config)).eval()
    with torch.no_grad():
        for norm in model.mask_decoder.pixel_decoder.norms:  # they start as 1 and 0, which would hide their places
            norm.weight.normal_()
            norm.bias.normal_()
    # In double precision two ways to compute one number agree to many more digits than two different numbers do.
    return model.double()


def make_inputs(images: int = 2, boxes: bool = False, dtype=torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    rows = len(LEVELS)
    lengths = torch.tensor([5, 9, 3, 12, 4, 7, 8])[:, None]
    inputs = {
        "pixel_values": torch.randn(images, 3, 56, 56, generator=generator).to(dtype),
        "input_ids": torch.randint(1, 61, (rows, 20), generator=generator),
        "attention_mask": (torch.arange(20) < lengths).long(),
        "instruction_levels": torch.tensor(LEVELS),
        "image_ids": torch.arange(rows) % images,
    }
    if boxes:
        inputs["input_boxes"] = (torch.rand(rows, 2, 4, generator=generator) * 0.3 + 0.3).to(dtype)
        inputs["input_boxes_labels"] = torch.tensor([[1, 0]] * (rows - 1) + [[1, -10]])
    return inputs


def assert_equal(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def all_at_once(model, inputs):
    """The forward pass as in training: no rows share anything but the vision encoder."""
    with torch.enable_grad():
        return model(**inputs)


def scores(outputs) -> torch.Tensor:
    return outputs.pred_logits.sigmoid() * outputs.presence_logits.sigmoid()


class TestForward:
    @pytest.mark.parametrize("chunk", [None, 1, 3])
    @pytest.mark.parametrize("images", [1, 2])
    @pytest.mark.parametrize("boxes", [False, True])
    def test_equals_all_rows_at_once(self, model, chunk, images, boxes):
        inputs = make_inputs(images, boxes)
        expected = all_at_once(model, inputs)
        with torch.no_grad():
            found = model(**inputs, row_chunk_size=chunk)
        for name in OUTPUTS:
            assert_equal(found[name], expected[name])
        assert torch.equal(found.instruction_levels, expected.instruction_levels)

    def test_equals_one_row_at_a_time(self, model):
        inputs = make_inputs()
        with torch.no_grad():
            found = model(**inputs)
            for row, image in enumerate(inputs["image_ids"].tolist()):
                names = ("input_ids", "attention_mask", "instruction_levels")
                own = {name: inputs[name][row : row + 1] for name in names}
                one = model(pixel_values=inputs["pixel_values"][image : image + 1], **own)
                assert_equal(found.pred_masks[row], one.pred_masks[0])
                assert_equal(found.pred_logits[row], one.pred_logits[0])

    def test_text_without_mask_and_encoded_text(self, model):
        inputs = make_inputs()
        del inputs["attention_mask"]
        expected = all_at_once(model, inputs)
        with torch.no_grad():
            text = model.get_text_features(inputs.pop("input_ids"), instruction_levels=inputs["instruction_levels"])
            found = model(**inputs, text_embeds=text)
        assert_equal(found.pred_masks, expected.pred_masks)

    def test_single_precision_agrees_to_five_digits(self, tiny_model):
        inputs = make_inputs(dtype=torch.float32)
        expected = all_at_once(tiny_model, inputs)
        with torch.no_grad():
            found = tiny_model(**inputs)
        for name in OUTPUTS:
            assert_equal(found[name], expected[name], tolerance=1e-5)

    def test_states_and_gradients_need_all_rows_at_once(self, model):
        inputs = make_inputs()
        with torch.no_grad():
            recorded = model(**inputs, output_hidden_states=True)
        assert recorded.encoder_hidden_states[0].shape[0] == len(LEVELS)
        parameter = next(iter(model.adapter_parameters().values()))
        all_at_once(model, inputs).pred_masks.sum().backward()
        assert parameter.grad is not None

    @pytest.mark.parametrize("chunk", [0, -1, True, 1.5])
    def test_chunk_size_must_be_a_count(self, model, chunk):
        with pytest.raises(ValueError, match="row_chunk_size"), torch.no_grad():
            model(**make_inputs(), row_chunk_size=chunk)


class TestWhatIsShared:
    def test_first_self_attention_runs_once_per_image_and_level(self, model):
        inputs, calls = make_inputs(), []
        attention = model.detr_encoder.layers[0].self_attn
        attention.register_forward_hook(
            lambda module, args, kwargs, output: calls.append(len(output[0])), with_kwargs=True
        )
        with torch.no_grad():
            model(**inputs, row_chunk_size=2)
        pairs = set(zip(inputs["image_ids"].tolist(), LEVELS, strict=True))
        assert calls == [1] * len(pairs)

    def test_features_of_one_image_are_not_copied(self, model):
        inputs = make_inputs(images=1)
        with torch.no_grad():
            rows = model.read_inputs(ModelInputs(**inputs), {})
            shared = SharedImages(model, rows)
            features = shared._of_rows(shared.tokens, list(range(5)))
        assert features.shape[0] == 5
        assert features.data_ptr() == shared.tokens.data_ptr()
        assert features.stride(0) == 0

    def test_rows_at_once_follow_the_memory_of_a_row(self, model, monkeypatch):
        with torch.no_grad():
            fpn = list(model.get_vision_features(torch.randn(1, 3, 56, 56).double()).fpn_hidden_states[:-1])
        many = rows_at_once(model, fpn)
        monkeypatch.setattr(shared_image_sam3i, "_CPU_CHUNK_BYTES", shared_image_sam3i._CPU_CHUNK_BYTES // 4)
        assert many // 5 <= rows_at_once(model, fpn) <= many // 3
        monkeypatch.setattr(shared_image_sam3i, "_CPU_CHUNK_BYTES", 1)
        assert rows_at_once(model, fpn) == 1


class TestSegment:
    @pytest.mark.parametrize("chunk", [None, 1, 4])
    @pytest.mark.parametrize("boxes", [False, True])
    def test_keeps_what_exceeds_the_threshold(self, model, chunk, boxes):
        inputs = make_inputs(boxes=boxes)
        expected = all_at_once(model, inputs)
        values = scores(expected).flatten().sort().values
        middle = len(values) // 2
        threshold = float(values[middle : middle + 2].mean())
        found = model.segment(threshold=threshold, row_chunk_size=chunk, **inputs)
        for row in range(len(LEVELS)):
            kept = scores(expected)[row] > threshold
            assert_equal(found.pred_masks[row], expected.pred_masks[row, kept])
            assert_equal(found.pred_boxes[row], expected.pred_boxes[row, kept])
            assert_equal(found.pred_logits[row], expected.pred_logits[row, kept])
        assert_equal(found.presence_logits, expected.presence_logits)
        assert not any(masks.requires_grad for masks in found.pred_masks)

    def test_nothing_above_the_threshold_needs_no_pixels(self, model, monkeypatch):
        monkeypatch.setattr(model.mask_decoder, "embed_pixels", lambda *args: pytest.fail("the pixel decoder ran"))
        found = model.segment(threshold=1.0, **make_inputs())
        assert [tuple(masks.shape) for masks in found.pred_masks] == [(0, 16, 16)] * len(LEVELS)

    def test_one_instruction_and_one_image(self, model):
        inputs = {name: tensor[:1] for name, tensor in make_inputs(images=1).items() if name != "image_ids"}
        expected = all_at_once(model, inputs)
        found = model.segment(threshold=0.0, **inputs)
        assert_equal(found.pred_masks[0], expected.pred_masks[0])

    def test_scores_that_are_no_numbers_stay_visible(self, model):
        with torch.no_grad():
            model.dot_product_scoring.query_proj.weight.fill_(float("nan"))
        found = model.segment(**make_inputs())
        assert all(logits.isnan().all() and len(logits) == 6 for logits in found.pred_logits)

    def test_labels_have_no_place_here(self, model):
        with pytest.raises(TypeError, match="labels"):
            model.segment(**make_inputs(), labels=[])


class TestPadding:
    @pytest.mark.parametrize(("masked", "columns"), [(True, 12), (False, 20)])
    def test_columns_that_no_row_uses_are_dropped_where_nothing_looks_at_them(self, model, masked, columns):
        model.config.mask_padding_in_adapters = masked
        rows = model.read_inputs(ModelInputs(**make_inputs()), {}, drop_padding=True)
        assert rows.text_features.shape[1] == rows.words.shape[1] == columns
        assert rows.text_mask.shape == (len(LEVELS), columns)

    def test_converted_checkpoints_segment_alike(self, tiny_config, train_adapters):
        torch.manual_seed(0)
        changes = {"mask_padding_in_adapters": False, "always_encode_geometry": True, "clamp_presence_logits": False}
        model = Sam3IForInstructionSegmentation(Sam3IConfig.from_dict(tiny_config.to_dict() | changes)).eval()
        inputs = make_inputs()
        expected = all_at_once(train_adapters(model).double(), inputs)
        found = model.segment(threshold=0.0, **inputs)
        assert_equal(torch.stack(found.pred_masks), expected.pred_masks)


class TestPrecision:
    def test_half_precision(self, model):
        inputs = make_inputs(dtype=torch.bfloat16)
        half = model.to(torch.bfloat16)
        with torch.no_grad():
            found = half(**inputs)
        assert found.pred_masks.dtype == torch.bfloat16
        assert found.pred_masks.isfinite().all()
