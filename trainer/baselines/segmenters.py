# SPDX-License-Identifier: Apache-2.0
"""Systems under evaluation: an image and its instructions in, scored masks and their cost out; SAM3-I and SAM3."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from transformers.utils import logging

from ...processing.fingerprint import fingerprint_processor, fingerprint_tensors
from ...processing.post_processing import segment_rows

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.get_logger(__name__)


@dataclass
class SegmentationCost:
    """What answering ONE instruction took."""

    seconds: float = 0.0
    passes: float = 0.0  # of the detector, conditioned on a text
    vision_passes: float = 0.0  # image encodings; one shared by n instructions counts 1/n for each
    calls: int = 0  # of a chat model; unanswered requests count, since they may be paid
    tokens: int = 0  # prompt and completion
    failures: int = 0  # replies that could not be used


@dataclass
class SegmentationResult:
    """The answer to one instruction, in the pixels of the original image.

    `error` holds the reason when the system gave no usable answer; such a result has no instances, has IoU 0 and is
    never taken for "nothing is there".
    """

    masks: np.ndarray  # bool [K, H, W]
    scores: np.ndarray  # float [K], probabilities
    boxes: np.ndarray | None = None  # float [K, 4], xyxy pixels; None where the system has none
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
    def empty(cls, height: int, width: int, **fields: Any) -> Self:
        """A result without instances for an image of `height` x `width` pixels."""
        return cls(masks=np.zeros((0, height, width), dtype=bool), scores=np.zeros(0), **fields)


class Segmenter(ABC):
    """A system under evaluation."""

    name: str = "segmenter"  # how the tables call it, e.g. "sam3-i", "sam3", "sam3-concept", "agent"
    # which text of a row the system is given: "instruction", or "concept" for the row's noun phrase (a system that is
    # handed the noun by somebody else; the report says so)
    text_source: str = "instruction"
    # instances above it are returned, for scoring at any higher threshold; None for a system whose answers are final
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
class EncodedImages:
    """Vision features of I images, their sizes (height, width) in pixels, and the seconds it took."""

    vision_embeds: Any
    sizes: list[tuple[int, int]]
    seconds: float


class PhraseDetector:
    """Finds noun phrases with a `Sam3Model`, or with SAM3-I at the concept level, which computes the same.

    Args:
        threshold: score that an instance must exceed, probability.
        mask_threshold: probability from which a pixel belongs to a mask.
        max_overlap: of instances with a larger IoU of their masks the best one is kept; all are kept when absent.
        batch_size: texts per forward pass after the vision encoder.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        max_overlap: float | None = None,
        batch_size: int = 8,
    ):
        if batch_size < 1 or not 0 <= threshold < 1 or not 0 < mask_threshold < 1:
            raise ValueError(
                "Expected `batch_size` >= 1, `threshold` in [0, 1) and `mask_threshold` in (0, 1), "
                f"found {batch_size}, {threshold} and {mask_threshold}."
            )
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size
        self.threshold, self.mask_threshold, self.max_overlap = threshold, mask_threshold, max_overlap
        # Stock SAM3 has no positions beyond these.
        self.max_tokens = model.config.text_config.max_position_embeddings

    @property
    def num_parameters(self) -> int:
        """Parameters that run at the concept level."""
        return sum(p.numel() for name, p in self.model.named_parameters() if ".sam3i_adapter." not in name)

    def identity(self) -> dict[str, Any]:
        """Fingerprints of weights and processor by content, and what decides the masks."""
        return {
            "weights": fingerprint_tensors(self.model.state_dict()),
            "processor": fingerprint_processor(self.processor),
            "mask_threshold": self.mask_threshold,
            "max_overlap": self.max_overlap,
        }

    @torch.inference_mode()
    def encode(self, images: list[Image]) -> EncodedImages:
        """Computes the vision features of images, each once."""
        started = time.monotonic()
        pixels = self.processor.image_processor(images=[i.convert("RGB") for i in images], return_tensors="pt")
        embeds = self.model.get_vision_features(pixels["pixel_values"].to(self.model.device, self.model.dtype))
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return EncodedImages(embeds, [(i.height, i.width) for i in images], time.monotonic() - started)

    @torch.inference_mode()
    def detect(
        self,
        encoded: EncodedImages,
        texts: Sequence[str],
        image_ids: Sequence[int],
        levels: Sequence[str | None] | None = None,
    ) -> list[SegmentationResult]:
        """Finds text i in image `image_ids[i]`; longer ones than the model reads are cut, with a warning.

        The cost of each is that of its pass alone.
        """
        if len(texts) != len(image_ids):
            raise ValueError(f"Expected one image id per text, found {len(image_ids)} for {len(texts)} texts.")
        levels = levels or [None] * len(texts)
        found: list[SegmentationResult] = []
        for start in range(0, len(texts), self.batch_size):
            rows, started = slice(start, start + self.batch_size), time.monotonic()
            outputs = self._outputs(encoded, list(texts[rows]), list(image_ids[rows]), levels[rows])
            found += self._read(outputs, [encoded.sizes[image] for image in image_ids[rows]], started)
        return found

    def _outputs(
        self, encoded: EncodedImages, texts: list[str], image_ids: list[int], levels: Sequence[str | None]
    ) -> Any:
        """The model's outputs; noun phrases have no level."""
        tokens = self._tokenize(texts).to(self.model.device)
        index = torch.tensor(image_ids, device=self.model.device)
        embeds = type(encoded.vision_embeds)(
            fpn_hidden_states=tuple(level[index] for level in encoded.vision_embeds.fpn_hidden_states),
            fpn_position_encoding=tuple(level[index] for level in encoded.vision_embeds.fpn_position_encoding),
        )
        return self.model(vision_embeds=embeds, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])

    def _read(self, outputs: Any, sizes: list[tuple[int, int]], started: float) -> list[SegmentationResult]:
        rows = segment_rows(outputs, self.threshold, self.mask_threshold, sizes, self.max_overlap)
        found = [{key: row[key].cpu().numpy() for key in ("masks", "scores", "boxes")} for row in rows]
        cost = SegmentationCost((time.monotonic() - started) / len(rows), passes=1)
        return [
            SegmentationResult(**each, level=row["level"], cost=cost) for each, row in zip(found, rows, strict=True)
        ]

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


class InstructionFollower(PhraseDetector):
    """Follows instructions with SAM3-I, rows of mixed levels in a batch; an image is not copied for its rows."""

    @property
    def num_parameters(self) -> int:
        """All of them: every level may run."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def _outputs(
        self, encoded: EncodedImages, texts: list[str], image_ids: list[int], levels: Sequence[str | None]
    ) -> Any:
        """The model's outputs; where there is no level, the model chooses."""
        asked = [level or "auto" for level in levels]
        inputs = self.processor(text=texts, instruction_levels=asked, return_tensors="pt")
        names = ("input_ids", "attention_mask", "instruction_levels")
        batch = {name: inputs[name].to(self.model.device) for name in names}
        batch["image_ids"] = torch.tensor(image_ids, device=self.model.device)
        return self.model(vision_embeds=encoded.vision_embeds, **batch)


class ModelSegmenter(Segmenter):
    """A model that encodes the images in one batch and answers all their texts in batches."""

    def __init__(self, detector: PhraseDetector):
        self.detector = detector
        self.lowest_score = detector.threshold

    @property
    def num_parameters(self) -> int:
        return self.detector.num_parameters

    def identity(self) -> dict[str, Any]:
        return self.detector.identity()

    def segment_images(
        self, images: Sequence[Image], instructions: Sequence[list[str]], levels: Sequence[list[str | None]]
    ) -> list[list[SegmentationResult]]:
        asked = [index for index, group in enumerate(instructions) if group]
        if not asked:
            return [[] for _ in images]
        encoded = self.detector.encode([images[index] for index in asked])
        image_ids = [place for place, index in enumerate(asked) for _ in instructions[index]]
        texts = [text for group in instructions for text in group]
        asked_levels = [level for group in levels for level in group]
        found = iter(self.detector.detect(encoded, texts, image_ids, asked_levels))
        results = []
        for group in instructions:
            share = 1 / max(1, len(group))
            answers = [next(found) for _ in group]
            for answer in answers:
                seconds = answer.cost.seconds + encoded.seconds / len(asked) * share
                answer.cost = replace(answer.cost, seconds=seconds, vision_passes=share)
            results.append(answers)
        return results


class StockSam3Segmenter(ModelSegmenter):
    """Hands each text to SAM3 as if it were a noun phrase; levels do not matter to it.

    The text (`text_source`) is the "instruction" as it is, or the row's "concept", which shows what is gained by
    knowing the noun alone.
    """

    NAMES = {"instruction": "sam3", "concept": "sam3-concept"}

    def __init__(self, detector: PhraseDetector, *, text_source: str = "instruction"):
        if text_source not in self.NAMES:
            raise ValueError(f"`text_source` must be 'instruction' or 'concept', found {text_source!r}.")
        super().__init__(detector)
        self.text_source = text_source
        self.name = self.NAMES[text_source]


class Sam3ISegmenter(ModelSegmenter):
    """Follows each instruction in one forward pass; images are encoded once for all their instructions.

    Tables call it by its `name`; `settings` are those of [`PhraseDetector`].
    """

    def __init__(self, model: Any, processor: Any, *, name: str = "sam3-i", **settings: Any):
        super().__init__(InstructionFollower(model, processor, **settings))
        self.name = name
