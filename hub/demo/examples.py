# SPDX-License-Identifier: Apache-2.0
"""Pictures to try in `sam3i demo`: scenes of the shapes world that no training set contains."""

from dataclasses import dataclass

from PIL import Image

from ...processing.shapes.world import ShapesWorld


@dataclass(frozen=True)
class DemoExample:
    """A picture and what to ask of it."""

    image: Image.Image
    instructions: tuple[str, ...]


_SCENES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (33, ("moon", "find all the moons here", "the objects that could move the tide")),
    (27, ("the hearts that have the color of the square", "find all the yellow hearts")),
    (4, ("find all the squares above the heart", "the blue star")),
    (53, ("the objects that would light up the night", "the orange crosses")),
    (41, ("the large heart in red", "the little stars that are red")),
    (43, ("the squares not in green", "the moon that is not yellow")),
)
"""Index in the test split of the world with seed 0, and instructions."""


def demo_examples() -> list[DemoExample]:
    """The examples; the scenes are rendered, not read from files."""
    world = ShapesWorld(0, "test")
    return [DemoExample(Image.fromarray(world.scene(index).image), texts) for index, texts in _SCENES]
