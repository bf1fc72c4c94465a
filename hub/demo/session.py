# SPDX-License-Identifier: Apache-2.0
"""What one visitor of `sam3i demo` has before them: a picture, box exemplars and the last answers."""

import math
from dataclasses import dataclass, field

from PIL import Image

from ...processing.drawing.instances import draw_boxes
from ...processing.images import read_image
from ...processing.shapes.world import ShapesWorld
from .model import DemoModel, read_instructions
from .segmentation import BoxExemplar, Segmentation, Shown, View


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


MOST_BOXES = 20  # box exemplars of one call

CANVAS_SIDE = 640  # longest side, in pixels, of the picture on which boxes are drawn


def read_corners(text: str | None) -> tuple[float, float, float, float]:
    """The corners of a box that was typed. Raises ValueError when they are not four finite numbers."""
    words = (text or "").replace(",", " ").split()
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        numbers = ()
    if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"A box needs four numbers, x1, y1, x2, y2 in pixels of the picture; found “{text or ''}”.")
    return numbers


@dataclass
class DemoSession:
    """A visitor's state; the model is not in it."""

    image: Image.Image | None = None  # in RGB
    boxes: list[BoxExemplar] = field(default_factory=list)
    corner: tuple[int, int] | None = None  # the first one of a box that is being drawn, in pixels
    answer: Segmentation | None = None
    comparison: list[Segmentation] = field(default_factory=list)  # at the three levels
    was_explained: bool = False  # whether the visitor has been told what an answer shows

    def show(self, source: str | Image.Image | None) -> bool:
        """Put a picture in place of the last one and forget what belonged to that; whether it is another picture.

        Raises:
            ValueError: when it cannot be read.
        """
        image = None if source is None else read_image(source)
        if image is not None and self.image is not None and image.size == self.image.size:
            if image.tobytes() == self.image.tobytes():
                return False
        self.image, self.boxes, self.corner, self.answer, self.comparison = image, [], None, None, []
        return True

    def _require_image(self) -> Image.Image:
        if self.image is None:
            raise ValueError("There is no picture yet: upload one, paste one, or choose an example.")
        return self.image

    def segment(self, model: DemoModel, text: str | None, level: str) -> Segmentation:
        """Follow the instructions of a text field, one a line.

        Raises:
            ValueError: without a picture, without instructions and boxes, or with too many instructions.
        """
        self.answer = model.segment(self._require_image(), read_instructions(text), level, self.boxes)
        return self.answer

    def compare(self, model: DemoModel, text: str | None) -> list[Segmentation]:
        """Follow the instructions at the three levels. Raises ValueError as for [`segment`]."""
        self.comparison = model.compare(self._require_image(), read_instructions(text), self.boxes)
        return self.comparison

    def view(self, shown: Shown) -> View | None:
        """The last answer at other thresholds; the model does not run."""
        return None if self.answer is None else self.answer.view(shown)

    def add_box(self, corners: tuple[float, float, float, float], positive: bool) -> BoxExemplar:
        """Add an exemplar between two corners, in any order, clipped to the picture.

        Raises:
            ValueError: without a picture, for a box without area in the picture, or for too many boxes.
        """
        image = self._require_image()
        if len(self.boxes) >= MOST_BOXES:
            raise ValueError(f"Expected at most {MOST_BOXES} boxes: undo one first.")
        x1, x2 = sorted(round(min(max(value, 0), image.width)) for value in corners[0::2])
        y1, y2 = sorted(round(min(max(value, 0), image.height)) for value in corners[1::2])
        if x1 == x2 or y1 == y2:
            raise ValueError(
                f"A box from ({corners[0]:g}, {corners[1]:g}) to ({corners[2]:g}, {corners[3]:g}) has no area in this "
                f"picture of {image.width} x {image.height} pixels."
            )
        box = BoxExemplar((x1, y1, x2, y2), positive)
        self.boxes.append(box)
        self.corner = None
        return box

    def click(self, position: tuple[float, float], positive: bool) -> BoxExemplar | None:
        """A click at (x, y) in pixels of the canvas: the first sets a corner, the second completes the box.

        Raises:
            ValueError: as for [`add_box`].
        """
        factor = CANVAS_SIDE / max(self._require_image().size)
        point = (round(position[0] / factor), round(position[1] / factor))
        if self.corner is None:
            self.corner = point
            return None
        corner, self.corner = self.corner, None
        return self.add_box((*corner, *point), positive)

    def undo_box(self) -> None:
        """Take back the corner that was set, or else the last box."""
        if self.corner is not None:
            self.corner = None
        elif self.boxes:
            self.boxes.pop()

    def clear_boxes(self) -> None:
        """Remove all boxes."""
        self.boxes, self.corner = [], None

    def canvas(self) -> Image.Image | None:
        """The picture to draw boxes on."""
        if self.image is None:
            return None
        corners, signs = [box.corners for box in self.boxes], [int(box.positive) for box in self.boxes]
        return draw_boxes(self.image, corners, signs, corner=self.corner, side=CANVAS_SIDE)
