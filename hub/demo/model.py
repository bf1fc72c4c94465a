# SPDX-License-Identifier: Apache-2.0
"""The model behind `sam3i demo`: loaded once, shared by all visitors, and each picture encoded once."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...processing.pipeline.loading import load_pipeline
from .segmentation import LOWEST_THRESHOLD, BoxExemplar, Segmentation

MOST_INSTRUCTIONS = 12  # instructions in one call: a bound on the memory of a shared page

_PICTURES_KEPT = 4


def read_instructions(text: str | None) -> list[str]:
    """The instructions of a text field: one a line, empty lines left out.

    Raises:
        ValueError: when there are more than [`MOST_INSTRUCTIONS`].
    """
    lines = [line.strip() for line in (text or "").splitlines()]
    instructions = [line for line in lines if line]
    if len(instructions) > MOST_INSTRUCTIONS:
        raise ValueError(
            f"{len(instructions)} instructions are too many for one call: expected at most {MOST_INSTRUCTIONS}, one a "
            "line."
        )
    return instructions


class DemoModel:
    """A pipeline that visitors share: one call at a time, image features kept for the most recent pictures."""

    def __init__(self, pipe: Any, name: str):
        self.pipe = pipe
        self.name = name
        self._lock = threading.Lock()
        self._features: OrderedDict[str, Any] = OrderedDict()

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "DemoModel":
        """Load a folder or Hub name; see [`load_pipeline`]."""
        return cls(load_pipeline(name, device), name)

    @property
    def device(self) -> str:
        """Where the model runs, as text."""
        return str(self.pipe.device)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.pipe.model.parameters())

    @property
    def who_chooses(self) -> str:
        """Who resolves the level "auto": `"rules"` or `"router"`."""
        return self.pipe.processor.auto_levels

    def segment(
        self,
        image: Image.Image,
        instructions: Sequence[str],
        level: str = "auto",
        boxes: Sequence[BoxExemplar] = (),
    ) -> Segmentation:
        """Run the model once on one picture, for all its instructions, of which there may be none beside boxes.

        Raises:
            ValueError: without instructions and boxes, or for boxes that leave the picture.
        """
        return self._run(image, self._texts(instructions, boxes), level, boxes)

    def compare(
        self, image: Image.Image, instructions: Sequence[str], boxes: Sequence[BoxExemplar] = ()
    ) -> list[Segmentation]:
        """The same instructions at the three levels, in the order of [`InstructionLevel`], by one call of the model.

        Raises:
            ValueError: as for [`segment`].
        """
        texts = self._texts(instructions, boxes)
        levels = [level.value for level in InstructionLevel for _ in texts]
        whole = self._run(image, texts * len(InstructionLevel), levels, boxes)
        return [
            whole.part(slice(level.index * len(texts), (level.index + 1) * len(texts)), level.value)
            for level in InstructionLevel
        ]

    @staticmethod
    def _texts(instructions: Sequence[str], boxes: Sequence[BoxExemplar]) -> list[str | None]:
        if not instructions and not boxes:
            raise ValueError("Write an instruction, such as “the star on the left”, or draw a box.")
        return list(instructions) or [None]

    def _run(self, image, texts, level: str | list[str], boxes: Sequence[BoxExemplar]) -> Segmentation:
        item = {"image": image, "text": texts, "level": level}
        if boxes:
            item["boxes"] = [list(box.corners) for box in boxes]
            item["box_labels"] = [int(box.positive) for box in boxes]
        with self._lock, torch.inference_mode():
            start = time.perf_counter()
            batch = self.pipe.preprocess([item])
            inputs = {name: value.to(self.pipe.device) for name, value in batch.pop("model_inputs").items()}
            inputs["vision_embeds"], reused = self._vision(image, inputs.pop("pixel_values"))
            encoded = time.perf_counter()
            outputs = self.pipe.model.segment(**inputs, threshold=LOWEST_THRESHOLD)
            seconds = time.perf_counter() - start
        return Segmentation(
            pipe=self.pipe,
            model=self.name,
            image=image,
            texts=tuple(texts),
            asked=level if isinstance(level, str) else "compare",
            boxes=tuple(boxes),
            outputs=_best_first(outputs),
            probabilities=_level_probabilities(outputs) if level == "auto" else None,
            lost=tuple(lost for _, lost in self.pipe.processor.measure_instructions([text or "" for text in texts])),
            vision_seconds=None if reused else encoded - start,
            seconds=seconds,
        )

    def _vision(self, image: Image.Image, pixel_values: torch.Tensor) -> tuple[Any, bool]:
        """Features of a picture, and whether they were at hand."""
        key = hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
        reused = key in self._features
        if not reused:
            self._features[key] = self.pipe.model.get_vision_features(pixel_values)
        self._features.move_to_end(key)
        while len(self._features) > _PICTURES_KEPT:
            self._features.popitem(last=False)
        return self._features[key], reused


def _best_first(outputs: Any) -> dict[str, Any]:
    """The instances of each row, sorted by score: what a visitor's session remembers of a call."""
    orders = [logits.argsort(descending=True, stable=True) for logits in outputs.pred_logits]
    lists = {
        name: [row[order].cpu() for row, order in zip(outputs[name], orders, strict=True)]
        for name in ("pred_masks", "pred_boxes", "pred_logits")
    }
    return lists | {name: outputs[name].cpu() for name in ("presence_logits", "instruction_levels")}


def _level_probabilities(outputs: Any) -> list[list[float]] | None:
    """What the learned router thinks of each instruction, where it was asked."""
    logits = outputs.level_logits  # (rows, levels)
    return None if logits is None else logits.float().softmax(-1).tolist()
