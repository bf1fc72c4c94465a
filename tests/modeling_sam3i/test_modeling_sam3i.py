# SPDX-License-Identifier: Apache-2.0
"""The guarantees of the model: stock is untouched, levels mix freely, adapters start as the identity and all learn."""

import copy

import pytest
import torch
from compared import OUTPUTS
from transformers import Sam3Model

from sam3i import Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.inputs import read_rows


@pytest.fixture(params=["cascade", "selective"])
def tiny_config(request, tiny_config):
    """Every guarantee holds for both designs of adapters."""
    settings = {"adapter_design": request.param, "selector_queries": 4}
    return type(tiny_config).from_dict(tiny_config.to_dict() | settings)


@pytest.fixture
def inputs():
    """Three images, three instructions of 32, 20 and 5 tokens."""
    generator = torch.Generator().manual_seed(0)
    attention_mask = torch.ones(3, 32, dtype=torch.long)
    attention_mask[1, 20:] = 0
    attention_mask[2, 5:] = 0
    return {
        "pixel_values": torch.randn(3, 3, 56, 56, generator=generator),
        "input_ids": torch.randint(1, 60, (3, 32), generator=generator),
        "attention_mask": attention_mask,
    }


@pytest.fixture
def boxes():
    """Two box exemplars a row: positive and negative, padding at the end."""
    generator = torch.Generator().manual_seed(1)
    return {
        "input_boxes": torch.rand(3, 2, 4, generator=generator) * 0.4 + 0.2,
        "input_boxes_labels": torch.tensor([[1, 0], [1, -10], [-10, -10]]),
    }


def make_labels(rows=3, size=56, seed=2):
    generator = torch.Generator().manual_seed(seed)
    counts = [2, 0, 1][:rows]
    return [
        {
            "masks": torch.rand(count, size, size, generator=generator) > 0.5,
            "boxes": torch.rand(count, 4, generator=generator) * 0.3 + 0.3,
        }
        for count in counts
    ]


def stock_twin(model, config) -> Sam3Model:
    """Stock SAM3 on the very same weight tensors (memory alignment alone moves the last bit of a product)."""
    twin = Sam3Model(config).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if "sam3i" not in name}
    twin.load_state_dict(state, assign=True)
    return twin


def assert_equal_outputs(ours, stock):
    for name, expected in stock.items():
        found = ours[name]
        if torch.is_tensor(expected):
            assert torch.equal(found, expected), name
        else:
            assert len(found) == len(expected), name
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), name


class TestConceptLevelIsStock:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("with_boxes", [False, True])
    def test_every_output_is_bit_equal(
        self, tiny_model, tiny_sam3_config, train_adapters, inputs, boxes, with_boxes, attention
    ):
        stock = stock_twin(tiny_model, tiny_sam3_config)
        train_adapters(tiny_model)
        tiny_model.set_attn_implementation(attention)
        stock.set_attn_implementation(attention)
        given = inputs | (boxes if with_boxes else {})
        extra = {"output_hidden_states": True, "output_attentions": attention == "eager"}
        with torch.no_grad():
            expected = stock(**given, **extra)
            assert_equal_outputs(tiny_model(**given, **extra), expected)
            assert_equal_outputs(tiny_model(**given, **extra, instruction_levels=torch.zeros(3).long()), expected)

    def test_after_training_every_adapter(self, tiny_model, tiny_sam3_config, inputs):
        stock = stock_twin(tiny_model, tiny_sam3_config)
        with torch.no_grad():
            before = stock(**inputs)
        tiny_model.train()
        tiny_model.freeze_stock()
        optimizer = torch.optim.SGD(list(tiny_model.adapter_parameters().values()), lr=1e-2)
        for _ in range(3):
            tiny_model(**inputs, labels=make_labels(), instruction_levels=torch.tensor([0, 1, 2])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        tiny_model.eval()
        with torch.no_grad():
            assert_equal_outputs(tiny_model(**inputs), before)
            changed = tiny_model(**inputs, instruction_levels=torch.tensor([1, 1, 1]))
        assert not torch.equal(changed.pred_logits, before.pred_logits)


class TestLoading:
    @pytest.mark.parametrize("layout", ["sam3", "sam3_video"])
    @pytest.mark.parametrize("design", ["cascade", "selective"])
    def test_stock_weights_load_completely(self, tiny_stock_repos, layout, design):
        stock = Sam3Model.from_pretrained(tiny_stock_repos["sam3"])
        model, info = Sam3IForInstructionSegmentation.from_pretrained(
            tiny_stock_repos[layout], output_loading_info=True, adapter_heads=4, adapter_design=design
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        ours = model.state_dict()
        for name, tensor in stock.state_dict().items():
            assert torch.equal(ours[name], tensor), name
        assert {name.split(".sam3i_adapter")[0] for name in set(ours) - set(stock.state_dict())} == {
            *(f"text_encoder.text_model.encoder.layers.{i}" for i in range(2)),
            *(f"detr_encoder.layers.{i}" for i in range(2)),
            *(f"detr_decoder.layers.{i}" for i in range(2)),
            "mask_decoder.mask_embedder",
            "text_encoder",  # the level router
            *(["dot_product_scoring"] if design == "selective" else []),
        }

    @pytest.mark.parametrize("design", ["cascade", "selective"])
    def test_fresh_adapters_are_the_identity(self, tiny_stock_repos, inputs, design):
        model = Sam3IForInstructionSegmentation.from_pretrained(
            tiny_stock_repos["sam3"], adapter_heads=4, adapter_design=design
        ).eval()
        with torch.no_grad():
            concept = model(**inputs)
            for level in (1, 2):
                other = model(**inputs, instruction_levels=torch.full((3,), level))
                for name in OUTPUTS:
                    assert torch.equal(other[name], concept[name]), (level, name)

    def test_round_trip(self, tiny_model, train_adapters, inputs, tmp_path):
        train_adapters(tiny_model)
        tiny_model.save_pretrained(tmp_path)
        again = Sam3IForInstructionSegmentation.from_pretrained(tmp_path).eval()
        levels = torch.tensor([0, 1, 2])
        with torch.no_grad():
            expected = tiny_model(**inputs, instruction_levels=levels)
            found = again(**inputs, instruction_levels=levels)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), tiny_model.parameters(), strict=True))
        torch.testing.assert_close(found.pred_masks, expected.pred_masks, atol=1e-5, rtol=0)


class TestLevels:
    def test_mixed_batch_equals_row_by_row(self, tiny_model, train_adapters, inputs, boxes):
        # In double precision: random adapters make large numbers, of which rounding leaves too few digits otherwise.
        train_adapters(tiny_model).double()
        given = {name: t.double() if t.is_floating_point() else t for name, t in (inputs | boxes).items()}
        for levels in ([0, 1, 2], [2, 0, 2], [1, 1, 0]):
            with torch.no_grad():
                batch = tiny_model(**given, instruction_levels=torch.tensor(levels))
                for row, level in enumerate(levels):
                    single = tiny_model(
                        **{name: tensor[row : row + 1] for name, tensor in given.items()},
                        instruction_levels=torch.tensor([level]),
                    )
                    for name in OUTPUTS:
                        torch.testing.assert_close(batch[name][row], single[name][0], atol=1e-9, rtol=1e-9)

    def test_levels_differ_once_trained(self, tiny_model, train_adapters, inputs):
        train_adapters(tiny_model)
        with torch.no_grad():
            results = [tiny_model(**inputs, instruction_levels=torch.full((3,), level)) for level in range(3)]
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert (results[first].pred_masks - results[second].pred_masks).abs().max() > 1e-2

    def test_level_names_and_hidden_states_are_adapted(self, tiny_model, train_adapters, inputs):
        train_adapters(tiny_model)
        with torch.no_grad():
            named = tiny_model(**inputs, instruction_levels=["simple"] * 3, output_hidden_states=True)
            concept = tiny_model(**inputs, output_hidden_states=True)
        assert named.instruction_levels.tolist() == [1, 1, 1]
        for name in ("encoder_hidden_states", "decoder_hidden_states"):
            assert len(named[name]) == 3
            assert not torch.equal(named[name][1], concept[name][1]), name

    @pytest.mark.parametrize(
        ("levels", "message"),
        [
            (torch.tensor([0, 1]), "one level per instruction"),
            (torch.tensor([0, 1, 3]), "0 \\(concept\\), 1 \\(simple\\) or 2 \\(complex\\)"),
            (torch.tensor([0, 1, -1]), "level router"),
            (torch.tensor([0.0, 1.0, 2.0]), "integers"),
            ("simple", "one level per row"),
            (["simple", "hard", "concept"], "Unknown instruction level 'hard'"),
        ],
    )
    def test_bad_levels(self, levels, message):
        with pytest.raises(ValueError, match=message):
            read_rows(levels, 3, torch.device("cpu"))


class TestSharedImages:
    def test_image_ids_share_one_encoding(self, tiny_model, train_adapters, inputs):
        train_adapters(tiny_model)
        image_ids = torch.tensor([1, 1, 0])
        calls = []
        handle = tiny_model.vision_encoder.register_forward_hook(lambda *a: calls.append(a[1][0].shape[0]))
        levels = torch.tensor([0, 1, 2])
        with torch.no_grad():
            shared = tiny_model(
                pixel_values=inputs["pixel_values"][:2],
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                image_ids=image_ids,
                instruction_levels=levels,
            )
            assert calls == [2]
            repeated = tiny_model(
                **(inputs | {"pixel_values": inputs["pixel_values"][image_ids]}), instruction_levels=levels
            )
        handle.remove()
        torch.testing.assert_close(shared.pred_masks, repeated.pred_masks, atol=1e-5, rtol=0)

    def test_one_image_and_several_instructions_or_the_reverse(self, tiny_model, inputs):
        with torch.no_grad():
            text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            several = tiny_model(pixel_values=inputs["pixel_values"][:1], **text)
            assert several.pred_masks.shape[0] == 3
            one = tiny_model(pixel_values=inputs["pixel_values"], **{k: v[:1] for k, v in text.items()})
            assert one.pred_masks.shape[0] == 3
            torch.testing.assert_close(several.pred_logits[0], one.pred_logits[0], atol=1e-5, rtol=0)

    def test_precomputed_features(self, tiny_model, train_adapters, inputs):
        train_adapters(tiny_model)
        levels = torch.tensor([2, 1, 0])
        with torch.no_grad():
            expected = tiny_model(**inputs, instruction_levels=levels)
            vision = tiny_model.get_vision_features(inputs["pixel_values"])
            text = tiny_model.get_text_features(inputs["input_ids"], inputs["attention_mask"], levels)
            selects = tiny_model.selects_instances
            if selects:
                with pytest.raises(ValueError, match="whole output of `get_text_features`"):
                    tiny_model(vision_embeds=vision, text_embeds=text.pooler_output, instruction_levels=levels)
                tiny_model(vision_embeds=vision, text_embeds=text.pooler_output)  # concepts
            for text_embeds in (text,) if selects else (text, text.pooler_output):
                found = tiny_model(
                    vision_embeds=vision,
                    text_embeds=text_embeds,
                    attention_mask=inputs["attention_mask"],
                    instruction_levels=levels,
                )
                assert torch.equal(found.pred_masks, expected.pred_masks)

    def test_image_ids_out_of_range(self, tiny_model, inputs):
        with pytest.raises(ValueError, match="from 0 to 2 for 3 images"):
            tiny_model(**inputs, image_ids=torch.tensor([0, 1, 3]))


class TestTraining:
    def test_gradients_reach_every_adapter_weight_within_three_steps(self, tiny_model, inputs):
        tiny_model.train()
        tiny_model.freeze_stock()
        adapters = {name: weight for name, weight in tiny_model.named_parameters() if weight.requires_grad}
        router = set(tiny_model.adapter_parameters()) - set(adapters)
        assert len(router) == 6 and all(name.startswith("text_encoder.sam3i_adapter.") for name in router)
        optimizer = torch.optim.AdamW(list(adapters.values()), lr=1e-3)
        reached = set()
        for _ in range(3):
            tiny_model(**inputs, labels=make_labels(), instruction_levels=torch.tensor([1, 2, 2])).loss.backward()
            reached |= {name for name, weight in adapters.items() if weight.grad is not None and weight.grad.any()}
            optimizer.step()
            optimizer.zero_grad()
        assert set(adapters) - reached == set()
        assert all(weight.grad is None for name, weight in tiny_model.named_parameters() if name not in adapters)

    def test_every_adapter_weight_gets_a_gradient_whatever_the_levels(self, tiny_model, inputs):
        tiny_model.train()
        tiny_model.freeze_stock()
        for levels in ([0, 0, 0], [1, 1, 1], [2, 0, 0]):
            tiny_model.zero_grad()
            tiny_model(**inputs, labels=make_labels(), instruction_levels=torch.tensor(levels)).loss.backward()
            trained = {name: weight for name, weight in tiny_model.named_parameters() if weight.requires_grad}
            assert [name for name, weight in trained.items() if weight.grad is None] == []

    def test_one_to_many_queries_leave_the_others_alone(self, tiny_model, inputs):
        tiny_model.train()
        for module in tiny_model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        tiny_model.config.adapter_dropout = 0.0
        with torch.no_grad():
            supervised = tiny_model(**inputs, labels=make_labels())
            plain = tiny_model(**inputs)
        assert any(name.endswith("_o2m") for name in supervised.loss_dict)
        assert supervised.pred_logits.shape == plain.pred_logits.shape
        torch.testing.assert_close(supervised.pred_logits, plain.pred_logits, atol=1e-6, rtol=0)
        torch.testing.assert_close(supervised.pred_boxes, plain.pred_boxes, atol=1e-6, rtol=0)

    def test_hand_over_keeps_the_function(self, tiny_model, train_adapters, inputs, tmp_path):
        # Saved and loaded first: loaded weights are marked as initialised, and the hand-over must not mind.
        train_adapters(tiny_model).save_pretrained(tmp_path)
        tiny_model = Sam3IForInstructionSegmentation.from_pretrained(tmp_path).eval()
        tiny_model.start_complex_from_simple()
        with torch.no_grad():
            simple = tiny_model(**inputs, instruction_levels=torch.tensor([1, 1, 1]))
            complex_ = tiny_model(**inputs, instruction_levels=torch.tensor([2, 2, 2]))
        for name in ("pred_masks", "pred_boxes", "pred_logits", "presence_logits"):
            assert torch.equal(simple[name], complex_[name]), name

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_activation_checkpointing_gives_the_same_gradients(self, tiny_model, train_adapters, inputs, reentrant):
        train_adapters(tiny_model, scale=0.1)
        for module in tiny_model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
        tiny_model.freeze_stock()
        other = copy.deepcopy(tiny_model)
        other.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for model in (tiny_model, other):
            model.train()
            # Two forward passes with other levels before one backward pass: levels must not leak between them.
            first = model(**inputs, labels=make_labels(), instruction_levels=torch.tensor([1, 1, 2])).loss
            second = model(**inputs, labels=make_labels(seed=3), instruction_levels=torch.tensor([2, 0, 1])).loss
            (first + second).backward()
        for (name, expected), found in zip(
            tiny_model.adapter_parameters().items(), other.adapter_parameters().values(), strict=True
        ):
            torch.testing.assert_close(found.grad, expected.grad, atol=1e-4, rtol=1e-3, msg=name)

    def test_evaluation_with_labels_returns_masks_and_loss(self, tiny_model, inputs):
        with torch.no_grad():
            output = tiny_model(**inputs, labels=make_labels())
        assert output.loss.isfinite() and output.pred_masks.shape[:2] == (3, 6)
        assert list(output)[0] == "loss"


class TestPrecisionAndLength:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, tiny_model, train_adapters, inputs, dtype):
        train_adapters(tiny_model, scale=0.1)
        levels = torch.tensor([0, 1, 2])
        with torch.no_grad():
            expected = tiny_model(**inputs, instruction_levels=levels)
            half = tiny_model.to(dtype)(
                **(inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}), instruction_levels=levels
            )
        assert half.pred_masks.dtype == dtype and half.pred_masks.isfinite().all()
        assert (half.pred_boxes.float() - expected.pred_boxes).abs().max() < 0.1

    def test_autocast_training(self, tiny_model, inputs):
        tiny_model.train()
        tiny_model.freeze_stock()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = tiny_model(**inputs, labels=make_labels(), instruction_levels=torch.tensor([0, 1, 2])).loss
        loss.backward()
        assert loss.isfinite()
        assert all(weight.grad.isfinite().all() for weight in tiny_model.parameters() if weight.requires_grad)

    def test_longer_instructions_leave_short_ones_untouched(self, tiny_stock_repos, inputs):
        stock = Sam3IForInstructionSegmentation.from_pretrained(tiny_stock_repos["sam3"], adapter_heads=4).eval()
        model = Sam3IForInstructionSegmentation.from_pretrained(
            tiny_stock_repos["sam3"], adapter_heads=4, max_instruction_length=48
        ).eval()
        positions = stock.text_encoder.text_model.embeddings.position_embedding.weight
        longer = model.text_encoder.text_model.embeddings.long_position_embedding.weight
        assert longer.shape == (48, 32) and torch.equal(longer[:20], positions[:20])
        torch.testing.assert_close(longer[-1], positions[-1])
        assert "text_encoder.text_model.embeddings.long_position_embedding.weight" in model.adapter_parameters()
        padded = {
            "pixel_values": inputs["pixel_values"],
            "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 16), value=5),
            "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 16), value=0),
        }
        with torch.no_grad():
            assert torch.equal(model(**inputs).pred_masks, stock(**inputs).pred_masks)
            short = model(**padded)
            torch.testing.assert_close(short.pred_masks, stock(**inputs).pred_masks, atol=1e-4, rtol=0)
            padded["attention_mask"] = padded["attention_mask"].clone()
            padded["attention_mask"][0] = 1
            long = model(**padded)
        assert not torch.allclose(long.pred_logits[0], short.pred_logits[0], atol=1e-4)
        torch.testing.assert_close(long.pred_logits[1:], short.pred_logits[1:], atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match="at most 32 tokens, found 48"):
            stock(**padded)

    def test_geometry_token_without_boxes(self, tiny_config, inputs):
        torch.manual_seed(0)
        model = Sam3IForInstructionSegmentation(tiny_config).eval()
        with torch.no_grad():
            plain = model(**inputs)
            empty = model(
                **inputs,
                input_boxes=torch.zeros(3, 1, 4),
                input_boxes_labels=torch.full((3, 1), -10, dtype=torch.long),
            )
            model.config.always_encode_geometry = True
            always = model(**inputs)
        assert torch.equal(always.pred_masks, empty.pred_masks)
        assert not torch.equal(always.pred_masks, plain.pred_masks)
