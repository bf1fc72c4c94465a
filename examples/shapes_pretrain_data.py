# SPDX-License-Identifier: Apache-2.0
"""Batches of the shapes pretraining: scenes, concepts and boxes asked of them, sentences without images."""

import numpy as np
import torch

from sam3i import InstructionLevel
from sam3i.processing.language import COLOR_REFERENCES, THINGS
from sam3i.processing.shapes import InstructionWriter, Scene, ShapesWorld, WorldWords, families_of

# A concept is a noun phrase, not one word only; the bare noun is the most frequent.
NOUN_PHRASES = ("{n}", "{n}", "{n}", "a {n}", "the {n}", "{ns}", "the {ns}", "all {ns}")
ABSENT_SHARE, EVERYTHING_SHARE = 0.85, 0.12  # images asked for a noun they lack; asked for all their objects


class ScenePool:
    """Training scenes, each drawn many times and slowly replaced by new ones: painting is a large part of a step."""

    def __init__(self, world: ShapesWorld, size: int, first: int = 0):
        self.world, self.size = world, size
        self.scenes = [world.scene(index) for index in range(first, first + size)]
        self.painted = first + size

    def draw(self, rng: np.random.Generator, count: int, pairs: bool = False) -> list[Scene]:
        """Some scenes, half of them mirrored, or each followed by its mirror image; two of the pool's are replaced."""
        for _ in range(2):
            self.scenes[self.painted % self.size] = self.world.scene(self.painted)
            self.painted += 1
        chosen = [self.scenes[i] for i in rng.choice(self.size, size=count // 2 if pairs else count, replace=False)]
        if pairs:
            return [each for scene in chosen for each in (scene, scene.mirror())]
        return [scene.mirror() if rng.random() < 0.5 else scene for scene in chosen]


def concept_rows(scenes: list[Scene], words: WorldWords, rng: np.random.Generator) -> list[tuple[int, str, list[int]]]:
    """Concepts asked of scenes: (scene number, text, indices of the denoted objects)."""
    rows = []
    for number, scene in enumerate(scenes):
        present = sorted({item.noun for item in scene.objects})
        asked = [str(noun) for noun in rng.permutation(present)[:3]]
        if rng.random() < ABSENT_SHARE:
            asked.append(str(rng.choice([noun for noun in words.nouns if noun not in present])))
        for noun in asked:
            phrase = str(rng.choice(NOUN_PHRASES)).format(n=noun, ns=words.lexicon.plural(noun))
            rows.append((number, phrase, [i for i, item in enumerate(scene.objects) if item.noun == noun]))
        if rng.random() < EVERYTHING_SHARE:
            rows.append((number, str(rng.choice(THINGS)), list(range(len(scene.objects)))))
    return rows


def exemplars(scenes: list[Scene], rows: list[tuple[int, str, list[int]]], rng: np.random.Generator):
    """Rows with one denoted object shown as a box, half of them without words ("visual" is what stock SAM3 says then).

    Returns the rows, boxes [R, 1, 4] (cxcywh) and their labels [R, 1] (1, or -10 where nothing is shown).
    """
    boxes, labels = torch.zeros(len(rows), 1, 4), torch.full((len(rows), 1), -10)
    shown = []
    for row, (number, text, chosen) in enumerate(rows):
        if chosen:
            boxes[row, 0] = torch.from_numpy(scenes[number].boxes[int(rng.choice(chosen))])
            labels[row] = 1
        wordless = chosen and text not in THINGS and rng.random() < 0.5
        shown.append((number, "visual" if wordless else text, chosen))
    return shown, boxes, labels


def jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random brightness and contrast."""
    values = (image.astype(np.float32) - 128) * rng.uniform(0.8, 1.15) + 128 + rng.uniform(-20, 20)
    return np.clip(values, 0, 255).astype(np.uint8)


class SentenceStream:
    """Instruction sentences of the training split and definitions of the world's words, as text without images."""

    def __init__(self, world: ShapesWorld, scenes: int = 600):
        words = world.words
        writer = InstructionWriter("train", families_of(InstructionLevel.COMPLEX, words), words=words)
        self.sentences = []
        for index in range(scenes):
            objects, rng = world.layout(index), world.rng(index, stream=9)
            targets = [writer.write(objects, rng) for _ in range(4)]
            self.sentences += [phrasing.text for t in targets if t for phrasing in t.phrasings.values()]
        self.definitions = [f"what {clause} is a {noun}" for noun, clause in words.definitions()]
        self.definitions += [f"a {noun} is what {clause}" for noun, clause in words.definitions()]
        for color, references in COLOR_REFERENCES.items():
            self.definitions += [f"the color of {thing} is {color}" for thing in references]
            self.definitions += [f"{color} is the color of {thing}" for thing in references]

    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        """Two sentences for each definition."""
        return [
            str(rng.choice(self.definitions)) if i % 3 == 0 else self.sentences[int(rng.integers(len(self.sentences)))]
            for i in range(count)
        ]


class CaptionWriter:
    """Writes captions of scenes: what is in them, and where, in words of the training split."""

    def __init__(self, words: WorldWords):
        families, levels = families_of(InstructionLevel.SIMPLE, words), (InstructionLevel.SIMPLE,)
        self.writer = InstructionWriter("train", families, levels, words=words)

    def write(self, scenes: list[Scene], rng: np.random.Generator, count: int = 5) -> tuple[list[str], torch.Tensor]:
        """Captions of scenes, each followed by its mirror image, and which scenes they fit: [T, I] bool."""
        texts, fits = [], []
        for number, scene in enumerate(scenes):
            for target in [self.writer.write(scene.objects, rng) for _ in range(count)]:
                if target is None or not target.targets:
                    continue
                text = target.phrasings[InstructionLevel.SIMPLE].text
                texts.append(text)
                fits.append(torch.arange(len(scenes)) == number)
                fits[-1][number ^ 1] = target.mirror().phrasings[InstructionLevel.SIMPLE].text == text
        return texts, torch.stack(fits)
