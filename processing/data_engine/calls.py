# SPDX-License-Identifier: Apache-2.0
"""Paid calls to chat models: written down before they are made, answered from the store ever after, capped.

An answered call is never made again; one that was sent and brought nothing back (a time-out) is, when the user asked
for it (`EndpointSpec.resend`) or runs again; it counts as spent. Calls to endpoints are made by a process apart, so
that killing the engine loses no answer that is on its way: that process waits for the calls in flight, writes their
answers down and ends, and the next session waits for it. A call that was sent and has no outcome (that process died as
well) is in doubt: it is counted as spent, and made again only when its answer is needed.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import IO, Any

from filelock import FileLock, Timeout

from ..chat.client import (
    ChatModel,
    ChatModelError,
    ChatRequestError,
    ChatUnavailableError,
    ChatUsage,
    Message,
)
from ..chat.endpoint import EndpointSpec, image_url_part
from .store import ANSWERED, RunStore, StoreError

logger = logging.getLogger(__name__)

IMAGE_TOKENS = 1500  # what one image is taken to cost before the endpoint says


class BudgetExhaustedError(RuntimeError):
    """A cap would be passed by one more call; raise the cap and run again to go on."""


class ChangedRequestError(ValueError):
    """A call of the store has the key of a new one, and other words."""


@dataclass(frozen=True)
class Budget:
    """Caps on what a run may spend over all sessions; None is no cap."""

    max_calls: int | None = None  # answered requests, and those that may have been (after a crash, a time-out)
    max_tokens: int | None = None  # prompt and completion together
    max_cost: float | None = None  # in the currency of the prices
    prompt_price: float = 0.0  # per million tokens
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 0:
                raise ValueError(f"`{name}` must be 0 or more, received {value}.")
        if self.max_cost is not None and not (self.prompt_price or self.completion_price):
            raise ValueError("`max_cost` needs `prompt_price` or `completion_price` (per million tokens).")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of some tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


class PaidCalls:
    """The calls of one session; a context manager, safe for threads.

    Args:
        models: per role; a `ChatModel` is called in this process, an endpoint from one of its own.
    """

    def __init__(
        self,
        store: RunStore,
        models: Mapping[str, ChatModel | EndpointSpec],
        budget: Budget | None = None,
        concurrency: int = 1,
    ):
        self.store, self.models = store, dict(models)
        self.budget = budget or Budget()
        self.concurrency = concurrency
        self.spent = {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._reserved: list[tuple[int, int]] = []
        self._waiting: dict[str, Future] = {}
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._orders: IO[str] = io.StringIO()  # the process's standard input

    def __enter__(self) -> PaidCalls:
        if self.models:
            self.store.set_room_aside(True)
        specs = {role: asdict(model) for role, model in self.models.items() if isinstance(model, EndpointSpec)}
        if specs:
            # A session of its own: what stops the engine (a signal to its group, a closed terminal) does not reach it.
            command = [sys.executable, "-m", __name__]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                text=True,
                encoding="utf-8",
            )
            assert process.stdin is not None and process.stdout is not None  # as asked for
            self._process, self._orders = process, process.stdin
            self._send({"folder": str(self.store.path.parent), "specs": specs, "concurrency": self.concurrency})
            # It says so when it alone makes calls for this run: what an earlier session left on its way is written.
            if process.stdout.readline().strip() != "ready":
                raise ChatUnavailableError("The process that makes the calls did not start; its error is above.")
            threading.Thread(target=self._listen, args=(process.stdout,), daemon=True).start()
        counts = self.store.call_counts()
        self.spent = {name: counts[name] for name in self.spent}
        self.spent["calls"] += counts["in_doubt"]
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._orders.close()
            self._process.wait()
        self.store.set_room_aside(False)

    @property
    def cost(self) -> float:
        """What was spent, in the currency of the prices."""
        return round(self.budget.cost(self.spent["prompt_tokens"], self.spent["completion_tokens"]), 6)

    def ask(self, role: str, key: str, messages: Sequence[Message], json_schema: dict[str, Any]) -> str:
        """The answer to a request, as text; from the store where it has been paid for.

        Args:
            key: names the call within the run; the same key means the same request.
            json_schema: the form of the answer; an answer in another form is an answer, and its reader's concern.

        Raises:
            BudgetExhaustedError: a cap is reached.
            ChangedRequestError: the store has another request under this key.
            ChatModelError: no answer was had.
            StoreError: the disk is full.
        """
        model = self.models[role]
        request = _digest(model.name, messages, json_schema)
        before = self.store.call(key)
        if before is not None and before["state"] == ANSWERED:
            if before["request"] != request:
                raise ChangedRequestError(
                    f"Call {key!r} was made with other words before; start a new run folder for other prompts or data."
                )
            return before["text"]
        reservation = self._reserve(_prompt_size(messages), model.max_tokens)
        try:
            if isinstance(model, ChatModel):
                make_call(self.store, model, key, request, messages, json_schema)
            else:
                self._have_made({"key": key, "request": request, "role": role, "schema": json_schema}, messages)
        finally:
            call = self.store.call(key)
            self._settle(reservation, before, call)
        if call is None or call["state"] != ANSWERED:
            error = "the process that makes the calls has ended." if call is None else call["error"] or "no outcome"
            status = None if call is None else call["status"]
            raise ChatUnavailableError(error) if status is None else ChatRequestError(error, status)
        return call["text"]

    def _have_made(self, order: dict[str, Any], messages: Sequence[Message]) -> None:
        future: Future = Future()
        with self._lock:
            self._waiting[order["key"]] = future
        try:
            self._send(order | {"messages": _pack(messages)})
        except (BrokenPipeError, ValueError) as error:
            raise ChatUnavailableError("The process that makes the calls has ended.") from error
        fault = future.result()
        if fault is not None:
            raise StoreError(fault)

    def _send(self, item: dict[str, Any]) -> None:
        line = json.dumps(item) + "\n"
        with self._lock:
            self._orders.write(line)
            self._orders.flush()

    def _listen(self, answers: IO[str]) -> None:
        for line in answers:
            done = json.loads(line)
            with self._lock:
                future = self._waiting.pop(done["key"])
            future.set_result(done["fault"])
        with self._lock:
            left, self._waiting = self._waiting, {}
        for future in left.values():
            future.set_exception(ChatUnavailableError("The process that makes the calls has ended."))

    def _reserve(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, int]:
        """Set the most that a call may take aside before it is made."""
        with self._lock:
            prompt = self.spent["prompt_tokens"] + prompt_tokens + sum(item[0] for item in self._reserved)
            completion = self.spent["completion_tokens"] + completion_tokens + sum(item[1] for item in self._reserved)
            wanted = (
                ("calls", self.budget.max_calls, self.spent["calls"] + len(self._reserved) + 1),
                ("tokens", self.budget.max_tokens, prompt + completion),
                ("cost", self.budget.max_cost, self.budget.cost(prompt, completion)),
            )
            for name, cap, value in wanted:
                if cap is not None and value > cap:
                    raise BudgetExhaustedError(
                        f"One more call might bring the {name} to {value:g}, above the cap of {cap:g}; "
                        "raise the cap and run again to go on."
                    )
            self._reserved.append((prompt_tokens, completion_tokens))
            return prompt_tokens, completion_tokens

    def _settle(self, reservation: tuple[int, int], before: Any, after: Any) -> None:
        """Replace a reservation by what the call took."""
        with self._lock:
            self._reserved.remove(reservation)
            for name in self.spent:
                self.spent[name] += _spent(after, name) - _spent(before, name)


def _spent(call: Any, name: str) -> int:
    return 0 if call is None else call[name] + (name == "calls" and call["state"] == "sent")


def make_call(
    store: RunStore,
    model: ChatModel,
    key: str,
    request: str,
    messages: Sequence[Message],
    json_schema: dict[str, Any],
) -> None:
    """Make one call between the two things that the store learns of it."""
    store.note_sent(key, request)
    try:
        reply = model.complete(list(messages), json_schema=json_schema)
        store.note_outcome(key, reply.usage, reply.text, None, None)
    except ChatModelError as error:
        store.note_outcome(key, error.usage, None, str(error), getattr(error, "status", None))
    except StoreError:
        raise
    except Exception as error:  # whatever an endpoint made the client do: this call failed, the others go on
        store.note_outcome(key, ChatUsage(), None, f"{type(error).__name__}: {error}", None)


def main() -> None:
    """Make calls as they come in on standard input, until it ends and every call is answered."""
    first = json.loads(sys.stdin.readline())
    models = {role: EndpointSpec(**spec).connect() for role, spec in first["specs"].items()}
    store, said = RunStore(first["folder"]), threading.Lock()
    lock = FileLock(store.path.with_name("calls.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.warning("Waiting for calls of an earlier session that are still on their way.")
        lock.acquire()

    def say(line: str) -> None:
        with said:
            try:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                logger.info("The engine is gone; what was answered is in the store.")

    def work(order: dict[str, Any]) -> None:
        key, model, fault = order["key"], models[order["role"]], None
        try:
            make_call(store, model, key, order["request"], order["messages"], order["schema"])
        except StoreError as error:
            fault = str(error)
        say(json.dumps({"key": key, "fault": fault}))

    say("ready")
    with ThreadPoolExecutor(first["concurrency"]) as pool:
        for line in sys.stdin:
            if line.endswith("\n"):
                pool.submit(work, json.loads(line))
    store.close()
    lock.release()


def _pack(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as plain values, images as data URLs."""
    return [
        {
            **message,
            "content": [part if part["type"] == "text" else image_url_part(part) for part in message["content"]],
        }
        for message in messages
    ]


def _digest(name: str, messages: Sequence[Message], json_schema: dict[str, Any]) -> str:
    """A fingerprint of a request, images included."""
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


if __name__ == "__main__":
    main()
