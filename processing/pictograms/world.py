# SPDX-License-Identifier: Apache-2.0
"""The pictogram world: the scenes, questions and data sets of the shapes world with other things and other words."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..shapes.dataset import ShapesInstructionDataset
from ..shapes.lexicon import WorldWords
from ..shapes.rendering import ShapeObject
from ..shapes.world import ShapesWorld
from .lexicon import PICTOGRAM_WORDS
from .rendering import render


class PictogramsWorld(ShapesWorld):
    """Scenes of ordinary things; see [`ShapesWorld`] for the arguments."""

    words: ClassVar[WorldWords] = PICTOGRAM_WORDS

    def paint(self, objects: tuple[ShapeObject, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return render(objects, rng)


class PictogramsInstructionDataset(ShapesInstructionDataset):
    """Instructions of the pictogram world as samples; see [`ShapesInstructionDataset`].

    Complex instructions of validation and test are held out in one of two ways: by the phrasing, or by words that
    training never says of a thing (their `template` ends with "/unheard").
    """

    world_type: ClassVar[type[ShapesWorld]] = PictogramsWorld
