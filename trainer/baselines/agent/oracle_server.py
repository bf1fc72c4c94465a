# SPDX-License-Identifier: Apache-2.0
"""A chat endpoint that knows the right answers: what SAM3 + Agent would reach with a perfect chat model.

It plays the agent's protocol as a model would: it names a noun phrase, looks at the drawing it is sent, finds out
which numbered masks lie on the target, and selects them. Only the target itself is given to it. It reads images that
arrive without loss (up to 256 x 256 pixels), as those of the shapes world do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ....processing.chat.server import Answer, ScriptedChatServer, images_of, texts_of
from ....processing.masks import decode_masks
from .mask_candidates import PAINT, mask_color

if TYPE_CHECKING:
    from ....processing.datasets.schema import InstructionRow

SAME_COLOR = 14.0  # mean absolute difference per channel that transport as JPEG stays below
ON_TARGET = 0.5  # IoU of a drawn mask with the target
ANY_OBJECT = "object"  # searched when the noun leads nowhere: "everything except the squares" has no noun of its own


@dataclass(frozen=True)
class OracleTruth:
    """The noun phrase of a target and its N masks, bool [N, H, W]; without masks, every instance is the target."""

    concept: str
    masks: np.ndarray | None


class OracleChat:
    """The script of an oracle endpoint.

    Args:
        truths: by (`image_key(image)`, instruction).
    """

    def __init__(self, truths: dict[tuple[str, str], OracleTruth]):
        self.truths = truths
        self.instructions: dict[str, list[str]] = {}
        for key, text in truths:
            self.instructions.setdefault(key, []).append(text)

    @classmethod
    def from_rows(cls, rows: Iterable[InstructionRow]) -> OracleChat:
        """Reads the answers from rows of the data schema; a concept denotes all of its instances, whatever the row."""
        truths = {}
        for row in rows:
            key = image_key(row["image"])
            masks = decode_masks(row["masks"], row["height"], row["width"])
            for text in (*row["simple"], *row["complex"]):
                truths[key, text] = OracleTruth(row["concept"][0], masks)
            for text in row["concept"]:
                truths[key, text] = OracleTruth(text, None)
        return cls(truths)

    def serve(self) -> ScriptedChatServer:
        """The endpoint, as a context manager."""
        return ScriptedChatServer(self, keep_requests=False)

    def __call__(self, request: dict, index: int) -> Answer:
        messages = request["messages"]
        if len(messages) == 1:  # the check of an endpoint before it is used
            return Answer("yes")
        images = [image for message in messages for image in images_of(message)]
        words = " ".join(map(texts_of, messages))
        truth = self._truth(images[0], texts_of(messages[1]))
        if truth is None:
            return Answer(status=400, body=b'{"error": "the oracle knows no answer to this image and request"}')
        if len(images) == 3:
            text = self._judge(images[0], images[1], truth)
        else:
            text = self._take_turn(messages, images, truth)
        return Answer(text, usage={"prompt_tokens": len(words.split()), "completion_tokens": len(text.split())})

    def _truth(self, image: Image.Image, request: str) -> OracleTruth | None:
        key = image_key(image)
        asked = [text for text in self.instructions.get(key, ()) if f'"{text}"' in request]
        return self.truths[key, max(asked, key=len)] if asked else None

    def _take_turn(self, messages: list[dict], images: list[Image.Image], truth: OracleTruth) -> str:
        request, latest = texts_of(messages[1]), texts_of(messages[-1])
        if len(images) == 2:
            count = int(re.findall(r"from 1 to (\d+)", latest)[-1])
            regions = find_painted(images[0], images[1], count)
            chosen = [number for number, region in enumerate(regions, 1) if on_target(region, truth.masks)]
            if chosen:
                return tool("select_masks_and_return", final_answer_masks=chosen)
        if truth.masks is None or len(truth.masks):
            searched = request.partition("\n")[2] + " ".join(texts_of(m) for m in messages if m["role"] == "assistant")
            for phrase in (truth.concept, ANY_OBJECT):
                if f'"{phrase}"' not in searched:
                    return tool("segment_phrase", text_prompt=phrase)
        return tool("report_no_mask")

    def _judge(self, image: Image.Image, marked: Image.Image, truth: OracleTruth) -> str:
        (region,) = find_painted(image, marked, 1)
        verdict = "Accept" if on_target(region, truth.masks) else "Reject"
        return f"<think>I compare.</think><verdict>{verdict}</verdict>"


def image_key(image: Image.Image) -> str:
    """Identifies an image by its pixels."""
    image = image.convert("RGB")
    return hashlib.sha256(str(image.size).encode() + image.tobytes()).hexdigest()


def tool(name: str, **parameters: object) -> str:
    """A reply with one call."""
    return f"<think>I know.</think><tool>{json.dumps({'name': name, 'parameters': parameters})}</tool>"


def find_painted(image: Image.Image, drawing: Image.Image, count: int) -> np.ndarray:
    """Where masks 1 to `count` are painted, found from the colors alone: bool [count, H, W] at the image's size."""
    before = np.asarray(image.convert("RGB").resize(drawing.size, Image.Resampling.BICUBIC), dtype=np.float32)
    after = np.asarray(drawing.convert("RGB"), dtype=np.float32)
    distances = [np.abs(after - before).mean(-1)]  # number 0: no paint
    for index in range(count):
        color = np.asarray(mask_color(index), dtype=np.float32)
        painted = np.abs(after - (before + PAINT * (color - before))).mean(-1)
        outline = np.abs(after - color).mean(-1)
        distances.append(np.minimum(painted, outline))
    distances = np.stack(distances)
    nearest = np.where(distances.min(0) < SAME_COLOR, distances.argmin(0), 0).astype(np.uint8)
    small = np.asarray(Image.fromarray(nearest).resize(image.size, Image.Resampling.NEAREST))
    return np.stack([small == number for number in range(1, count + 1)])


def on_target(region: np.ndarray, masks: np.ndarray | None) -> bool:
    """Whether a region is one of the target's masks."""
    if masks is None:
        return True
    overlaps = (masks & region).sum((1, 2)) / np.maximum((masks | region).sum((1, 2)), 1)
    return bool((overlaps > ON_TARGET).any())


__all__ = ["OracleChat", "OracleTruth", "find_painted", "image_key"]
