# SPDX-License-Identifier: Apache-2.0
"""The instance selector: its numbers by hand, what it leaves alone, what it costs, and that it can learn to choose."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sam3i import Sam3IConfig, Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.adapters.routing import LevelRouting
from sam3i.modeling_sam3i.adapters.selector import InstanceSelector, PairwiseSelector

WIDTH, TEXT_WIDTH = 16, 12


def make_selector(queries=8, dim=8, heads=2, seed=0, trained=True) -> PairwiseSelector:
    torch.manual_seed(seed)
    selector = PairwiseSelector(
        WIDTH, TEXT_WIDTH, SimpleNamespace(selector_dim=dim, selector_heads=heads, selector_queries=queries)
    )
    selector.init_weights()
    if trained:
        with torch.no_grad():
            for parameter in selector.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return selector


def make_arguments(rows=2, layers=3, queries=3, tokens=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[-1, 3:] = False
    return {
        "logits": torch.randn(rows, layers, queries, generator=generator) * 4,
        "queries": torch.randn(rows, layers, queries, WIDTH, generator=generator),
        "boxes": torch.rand(rows, layers, queries, 4, generator=generator) * 0.5 + 0.2,
        "words": torch.randn(rows, tokens, TEXT_WIDTH, generator=generator),
        "text_mask": mask,
    }


class TestNumbers:
    def test_pair_numbers_by_hand(self):
        boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.5, 0.6, 0.2, 0.4], [0.5, 0.2, 0.1, 0.2]])
        reference = torch.tensor([0.0, 1.0, 0.0])  # the second object is the reference
        pairs = PairwiseSelector.pair_numbers(boxes, torch.tensor([1.0, 2.0, -1.0]), reference)
        assert pairs.shape == (3, 3, 12)
        expected = [
            *(-0.9, 0.0, 0.9, 0.0),  # first is .3 left of third, at the same height
            *(0.0, -math.log(2)),  # as wide, half as tall
            *(1.0, 3 * 0.5, 3 * -0.3, 3 * -0.4),  # its logit; a 3-4-5 triangle to the reference
            *(-1.0, 3 * 0.4),  # the third's logit and distance to the reference
        ]
        torch.testing.assert_close(pairs[0, 2], torch.tensor(expected), atol=1e-5, rtol=0)
        torch.testing.assert_close(pairs[1, 1, :6], torch.zeros(6))

    def test_the_equations_one_query_at_a_time(self):
        selector, given = make_selector(), make_arguments()
        with torch.no_grad():
            found = selector(**given)
            for row in range(2):
                for layer in range(3):
                    expected = given["logits"][row, layer] + self.change_by_hand(selector, given, row, layer)
                    torch.testing.assert_close(found[row, layer], expected, atol=1e-5, rtol=1e-5)
        assert (found - given["logits"]).abs().max() > 0.1

    @staticmethod
    def change_by_hand(selector: PairwiseSelector, given, row: int, layer: int) -> torch.Tensor:
        text = F.layer_norm(given["words"][row][given["text_mask"][row]], (TEXT_WIDTH,))
        weights = (text @ selector.pooling.weight.T).softmax(0)
        c = selector.instruction_norm(selector.instruction_proj((weights[:, 0, None] * text).sum(0)))
        c2 = selector.reference_text_norm(selector.reference_text_proj((weights[:, 1, None] * text).sum(0)))
        boxes, s = given["boxes"][row, layer], given["logits"][row, layer].clamp(-8, 8)
        count, dim, heads = len(s), len(c), selector.heads
        o = [F.layer_norm(query, (WIDTH,)) for query in given["queries"][row, layer]]
        g = [
            selector.query_norm(
                selector.content_proj(o[q]) + selector.place_proj(torch.cat([3 * (boxes[q] - 0.5), s[q : q + 1] / 3]))
            )
            for q in range(count)
        ]
        gated = [state * (1 + selector.query_gate(c)) for state in g]
        rho = torch.stack([selector.reference_query_proj(state) @ c2 / dim**0.5 for state in o]).softmax(0)
        numbers = PairwiseSelector.pair_numbers(boxes, s / 3, rho)
        changes = []
        for q in range(count):
            pairs = [F.gelu(selector.pair_proj(numbers[q, k]) * (1 + selector.pair_gate(c))) for k in range(count)]
            asks = selector.attention_query(torch.cat([g[q], c])).view(heads, -1)
            scores = torch.stack(
                [
                    (asks * selector.attention_key(gated[k]).view(heads, -1)).sum(1) / (dim / heads) ** 0.5
                    + selector.logit_weight * s[k]
                    + selector.pair_bias(pairs[k])
                    for k in range(count)
                ]
            )  # (queries, heads)
            values = torch.stack(
                [
                    (selector.attention_value(gated[k]) + selector.pair_value(pairs[k])).view(heads, -1)
                    for k in range(count)
                ]
            )
            message = (scores.softmax(0)[..., None] * values).sum(0).flatten()
            summary = selector.output_norm(torch.cat([g[q], gated[q], message, c]))
            kinds = 2 * heads
            of_query = selector.match_query_proj(o[q]).view(kinds, -1)
            of_words = [selector.match_word_proj(word).view(kinds, -1) for word in text]
            matches = torch.stack([(of_query * word).sum(1) / (dim / heads) ** 0.5 for word in of_words])
            mean = ((text @ selector.match_pooling.weight.T).softmax(0) * matches).sum(0)
            reference = sum(share * state for share, state in zip(rho, o, strict=True))
            likeness = selector.likeness_query_proj(o[q]) * selector.likeness_reference_proj(reference)
            hidden = selector.hidden_proj(summary) + selector.likeness_proj(likeness)
            hidden = hidden + selector.match_proj(torch.cat([mean, matches.max(0).values]))
            changes.append(selector.logit_proj(F.gelu(hidden)))
        return torch.cat(changes)


class TestWhatItLeavesAlone:
    def test_fresh_is_the_identity(self):
        given = make_arguments()
        assert torch.equal(make_selector(trained=False)(**given), given["logits"])

    def test_queries_below_the_best_keep_their_logits(self):
        given = make_arguments(queries=12)
        few, all_ = make_selector(queries=5), make_selector(queries=12)
        found = few(**given)
        best = given["logits"].topk(5, dim=-1).indices
        changed = found != given["logits"]
        assert torch.equal(changed, torch.zeros_like(changed).scatter(-1, best, True))
        # and the best see nothing of the others
        picked = given | {
            "logits": given["logits"].gather(2, best),
            "queries": given["queries"].gather(2, best[..., None].expand(-1, -1, -1, WIDTH)),
            "boxes": given["boxes"].gather(2, best[..., None].expand(-1, -1, -1, 4)),
        }
        torch.testing.assert_close(found.gather(2, best), all_(**picked))

    def test_boxes_and_logits_get_no_gradient_through_the_comparison(self):
        given = make_arguments()
        for name in ("logits", "boxes", "queries", "words"):
            given[name].requires_grad_()
        make_selector()(**given).square().sum().backward()
        assert given["boxes"].grad is None
        for name in ("queries", "words"):
            assert given[name].grad.abs().max() > 0, name
        found = make_selector()(**{name: tensor.detach() for name, tensor in given.items()})
        torch.testing.assert_close(given["logits"].grad, 2 * found)  # through the sum alone

    def test_padding_is_not_read(self):
        selector, given = make_selector(), make_arguments()
        other = given | {"words": given["words"].clone()}
        other["words"][-1, 3:] = 9.0
        assert torch.equal(selector(**given), selector(**other))

    def test_the_order_of_queries_does_not_matter(self):
        selector, given = make_selector(), make_arguments(queries=6)
        order = torch.tensor([3, 1, 5, 0, 4, 2])
        shuffled = given | {name: given[name][:, :, order] for name in ("logits", "queries", "boxes")}
        torch.testing.assert_close(selector(**shuffled), selector(**given)[:, :, order], atol=1e-5, rtol=1e-5)

    def test_levels_have_their_own_and_concepts_none(self):
        torch.manual_seed(0)
        settings = SimpleNamespace(selector_dim=8, selector_heads=2, selector_queries=8)
        levels, given = InstanceSelector(WIDTH, TEXT_WIDTH, settings), make_arguments(rows=3)
        with torch.no_grad():
            for parameter in levels.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            context = [given[name] for name in ("queries", "boxes", "words", "text_mask")]
            found = levels(given["logits"], LevelRouting(torch.tensor([0, 1, 2])), *context)
            assert torch.equal(found[0], given["logits"][0])
            torch.testing.assert_close(found[1], levels.simple(**given)[1])
            torch.testing.assert_close(found[2], levels.complex(**given)[2])
            assert (levels.simple(**given) - levels.complex(**given)).abs().max() > 0.1
            levels.start_complex_from_simple()
            assert torch.equal(levels.simple(**given), levels.complex(**given))


class TestCost:
    @staticmethod
    def saved_numbers(queries: int) -> int:
        """Numbers that one pass keeps for the backward pass, inputs aside."""
        given = make_arguments(rows=1, layers=1, queries=queries)
        given["queries"].requires_grad_()
        inputs = {tensor.data_ptr() for tensor in given.values()}
        kept = {}

        def keep(tensor):
            if tensor.data_ptr() not in inputs:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = make_selector(queries=16)(**given)
        assert result.shape[-1] == queries
        return sum(kept.values())

    def test_memory_does_not_grow_with_the_number_of_queries(self):
        few, many = self.saved_numbers(32), self.saved_numbers(320)
        assert few > 16 * 16 * 8  # the pairs are counted
        assert many <= few

    def test_parameters_at_the_size_of_real_sam3(self):
        settings = SimpleNamespace(selector_dim=32, selector_heads=4, selector_queries=48)
        assert 100_000 < sum(p.numel() for p in PairwiseSelector(256, 1024, settings).parameters()) < 220_000


class TestInTheModel:
    @pytest.fixture
    def model(self, tiny_sam3_config):
        fields = {"model_type": "sam3i", "adapter_design": "selective", "adapter_rank": 0, "selector_queries": 4}
        torch.manual_seed(0)
        return Sam3IForInstructionSegmentation(Sam3IConfig.from_dict(tiny_sam3_config.to_dict() | fields)).eval()

    @pytest.fixture
    def inputs(self):
        generator = torch.Generator().manual_seed(0)
        return {
            "pixel_values": torch.randn(2, 3, 56, 56, generator=generator),
            "input_ids": torch.randint(1, 60, (2, 9), generator=generator),
            "attention_mask": torch.ones(2, 9, dtype=torch.long),
        }

    @staticmethod
    def record(model) -> list[torch.Tensor]:
        calls = []
        model.dot_product_scoring.register_forward_hook(lambda *call: calls.append(call[-1][..., 0]))
        return calls

    def test_it_changes_logits_and_nothing_else(self, model, train_adapters, inputs):
        with torch.no_grad():
            stock = model(**inputs)
            for parameter in model.dot_product_scoring.sam3i_adapter.parameters():
                parameter.add_(0.3)
            found = model(**inputs, instruction_levels=["simple", "concept"])
        assert torch.equal(found.pred_logits[1], stock.pred_logits[1])
        assert int((found.pred_logits[0] != stock.pred_logits[0]).sum()) == 4
        for name in ("pred_masks", "pred_boxes", "presence_logits", "semantic_seg"):
            torch.testing.assert_close(found[name], stock[name], atol=1e-6, rtol=0)

    def test_all_layers_with_labels_the_last_without_and_never_one_to_many(self, model, train_adapters, inputs):
        labels = [{"masks": torch.ones(1, 56, 56).bool(), "boxes": torch.full((1, 4), 0.5)} for _ in range(2)]
        for module in model.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        calls = self.record(model)
        with torch.no_grad():
            model(**inputs, labels=labels)
            model(**inputs)
            train_adapters(model)
            model(**inputs, labels=labels, instruction_levels=["simple"] * 2)
            model(**inputs, instruction_levels=["complex"] * 2)
        stock, _, supervised, plain = calls
        assert stock.shape == supervised.shape == (2, 2, 12) and plain.shape == (2, 2, 6)
        assert all((supervised[layer, :, :6] != stock[layer, :, :6]).any() for layer in range(2))
        assert torch.equal(supervised[:, :, 6:], stock[:, :, 6:])
        torch.testing.assert_close(plain[0], stock[0, :, :6], rtol=0, atol=1e-8)  # half the queries: another last bit
        assert (plain[1] - stock[1, :, :6]).abs().max() > 1e-6


def test_it_learns_to_choose_by_place():
    """Five alike objects a picture; "leftmost" or "largest" is asked. Chance is .2."""
    torch.manual_seed(0)
    selector = make_selector(dim=16, heads=4, trained=False)
    words = torch.randn(2, 1, TEXT_WIDTH)
    optimizer = torch.optim.Adam(selector.parameters(), lr=5e-3)
    for _ in range(150):
        asked = torch.randint(2, (32,))
        boxes = torch.rand(32, 1, 5, 4) * 0.5 + 0.2
        target = torch.where(asked == 0, boxes[:, 0, :, 0].argmin(-1), boxes[:, 0, :, 2:].prod(-1).argmax(-1))
        logits = selector(torch.zeros(32, 1, 5), torch.randn(1, 1, 1, WIDTH).expand(32, 1, 5, -1), boxes, words[asked])
        loss = F.cross_entropy(logits[:, 0], target)
        accuracy = (logits[:, 0].argmax(-1) == target).float().mean().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy > 0.75
