# SPDX-License-Identifier: Apache-2.0
"""What sentences of the shapes world mean, how they are said, and that their words give nothing away."""

from collections import Counter
from functools import partial

import numpy as np
import pytest

from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel
from sam3i.processing.language import phrasing as language
from sam3i.processing.language.lexicon import PLURAL, SINGULAR
from sam3i.processing.shapes import lexicon
from sam3i.processing.shapes.dataset import shapes_rows
from sam3i.processing.shapes.lexicon import vocabulary
from sam3i.processing.shapes.phrasings import VARIED
from sam3i.processing.shapes.questions import (
    FAMILIES,
    denotation,
    draw_meaning,
    families_of,
    kind_of,
    names_held_out_pair,
    one_of,
    place_shortcuts,
    question,
)
from sam3i.processing.shapes.rendering import COLORS, NOUNS, ShapeObject
from sam3i.processing.shapes.tokenizer import MAX_TOKENS, build_tokenizer
from sam3i.processing.shapes.world import ShapesWorld
from sam3i.processing.shapes.writer import InstructionWriter, cell_weights, kinds_of, mirror_text

CONCEPT, SIMPLE, COMPLEX = InstructionLevel


def say(meaning, number, level, rng, held_out=False):
    return language.say(meaning, number, level, partial(one_of, rng), lexicon.LEXICON, held_out)


def thing(noun, color, size, cx, cy, radius):
    return ShapeObject(noun, color, size, float(cx), float(cy), float(radius), 0.0)


SCENE = (
    thing("circle", "red", "small", 20, 20, 11),
    thing("circle", "blue", "large", 84, 30, 18),
    thing("circle", "red", "large", 36, 90, 16.5),
    thing("star", "blue", "small", 52, 40, 12),
    thing("ring", "green", "small", 95, 95, 10),
)


@pytest.mark.parametrize(
    ("meaning", "targets", "kind"),
    [
        (question("category", "circle"), {0, 1, 2}, "1-to-all"),
        (question("category", "star"), {3}, "1-to-1"),
        (question("category", "moon"), set(), "none"),
        (question("color", "circle", "red"), {0, 2}, "1-to-N"),
        (question("color", "circle", "green"), set(), "none"),
        (question("size", "circle", "large"), {1, 2}, "1-to-N"),
        (question("color_size", "circle", "red", "small"), {0}, "1-to-1"),
        (question("not_color", "circle", "red"), {1}, "1-to-1"),
        (question("not_color", "circle", "green"), {0, 1, 2}, "1-to-all"),
        (question("region", "circle", "left"), {0, 2}, "1-to-N"),
        (question("region", "circle", "bottom"), {2}, "1-to-1"),
        (question("extreme", "circle", "right"), {1}, "1-to-1"),
        (question("extreme", "circle", "top"), {0}, "1-to-1"),
        (question("all_but_extreme", "circle", "bottom"), {0, 1}, "1-to-N"),
        (question("extreme_size", "circle", "small"), {0}, "1-to-1"),
        (question("extreme_size", "circle", "large"), {1}, "1-to-1"),
        (question("side", "circle", "left", reference="star"), {0, 2}, "1-to-N"),
        (question("side", "circle", "right", reference="ring"), set(), "none"),
        (question("side", "circle", "left", reference="moon"), set(), "none"),
        (question("beside", "circle", "left", reference="star"), {0}, "1-to-1"),
        (question("distance", "circle", "near", reference="ring"), {2}, "1-to-1"),
        (question("distance", "circle", "far", reference="ring"), {0}, "1-to-1"),
        (question("same_color", "circle", reference="star"), {1}, "1-to-1"),
        (question("any_color", None, "red"), {0, 2}, "1-to-N"),
        (question("any_color", None, "green"), {4}, "1-to-1"),
        (question("except", "circle"), {3, 4}, "1-to-N"),
        (question("except", "moon"), {0, 1, 2, 3, 4}, "1-to-all"),
        (question("shape_shared", None), {0, 1, 2}, "1-to-N"),
        (question("shape_alone", None), {3, 4}, "1-to-N"),
        (question("color_shared", None), {0, 1, 2, 3}, "1-to-N"),
        (question("color_alone", None), {4}, "1-to-1"),
    ],
)
def test_denotations_by_hand(meaning, targets, kind):
    found = denotation(meaning, SCENE)
    assert found == targets
    assert kind_of(meaning, found, SCENE) == kind


@pytest.mark.parametrize(
    "meaning",
    [
        question("region", "star", "left"),  # 4 pixels from the middle line
        question("region", "circle", "top", None, None),
        question("side", "ring", "right", reference="circle"),  # three circles: which one?
        question("side", "circle", "top", reference="star"),
        question("beside", "ring", "bottom", reference="circle"),
        question("extreme", "circle", "left"),
    ],
)
def test_unclear_questions_are_not_asked(meaning):
    scene = list(SCENE)
    scene[0] = thing("circle", "red", "small", 33, 38, 11)  # level with the star, nearly as far left as the other
    scene[1] = thing("circle", "blue", "large", 90, 58, 18)  # nearly on the middle line
    assert denotation(meaning, scene) is None


def test_mirrored_questions_have_the_same_targets():
    world = ShapesWorld(0, "test")
    rng = np.random.default_rng(0)
    compared = Counter()
    for index in range(150):
        objects = world.layout(index)
        mirrored = [item.mirror() for item in objects]
        present = sorted({item.noun for item in objects})
        for family in families_of(COMPLEX):
            meaning = draw_meaning(family, rng, present, present)
            expected = denotation(meaning, objects)
            assert denotation(meaning.mirror(), mirrored) == expected
            compared[family] += bool(expected)
    assert min(compared[family] for family in families_of(COMPLEX)) > 5


def test_mirrored_words_are_the_words_of_the_mirrored_meaning():
    rng = np.random.default_rng(1)
    changed = 0
    for level in (SIMPLE, COMPLEX):
        for family in families_of(level):
            for number in FAMILIES[family].kinds:
                for _ in range(20):
                    meaning, seed = draw_meaning(family, rng), int(rng.integers(2**31))
                    text = say(meaning, number, level, np.random.default_rng(seed)).text
                    other = say(meaning.mirror(), number, level, np.random.default_rng(seed)).text
                    assert mirror_text(text) == other
                    changed += text != other
    assert changed > 100


@pytest.fixture(scope="module")
def sentences():
    """Many sentences: (level, family, held out, text, noun)."""
    rng = np.random.default_rng(2)
    said = []
    for level in (SIMPLE, COMPLEX):
        for family in families_of(level):
            for number in FAMILIES[family].kinds:
                for repeat in range(120):
                    meaning = draw_meaning(family, rng)
                    phrasing = say(meaning, number, level, rng, held_out=repeat % 2 == 1)
                    said.append((level, family, phrasing, meaning))
    return said


def test_simple_names_the_noun_and_complex_neither_noun_nor_color(sentences):
    naming = {*NOUNS, *lexicon.PLURALS.values()}
    for level, _, phrasing, meaning in sentences:
        words = set(phrasing.text.split())
        if level is SIMPLE:
            assert words & {meaning.noun, lexicon.PLURALS[meaning.noun]}
        else:
            assert not words & (naming | set(COLORS))
    assert say(question("category", "star"), SINGULAR, CONCEPT, np.random.default_rng(0)).text == "star"


def test_every_sentence_fits_the_text_encoder_word_by_word(sentences):
    tokenizer = build_tokenizer()
    texts = [phrasing.text for _, _, phrasing, _ in sentences]
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    assert [length - 2 for length in lengths] == [len(text.split()) for text in texts]
    assert max(lengths) <= MAX_TOKENS
    assert {word for text in texts for word in text.split()} <= set(vocabulary())


def test_held_out_phrasings_are_new_but_their_words_are_not(sentences):
    def words(held_out):
        return {w for _, _, phrasing, _ in sentences if phrasing.held_out is held_out for w in phrasing.text.split()}

    def templates(held_out):
        return {phrasing.template for _, _, phrasing, _ in sentences if phrasing.held_out is held_out}

    assert words(True) <= words(False)
    assert not templates(True) & templates(False)


def test_more_phrasings_for_training_say_none_that_is_held_out():
    def sentences_of(texts, carriers):
        return {carrier.format(np=text) for text in texts for carrier in carriers}

    base = lexicon.LEXICON
    for tables, carriers, more, more_carriers in (
        (base.simple, base.simple_carriers, VARIED.simple, VARIED.simple_carriers),
        (base.complex, base.complex_carriers, VARIED.complex, VARIED.complex_carriers),
    ):
        assert tables.keys() == more.keys() and more_carriers[-1] == carriers[-1]
        for family, texts in more.items():
            assert len(set(texts)) == len(texts) > len(tables[family]) and texts[-1] == tables[family][-1]
            held_out = sentences_of(texts[-1:], more_carriers) | sentences_of(texts, carriers[-1:])
            assert not sentences_of(texts[:-1], more_carriers[:-1]) & held_out


def test_more_phrasings_mean_the_same_in_words_of_the_world(training):
    choose, said = partial(one_of, np.random.default_rng(3)), []
    for _, target in training[:400]:
        for level in target.phrasings:
            said += target.more_texts(level, choose, 8)
    assert {word for text in said for word in text.split()} <= set(vocabulary())
    assert max(len(text.split()) for text in said) <= MAX_TOKENS - 2
    assert not any("{" in text or "  " in text for text in said)
    rows = {row["row_id"]: row for row in shapes_rows("train", 8)}
    for row in shapes_rows("train", 8, more_phrasings=3):
        plain = rows[row["row_id"]]
        for level in ("simple", "complex"):
            assert row[level][: len(plain[level])] == plain[level]
            assert len(row[level]) > len(plain[level]) or not plain[level]
            assert len(set(row[level])) == len(row[level])


def test_families_can_be_asked_more_often():
    families = ("color", "distance", "extreme")
    weights, more = cell_weights(families), cell_weights(families, {"distance": 3.0})
    assert sum(more.values()) == pytest.approx(1)
    of_one = {cell.family: weight for cell, weight in more.items() if cell.kind == "1-to-1"}
    assert of_one["distance"] == pytest.approx(3 * of_one["extreme"])
    assert sum(w for c, w in more.items() if c.kind == "1-to-1") == pytest.approx(
        sum(w for c, w in weights.items() if c.kind == "1-to-1")
    )


def test_levels_say_only_what_they_can():
    with pytest.raises(ValueError, match="'except'"):
        say(question("except", "star"), PLURAL, SIMPLE, np.random.default_rng(0))
    with pytest.raises(ValueError, match="'color'"):
        say(question("color", "star", "red"), PLURAL, CONCEPT, np.random.default_rng(0))
    assert kinds_of(CONCEPT) == ("1-to-1", "1-to-all", "none")
    assert kinds_of(SIMPLE) == kinds_of(COMPLEX) == ("1-to-1", "1-to-N", "1-to-all", "none")


def written(split, scenes=700, per_scene=4):
    world, writer = ShapesWorld(0, split), InstructionWriter(split)
    for index in range(scenes):
        objects, rng = world.layout(index), world.rng(index, 3)
        for _ in range(per_scene):
            target = writer.write(objects, rng)
            if target is not None:
                yield objects, target


@pytest.fixture(scope="module")
def training():
    return list(written("train"))


def test_written_targets_are_true(training):
    for objects, target in training:
        assert denotation(target.meaning, objects) == set(target.targets)
        assert kind_of(target.meaning, frozenset(target.targets), objects) == target.kind


def test_no_family_and_no_wording_gives_its_kind_away(training):
    families = families_of(COMPLEX)
    assert sum(cell_weights(families).values()) == pytest.approx(1)
    kinds = Counter(target.kind for _, target in training)
    assert all(abs(count / len(training) - 0.25) < 0.02 for count in kinds.values())
    by_question, by_wording, by_word = {}, {}, {}
    for _, target in training:
        nothing = target.kind == "none"
        by_question.setdefault((target.meaning.family, target.number), []).append(nothing)
        for level, phrasing in target.phrasings.items():
            by_wording.setdefault((phrasing.template, target.number), []).append(nothing)
            for word in set(phrasing.text.split()):
                by_word.setdefault((level, word), []).append(nothing)
    assert set(by_question) == {(name, number) for name in families for number in FAMILIES[name].kinds}
    assert all(abs(np.mean(flags) - 0.25) < 0.06 for flags in by_question.values())
    # Five standard deviations of a fair draw: chance alone does not get there.
    for table in (by_wording, by_word):
        for flags in table.values():
            assert abs(np.mean(flags) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / len(flags)) + 0.02


def test_relations_are_not_answered_by_place_alone(training):
    answered = {"side": [], "beside": []}
    for objects, target in training:
        if target.meaning.family in answered and target.kind != "none":
            answered[target.meaning.family].append(
                frozenset(target.targets) in place_shortcuts(target.meaning, objects)
            )
    assert len(answered["side"]) > 50 and not any(answered["side"])
    assert len(answered["beside"]) > 30 and 0.35 < np.mean(answered["beside"]) < 0.65


def test_one_to_one_needs_a_choice(training):
    counts = [
        sum(item.noun == target.meaning.noun for item in objects)
        for objects, target in training
        if target.kind == "1-to-1"
        and target.meaning.family in families_of(SIMPLE)
        and target.meaning.family != "category"
    ]
    assert 0.02 < np.mean([count == 1 for count in counts]) < 0.3
    assert np.mean([1 / count for count in counts]) < 0.55


def test_training_says_nothing_held_out(training):
    assert not any(names_held_out_pair(target.meaning) for _, target in training)
    assert not any(phrasing.held_out for _, target in training for phrasing in target.phrasings.values())
    test = [target for _, target in written("test", scenes=300)]
    held_out = [phrasing.held_out for target in test for phrasing in target.phrasings.values()]
    assert 0.4 < np.mean(held_out) < 0.6
    assert sum(target.held_out_pair for target in test) > 10
    seen = {phrasing.template for _, target in training for phrasing in target.phrasings.values()}
    new = {p.template for target in test for p in target.phrasings.values() if p.held_out}
    assert not seen & new


def test_tokenizer_makes_every_word_one_token_and_ends_with_the_highest_id(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer()
    assert all(len(tokenizer(word).input_ids) == 3 for word in vocabulary())
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    ids = tokenizer("zebra", padding="max_length", max_length=MAX_TOKENS).input_ids
    assert len(ids) == MAX_TOKENS and ids[1] != tokenizer.unk_token_id  # an unknown word falls back to its letters
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "the leftmost circle that would guide a sailor home"
    assert again(text).input_ids == tokenizer(text).input_ids and again.decode(again(text).input_ids[1:-1]) == text
    assert build_tokenizer(("dog", "cat"))("dog").input_ids[1] != build_tokenizer(("dog", "cat"))("cat").input_ids[1]
