# SPDX-License-Identifier: Apache-2.0
"""One call to a chat model between its two lines in the log; the engine and its courier both make calls so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..chat.client import ChatModel, ChatModelError, MalformedReplyError, Message
from .append_log import AppendLog


def make_logged_call(
    log: AppendLog,
    key: str,
    digest: str,
    model: ChatModel,
    messages: Sequence[Message],
    json_schema: dict[str, Any],
) -> dict[str, Any]:
    """Make one call between its two lines in the log; returns the second one."""
    log.append({"event": "sent", "key": key, "request": digest, "model": model.name, "time": time.time()})
    error = None
    try:
        reply = model.complete(list(messages), json_schema=json_schema)
        text, usage = reply.text, reply.usage
    except MalformedReplyError as malformed:
        text, usage = malformed.text, malformed.usage
    except ChatModelError as failure:
        text, error, usage = "", failure, failure.usage
    record: dict[str, Any] = {
        "event": "answered" if error is None else "failed",
        "key": key,
        "request": digest,
        "calls": usage.calls,
        "retries": usage.retries,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": round(usage.seconds, 3),
        "time": time.time(),
    }
    record |= {"text": text} if error is None else {"error": str(error), "status": getattr(error, "status", None)}
    log.append(record)
    return record
