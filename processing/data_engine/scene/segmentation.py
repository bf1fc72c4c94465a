# SPDX-License-Identifier: Apache-2.0
"""SAM3 and SAM3-I in the data engine: as grounding check, and as the source of masks where there are only pictures."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...masks import encode_mask
from .scene import AnnotatedScene, LeftOut, SceneInstance, open_image
from .sources import MIN_AREA, Wanted

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
THRESHOLD, DOUBT_THRESHOLD = 0.6, 0.2  # a proposal scores above the first; what is below the second counts as nothing
SAME_INSTANCE = 0.7  # IoU from which two proposals show one thing; the better score keeps it


class PipelineGrounder:
    """Finds the masks of instructions with an instruction-segmentation pipeline, one picture at a time."""

    def __init__(self, pipeline: Any, name: str, threshold: float = 0.5):
        self.pipeline = pipeline
        self.name = name
        self.threshold = threshold
        self._lock = threading.Lock()

    def __call__(self, image: Image, texts: list[str], levels: list[str]) -> list[np.ndarray]:
        """Bool masks [K, height, width] per instruction."""
        with self._lock:
            results = self.pipeline(image, text=list(texts), level=list(levels), threshold=self.threshold)
        return [_stack([item["mask"] for item in found], image.size) for found in results]


class ProposalSource:
    """Scenes of pictures alone: SAM3 proposes the instances of given concepts.

    A concept for which something scores between the two thresholds is neither complete nor absent, and the engine
    counts on neither.
    """

    def __init__(self, folder: str | Path, concepts: Sequence[str], pipeline: Any, split: str | None = None):
        self.folder = Path(folder)
        self.nouns = tuple(sorted({" ".join(concept.lower().split()) for concept in concepts} - {""}))
        self.files = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not self.nouns or not self.files:
            counts = f"{len(self.files)} pictures and {len(self.nouns)} concepts"
            raise ValueError(f"{folder}: expected pictures and concepts, found {counts}.")
        self.left_out = LeftOut()
        self.fingerprint = None  # finished images are compared one by one
        self.pipeline = pipeline
        self.split = split

    def scenes(self, wanted: Wanted | None = None) -> Iterator[AnnotatedScene]:
        """One scene per wanted picture, in order of the file names."""
        for order, path in enumerate(self.files):
            file_name = path.relative_to(self.folder).as_posix()
            if wanted is None or wanted(file_name):
                yield self._scene(order, path, file_name)

    def _scene(self, order: int, path: Path, file_name: str) -> AnnotatedScene:
        left_out, nouns = LeftOut(), list(self.nouns)
        try:
            image = open_image(str(path), file_name)
        except ValueError as error:
            left_out.add("image that cannot be read", str(error))
            lazy = partial(open_image, str(path), file_name)
            return AnnotatedScene(file_name, 0, 0, (), lazy, order, file_name=file_name, left_out=left_out)
        results = self.pipeline(image, text=nouns, level=["concept"] * len(nouns), threshold=DOUBT_THRESHOLD)
        found, doubtful, absent = [], set(), set()
        for noun, items in zip(nouns, results, strict=True):
            if not items:
                absent.add(noun)
            for item in items:
                mask = np.asarray(item["mask"]) > 0
                if item["score"] <= THRESHOLD or mask.sum() < MIN_AREA:
                    left_out.add("proposal of a low score or a tiny mask", f"{file_name}: {noun}")
                    doubtful.add(noun)
                else:
                    found.append((item["score"], noun, mask))
        kept: list[tuple[str, np.ndarray]] = []
        for _, noun, mask in sorted(found, key=lambda item: -item[0]):
            rivals = [other for other, shape in kept if _iou(mask, shape) >= SAME_INSTANCE]
            if not rivals:
                kept.append((noun, mask))
            elif noun not in rivals:  # one thing, two names: neither name can be counted on
                doubtful |= {noun, *rivals}
        instances = [SceneInstance(i, noun, encode_mask(mask)) for i, (noun, mask) in enumerate(kept, start=1)]
        return AnnotatedScene(
            image_id=file_name,
            width=image.width,
            height=image.height,
            instances=tuple(instances),
            open_image=partial(open_image, str(path), file_name),
            order=order,
            image=str(path.resolve()),
            file_name=file_name,
            dataset=self.folder.name,
            split=self.split,
            absent_nouns=frozenset(absent),
            partial_nouns=frozenset(doubtful),
            left_out=left_out,
        )


def _stack(masks: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    """Pictures of masks as bool [K, height, width]; K may be 0."""
    width, height = size
    return np.stack([np.asarray(mask) > 0 for mask in masks]) if masks else np.zeros((0, height, width), dtype=bool)


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))
