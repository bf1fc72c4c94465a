# SPDX-License-Identifier: Apache-2.0
"""An agent that knows the correct answers: what SAM3 + Agent would reach with a perfect chat model.

It takes the turns of the agent as a chat model would: it names a noun phrase, learns which of the masks found lie on
the target, and selects those. Only the target is given to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ....processing.chat.client import ChatReply, ChatRequestError, ChatUsage, Message
from ....processing.images import read_image
from ....processing.masks import decode_masks
from .agent import AgentEpisode, AgentSegmenter
from .tools import AgentTool

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..segmenters import PhraseDetector

ON_TARGET = 0.5  # IoU of a mask with the target
ANY_OBJECT = "object"  # searched when the noun leads nowhere: "everything except the squares" has no noun of its own


@dataclass(frozen=True)
class OracleTruth:
    """The noun phrase of a target and its N masks, bool [N, H, W]; without masks, every instance is the target."""

    concept: str
    masks: np.ndarray | None

    def numbers(self, candidates: np.ndarray) -> list[int]:
        """The numbers, from 1, of the candidates (bool [K, H, W]) on the target."""
        found = []
        for number, region in enumerate(candidates, 1):
            if self.masks is not None:
                overlaps = (self.masks & region).sum((1, 2)) / np.maximum((self.masks | region).sum((1, 2)), 1)
            if self.masks is None or (overlaps > ON_TARGET).any():
                found.append(number)
        return found


class OracleAgent(AgentSegmenter):
    """The agent with a perfect chat model.

    Args:
        truths: by (`image_key(image)`, instruction).
    """

    def __init__(self, detector: PhraseDetector, truths: Mapping[tuple[str, str], OracleTruth], **options: Any):
        super().__init__(detector, None, **options)
        self.truths = truths

    @classmethod
    def from_rows(cls, detector: PhraseDetector, rows: Iterable[Mapping[str, Any]], **options: Any) -> OracleAgent:
        """Reads the answers from rows of the data schema; a concept denotes all of its instances, whatever the row."""
        truths = {}
        for row in rows:
            key = image_key(read_image(row["image"]))
            known = [mask for mask in row["masks"] if mask is not None]
            masks = decode_masks(known, row["height"], row["width"])
            for text in (*row["simple"], *row["complex"]):
                truths[key, text] = OracleTruth(next(iter(row["concept"]), ANY_OBJECT), masks)
            for text in row["concept"]:
                truths[key, text] = OracleTruth(text, None)
        return cls(detector, truths, **options)

    def reply(self, episode: AgentEpisode, messages: list[Message]) -> ChatReply:
        truth = self.truths.get((image_key(episode.image), episode.conversation.instruction))
        if truth is None:
            raise ChatRequestError("the oracle knows no answer to this image and request", 400)
        chosen = truth.numbers(episode.candidates.masks)
        phrases = [] if truth.masks is not None and not len(truth.masks) else [truth.concept, ANY_OBJECT]
        unused = [phrase for phrase in phrases if not episode.conversation.is_used(phrase)]
        if chosen:
            text = call_text(AgentTool.SELECT_MASKS_AND_RETURN, final_answer_masks=chosen)
        elif unused:
            text = call_text(AgentTool.SEGMENT_PHRASE, text_prompt=unused[0])
        else:
            text = call_text(AgentTool.REPORT_NO_MASK)
        return ChatReply(text, ChatUsage(calls=1))


def image_key(image: Image) -> str:
    """Identifies an image by its pixels."""
    image = image.convert("RGB")
    return hashlib.sha256(str(image.size).encode() + image.tobytes()).hexdigest()


def call_text(tool: AgentTool, **parameters: object) -> str:
    """A reply with one call."""
    return f"<tool>{json.dumps({'name': tool.value, 'parameters': parameters})}</tool>"
