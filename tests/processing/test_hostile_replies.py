# SPDX-License-Identifier: Apache-2.0
"""Whatever a chat endpoint sends is an answer or one line of error; nothing that reads it fails in another way."""

import gzip
import itertools
import json
import socket
import threading
import time

import pytest
from scripted_chat import Answer, ScriptedChatServer

from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel
from sam3i.processing.chat.client import ChatModelError, chat_message, one_line
from sam3i.processing.chat.endpoint import EndpointChatModel
from sam3i.processing.data_engine.writers.chat_writer import ChatChecker, ChatWriter, UnusableAnswerError
from sam3i.trainer.baselines.agent.tools import UnusableReplyError, check_call, parse_tool_call, parse_verdict

ASK = [chat_message("user", "?")]
WANTED = {InstructionLevel.SIMPLE: 2, InstructionLevel.COMPLEX: 1}
DEEP = "[" * 100_000


def said(content, **fields):
    """A completion whose message has this content (any JSON value)."""
    return json.dumps({"choices": [{"message": {"content": content}}], **fields}).encode()


BODIES = {
    "nothing": b"",
    "blank": b" \n ",
    "null": b"null",
    "number": b"3",
    "list": b"[]",
    "not JSON": b"<html>\n<body>Bad gateway</body>\n</html>",
    "cut": said("the cup")[:-9],
    "two values": said("a") + said("b"),
    "not UTF-8": b'{"choices": "\xff\xfe"}',
    "UTF-16": said("the cup").decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + said("the cup"),
    "zero bytes": b"\x00" * 100,
    "deep list": DEEP.encode(),
    "deep object": b'{"a":' * 100_000,
    "deep choices": b'{"choices": ' + DEEP.encode(),
    "long number": b'{"choices": ' + b"9" * 5000 + b"}",
    "infinite number": said("a", usage={"prompt_tokens": 1}).replace(b": 1}", b": 1e999}"),
    "no choices": b"{}",
    "choices null": b'{"choices": null}',
    "choices empty": b'{"choices": []}',
    "choices object": b'{"choices": {"0": 1}}',
    "choice a string": b'{"choices": ["the cup"]}',
    "no message": b'{"choices": [{}]}',
    "message a list": b'{"choices": [{"message": []}]}',
    "content null": said(None),
    "content a number": said(3),
    "content a list": said([{"type": "text", "text": "the cup"}]),
    "content an object": said({"text": "the cup"}),
    "half a surrogate pair": b'{"choices": [{"message": {"content": "a \\ud83d cup"}}]}',
    "usage a string": said("a", usage="many"),
    "usage a list": said("a", usage=[1, 2]),
    "usage negative": said("a", usage={"prompt_tokens": -5, "completion_tokens": 1}),
    "usage huge": said("a", usage={"prompt_tokens": 10**30, "completion_tokens": 1}),
    "usage of words": said("a", usage={"prompt_tokens": "five", "completion_tokens": None}),
    "error in the body": b'{"error": {"message": "line one\\nline two"}}',
    "stream": b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n',
}
ANSWERS = {f"body: {name}": Answer(body=body) for name, body in BODIES.items()} | {
    "status 400": Answer(status=400, body=b"line one\nline two\x1b[31m"),
    "status 402": Answer(status=402, body=b"pay"),
    "status 404": Answer(status=404, body=b"\xff\xfe\x00"),
    "status 418": Answer(status=418, body=DEEP.encode()),
    "status 500": Answer(status=500, body=b"<html>" + b"\n" * 5000),
    "status 503": Answer(status=503, body=b"", headers={"Retry-After": "never"}),
    "status 429": Answer(status=429, body=b"", headers={"Retry-After": "-1"}),
    "status 204": Answer(status=204, body=b""),
    "redirect to itself": Answer(status=307, body=b"", headers={"Location": "/v1/chat/completions"}),
    "redirect to a file": Answer(status=307, body=b"", headers={"Location": "file:///etc/passwd"}),
    "compressed without an end": Answer(body=gzip.compress(b" " * (8 << 20)), headers={"Content-Encoding": "gzip"}),
    "unknown coding": Answer(body=said("a"), headers={"Content-Encoding": "zip"}),
    "unknown alphabet": Answer(body=said("a"), headers={"Content-Type": "application/json; charset=klingon"}),
    "hang up": Answer(hang_up=True),
}
TEXTS = {
    "nothing": "",
    "prose": "Sure! Here you go.",
    "deep": DEEP,
    "deep object": '{"answers":' * 50_000,
    "fenced": '```json\n{"simple": ["a"]\n```',
    "open fence": "```json\n{}",
    "thoughts without an end": "<think>" * 1000,
    "thoughts": "</think>" * 1000 + "{}",
    "true": "true",
    "infinite": '{"answers": [{"instruction": 1e999, "matches": [1]}]}',
    "not a number": '{"answers": [{"instruction": NaN, "matches": [NaN]}]}',
    "infinite match": '{"answers": [{"instruction": 1, "matches": [Infinity]}]}',
    "long number": '{"answers": [{"instruction": ' + "9" * 5000 + ', "matches": []}]}',
    "matches a string": '{"answers": [{"instruction": 1, "matches": "12"}]}',
    "matches an object": '{"answers": [{"instruction": 1, "matches": {"1": 2}}]}',
    "matches of lists": '{"answers": [{"instruction": 1, "matches": [[1]]}]}',
    "answers an object": '{"answers": {"1": [2]}}',
    "answers of numbers": '{"answers": [1, 2]}',
    "answers null": '{"answers": null, "simple": null, "complex": null}',
    "answers of another": '{"answers": [{"instruction": 7, "matches": []}]}',
    "texts a string": '{"simple": "the cup", "complex": "the cup"}',
    "texts of numbers": '{"simple": [1, 2], "complex": [null]}',
    "texts of lists": '{"simple": [["the cup"]], "complex": []}',
    "half a surrogate pair": '{"simple": ["\\ud83d", "\\udc00"], "complex": ["\\ud800 x"]}',
    "turned text": '{"simple": ["\\u202ecup", "\\u0000"], "complex": ["a\\nb\\tc"]}',
    "tool of nothing": "<tool></tool>",
    "tool without an end": "<tool>" * 2000,
    "tool deep": f"<tool>{DEEP}</tool>",
    "tool a list": "<tool>[]</tool>",
    "tool name a list": '<tool>{"name": [], "parameters": {}}</tool>',
    "tool name an object": '<tool>{"name": {}, "parameters": {}}</tool>',
    "tool name long": '<tool>{"name": "' + "x\\n" * 5000 + '", "parameters": {}}</tool>',
    "tool parameters a list": '<tool>{"name": "report_no_mask", "parameters": [1]}</tool>',
    "tool numbers infinite": '<tool>{"name": "select_masks_and_return", "parameters": {"final_answer_masks": [1e999]}}'
    "</tool>",
    "tool numbers many": '<tool>{"name": "select_masks_and_return", "parameters": {"final_answer_masks": ['
    + ",".join(map(str, range(9, 9999)))
    + "]}}</tool>",
    "tool phrase a surrogate": '<tool>{"name": "segment_phrase", "parameters": {"text_prompt": "\\ud83d"}}</tool>',
    "tool phrase of control characters": '<tool>{"name": "segment_phrase", "parameters": {"text_prompt": "\\u0000"}}'
    "</tool>",
    "verdicts": "<verdict>Accept</verdict><verdict>Reject</verdict>" * 500,
}
assert len(ANSWERS) + len(TEXTS) >= 80


def is_one_line(error):
    return str(error) == one_line(str(error), 1000) and len(str(error)) < 1000


@pytest.fixture(scope="module")
def endpoint():
    """(a client, a function that says what the server answers next)."""
    answers = {}
    with ScriptedChatServer(lambda request, index: answers["next"], keep_requests=False) as server:
        client = EndpointChatModel(server.base_url, "tiny", max_retries=0, timeout=20, backoff=0.01)
        yield client, lambda answer: answers.update(next=answer)


def read(text):
    """Hands a text to everything that reads one."""
    readers = [
        lambda: ChatWriter.parse(text, WANTED),
        lambda: ChatChecker.parse(text, 1),
        lambda: check_call(parse_tool_call(text), 3, True),
        lambda: parse_verdict(text),
    ]
    for reader in readers:
        try:
            found = reader()
        except (UnusableAnswerError, UnusableReplyError) as error:
            assert is_one_line(error), error
        else:
            json.dumps(str(found)).encode()


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_hostile_answer_is_an_answer_or_one_line(endpoint, answer):
    client, send = endpoint
    send(answer)
    try:
        reply = client.complete(ASK)
    except ChatModelError as error:
        assert is_one_line(error), error
        assert error.usage.tokens == 0
    else:
        reply.text.encode()
        assert 0 <= reply.usage.tokens < 1 << 41
        read(reply.text)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_hostile_text_is_read_or_refused_in_one_line(endpoint, text):
    client, send = endpoint
    send(Answer(text))
    read(client.complete(ASK).text)


def drip_headers(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(40):
        connection.sendall(b"a")
        time.sleep(0.1)


def say_nothing(connection):
    connection.recv(65536)
    time.sleep(4)


def endless_headers(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in itertools.count():
        connection.sendall(b"X-%d: a\r\n" % number)


def another_protocol(connection):
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
    connection.recv(65536)


def wrong_length(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{}")


def broken_chunks(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}")


@pytest.mark.parametrize(
    "behave", [drip_headers, say_nothing, endless_headers, another_protocol, wrong_length, broken_chunks]
)
def test_a_hostile_connection_ends_within_the_deadline(behave):
    def serve(listener):
        connection, _ = listener.accept()
        try:
            behave(connection)
        except OSError:
            return  # the client has gone
        finally:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        client = EndpointChatModel(
            f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "tiny", max_retries=0, timeout=1.0
        )
        started = time.monotonic()
        with pytest.raises(ChatModelError) as caught:
            client.complete(ASK)
        assert time.monotonic() - started < 3 and is_one_line(caught.value)
