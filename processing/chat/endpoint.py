# SPDX-License-Identifier: Apache-2.0
"""Chat models behind an OpenAI-compatible endpoint, through `huggingface_hub.InferenceClient`."""

from __future__ import annotations

import base64
import io
import itertools
import os
import random
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from huggingface_hub import InferenceClient, get_session
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx
from transformers.utils import logging

from .client import ChatModel, ChatReply, ChatRequestError, ChatUnavailableError, ChatUsage, Message, state_schema

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.get_logger(__name__)

API_KEY_VARIABLE = "SAM3I_CHAT_API_KEY"
RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LOSSLESS_PIXELS = 256 * 256  # below it an image travels as PNG; photographs above it as JPEG, a tenth of the bytes


class EndpointChatModel(ChatModel):
    """A chat model behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, TGI, a hosted API).

    Args:
        base_url: address of the API, e.g. "http://127.0.0.1:8000/v1".
        name: the model's name at that endpoint.
        api_key: defaults to the environment variable SAM3I_CHAT_API_KEY. A Hugging Face token that lies on this
            machine is never sent: pass it here when the endpoint is Hugging Face's own.
        timeout: seconds to wait for the endpoint to send something.
        max_retries: how often a request that met 408/409/425/429/5xx, a time-out or a broken connection is sent again.
        backoff: seconds before the first retry; doubled each time, jittered, at most `max_backoff`. A Retry-After
            header of the endpoint replaces it, under the same ceiling.
        requests_per_minute: ceiling over all threads that share this object.
        native_json_schema: send the schema as `response_format`; without it, it is stated in the conversation.
        num_parameters: for reports, since an endpoint does not tell.
        extra_body: further fields of the request, e.g. {"chat_template_kwargs": {"enable_thinking": False}}.
    """

    def __init__(
        self,
        base_url: str,
        name: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        max_retries: int = 5,
        backoff: float = 1.0,
        max_backoff: float = 60.0,
        requests_per_minute: float | None = None,
        native_json_schema: bool = True,
        num_parameters: int | None = None,
        extra_body: dict | None = None,
        **generation,
    ):
        super().__init__(name, **generation)
        if urlparse(base_url).scheme not in ("http", "https"):
            raise ValueError(f"`base_url` must start with http:// or https://, found {base_url!r}.")
        if timeout <= 0 or max_retries < 0 or (requests_per_minute is not None and requests_per_minute <= 0):
            raise ValueError(
                "An endpoint needs `timeout` > 0, `max_retries` >= 0 and `requests_per_minute` > 0 or None; "
                f"received {timeout}, {max_retries} and {requests_per_minute}."
            )
        self.base_url = base_url
        self.max_retries = max_retries
        self.backoff = backoff
        self.max_backoff = max_backoff
        self.native_json_schema = native_json_schema
        self.extra_body = extra_body
        self._num_parameters = num_parameters
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next_slot = 0.0
        self._slot_lock = threading.Lock()
        # Without a key the client would send the user's Hugging Face token to whatever address is named here.
        api_key = api_key or os.environ.get(API_KEY_VARIABLE) or "none"
        self._client = InferenceClient(base_url=base_url, api_key=api_key, timeout=timeout)

    @property
    def num_parameters(self) -> int | None:
        return self._num_parameters

    def _generate(self, messages: list[Message], json_schema: dict | None) -> ChatReply:
        if json_schema is not None and not self.native_json_schema:
            messages = state_schema(messages, json_schema)
        payload = [_to_openai(message) for message in messages]
        response_format = None
        if json_schema is not None and self.native_json_schema:
            response_format = _JsonSchemaFormat(
                type="json_schema", json_schema={"name": "answer", "schema": json_schema, "strict": True}
            )
        started = time.monotonic()
        for attempt in itertools.count():
            self._wait_for_slot()
            try:
                text, finish_reason, usage = self._request(payload, response_format)
            except ChatRequestError as error:
                error.usage = ChatUsage(retries=attempt, seconds=time.monotonic() - started)
                raise
            except _PassingError as error:
                if attempt == self.max_retries:
                    raise ChatUnavailableError(
                        f"{self.base_url} did not answer in {attempt + 1} attempts; the last one: {error}.",
                        ChatUsage(retries=attempt, seconds=time.monotonic() - started),
                    ) from error
                delay = self._delay(attempt, error.retry_after)
                logger.warning("Retrying %s in %.1f s: %s", self.base_url, delay, error)
                time.sleep(delay)
            else:
                spent = ChatUsage(retries=attempt, seconds=time.monotonic() - started)
                return ChatReply(text, usage + spent, finish_reason)

    def _request(self, payload: list[dict], response_format: dict | None) -> tuple[str, str | None, ChatUsage]:
        """Sends the request once and sorts what can go wrong into "try again" and "do not"."""
        _let_endpoint_through_offline_mode(self.base_url)
        try:
            answer = self._client.chat_completion(
                payload,
                model=self.name,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=self.seed,
                response_format=response_format,
                extra_body=self.extra_body,
            )
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in RETRIED_STATUSES:
                message = f"{self.base_url} refused the request with HTTP {status}: {error}"
                raise ChatRequestError(message, status) from error
            raise _PassingError(f"HTTP {status}", error.response.headers.get("retry-after")) from error
        except InferenceTimeoutError as error:
            raise _PassingError(f"no data within {self._client.timeout} s") from error
        except httpx.TransportError as error:
            raise _PassingError(f"the connection failed ({type(error).__name__}: {error})") from error
        except ValueError as error:
            raise _PassingError(f"the answer is not JSON ({error})") from error
        if not getattr(answer, "choices", None) or getattr(answer.choices[0], "message", None) is None:
            raise _PassingError(f"the answer is not a chat completion: {str(answer)[:200]}")
        choice, metered = answer.choices[0], getattr(answer, "usage", None)
        usage = ChatUsage(calls=1, unmetered=1)
        if metered is not None:
            usage = ChatUsage(1, 0, int(metered.prompt_tokens or 0), int(metered.completion_tokens or 0))
        return choice.message.content or "", choice.finish_reason, usage

    def _delay(self, attempt: int, retry_after: str | None) -> float:
        if retry_after is not None and retry_after.strip().isdigit():
            return min(float(retry_after), self.max_backoff)
        return min(self.backoff * 2**attempt, self.max_backoff) * random.uniform(0.5, 1.0)

    def _wait_for_slot(self) -> None:
        if not self._interval:
            return
        with self._slot_lock:
            slot = max(time.monotonic(), self._next_slot)
            self._next_slot = slot + self._interval
        time.sleep(max(0.0, slot - time.monotonic()))


class _PassingError(Exception):
    """A request failed in a way that may pass; `retry_after` is the endpoint's own wish, in seconds."""

    def __init__(self, message: str, retry_after: str | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class _JsonSchemaFormat(dict):
    """A `response_format` that reaches the endpoint as it is.

    For a `base_url`, the client rewrites {"type": "json_schema"} into a form that only TGI reads and others reject. It
    looks at the type through `get`, and serializes through `items`.
    """

    def get(self, key, default=None):
        return default if key == "type" else super().get(key, default)


def _let_endpoint_through_offline_mode(base_url: str) -> None:
    """Lets requests to `base_url` pass under HF_HUB_OFFLINE, which is about the Hub and not a server named here."""
    session, address = get_session(), httpx.URL(base_url).netloc
    hooks = session.event_hooks
    if any(address in getattr(hook, "endpoints", ()) for hook in hooks["request"]):
        return

    def wrap(hook):
        def request_hook(request):
            try:
                return hook(request)
            except OfflineModeIsEnabled:
                if request.url.netloc != address:
                    raise

        request_hook.endpoints = (address, *getattr(hook, "endpoints", ()))
        return request_hook

    session.event_hooks = hooks | {"request": [wrap(hook) for hook in hooks["request"]]}


def encode_image(image: Image) -> str:
    """Encodes an image as a data URL: PNG when small, else JPEG at quality 95 without chroma subsampling."""
    buffer, image = io.BytesIO(), image.convert("RGB")
    if image.width * image.height <= LOSSLESS_PIXELS:
        kind = "png"
        image.save(buffer, "PNG")
    else:
        kind = "jpeg"
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _to_openai(message: Message) -> dict:
    parts = message["content"]
    if all(part["type"] == "text" for part in parts):
        # Plain strings are what every server accepts for system and assistant turns.
        return {"role": message["role"], "content": "\n".join(part["text"] for part in parts)}
    content = [
        part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": encode_image(part["image"])}}
        for part in parts
    ]
    return {"role": message["role"], "content": content}


__all__ = ["API_KEY_VARIABLE", "EndpointChatModel", "encode_image"]
