# SPDX-License-Identifier: Apache-2.0
"""Calls to chat models that are written down before they are made and answered from the log ever after.

`calls.jsonl` holds a "sent" line before a request leaves and an "answered" line (or "failed") after it. An answered
call is never made again: the same key gives the logged answer. A call that was sent and has no outcome is in doubt
(the process died while it was on its way): it is counted as spent, and made again only when its answer is needed.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..chat.client import ChatModel, ChatRequestError, ChatUnavailableError, Message
from .append_log import AppendLog, read_log
from .budget import Budget, Spending
from .courier import CourierModel
from .logged_call import make_logged_call

IMAGE_TOKENS = 1500  # what one picture is taken to cost before the endpoint says


class ChangedRequestError(RuntimeError):
    """A logged call has the key of a new one, and other words."""


class CallLog:
    """The paid calls of one run.

    Args:
        path: `calls.jsonl`.
        budget: caps over all sessions of the run.

    Attributes:
        spending: what was spent, earlier sessions included.
        in_doubt: calls of earlier sessions whose outcome is unknown, and that have not been made again.
    """

    def __init__(self, path: str | Path, budget: Budget | None = None):
        self.spending = Spending(budget or Budget())
        self._answers: dict[str, dict[str, Any]] = {}
        self.in_doubt: set[str] = set()
        self._lock = threading.Lock()
        for record in read_log(path):
            self._take(record)
        self.spending.add(len(self.in_doubt), 0, 0)
        self._log = AppendLog(path)

    def _take(self, record: dict[str, Any]) -> None:
        key = record["key"]
        if record["event"] == "sent":
            if key in self.in_doubt:
                self.spending.add(1, 0, 0)  # made again, and interrupted again
            self.in_doubt.add(key)
            return
        self.in_doubt.discard(key)
        if record["event"] == "answered":
            self._answers[key] = record
        self.spending.add(record["calls"], record["prompt_tokens"], record["completion_tokens"])

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def ask(self, key: str, model: ChatModel, messages: Sequence[Message], json_schema: dict[str, Any]) -> str:
        """The answer to a request, as text; from the log where it has been paid for.

        Args:
            key: names the call within the run; the same key means the same request.
            model: asks once (`max_reasks` of 0): an answer in the wrong form is an answer, and its reader's concern.
            messages: the conversation.
            json_schema: the form of the answer.

        Raises:
            BudgetExhaustedError: a cap is reached.
            ChangedRequestError: the log has another request under this key.
            ChatModelError: no answer was had.
        """
        digest = _digest(model.name, messages, json_schema)
        with self._lock:
            logged = self._answers.get(key)
        if logged is not None:
            if logged["request"] != digest:
                raise ChangedRequestError(
                    f"Call {key!r} was made with other words before; start a new run folder for other prompts."
                )
            return logged["text"]
        if model.max_reasks:
            raise ValueError(f"The engine asks again by itself: give {model.name!r} max_reasks=0.")
        reservation = self.spending.reserve(_prompt_size(messages), model.max_tokens)
        if isinstance(model, CourierModel):
            record = model.courier.carry(key, digest, model.role, messages, json_schema)
        else:
            record = make_logged_call(self._log, key, digest, model, messages, json_schema)
        self.spending.settle(reservation, record["calls"], record["prompt_tokens"], record["completion_tokens"])
        if record["event"] == "failed":
            raise _error_of(record)
        with self._lock:
            self._answers[key] = record
            self.in_doubt.discard(key)
        return record["text"]


def _error_of(record: dict[str, Any]) -> Exception:
    """The error that a "failed" line stands for."""
    if record.get("unexpected"):
        return RuntimeError(f"Call {record['key']!r} failed in the process that makes the calls: {record['error']}")
    if record["status"] is not None:
        return ChatRequestError(record["error"], record["status"])
    return ChatUnavailableError(record["error"])


def _digest(name: str, messages: Sequence[Message], json_schema: dict[str, Any]) -> str:
    """A fingerprint of a request, pictures included."""
    digest = hashlib.sha256(json.dumps([name, json_schema], sort_keys=True).encode())
    for message in messages:
        digest.update(message["role"].encode())
        for part in message["content"]:
            if part["type"] == "text":
                digest.update(part["text"].encode())
            else:
                digest.update(str(part["image"].size).encode() + part["image"].tobytes())
    return digest.hexdigest()[:32]


def _prompt_size(messages: Sequence[Message]) -> int:
    """An upper estimate of a request's tokens."""
    parts = [part for message in messages for part in message["content"]]
    return sum(len(part["text"]) // 3 + 8 if part["type"] == "text" else IMAGE_TOKENS for part in parts)
