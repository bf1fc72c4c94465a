# SPDX-License-Identifier: Apache-2.0
"""Multimodal chat models behind one `complete`: the contract, and the local one; endpoints are in `endpoint`.

Messages are those of transformers' chat templates: `{"role": ..., "content": [part, ...]}` with parts
`{"type": "text", "text": str}` and `{"type": "image", "image": PIL.Image}`; see [`chat_message`].
"""

from __future__ import annotations

import json
import re
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

Message = dict[str, Any]


@dataclass(frozen=True)
class ChatUsage:
    """What talking to a chat model took.

    `calls` counts answered requests, `retries` requests that failed and were sent again, `prompt_tokens` and
    `completion_tokens` are those the model reports, `unmetered` counts answers that reported none, `seconds` is wall
    time with waiting included. `unanswered` counts requests that were sent and brought nothing back, neither an answer
    nor a refusal: they may have been worked on, and be on the bill.
    """

    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0
    seconds: float = 0.0
    unanswered: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: ChatUsage) -> ChatUsage:
        return ChatUsage(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))


@dataclass(frozen=True)
class ChatReply:
    """One answer: its text, why generation ended ("stop", "length", ...), and its usage."""

    text: str
    usage: ChatUsage = field(default_factory=ChatUsage)
    finish_reason: str | None = None


class ChatModelError(OSError):
    """A chat model gave no usable answer; `usage` tells what the attempt took."""

    def __init__(self, message: str, usage: ChatUsage | None = None):
        super().__init__(message)
        self.usage = usage or ChatUsage()


class ChatRequestError(ChatModelError):
    """The endpoint refused the request, and would refuse it again: a wrong key, model, address or message."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class ChatUnavailableError(ChatModelError):
    """The endpoint was overloaded, failing, silent or out of reach until the retries were used up."""


def chat_message(role: str, *parts: str | Image) -> Message:
    """Builds one message of `role` ("system", "user", "assistant") from texts and PIL images, in their order."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return {"role": role, "content": content}


def extract_json(text: str) -> Any:
    """Decodes the JSON value of an answer, with or without reasoning before it or a code fence around it.

    Raises:
        ValueError: when what is left is not one JSON value.
    """
    body = text.rsplit("</think>", 1)[-1].strip()
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", body, flags=re.DOTALL)
    try:
        return json.loads(fenced.group(1) if fenced else body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def one_line(text: str, most: int = 500) -> str:
    """What a server or model said, as one line for a message: no line breaks, no control characters, a bound."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())[:most]


class ChatModel(ABC):
    """A multimodal chat model.

    Attributes:
        usage: everything used so far, over all threads.
    """

    def __init__(
        self,
        name: str,
        *,
        max_tokens: int = 4096,
        temperature: float = 0.0,
        seed: int | None = None,
    ):
        if max_tokens < 1 or temperature < 0:
            raise ValueError(
                f"A chat model needs `max_tokens` >= 1, `temperature` >= 0; received {max_tokens} and {temperature}."
            )
        self.name = name
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.seed = seed
        self.usage = ChatUsage()
        self._usage_lock = threading.Lock()

    @property
    @abstractmethod
    def num_parameters(self) -> int | None:
        """Parameters of the model; None where they are not known."""

    @abstractmethod
    def _generate(self, messages: list[Message], json_schema: dict | None) -> ChatReply:
        """Answers once, or raises a [`ChatModelError`]."""

    def complete(self, messages: list[Message], *, json_schema: dict | None = None) -> ChatReply:
        """Answers a conversation; safe to call from several threads where the model allows it.

        Args:
            json_schema: the form of the answer. A model that decodes freely may still answer in another: reading the
            answer (see [`extract_json`]), and asking again with the reason, is the caller's part.

        Raises:
            ChatRequestError, ChatUnavailableError: no answer was had.
        """
        try:
            reply = self._generate(messages, json_schema)
        except ChatModelError as error:
            self._add_usage(error.usage)
            raise
        self._add_usage(reply.usage)
        return reply

    def _add_usage(self, usage: ChatUsage) -> None:
        with self._usage_lock:
            self.usage = self.usage + usage


class LocalChatModel(ChatModel):
    """A transformers image-text-to-text model on this machine; one answer at a time."""

    def __init__(self, model, processor, *, name: str | None = None, **generation):
        super().__init__(name or getattr(model, "name_or_path", "") or type(model).__name__, **generation)
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(
                f"{type(processor).__name__} has no chat template: name an instruction-tuned image-text-to-text model."
            )
        self.model = model.eval()
        self.processor = processor
        self._generate_lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, name: str, *, model_kwargs: dict | None = None, **generation) -> LocalChatModel:
        """Loads both from a repository or folder; `model_kwargs` go to the model (dtype, device_map)."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(name, **(model_kwargs or {}))
        return cls(model, AutoProcessor.from_pretrained(name), name=name, **generation)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def _generate(self, messages: list[Message], json_schema: dict | None) -> ChatReply:
        import torch

        if json_schema is not None:
            messages = state_schema(messages, json_schema)
        started = time.monotonic()
        sampling = (
            {"do_sample": True, "temperature": self.temperature} if self.temperature > 0 else {"do_sample": False}
        )
        # Neither fast tokenizers nor the random state may be shared by threads at work.
        with self._generate_lock, torch.inference_mode():
            inputs = self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self.model.device, dtype=self.model.dtype)
            if self.seed is not None and self.temperature > 0:
                torch.manual_seed(self.seed)
            tokens = self.model.generate(**inputs, max_new_tokens=self.max_tokens, **sampling)
        prompt_length = inputs["input_ids"].shape[1]
        answer = tokens[0, prompt_length:]
        text = self.processor.decode(answer, skip_special_tokens=True)
        usage = ChatUsage(1, 0, prompt_length, len(answer), 0, time.monotonic() - started)
        return ChatReply(text, usage, "length" if len(answer) >= self.max_tokens else "stop")


def state_schema(messages: list[Message], json_schema: dict) -> list[Message]:
    """Adds the schema, in words, to the last message: for models whose decoding cannot be bound to it."""
    rule = f"Answer with one JSON value and nothing else. It must satisfy this JSON schema:\n{json.dumps(json_schema)}"
    last = messages[-1]
    return [*messages[:-1], {**last, "content": [*last["content"], {"type": "text", "text": rule}]}]
