# SPDX-License-Identifier: Apache-2.0
"""Stock SAM3 as a baseline: the instruction as it is, or the noun phrase that somebody else read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..evaluation.segmenter import SegmentationCost, SegmentationResult, Segmenter
from .phrase_detector import PhraseDetector

if TYPE_CHECKING:
    from PIL.Image import Image


class StockSam3Segmenter(Segmenter):
    """Hands each text to SAM3 as if it were a noun phrase.

    Args:
        detector: the model, as a [`PhraseDetector`].
        text_source: "instruction" feeds the instruction as it is, "concept" the row's noun phrase; the latter shows
            what is gained by knowing the noun alone.
    """

    NAMES = {"instruction": "sam3", "concept": "sam3-concept"}

    def __init__(self, detector: PhraseDetector, *, text_source: str = "instruction"):
        if text_source not in self.NAMES:
            raise ValueError(f"`text_source` must be 'instruction' or 'concept', found {text_source!r}.")
        self.detector = detector
        self.text_source = text_source
        self.name = self.NAMES[text_source]

    @property
    def num_parameters(self) -> int:
        return self.detector.num_parameters

    def segment(self, image: Image, instructions: list[str], levels: list[str | None]) -> list[SegmentationResult]:
        return self.segment_images([image], [instructions], [levels])[0]

    def segment_images(
        self,
        images: Sequence[Image],
        instructions: Sequence[list[str]],
        levels: Sequence[list[str | None]],
    ) -> list[list[SegmentationResult]]:
        """Encodes the images in one batch and runs all their texts in batches; levels do not matter to stock SAM3."""
        encoded = self.detector.encode(list(images))
        texts = [text for group in instructions for text in group]
        image_ids = [index for index, group in enumerate(instructions) for _ in group]
        found = iter(self.detector.detect(encoded, texts, image_ids))
        results = []
        for group in instructions:
            share = 1 / max(1, len(group))
            vision_seconds = encoded.seconds / len(images) * share
            rows = []
            for _ in group:
                item = next(found)
                cost = SegmentationCost(vision_seconds + item.seconds, passes=1, vision_passes=share)
                rows.append(SegmentationResult(item.masks, item.scores, item.boxes, level="concept", cost=cost))
            results.append(rows)
        return results


__all__ = ["StockSam3Segmenter"]
