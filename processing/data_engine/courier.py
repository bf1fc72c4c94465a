# SPDX-License-Identifier: Apache-2.0
"""Paid calls in a process of their own, so that killing the engine loses no answer that is on its way.

The courier makes the calls and writes the call log. When the engine is gone it waits for the calls in flight, writes
their answers down and ends; the next session of the run waits for it and finds them in the log.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..chat.client import ChatUnavailableError, Message
from .append_log import AppendLog
from .logged_call import make_logged_call

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class EndpointSpec:
    """How to reach a chat model; see `chat_endpoint.EndpointChatModel` for the fields.

    The key of the endpoint is read from the environment (SAM3I_CHAT_API_KEY) and is never written down.
    """

    base_url: str
    name: str
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int | None = None
    timeout: float = 120.0
    max_retries: int = 5
    backoff: float = 1.0
    max_backoff: float = 60.0
    requests_per_minute: float | None = None
    native_json_schema: bool = True

    def connect(self):
        """The model; an answer in the wrong form is not asked for again behind the engine's back."""
        from ..chat.endpoint import EndpointChatModel

        options = asdict(self)
        return EndpointChatModel(options.pop("base_url"), options.pop("name"), max_reasks=0, **options)


@dataclass(frozen=True)
class CourierModel:
    """Stands for a model that a courier calls; the engine takes it like a `ChatModel` with `max_reasks=0`."""

    courier: Courier
    role: str
    spec: EndpointSpec
    max_reasks: int = 0

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def max_tokens(self) -> int:
        return self.spec.max_tokens


class Courier:
    """The engine's side of the process; a context manager.

    Args:
        log_path: `calls.jsonl` of the run.
        specs: endpoints by role ("writer", "checker").
        concurrency: calls at a time.

    Starting waits for the courier of a session that was killed.
    """

    def __init__(self, log_path: str | Path, specs: Mapping[str, EndpointSpec], concurrency: int = 1):
        self.log_path = Path(log_path)
        self.specs = dict(specs)
        self.concurrency = concurrency
        self._waiting: dict[str, Future] = {}
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def model(self, role: str) -> CourierModel:
        """The model of a role, for the engine."""
        return CourierModel(self, role, self.specs[role])

    def __enter__(self) -> Courier:
        wait_until_free(self.log_path)
        # A session of its own: what stops the engine (a signal to its group, a closed terminal) does not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
        specs = {role: asdict(spec) for role, spec in self.specs.items()}
        self._send({"log": str(self.log_path), "specs": specs, "concurrency": self.concurrency})
        # Nothing is asked before the courier holds the log: a session killed until then has asked for nothing.
        if self._process.stdout.readline().strip() != "ready":
            raise ChatUnavailableError("The process that makes the calls did not start; its error is above.")
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._process.stdin.close()
        self._process.wait()

    def carry(
        self, key: str, digest: str, role: str, messages: Sequence[Message], json_schema: dict[str, Any]
    ) -> dict[str, Any]:
        """Have a call made; returns its last line in the log.

        Raises:
            ChatUnavailableError: the courier is gone.
        """
        future: Future = Future()
        with self._lock:
            self._waiting[key] = future
        order = {"key": key, "request": digest, "role": role, "messages": _pack(messages), "schema": json_schema}
        try:
            self._send(order)
        except (BrokenPipeError, ValueError) as error:
            raise ChatUnavailableError("The process that makes the calls has ended.") from error
        return future.result()

    def _send(self, item: dict[str, Any]) -> None:
        line = json.dumps(item) + "\n"
        with self._lock:
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _listen(self) -> None:
        for line in self._process.stdout:
            record = json.loads(line)
            with self._lock:
                future = self._waiting.pop(record["key"])
            future.set_result(record)
        with self._lock:
            left, self._waiting = self._waiting, {}
        for future in left.values():
            future.set_exception(ChatUnavailableError("The process that makes the calls has ended."))


def wait_until_free(log_path: Path) -> None:
    """Wait until no courier writes to a call log."""
    told = False
    while True:
        with open(_lock_path(log_path), "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not told:
                    logger.warning("Waiting for calls of an earlier session that are still on their way.")
                told = True
        time.sleep(0.05)


def main() -> None:
    """Make calls as they come in on standard input, until it ends and every call is answered."""
    first = json.loads(sys.stdin.readline())
    models = {role: EndpointSpec(**spec).connect() for role, spec in first["specs"].items()}
    said = threading.Lock()
    with open(_lock_path(Path(first["log"])), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        log = AppendLog(first["log"])
        sys.stdout.write("ready\n")
        sys.stdout.flush()

        def work(order: dict[str, Any]) -> None:
            key, digest, model = order["key"], order["request"], models[order["role"]]
            try:
                record = make_logged_call(log, key, digest, model, _unpack(order["messages"]), order["schema"])
            except Exception as error:  # the engine waits for an answer, and raises this one
                record = {"event": "failed", "key": key, "request": digest, "error": repr(error), "status": None}
                record["unexpected"] = True
                record |= {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "time": time.time()}
                log.append(record)
            with said:
                try:
                    sys.stdout.write(json.dumps(record) + "\n")
                    sys.stdout.flush()
                except BrokenPipeError:
                    logger.info("The engine is gone; %s is in the log.", order["key"])

        with ThreadPoolExecutor(first["concurrency"]) as pool:
            for line in sys.stdin:
                if line.endswith("\n"):
                    pool.submit(work, json.loads(line))
        log.close()


def _lock_path(log_path: Path) -> Path:
    return log_path.with_name("calls.lock")


def _pack(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as plain values, pictures as PNG."""
    packed = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "image":
                buffer = io.BytesIO()
                part["image"].save(buffer, "PNG", compress_level=1)
                part = {"type": "image", "png": base64.b64encode(buffer.getvalue()).decode("ascii")}
            parts.append(part)
        packed.append({"role": message["role"], "content": parts})
    return packed


def _unpack(messages: list[dict[str, Any]]) -> list[Message]:
    from PIL import Image

    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = Image.open(io.BytesIO(base64.b64decode(part.pop("png")))).convert("RGB")
    return messages


if __name__ == "__main__":
    main()
