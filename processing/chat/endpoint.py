# SPDX-License-Identifier: Apache-2.0
"""Chat models behind an OpenAI-compatible endpoint, through OpenAI's client."""

from __future__ import annotations

import base64
import importlib
import io
import json
import logging
import os
import random
import threading
import time
import uuid
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from ..images import data_url
from .client import (
    ChatModel,
    ChatReply,
    ChatRequestError,
    ChatUnavailableError,
    ChatUsage,
    Message,
    one_line,
    state_schema,
)

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "SAM3I_CHAT_API_KEY"
GATEWAY_TIMEOUT = 504
RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, GATEWAY_TIMEOUT})
CONNECT_SECONDS = 10.0
PREFLIGHT_SECONDS = 60.0  # to tell that an endpoint does not answer, before hours are spent
LOSSLESS_PIXELS = 256 * 256  # below it an image travels as PNG; photographs above it as JPEG, a tenth of the bytes
MAX_ANSWER_BYTES = 16 << 20
MAX_COUNT = 1 << 40  # tokens: what is more is no count


class EndpointChatModel(ChatModel):
    """A chat model behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, TGI, a hosted API).

    Args:
        base_url: address of the API, e.g. "http://127.0.0.1:8000/v1". A name and password in it are sent to that
            server alone and appear in no message.
        name: the model's name at that endpoint.
        api_key: defaults to the environment variable SAM3I_CHAT_API_KEY. No other key or token that lies on this
            machine is ever sent.
        timeout: seconds that one request may take, its whole answer included.
        max_retries: how often a request is sent again that met 408/409/425/429/5xx or found no connection.
        resend: send also those again that were sent and not answered (a time-out, a connection that broke, HTTP 504).
            The endpoint may have worked on them and may bill both, so it is not done unless asked for. All attempts of
            one call carry the same Idempotency-Key header, by which endpoints that know it answer and bill once.
        backoff: seconds before the first retry; doubled each time, jittered, at most `max_backoff`. A Retry-After
            header of the endpoint replaces it, under the same ceiling.
        requests_per_minute: ceiling over all threads that share this object.
        native_json_schema: send the schema as `response_format`; without it, it is stated in the conversation.
        num_parameters: for reports, since an endpoint does not tell.
        extra_body: further fields of the request, e.g. {"chat_template_kwargs": {"enable_thinking": False}}.

    Raises:
        ImportError: the `openai` package is missing.
    """

    def __init__(
        self,
        base_url: str,
        name: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        max_retries: int = 5,
        resend: bool = False,
        backoff: float = 1.0,
        max_backoff: float = 60.0,
        requests_per_minute: float | None = None,
        native_json_schema: bool = True,
        num_parameters: int | None = None,
        extra_body: dict | None = None,
        **generation,
    ):
        super().__init__(name, **generation)
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
            shown = base_url.rsplit("@", 1)[-1]  # what stands before it may be a password
            raise ValueError(
                f"Expected `base_url` as http://HOST/PATH or https://HOST/PATH, no query, found {shown!r}."
            )
        if timeout <= 0 or max_retries < 0 or (requests_per_minute is not None and requests_per_minute <= 0):
            raise ValueError(
                "An endpoint needs `timeout` > 0, `max_retries` >= 0 and `requests_per_minute` > 0 or None; "
                f"received {timeout}, {max_retries} and {requests_per_minute}."
            )
        host = address.hostname if ":" not in address.hostname else f"[{address.hostname}]"
        host += f":{address.port}" if address.port else ""
        self.base_url = urlunsplit(address._replace(netloc=host))
        self.timeout = timeout
        self.max_retries = max_retries
        self.resend = resend
        self.backoff = backoff
        self.max_backoff = max_backoff
        self.native_json_schema = native_json_schema
        self.extra_body = extra_body
        self._num_parameters = num_parameters
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next_slot = 0.0
        self._slot_lock = threading.Lock()
        self._openai, client = _connect(address, self.base_url, api_key, timeout)
        self._create: Any = client.chat.completions.with_raw_response.create  # loads its code now, on nobody's time

    @property
    def num_parameters(self) -> int | None:
        return self._num_parameters

    def _generate(self, messages: list[Message], json_schema: dict | None) -> ChatReply:
        if json_schema is not None and not self.native_json_schema:
            messages = state_schema(messages, json_schema)
        payload = [_to_openai(message) for message in messages]
        response_format: dict[str, Any] | None = None
        if json_schema is not None and self.native_json_schema:
            response_format = _response_format(json_schema)
        started = time.monotonic()
        attempt = unanswered = 0
        headers = {"Idempotency-Key": uuid.uuid4().hex}

        def spent() -> ChatUsage:
            return ChatUsage(retries=attempt, seconds=time.monotonic() - started, unanswered=unanswered)

        while True:
            self._wait_for_slot()
            try:
                text, finish_reason, usage = self._request(payload, response_format, extra_headers=headers)
            except ChatRequestError as error:
                error.usage = spent()
                raise
            except _PassingError as error:
                unanswered += error.is_unanswered
                if attempt == self.max_retries or (error.is_unanswered and not self.resend):
                    reason = f"{self.base_url} did not answer in {attempt + 1} attempts; the last one: {error}."
                    if error.is_unanswered:
                        reason += " It may be on the bill; allow a longer time-out, or resend what is not answered."
                    raise ChatUnavailableError(reason, spent()) from error
                delay = self._delay(attempt, error.retry_after)
                logger.warning("Retrying %s in %.1f s: %s", self.base_url, delay, error)
                time.sleep(delay)
                attempt += 1
            else:
                return ChatReply(text, usage + spent(), finish_reason)

    def check(
        self, image: Image | None = None, json_schema: dict[str, Any] | None = None, timeout: float = 30.0
    ) -> None:
        """Ask for one word, once: does the endpoint take the key, the model's name, an image and a schema?

        Raises:
            ChatRequestError, ChatUnavailableError: it does not; the message says why.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": "Answer with the word yes."}]
        content += [] if image is None else [{"type": "image_url", "image_url": {"url": encode_image(image)}}]
        form = None if json_schema is None else _response_format(json_schema)
        try:
            self._request([{"role": "user", "content": content}], form, max_tokens=16, timeout=timeout)
        except _PassingError as error:
            raise ChatUnavailableError(f"{self.base_url} cannot be used for {self.name!r}: {error}.") from error

    def _request(
        self, payload: list[dict], response_format: dict | None, **options: Any
    ) -> tuple[str, str | None, ChatUsage]:
        """Sends the request once and sorts what can go wrong into "try again" and "do not"."""
        fields: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        fields |= {"response_format": response_format, "extra_body": self.extra_body}
        timeout = options.pop("timeout", self.timeout)
        fields["timeout"] = self._openai.Timeout(timeout, connect=min(timeout / 2, CONNECT_SECONDS))
        fields = {name: value for name, value in (fields | options).items() if value is not None}
        answer: Future[bytes] = Future()
        # The client's time-outs are of single reads; what drips its headers would never meet one.
        threading.Thread(target=self._send, args=(answer, payload, fields), daemon=True).start()
        openai = self._openai
        try:
            return _read_completion(answer.result(timeout))
        except openai.APIStatusError as error:
            status, body = error.response.status_code, one_line(error.response.text)
            shown = f"HTTP {status}: {body or 'an empty body'}"
            if status not in RETRIED_STATUSES:
                raise ChatRequestError(f"{self.base_url} refused the request with {shown}", status) from error
            wish = error.response.headers.get("retry-after")
            raise _PassingError(shown, wish, is_unanswered=status == GATEWAY_TIMEOUT) from error
        except (openai.APIConnectionError, TimeoutError) as error:  # a time-out of the client is one of the first
            cause = error.__cause__ or error
            was_sent = type(cause).__name__ not in ("ConnectError", "ConnectTimeout")
            reason = f"the connection failed ({type(cause).__name__}: {one_line(str(cause))})"
            if was_sent and isinstance(error, (openai.APITimeoutError, TimeoutError)):
                reason = f"no whole answer within {timeout:g} s"
            raise _PassingError(reason, is_unanswered=was_sent) from error
        except (ValueError, RecursionError) as error:
            said = one_line(f"{type(error).__name__}: {error}")
            is_cut = isinstance(error, json.JSONDecodeError) and error.pos > 0  # JSON that breaks off, not a web page
            raise _PassingError(f"the answer is not a chat completion ({said})", is_unanswered=is_cut) from error

    def _send(self, answer: Future[bytes], payload: list[dict], fields: dict[str, Any]) -> None:
        try:
            answer.set_result(self._create(messages=payload, model=self.name, **fields).http_response.content)
        except Exception as error:
            answer.set_exception(error)

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


@dataclass(frozen=True)
class EndpointSpec:
    """How to reach a chat model; see `EndpointChatModel` for the fields.

    The key of the endpoint is read from the environment (SAM3I_CHAT_API_KEY) and is never written down.
    """

    base_url: str
    name: str
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int | None = None
    timeout: float = 120.0
    max_retries: int = 5
    resend: bool = False
    backoff: float = 1.0
    max_backoff: float = 60.0
    requests_per_minute: float | None = None
    native_json_schema: bool = True

    def connect(self) -> EndpointChatModel:
        """The model."""
        options: dict[str, Any] = asdict(self)
        return EndpointChatModel(options.pop("base_url"), options.pop("name"), **options)

    def connect_and_check(self, json_schema: dict[str, Any] | None = None) -> EndpointChatModel:
        """The model, after one small request with an image: a wrong address, key or name is said in seconds."""
        from PIL import Image

        model = self.connect()
        model.check(Image.new("RGB", (64, 64), "gray"), json_schema, min(self.timeout, PREFLIGHT_SECONDS))
        return model


class _PassingError(Exception):
    """A request failed in a way that may pass.

    Attributes:
        retry_after: the endpoint's own wish, in seconds.
        is_unanswered: it was sent, and nothing says that it was not worked on.
    """

    def __init__(self, message: str, retry_after: str | None = None, is_unanswered: bool = False):
        super().__init__(message)
        self.retry_after, self.is_unanswered = retry_after, is_unanswered


def _read_completion(body: bytes) -> tuple[str, str | None, ChatUsage]:
    """(text, why it ended, usage) of an answer; whatever else it holds, or lacks, does no harm.

    Raises:
        ValueError, RecursionError: it is not JSON, or has no message.
    """
    answer = json.loads(body)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    if not isinstance(choice.get("message"), dict):
        raise ValueError(f"expected a message among its choices, found {body.decode('utf-8', 'replace')[:2000]}")
    text, reason = choice["message"].get("content"), choice.get("finish_reason")
    text = text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else ""
    usage: dict[str, Any] = answer["usage"] if isinstance(answer.get("usage"), dict) else {}
    asked, said = usage.get("prompt_tokens"), usage.get("completion_tokens")
    spent = ChatUsage(calls=1, unmetered=1)
    if isinstance(asked, int) and isinstance(said, int) and 0 <= min(asked, said) <= max(asked, said) < MAX_COUNT:
        spent = ChatUsage(1, 0, int(asked), int(said))
    return text, reason if isinstance(reason, str) else None, spent


def _connect(address: Any, base_url: str, api_key: str | None, timeout: float) -> tuple[Any, Any]:
    """(the openai package, a client that sends nothing but what it is given and bounds what it receives)."""
    try:
        import openai
    except ImportError as error:
        raise ImportError('Chat endpoints need the openai package: pip install "sam3i[chat]"') from error
    http: Any = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])

    class BoundedBody(http.SyncByteStream):  # type: ignore[name-defined]
        """A body with an end: neither one that drips nor one that never stops is waited for."""

        def __init__(self, stream: Any):
            self.stream = stream
            self.deadline = time.monotonic() + timeout

        def __iter__(self) -> Any:
            size = 0
            for chunk in self.stream:
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise http.ReadError(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
                if time.monotonic() > self.deadline:
                    raise http.ReadTimeout(f"an answer that took more than {timeout:g} s")
                yield chunk

        def close(self) -> None:
            self.stream.close()

    def bound(response: Any) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise http.ReadError("a compressed answer, which was not asked for and may have no end")
        response.stream = BoundedBody(response.stream)

    # Given here, so that the client looks for none in the environment: organization and project of another service.
    headers: dict[str, Any] = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
    headers["Accept-Encoding"] = "identity"
    if address.username:
        pair = f"{unquote(address.username)}:{unquote(address.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"
    return openai, openai.OpenAI(
        base_url=base_url,
        api_key=api_key or os.environ.get(API_KEY_VARIABLE) or "none",
        timeout=timeout,
        max_retries=0,
        default_headers=headers,
        http_client=openai.DefaultHttpxClient(timeout=timeout, event_hooks={"response": [bound]}),
    )


def _response_format(json_schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": json_schema, "strict": True}}


def encode_image(image: Image) -> str:
    """Encodes an image as a data URL: PNG when small, else JPEG at quality 95 without chroma subsampling."""
    buffer, image = io.BytesIO(), image.convert("RGB")
    if image.width * image.height <= LOSSLESS_PIXELS:
        kind = "png"
        image.save(buffer, "PNG")
    else:
        kind = "jpeg"
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return data_url(buffer.getvalue(), kind)


def _to_openai(message: Message) -> dict:
    parts = message["content"]
    if all(part["type"] == "text" for part in parts):
        # Plain strings are what every server accepts for system and assistant turns.
        return {"role": message["role"], "content": "\n".join(part["text"] for part in parts)}
    content = [image_url_part(part) if part["type"] == "image" else part for part in parts]
    return {"role": message["role"], "content": content}


def image_url_part(part: dict[str, Any]) -> dict[str, Any]:
    """An image of a message as the API takes it."""
    return {"type": "image_url", "image_url": {"url": encode_image(part["image"])}}
