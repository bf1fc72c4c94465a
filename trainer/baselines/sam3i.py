# SPDX-License-Identifier: Apache-2.0
"""SAM3-I itself behind the interface of systems under evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..evaluation.segmenter import SegmentationCost, SegmentationResult, Segmenter

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ...processing.processing_sam3i import Sam3IProcessor


class Sam3ISegmenter(Segmenter):
    """Follows each instruction in one forward pass; images are encoded once for all their instructions.

    Args:
        model, processor: SAM3-I.
        threshold: lowest score of an instance, probability.
        mask_threshold: probability from which a pixel belongs to a mask.
        batch_size: instructions per forward pass after the vision encoder.
    """

    name = "sam3-i"

    def __init__(
        self,
        model: Sam3IForInstructionSegmentation,
        processor: Sam3IProcessor,
        *,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        batch_size: int = 8,
    ):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, found {batch_size}.")
        self.model = model.eval()
        self.processor = processor
        self.threshold = threshold
        self.mask_threshold = mask_threshold
        self.batch_size = batch_size

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def segment(self, image: Image, instructions: list[str], levels: list[str | None]) -> list[SegmentationResult]:
        return self.segment_images([image], [instructions], [levels])[0]

    @torch.inference_mode()
    def segment_images(
        self,
        images: Sequence[Image],
        instructions: Sequence[list[str]],
        levels: Sequence[list[str | None]],
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
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        vision_seconds = (time.monotonic() - started) / len(asked)
        sizes = [(images[index].height, images[index].width) for index in asked]
        answers = []
        for start in range(0, len(inputs["input_ids"]), self.batch_size):
            answers += self._follow(inputs, vision_embeds, slice(start, start + self.batch_size), sizes)
        remaining = iter(answers)
        return [[self._result(*next(remaining), vision_seconds, len(group)) for _ in group] for group in instructions]

    def _follow(self, inputs, vision_embeds, rows: slice, sizes: list[tuple[int, int]]) -> list[tuple[dict, float]]:
        """Instances of some rows, and the seconds each took."""
        started = time.monotonic()
        names = ("input_ids", "attention_mask", "instruction_levels", "image_ids")
        batch = {name: inputs[name][rows] for name in names}
        outputs = self.model(vision_embeds=vision_embeds, **batch)
        results = self.processor.post_process_instruction_segmentation(
            outputs,
            threshold=self.threshold,
            mask_threshold=self.mask_threshold,
            target_sizes=[sizes[image] for image in batch["image_ids"].tolist()],
        )
        arrays = [{k: v.cpu().numpy() if torch.is_tensor(v) else v for k, v in item.items()} for item in results]
        seconds = (time.monotonic() - started) / len(results)
        return [(item, seconds) for item in arrays]

    def _result(self, item: dict, seconds: float, vision_seconds: float, shared: int) -> SegmentationResult:
        cost = SegmentationCost(seconds + vision_seconds / shared, passes=1, vision_passes=1 / shared)
        return SegmentationResult(item["masks"], item["scores"], item["boxes"], level=item["level"], cost=cost)


__all__ = ["Sam3ISegmenter"]
