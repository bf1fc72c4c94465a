# SPDX-License-Identifier: Apache-2.0
"""SAM3 + Agent: a multimodal chat model searches noun phrases with SAM3 and chooses among the masks.

The protocol is that of the agent published with SAM3: one tool call per turn, masks without overlaps ordered by score
and numbered anew each turn, a history pruned to the request and the turns since the last search, and at most 100
generations. The prompts are this package's own (`prompts/`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ....processing.chat.client import (
    ChatModel,
    ChatModelError,
    ChatReply,
    ChatRequestError,
    ChatUsage,
    Message,
    one_line,
)
from ..segmenters import EncodedImages, PhraseDetector, SegmentationCost, SegmentationResult, Segmenter
from .conversation import AgentConversation, AgentPrompts
from .mask_candidates import MaskCandidates
from .tools import AgentTool, ToolCall, UnusableReplyError, check_call, parse_tool_call, parse_verdict

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class AgentStep:
    """One turn: the call and how many masks were available after it, or why it was not carried out."""

    tool: str | None
    parameters: dict[str, Any] = field(default_factory=dict)
    num_masks: int = 0
    fault: str | None = None
    dropped_calls: int = 0


class AgentFailureError(RuntimeError):
    """The agent ended without an answer."""


class AgentSegmenter(Segmenter):
    """Segments what an instruction denotes by letting a chat model use SAM3.

    Args:
        detector: SAM3.
        chat: the chat model; it must accept concurrent requests where there are several `workers`.
        prompts: those of this package if not given.
        max_generations: most answers of the chat model per instruction, those about single masks included.
        max_tokens: most tokens (prompt and completion) per instruction.
        max_unusable: answers in a row that cannot be carried out, or verdicts that cannot be read, before the
            instruction counts as failed. A repeated phrase has its own answer in the protocol and does not count here.
        workers: instructions under way at a time.

    An instruction without an answer gets an empty result whose `error` says why. In its cost, `failures` counts
    replies that could not be used and requests sent again; `seconds` includes waiting for others.
    """

    name = "agent"

    def __init__(
        self,
        detector: PhraseDetector,
        chat: ChatModel | None,
        *,
        prompts: AgentPrompts | None = None,
        max_generations: int = 100,
        max_tokens: int | None = None,
        max_unusable: int = 3,
        workers: int = 1,
    ):
        if min(max_generations, max_unusable, workers) < 1 or (max_tokens is not None and max_tokens < 1):
            raise ValueError(
                "AgentSegmenter needs `max_generations`, `max_unusable`, `workers` and `max_tokens` of at least 1; "
                f"received {max_generations}, {max_unusable}, {workers} and {max_tokens}."
            )
        self.detector = detector
        self.chat = chat
        self.prompts = prompts or AgentPrompts.load()
        self.max_generations = max_generations
        self.max_tokens = max_tokens
        self.max_unusable = max_unusable
        self.workers = workers
        self.detector_lock = threading.Lock()

    @property
    def num_parameters(self) -> int | None:
        chat = None if self.chat is None else self.chat.num_parameters
        return None if chat is None else self.detector.num_parameters + chat

    @property
    def is_greedy(self) -> bool:
        """Whether the same request gets the same answer: no use in paying for it again."""
        return self.chat is not None and self.chat.temperature == 0

    def identity(self) -> dict[str, Any]:
        chat, tokens = "oracle", [self.max_tokens]
        if self.chat is not None:
            chat = f"{self.chat.name} (temperature {self.chat.temperature}, seed {self.chat.seed})"
            tokens.append(self.chat.max_tokens)
        return {**self.detector.identity(), "chat": chat, "chat_tokens": tokens, "prompts": self.prompts.versions}

    def segment_images(
        self, images: Sequence[Image], instructions: Sequence[list[str]], levels: Sequence[list[str | None]]
    ) -> list[list[SegmentationResult]]:
        """Answers the instructions of several images, up to `workers` at a time; levels do not matter to the agent."""
        runs = []
        with ThreadPoolExecutor(self.workers) as pool:
            for image, group in zip(images, instructions, strict=True):
                with self.detector_lock:
                    encoded = self.detector.encode([image])
                share = 1 / max(1, len(group))
                runs.append([pool.submit(self.run, image, text, encoded, share) for text in group])
            return [[run.result()[0] for run in group] for group in runs]

    def reply(self, episode: AgentEpisode, messages: list[Message]) -> ChatReply:
        """What the chat model answers in an episode."""
        assert self.chat is not None
        return self.chat.complete(messages)

    def run(
        self, image: Image, instruction: str, encoded: EncodedImages | None = None, share: float = 1.0
    ) -> tuple[SegmentationResult, list[AgentStep]]:
        """Answers one instruction, which bears a share of the cost of its encoded image, and tells how.

        Raises:
            ChatRequestError: when the endpoint knows neither the key nor the model (HTTP 401, 403, 404), since no
                instruction could be answered.
        """
        if encoded is None:
            with self.detector_lock:
                encoded = self.detector.encode([image])
        episode = AgentEpisode(self, image.convert("RGB"), instruction, encoded)
        started, error = time.monotonic(), None
        try:
            answer = episode.play()
        except (AgentFailureError, ChatModelError) as failure:
            if isinstance(failure, ChatRequestError) and failure.status in (401, 403, 404):
                raise
            error, answer = str(failure), None
            logger.warning("The agent has no answer to %r: %s", instruction, error)
        seconds = time.monotonic() - started + share * encoded.seconds
        cost = SegmentationCost(
            seconds=seconds,
            passes=episode.passes,
            vision_passes=share,
            calls=episode.usage.calls + episode.usage.unanswered,
            tokens=episode.usage.tokens,
            failures=episode.unusable + episode.usage.retries,
        )
        if answer is None:
            return SegmentationResult.empty(image.height, image.width, cost=cost, error=error), episode.steps
        return SegmentationResult(answer.masks, answer.scores, answer.boxes, cost=cost), episode.steps


class AgentEpisode:
    """The state of one instruction: conversation, available masks, what was used."""

    def __init__(self, agent: AgentSegmenter, image: Image, instruction: str, encoded: EncodedImages):
        self.agent = agent
        self.image = image
        self.encoded = encoded
        self.conversation = AgentConversation(agent.prompts, image, instruction)
        self.candidates = MaskCandidates.empty(image.height, image.width)
        self.searched = False
        self.steps: list[AgentStep] = []
        self.usage = ChatUsage()
        self.passes = 0
        self.unusable = 0

    def play(self) -> MaskCandidates | None:
        """Takes turns until the agent answers; None stands for "no mask"."""
        unusable_in_a_row = 0
        while True:
            if self.conversation.is_stuck and self.agent.is_greedy:
                raise AgentFailureError("it gives the same answer again and again, and has no randomness to leave it.")
            reply = self.ask(self.conversation.messages())
            try:
                call = parse_tool_call(reply)
                check_call(call, self.num_masks, self.searched)
            except UnusableReplyError as fault:
                unusable_in_a_row += 1
                self.unusable += 1
                self.steps.append(AgentStep(None, num_masks=self.num_masks, fault=str(fault)))
                if unusable_in_a_row >= self.agent.max_unusable:
                    raise AgentFailureError(
                        f"{unusable_in_a_row} answers in a row could not be carried out; the last one: {fault}"
                    ) from fault
                self.conversation.unusable(reply, str(fault))
                continue
            unusable_in_a_row = 0
            if call.tool is AgentTool.REPORT_NO_MASK:
                self.record(call)
                return None
            if call.tool is AgentTool.SELECT_MASKS_AND_RETURN:
                self.record(call)
                return self.candidates.take([n - 1 for n in sorted(set(call.parameters["final_answer_masks"]))])
            if call.tool is AgentTool.SEGMENT_PHRASE:
                self.segment_phrase(call)
            else:
                self.examine_each_mask(call)

    @property
    def num_masks(self) -> int:
        return len(self.candidates)

    def record(self, call: ToolCall, fault: str | None = None) -> None:
        self.steps.append(AgentStep(call.tool.value, call.parameters, self.num_masks, fault, call.dropped))

    def ask(self, messages: list[Message]) -> str:
        """Has the chat model answer, within the budget."""
        agent = self.agent
        if self.usage.calls >= agent.max_generations:
            raise AgentFailureError(f"the budget of {agent.max_generations} generations is used up.")
        if agent.max_tokens is not None and self.usage.tokens >= agent.max_tokens:
            raise AgentFailureError(f"the budget of {agent.max_tokens} tokens is used up ({self.usage.tokens}).")
        try:
            reply = agent.reply(self, messages)
        except ChatModelError as error:
            self.usage += error.usage
            raise
        self.usage += reply.usage
        return reply.text

    def segment_phrase(self, call: ToolCall) -> None:
        phrase = one_line(call.parameters["text_prompt"])
        if self.conversation.is_used(phrase):
            self.unusable += 1
            self.record(call, fault="the phrase was searched before")
            self.conversation.repeated(call.text, phrase)
            return
        with self.agent.detector_lock:
            (found,) = self.agent.detector.detect(self.encoded, [phrase], [0])
        self.passes, self.searched = self.passes + 1, True
        self.candidates = MaskCandidates(found.masks, found.scores, found.boxes).without_overlaps()
        self.record(call)
        self.conversation.segmented(call.text, phrase, len(self.candidates), self.drawing())

    def examine_each_mask(self, call: ToolCall) -> None:
        kept = [index for index in range(len(self.candidates)) if self.accepts(index)]
        self.candidates = self.candidates.take(kept)
        self.record(call)
        self.conversation.examined(call.text, len(kept), self.drawing())

    def accepts(self, index: int) -> bool:
        """Has the chat model judge one mask, shown alone and close up."""
        messages = self.conversation.ask_to_examine(*self.candidates.draw_alone(self.image, index))
        replies: list[str] = []
        while True:
            replies.append(self.ask(messages))
            try:
                return parse_verdict(replies[-1])
            except UnusableReplyError as fault:
                self.unusable += 1
                messages = self.conversation.ask_to_examine_again(messages, replies[-1])
                is_repeated = self.agent.is_greedy and replies[-1] in replies[:-1]
                if is_repeated or len(replies) == self.agent.max_unusable:
                    said = f"{len(replies)} verdicts in a row on mask {index + 1} could not be read"
                    raise AgentFailureError(f"{said}; the last one: {fault}") from fault

    def drawing(self) -> Image | None:
        return self.candidates.draw(self.image) if len(self.candidates) else None
