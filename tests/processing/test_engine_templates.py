# SPDX-License-Identifier: Apache-2.0
import time
from collections import Counter

import pytest
from engine_truth import denoted_by_objects

from sam3i.processing.data_engine.engine import DataEngine
from sam3i.processing.data_engine.facts import Facts
from sam3i.processing.data_engine.meaning import Meaning, denote
from sam3i.processing.data_engine.nouns import NounForms
from sam3i.processing.data_engine.reading import read_simple
from sam3i.processing.data_engine.run_directory import EngineConfig, RunDirectory
from sam3i.processing.data_engine.sources import ShapesSource
from sam3i.processing.datasets.schema import TARGET_KINDS
from sam3i.processing.datasets.shapes_lexicon import COLOUR_REFERENCES, DESCRIPTORS
from sam3i.processing.datasets.shapes_tokenizer import build_tokenizer
from sam3i.processing.datasets.shapes_world import ShapesWorld


def build(folder, num_scenes, split="train", **config):
    tokenizer = build_tokenizer()
    source = ShapesSource(num_scenes, split)
    run = RunDirectory(folder, EngineConfig(source="shapes", **config))
    engine = DataEngine(source, run, count_tokens=lambda text: len(tokenizer(text)["input_ids"]))
    return run, engine.build(progress=False)


def verified_pairs(run, split="train"):
    """Accepted pairs by (level, kind); asserts that each denotes its target by the generator's objects."""
    world, forms, counts = ShapesWorld(0, split), NounForms(), Counter()
    nouns = ShapesSource(0).nouns
    for record in run.records():
        index = int(record["image_id"].rsplit("-", 1)[1])
        objects = world.layout(index)
        facts = Facts(next(ShapesSource(1, split, start=index).scenes()))
        for target in record["targets"]:
            expected = {annotation_id - index * 10 for annotation_id in target["targets"]}
            meaning = Meaning.from_dict(target["meaning"])
            for pair in target["pairs"]:
                if pair["outcome"] != "accepted":
                    continue
                asked = Meaning(target["noun"]) if pair["level"] == "concept" else meaning
                assert denoted_by_objects(asked, objects) == expected, (pair["text"], asked)
                if pair["level"] == "complex":
                    described = {n for n, texts in DESCRIPTORS.items() if any(d in pair["text"] for d in texts)}
                    named = {meaning.noun, *(item.reference for item in meaning.filters)}
                    named.add(meaning.selector and meaning.selector.reference)
                    assert described == named - {None}, pair["text"]
                    painted = {c for c, words in COLOUR_REFERENCES.items() if any(w in pair["text"] for w in words)}
                    assert painted == {i.value for i in meaning.filters if i.kind in ("colour", "not_colour")}
                else:
                    reading = read_simple(pair["text"], nouns, forms)
                    read = {facts.scene.instances[i].annotation_id for i in denote(reading.meaning, facts)}
                    assert read == set(target["targets"]), pair["text"]
                counts[pair["level"], target["kind"]] += 1
    return counts


def test_accepted_pairs_denote_their_targets_by_the_generators_truth(tmp_path):
    run, summary = build(tmp_path, 60)
    counts = verified_pairs(run)
    assert sum(counts.values()) == summary.accepted > 450
    assert summary.accepted > 0.9 * summary.pairs
    for level in ("simple", "complex"):
        for kind in TARGET_KINDS:
            assert counts[level, kind] > 10, (level, kind, counts)


@pytest.mark.slow
def test_five_thousand_verified_pairs(tmp_path):
    started = time.monotonic()
    run, summary = build(tmp_path, 600)
    seconds = time.monotonic() - started
    counts = verified_pairs(run)
    assert sum(counts.values()) == summary.accepted >= 5000
    assert seconds < 300
    print(f"{summary.accepted} pairs, {summary.accepted / seconds:.0f} per second, {dict(counts)}")  # noqa: T201


def test_a_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    runs = [build(tmp_path / str(i), 8, seed=seed)[0] for i, seed in enumerate((3, 3, 4))]
    first, second, other = ([record["targets"] for record in run.ordered_records()] for run in runs)
    assert first == second != other


def test_no_kind_is_told_by_its_words_alone(tmp_path):
    """Every family with a grammatical number that has targets also has sentences without one."""
    run, _ = build(tmp_path, 60)
    families = {}
    for record in run.records():
        for target in record["targets"]:
            family = Meaning.from_dict(target["meaning"]).family
            families.setdefault(family, Counter())[target["kind"] == "none"] += 1
    # "The two cups" supposes two cups, and where every cup is told apart by colour nothing is left to be absent.
    free = {"count", "noun_shared", "noun_alone", "colour_shared", "colour_alone", "not_noun"}
    common = {family: counts for family, counts in families.items() if counts.total() >= 12 and family not in free}
    assert len(common) >= 4
    for family, counts in common.items():
        assert counts[True] > 0, family
