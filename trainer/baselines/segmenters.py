# SPDX-License-Identifier: Apache-2.0
"""Systems under evaluation: an image and its instructions in, scored masks and their cost out; SAM3-I and SAM3."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from ...processing.fingerprint import fingerprint_json, fingerprint_tensors
from ...processing.post_processing import segment_rows

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.get_logger(__name__)


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
        boxes: float [K, 4], xyxy pixels; None where the system has none
    `error` holds the reason when the system gave no usable answer; such a result has K = 0, has IoU 0 and is never
    taken for "nothing is there".
    """

    masks: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray | None = None
    level: str | None = None
    cost: SegmentationCost = field(default_factory=SegmentationCost)
    error: str | None = None

    def __post_init__(self) -> None:
        self.masks = np.asarray(self.masks, dtype=bool)
        self.scores = np.asarray(self.scores, dtype=np.float64).reshape(-1)
        if self.masks.ndim != 3 or len(self.masks) != len(self.scores):
            raise ValueError(
                "SegmentationResult needs masks [K, H, W] and scores [K] of one K; "
                f"received masks {self.masks.shape} and scores {self.scores.shape}."
            )

    @classmethod
    def empty(cls, height: int, width: int, **fields: Any) -> SegmentationResult:
        """A result without instances for an image of `height` x `width` pixels."""
        return cls(masks=np.zeros((0, height, width), dtype=bool), scores=np.zeros(0), **fields)


class Segmenter(ABC):
    """A system under evaluation.

    Attributes:
        name: how the tables call the system, e.g. "sam3-i", "sam3", "sam3-concept", "agent".
        text_source: which text of a row the system is given: "instruction", or "concept" for the row's noun phrase
            (a system that is handed the noun by somebody else; the report says so).
        lowest_score: instances above it are returned, for scoring at any higher threshold; None for a system whose
            answers are final.
    """

    name: str = "segmenter"
    text_source: str = "instruction"
    lowest_score: float | None = None

    @property
    @abstractmethod
    def num_parameters(self) -> int | None:
        """Parameters of everything that runs, the chat model included; None where they cannot be known."""

    def identity(self) -> dict[str, Any]:
        """Fingerprints of what decides its answers (weights, processor, ...): a run only goes on with the same."""
        return {}

    def segment(self, image: Image, instructions: list[str], levels: list[str | None]) -> list[SegmentationResult]:
        """Answers several instructions about one image, one result per instruction and in their order.

        `levels` holds "concept", "simple" or "complex", or None where the system should decide. The cost of each
        result is filled in by the system, since only it knows what was shared. A system implements this or
        `segment_images`.
        """
        return self.segment_images([image], [instructions], [levels])[0]

    def segment_images(
        self, images: Sequence[Image], instructions: Sequence[list[str]], levels: Sequence[list[str | None]]
    ) -> list[list[SegmentationResult]]:
        """Answers the instructions of several images."""
        return [self.segment(*sample) for sample in zip(images, instructions, levels, strict=True)]


@dataclass(frozen=True)
class SegmenterSettings:
    """How a model answers.

    Attributes:
        threshold: score that an instance must exceed, probability.
        mask_threshold: probability from which a pixel belongs to a mask.
        batch_size: texts per forward pass after the vision encoder.
    """

    threshold: float = 0.5
    mask_threshold: float = 0.5
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.threshold < 1 or not 0 < self.mask_threshold < 1:
            raise ValueError(
                "Expected `batch_size` >= 1, `threshold` in [0, 1) and `mask_threshold` in (0, 1), "
                f"found {self.batch_size}, {self.threshold} and {self.mask_threshold}."
            )


def model_identity(model: Any, processor: Any, settings: SegmenterSettings) -> dict[str, Any]:
    """Fingerprints of weights and processor by content, and the threshold of the masks."""
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    texts = json.loads(backend.to_str()) if backend is not None else processor.tokenizer.get_vocab()
    texts = {key: value for key, value in texts.items() if key not in ("padding", "truncation")}  # of the last call
    return {
        "weights": fingerprint_tensors(model.state_dict()),
        "processor": fingerprint_json([processor.image_processor.to_json_string(), texts]),
        "mask_threshold": settings.mask_threshold,
    }


@dataclass(frozen=True)
class EncodedImages:
    """Vision features of I images, their sizes (height, width) in pixels, and the seconds it took."""

    vision_embeds: Any
    sizes: list[tuple[int, int]]
    seconds: float


@dataclass(frozen=True)
class Detections:
    """What one phrase finds: masks bool [K, H, W], scores float [K], boxes float [K, 4] xyxy pixels; seconds taken."""

    masks: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    seconds: float


class PhraseDetector:
    """Finds noun phrases with a `Sam3Model`, or with SAM3-I at the concept level, which computes the same.

    Args:
        model: `Sam3Model` or `Sam3IForInstructionSegmentation`.
        processor: the processor of either.
        settings: fields of `SegmenterSettings`.
    """

    def __init__(self, model: Any, processor: Any, **settings: Any):
        self.model = model.eval()
        self.processor = processor
        self.settings = SegmenterSettings(**settings)
        # Stock SAM3 has no positions beyond these.
        self.max_tokens = model.config.text_config.max_position_embeddings

    @property
    def num_parameters(self) -> int:
        """Parameters that run at the concept level."""
        return sum(p.numel() for name, p in self.model.named_parameters() if ".sam3i_adapter." not in name)

    def identity(self) -> dict[str, Any]:
        """What decides what is found."""
        return model_identity(self.model, self.processor, self.settings)

    @torch.inference_mode()
    def encode(self, images: list[Image]) -> EncodedImages:
        """Computes the vision features of images, each once."""
        started = time.monotonic()
        pixels = self.processor.image_processor(images=[i.convert("RGB") for i in images], return_tensors="pt")
        embeds = self.model.get_vision_features(pixels["pixel_values"].to(self.model.device, self.model.dtype))
        _synchronize(self.model.device)
        return EncodedImages(embeds, [(i.height, i.width) for i in images], time.monotonic() - started)

    @torch.inference_mode()
    def detect(self, encoded: EncodedImages, phrases: list[str], image_ids: list[int]) -> list[Detections]:
        """Finds phrase i in image `image_ids[i]`; longer phrases than the model reads are cut, with a warning."""
        if len(phrases) != len(image_ids):
            raise ValueError(f"Expected one image id per phrase, found {len(image_ids)} for {len(phrases)} phrases.")
        detections = []
        for start in range(0, len(phrases), self.settings.batch_size):
            rows = slice(start, start + self.settings.batch_size)
            detections += self._detect_batch(encoded, phrases[rows], image_ids[rows])
        return detections

    def _detect_batch(self, encoded: EncodedImages, phrases: list[str], image_ids: list[int]) -> list[Detections]:
        started, device = time.monotonic(), self.model.device
        tokens = self._tokenize(phrases).to(device)
        index = torch.tensor(image_ids, device=device)
        embeds = type(encoded.vision_embeds)(
            fpn_hidden_states=tuple(level[index] for level in encoded.vision_embeds.fpn_hidden_states),
            fpn_position_encoding=tuple(level[index] for level in encoded.vision_embeds.fpn_position_encoding),
        )
        outputs = self.model(
            vision_embeds=embeds, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        sizes = [encoded.sizes[image] for image in image_ids]
        results = segment_rows(outputs, self.settings.threshold, self.settings.mask_threshold, sizes)
        found = [[result[key].cpu().numpy() for key in ("masks", "scores", "boxes")] for result in results]
        seconds = (time.monotonic() - started) / len(phrases)
        return [Detections(*item, seconds) for item in found]

    def _tokenize(self, phrases: list[str]) -> Any:
        tokenizer = self.processor.tokenizer
        for phrase in phrases:
            length = len(tokenizer(phrase, verbose=False)["input_ids"])
            if length > self.max_tokens:
                logger.warning(
                    "SAM3 reads %d tokens; the end of this text of %d is cut: %r", self.max_tokens, length, phrase
                )
        return tokenizer(
            phrases, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )


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
        self.lowest_score = detector.settings.threshold

    @property
    def num_parameters(self) -> int:
        return self.detector.num_parameters

    def identity(self) -> dict[str, Any]:
        return self.detector.identity()

    def segment_images(
        self, images: Sequence[Image], instructions: Sequence[list[str]], levels: Sequence[list[str | None]]
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


class Sam3ISegmenter(Segmenter):
    """Follows each instruction in one forward pass; images are encoded once for all their instructions.

    Args:
        model, processor: `Sam3IForInstructionSegmentation` and `Sam3IProcessor`.
        name: how the tables call it.
        settings: fields of `SegmenterSettings`.
    """

    def __init__(self, model: Any, processor: Any, *, name: str = "sam3-i", **settings: Any):
        self.name = name
        self.model = model.eval()
        self.processor = processor
        self.settings = SegmenterSettings(**settings)
        self.lowest_score = self.settings.threshold

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def identity(self) -> dict[str, Any]:
        return model_identity(self.model, self.processor, self.settings)

    @torch.inference_mode()
    def segment_images(
        self, images: Sequence[Image], instructions: Sequence[list[str]], levels: Sequence[list[str | None]]
    ) -> list[list[SegmentationResult]]:
        """Encodes the images in one batch and follows all their instructions in batches of mixed levels."""
        asked = [index for index, group in enumerate(instructions) if group]
        if not asked:
            return [[] for _ in images]
        started = time.monotonic()
        inputs = self.processor(
            images=[images[index].convert("RGB") for index in asked],
            text=[list(instructions[index]) for index in asked],
            instruction_levels=[[level or "auto" for level in levels[index]] for index in asked],
            return_tensors="pt",
        ).to(self.model.device)
        vision_embeds = self.model.get_vision_features(inputs["pixel_values"].to(self.model.dtype))
        _synchronize(self.model.device)
        vision_seconds = (time.monotonic() - started) / len(asked)
        sizes = [(images[index].height, images[index].width) for index in asked]
        answers = []
        for start in range(0, len(inputs["input_ids"]), self.settings.batch_size):
            answers += self._follow(inputs, vision_embeds, slice(start, start + self.settings.batch_size), sizes)
        remaining = iter(answers)
        return [[self._result(*next(remaining), vision_seconds, len(group)) for _ in group] for group in instructions]

    def _follow(
        self, inputs: Any, vision_embeds: Any, rows: slice, sizes: list[tuple[int, int]]
    ) -> list[tuple[dict[str, Any], float]]:
        """Instances of some rows, and the seconds each took."""
        started = time.monotonic()
        names = ("input_ids", "attention_mask", "instruction_levels", "image_ids")
        batch = {name: inputs[name][rows] for name in names}
        outputs = self.model(vision_embeds=vision_embeds, **batch)
        results = self.processor.post_process_instruction_segmentation(
            outputs,
            threshold=self.settings.threshold,
            mask_threshold=self.settings.mask_threshold,
            target_sizes=[sizes[image] for image in batch["image_ids"].tolist()],
        )
        arrays = [{k: v.cpu().numpy() if torch.is_tensor(v) else v for k, v in item.items()} for item in results]
        seconds = (time.monotonic() - started) / len(results)
        return [(item, seconds) for item in arrays]

    def _result(self, item: dict[str, Any], seconds: float, vision_seconds: float, shared: int) -> SegmentationResult:
        cost = SegmentationCost(seconds + vision_seconds / shared, passes=1, vision_passes=1 / shared)
        return SegmentationResult(item["masks"], item["scores"], item["boxes"], level=item["level"], cost=cost)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


__all__ = [
    "Detections",
    "EncodedImages",
    "PhraseDetector",
    "Sam3ISegmenter",
    "SegmentationCost",
    "SegmentationResult",
    "Segmenter",
    "SegmenterSettings",
    "StockSam3Segmenter",
]
