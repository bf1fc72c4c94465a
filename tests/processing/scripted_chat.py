# SPDX-License-Identifier: Apache-2.0
"""A chat endpoint without a model: HTTP on loopback, the OpenAI chat-completions API, answers from a script.

It lets the agent and the data engine be tried and tested over a real connection, faults included.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


@dataclass
class Answer:
    """What the server sends: a completion with `text`, or `body` as it is (in pieces, as they come, until it closes).

    `delay` seconds pass before; `usage` None leaves the token counts out; `hang_up` closes the connection instead.
    """

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] | None = None
    delay: float = 0.0
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10})
    finish_reason: str = "stop"
    hang_up: bool = False


class ScriptedChatServer:
    """Answers POST /v1/chat/completions by a script; a context manager.

    Args:
        script: called with the decoded request and its number from 0, from several threads; returns a text or an
            [`Answer`].
        keep_requests: whether `requests`, `headers` and `times` (seconds) keep what came in.

    Attributes:
        base_url: what a client connects to.
    """

    def __init__(self, script: Callable[[dict, int], str | Answer], *, keep_requests: bool = True):
        self.script = script
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self._count = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):  # noqa: N802
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    index, outer._count = outer._count, outer._count + 1
                    if keep_requests:
                        outer.requests.append(request)
                        outer.headers.append({key.lower(): value for key, value in self.headers.items()})
                        outer.times.append(time.monotonic())
                if self.path != "/v1/chat/completions":
                    answer = Answer(status=404, body=b'{"error": "no such path"}')
                else:
                    answer = outer.script(request, index)
                outer._send(self, answer if isinstance(answer, Answer) else Answer(answer))

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        time.sleep(answer.delay)
        if answer.hang_up:
            handler.close_connection = True
            handler.connection.close()
            return
        body = answer.body
        if body is None:
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "finish_reason": answer.finish_reason,
            }
            completion = {"id": "scripted", "created": 0, "model": "scripted", "object": "chat.completion"}
            completion |= {"choices": [choice], "system_fingerprint": "scripted"}
            if answer.usage is not None:
                completion["usage"] = answer.usage | {"total_tokens": sum(answer.usage.values())}
            body = json.dumps(completion).encode()
        try:
            handler.send_response(answer.status)
            for key, value in {"Content-Type": "application/json", **answer.headers}.items():
                handler.send_header(key, value)
            if isinstance(body, bytes):
                handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            for piece in [body] if isinstance(body, bytes) else body:
                handler.wfile.write(piece)
            handler.close_connection = not isinstance(body, bytes)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True  # the client gave up waiting

    def __enter__(self) -> ScriptedChatServer:
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()


def texts_of(message: dict) -> str:
    """All text of one message as it arrived."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def images_of(message: dict) -> list[Image.Image]:
    """The images of one message as they arrived."""
    if isinstance(message["content"], str):
        return []
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) for url in urls]
