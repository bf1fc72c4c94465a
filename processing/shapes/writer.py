# SPDX-License-Identifier: Apache-2.0
"""Writes instructions for scenes of the shapes world so that no phrasing gives its target kind away.

A cell is (family, grammatical number, target kind). Each positive kind's share is split evenly over the families that
can have it, and in every (family, number) a quarter of the sentences denote nothing; so a reader of the text alone
learns nothing about whether there is a target.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ..language.meaning import ALL, NONE, ONE, SOME, Meaning
from ..language.phrasing import Choose, Phrasing, say
from .lexicon import MIRROR_WORDS, WorldWords
from .questions import (
    FAMILIES,
    denotation,
    details,
    draw_meaning,
    families_of,
    kind_of,
    names_held_out_pair,
    one_of,
    place_shortcuts,
)
from .rendering import ShapeObject
from .world import WORDS

NONE_SHARE = 0.25
HELD_OUT_PHRASING_SHARE = 0.5  # of the validation and test instructions
UNHEARD_SHARE = 0.5  # of these, of complex ones, in a world that has words which training never says
UNHEARD = "/unheard"  # ends the template's name of such an instruction
ABSENT_SHARE = 0.12  # of the sentences without a target: the noun asked about is not in the image at all
SINGLE_SHARE = 0.12  # of the draws: a 1-to-1 target may be the only object of its noun, so that nothing is to choose
_TRIES = 12  # random meanings per cell before the next cell is tried
_CELLS_PER_DRAW = 10
_SLACK = 3  # sentences by which a cell may run ahead of the slowest cell of its family and number


@dataclass(frozen=True)
class Cell:
    """What is kept in balance; `shortcut` (only for the family "beside"): a rule of place alone gives the answer."""

    family: str
    number: str
    kind: str
    shortcut: bool | None = None


@dataclass(frozen=True)
class WrittenTarget:
    """One target of one scene with what is said about it."""

    meaning: Meaning  # the question
    number: str  # grammatical
    kind: str  # of target
    targets: tuple[int, ...]  # indices of the denoted objects, ascending
    # by level; simple and complex, where both exist, have the same meaning
    phrasings: dict[InstructionLevel, Phrasing]
    held_out_pair: bool  # the words combine a color and a noun that training keeps apart

    @property
    def concept(self) -> str:
        """The category as a noun phrase ("object" where any object may answer)."""
        return self.meaning.category or "object"

    @property
    def asked(self) -> list[str | None]:
        """What makes the question one of its own, for ids."""
        return [self.meaning.family, *details(self.meaning), self.number]

    def more_texts(self, level: InstructionLevel, choose: Choose, count: int, words: WorldWords = WORDS) -> list[str]:
        """Up to so many other instructions of a level that mean the same, in phrasings that training uses."""
        said = [say(self.meaning, self.number, level, choose, words.varied, held_out=False).text for _ in range(count)]
        return [text for text in dict.fromkeys(said) if text != self.phrasings[level].text]

    def mirror(self) -> WrittenTarget:
        """The same target in the mirrored scene: left and right exchanged in meaning and words."""
        phrasings = {
            level: replace(phrasing, text=mirror_text(phrasing.text)) for level, phrasing in self.phrasings.items()
        }
        return replace(self, meaning=self.meaning.mirror(), phrasings=phrasings)


def cell_weights(families: Sequence[str], emphasis: Mapping[str, float] | None = None) -> dict[Cell, float]:
    """The wanted share of every cell; sums to 1, and to a quarter for each target kind that occurs.

    `emphasis` multiplies the share that a family has of each kind (1 where it is not named).

    Raises:
        ValueError: if it names none of the families, or a share that is not positive.
    """
    emphasis = emphasis or {}
    unknown = sorted(emphasis.keys() - set(families))
    if unknown:
        raise ValueError(f"`emphasis` names {', '.join(unknown)}; the families asked are {', '.join(families)}.")
    if bad := {name: share for name, share in emphasis.items() if not 0 < share < math.inf}:
        raise ValueError(f"Expected positive numbers in `emphasis`, found {bad}.")
    weights: dict[Cell, float] = {}
    kinds = sorted({kind for name in families for kinds in FAMILIES[name].kinds.values() for kind in kinds} - {NONE})
    for kind in kinds:
        places = [(name, number) for name in families for number, own in FAMILIES[name].kinds.items() if kind in own]
        parts = sum(emphasis.get(name, 1.0) for name, _ in places)
        for name, number in places:
            share = (1 - NONE_SHARE) / len(kinds) * emphasis.get(name, 1.0) / parts
            flags = (False, True) if name == "beside" else (None,)
            for flag in flags:
                weights[Cell(name, number, kind, flag)] = share / len(flags)
            nothing = Cell(name, number, NONE)
            weights[nothing] = weights.get(nothing, 0.0) + share * NONE_SHARE / (1 - NONE_SHARE)
    return weights


def mirror_text(text: str) -> str:
    """The sentence that says of the mirrored scene what `text` says of the scene."""
    return " ".join(MIRROR_WORDS.get(word, word) for word in text.split())


@dataclass
class InstructionWriter:
    """Draws targets for scene after scene, keeping all cells in balance.

    Args:
        split: "train" says neither held-out pairs nor held-out phrasings.
        emphasis: families that are asked more or less often than others; see [`cell_weights`].
    """

    split: str
    families: tuple[str, ...] = families_of(InstructionLevel.COMPLEX)
    levels: tuple[InstructionLevel, ...] = (InstructionLevel.SIMPLE, InstructionLevel.COMPLEX)
    counts: Counter = field(default_factory=Counter)
    emphasis: Mapping[str, float] | None = None
    words: WorldWords = WORDS

    def __post_init__(self):
        self.weights = cell_weights(self.families, self.emphasis)
        self._siblings = defaultdict(list)
        for cell in self.weights:
            self._siblings[cell.family, cell.number].append(cell)

    def write(
        self, objects: Sequence[ShapeObject], rng: np.random.Generator, kinds: Sequence[str] | None = None
    ) -> WrittenTarget | None:
        """One target of this scene from the cells that need it most, or None if the scene has none to give."""
        cells = [cell for cell in self.weights if self._is_open(cell) and (kinds is None or cell.kind in kinds)]
        noise = rng.random(len(cells))
        order = sorted(range(len(cells)), key=lambda i: (self._progress(cells[i]), noise[i]))
        single = rng.random() < SINGLE_SHARE
        for i in order[:_CELLS_PER_DRAW]:
            for _ in range(_TRIES):
                found = self._attempt(cells[i], objects, rng, single)
                if found is not None:
                    self.counts[cells[i]] += 1
                    return found
        return None

    def _progress(self, cell: Cell) -> float:
        return self.counts[cell] / self.weights[cell]

    def _is_open(self, cell: Cell) -> bool:
        """Whether a cell may go on: the slowest cell of its family and number sets the pace."""
        slowest = min(self._progress(other) for other in self._siblings[cell.family, cell.number])
        return self.counts[cell] <= slowest * self.weights[cell] + _SLACK

    def _attempt(
        self, cell: Cell, objects: Sequence[ShapeObject], rng: np.random.Generator, single: bool
    ) -> WrittenTarget | None:
        nouns, references = self._nouns(cell, objects, rng, single)
        if not nouns:
            return None
        meaning = draw_meaning(cell.family, rng, nouns, references, self.words)
        if self.split == "train" and names_held_out_pair(meaning, self.words):
            return None
        targets = denotation(meaning, objects, self.words)
        if targets is None or kind_of(meaning, targets, objects) != cell.kind:
            return None
        if meaning.family in ("side", "beside") and cell.kind != NONE:
            shortcut = targets in place_shortcuts(meaning, objects)
            if shortcut is not bool(cell.shortcut):
                return None
        return WrittenTarget(
            meaning=meaning,
            number=cell.number,
            kind=cell.kind,
            targets=tuple(sorted(targets)),
            phrasings=self._phrasings(meaning, cell.number, rng),
            held_out_pair=names_held_out_pair(meaning, self.words),
        )

    def _nouns(
        self, cell: Cell, objects: Sequence[ShapeObject], rng: np.random.Generator, single: bool
    ) -> tuple[Sequence[str], Sequence[str]]:
        """Nouns to ask about and to refer to, chosen so that hard cases are as common as easy ones."""
        counts = Counter(item.noun for item in objects)
        present = sorted(counts)
        absent = [noun for noun in self.words.nouns if noun not in counts] or present
        repeated = [noun for noun in present if counts[noun] > 1]
        if cell.family == "except":  # "everything except X" is everything where there is no X
            return (absent if cell.kind == ALL else present), present
        if cell.kind != NONE:
            chooses = cell.kind == ONE and cell.family != "category" and not single
            return (repeated if chooses else present), present
        nouns = absent if cell.family == "category" or rng.random() < ABSENT_SHARE else present
        return nouns, absent if rng.random() < ABSENT_SHARE else present

    def _phrasings(self, meaning: Meaning, number: str, rng: np.random.Generator) -> dict[InstructionLevel, Phrasing]:
        phrasings = {}
        for level in self.levels:
            held_out = self.split != "train" and rng.random() < HELD_OUT_PHRASING_SHARE
            if meaning.family not in families_of(level, self.words):
                continue
            choose = partial(one_of, rng)
            # Held out are phrasings or, in worlds that have some, what things are said to be for: one at a time.
            unheard = self.words.unheard if held_out and level is InstructionLevel.COMPLEX else None
            if unheard is not None and rng.random() < UNHEARD_SHARE:
                said = say(meaning, number, level, choose, unheard, held_out=False)
                phrasings[level] = replace(said, template=said.template + UNHEARD, held_out=True)
            else:
                phrasings[level] = say(meaning, number, level, choose, self.words.lexicon, held_out)
        return phrasings


def kinds_of(level: InstructionLevel) -> tuple[str, ...]:
    """The target kinds of a level in table order; a concept names all its instances, so it has no 1-to-N."""
    cells = cell_weights(families_of(level))
    order = [kind for kind in (ONE, SOME, ALL, NONE) if any(cell.kind == kind for cell in cells)]
    return tuple(order)
