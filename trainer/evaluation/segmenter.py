# SPDX-License-Identifier: Apache-2.0
"""What every evaluated system implements: an image and its instructions in, scored masks and their cost out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class SegmentationCost:
    """What answering ONE instruction took.

    `passes` counts runs of the segmentation model conditioned on a text (detector passes); `vision_passes` counts
    image encodings, where an encoding shared by n instructions counts 1/n for each of them. `calls` and `tokens`
    (prompt plus completion) belong to a chat model, `failures` counts replies of it that could not be used.
    """

    seconds: float = 0.0
    passes: float = 0.0
    vision_passes: float = 0.0
    calls: int = 0
    tokens: int = 0
    failures: int = 0

    def to_dict(self) -> dict[str, float | int]:
        """The fields as plain numbers, as written to the predictions file."""
        return asdict(self)


@dataclass
class SegmentationResult:
    """The answer to one instruction, in the pixels of the original image.

    Shapes, for K instances of an image of H x W pixels:
        masks: bool [K, H, W]
        scores: float [K], probabilities
        boxes: float [K, 4], xyxy pixels; derived from the masks when absent
    `error` holds the reason when the system gave no usable answer; such a result has K = 0 and is scored as
    "nothing found".
    """

    masks: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray | None = None
    level: str | None = None
    cost: SegmentationCost = field(default_factory=SegmentationCost)
    error: str | None = None

    def __post_init__(self):
        self.masks = np.asarray(self.masks, dtype=bool)
        self.scores = np.asarray(self.scores, dtype=np.float64).reshape(-1)
        if self.masks.ndim != 3 or len(self.masks) != len(self.scores):
            raise ValueError(
                "SegmentationResult needs masks [K, H, W] and scores [K] of one K; "
                f"received masks {self.masks.shape} and scores {self.scores.shape}."
            )

    @classmethod
    def empty(cls, height: int, width: int, **fields) -> SegmentationResult:
        """A result without instances for an image of `height` x `width` pixels."""
        return cls(masks=np.zeros((0, height, width), dtype=bool), scores=np.zeros(0), **fields)


class Segmenter(ABC):
    """A system under evaluation.

    Attributes:
        name: how the tables call the system, e.g. "sam3-i", "sam3", "sam3-concept", "agent".
        text_source: which text of a row the system is given: "instruction", or "concept" for the row's noun phrase
            (a system that is handed the noun by somebody else; the report says so).
    """

    name: str = "segmenter"
    text_source: str = "instruction"

    @property
    @abstractmethod
    def num_parameters(self) -> int | None:
        """Parameters of everything that runs, the chat model included; None where they cannot be known."""

    @abstractmethod
    def segment(self, image: Image, instructions: list[str], levels: list[str | None]) -> list[SegmentationResult]:
        """Answers several instructions about one image, one result per instruction and in their order.

        `levels` holds "concept", "simple" or "complex", or None where the system should decide. The cost of each
        result is filled in by the system, since only it knows what was shared.
        """

    def segment_images(
        self,
        images: Sequence[Image],
        instructions: Sequence[list[str]],
        levels: Sequence[list[str | None]],
    ) -> list[list[SegmentationResult]]:
        """Answers the instructions of several images; systems that batch over images override this."""
        return [self.segment(*sample) for sample in zip(images, instructions, levels, strict=True)]
