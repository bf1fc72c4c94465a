# SPDX-License-Identifier: Apache-2.0
"""Stock SAM3 as a tool: encode images once, then find all instances of noun phrases in them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.utils import logging

from ...processing.post_processing import segment_rows

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class EncodedImages:
    """Vision features of I images, their sizes (height, width) in pixels, and the seconds it took."""

    vision_embeds: object
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
        threshold: lowest score of an instance, probability.
        mask_threshold: probability from which a pixel belongs to a mask.
        batch_size: phrases per forward pass.
    """

    def __init__(self, model, processor, *, threshold: float = 0.5, mask_threshold: float = 0.5, batch_size: int = 8):
        if batch_size < 1 or not 0 <= threshold < 1 or not 0 < mask_threshold < 1:
            raise ValueError(
                "PhraseDetector needs `batch_size` >= 1, `threshold` in [0, 1) and `mask_threshold` in (0, 1); "
                f"received {batch_size}, {threshold} and {mask_threshold}."
            )
        self.model = model.eval()
        self.processor = processor
        self.threshold = threshold
        self.mask_threshold = mask_threshold
        self.batch_size = batch_size
        # Stock SAM3 has no positions beyond these.
        self.max_tokens = model.config.text_config.max_position_embeddings

    @property
    def num_parameters(self) -> int:
        """Parameters that run at the concept level."""
        return sum(p.numel() for name, p in self.model.named_parameters() if ".sam3i_adapter." not in name)

    @torch.inference_mode()
    def encode(self, images: list[Image]) -> EncodedImages:
        """Computes the vision features of images, each once."""
        started = time.monotonic()
        pixels = self.processor.image_processor(images=[i.convert("RGB") for i in images], return_tensors="pt")
        pixel_values = pixels["pixel_values"].to(self.model.device, self.model.dtype)
        embeds = self.model.get_vision_features(pixel_values)
        _synchronize(self.model.device)
        return EncodedImages(embeds, [(i.height, i.width) for i in images], time.monotonic() - started)

    @torch.inference_mode()
    def detect(self, encoded: EncodedImages, phrases: list[str], image_ids: list[int]) -> list[Detections]:
        """Finds phrase i in image `image_ids[i]`; longer phrases than the model reads are cut, with a warning."""
        if len(phrases) != len(image_ids):
            raise ValueError(f"Expected one image id per phrase, found {len(image_ids)} for {len(phrases)} phrases.")
        detections = []
        for start in range(0, len(phrases), self.batch_size):
            rows = slice(start, start + self.batch_size)
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
        results = segment_rows(
            outputs, self.threshold, self.mask_threshold, [encoded.sizes[image] for image in image_ids]
        )
        found = [[result[key].cpu().numpy() for key in ("masks", "scores", "boxes")] for result in results]
        seconds = (time.monotonic() - started) / len(phrases)
        return [Detections(*item, seconds) for item in found]

    def _tokenize(self, phrases: list[str]):
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


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


__all__ = ["Detections", "EncodedImages", "PhraseDetector"]
