# SPDX-License-Identifier: Apache-2.0
import base64
import itertools
import logging
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from scripted_chat import Answer, ScriptedChatServer, images_of

from sam3i.processing.chat.client import (
    ChatRequestError,
    ChatUnavailableError,
    ChatUsage,
    LocalChatModel,
    chat_message,
    extract_json,
)
from sam3i.processing.chat.endpoint import EndpointChatModel, encode_image

SCHEMA = {
    "type": "object",
    "properties": {"noun": {"type": "string"}, "count": {"type": "integer", "minimum": 0}},
    "required": ["noun", "count"],
    "additionalProperties": False,
}
HELLO = [chat_message("user", "hello")]


def connect(server, **options):
    return EndpointChatModel(server.base_url, "tiny", **{"backoff": 0.01, "timeout": 5.0, **options})


def play(*answers):
    """A script that gives one answer after the other."""
    return lambda request, index: answers[index]


def test_text_and_images_arrive_in_order_and_pixel_equal():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    with ScriptedChatServer(play("a dog")) as server:
        model = connect(server, temperature=0.3, seed=7, max_tokens=55, extra_body={"top_k": 3})
        reply = model.complete([chat_message("system", "be brief"), chat_message("user", "what is", image, "this?")])
    request = server.requests[0]
    assert reply.text == "a dog" and reply.finish_reason == "stop"
    assert request["messages"][0] == {"role": "system", "content": "be brief"}
    kinds = [part["type"] for part in request["messages"][1]["content"]]
    assert kinds == ["text", "image_url", "text"]
    np.testing.assert_array_equal(np.asarray(images_of(request["messages"][1])[0]), pixels)
    sent = {key: request[key] for key in ("model", "temperature", "seed", "max_tokens", "top_k")}
    assert sent == {"model": "tiny", "temperature": 0.3, "seed": 7, "max_tokens": 55, "top_k": 3}


def test_large_images_travel_as_jpeg_close_to_the_original():
    ramp = np.linspace(0, 255, 400 * 500 * 3).reshape(400, 500, 3).astype(np.uint8)
    url = encode_image(Image.fromarray(ramp))
    assert url.startswith("data:image/jpeg;base64,")
    (image,) = images_of({"content": [{"type": "image_url", "image_url": {"url": url}}]})
    assert image.size == (500, 400)
    assert np.abs(np.asarray(image, int) - ramp).mean() < 2


def test_usage_adds_up_over_calls_and_marks_unmetered_answers():
    with ScriptedChatServer(play("a", Answer("b", usage=None), Answer("c", finish_reason="length"))) as server:
        model = connect(server)
        replies = [model.complete(HELLO) for _ in range(3)]
    assert [r.usage.tokens for r in replies] == [110, 0, 110]
    assert model.usage.calls == 3 and model.usage.unmetered == 1 and model.usage.tokens == 220
    assert model.usage.seconds == pytest.approx(sum(r.usage.seconds for r in replies))
    assert replies[2].finish_reason == "length"
    assert ChatUsage(1, 2, 3, 4, 5, 6.0) + ChatUsage(1, 1, 1, 1, 1, 1.0) == ChatUsage(2, 3, 4, 5, 6, 7.0)


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=429, body=b'{"error": "slow down"}'),
        Answer(status=500, body=b"oops"),
        Answer(status=503, body=b""),
        Answer(body=b"<html>not json</html>"),
        Answer(body=b'{"error": {"message": "overloaded"}}'),
    ],
    ids=["429", "500", "503", "not-json", "no-choices"],
)
def test_passing_failures_are_retried(fault):
    with ScriptedChatServer(play(fault, fault, "at last")) as server:
        reply = connect(server).complete(HELLO)
    assert reply.text == "at last" and reply.usage.retries == 2 and reply.usage.calls == 1
    assert len(server.requests) == 3 and server.requests[0] == server.requests[2]


UNANSWERED = {
    "late": Answer("late", delay=3.0),
    "hang-up": Answer(hang_up=True),
    "504": Answer(status=504, body=b""),
    "cut off": Answer(body=[b'{"choices": [{"message": {"cont']),
}


@pytest.mark.parametrize("name", UNANSWERED)
def test_a_request_that_may_have_been_paid_for_is_sent_again_only_when_asked(name):
    with ScriptedChatServer(play(UNANSWERED[name], "answered")) as server:
        with pytest.raises(ChatUnavailableError, match="1 attempts.*may be on the bill") as caught:
            connect(server, timeout=1.0).complete(HELLO)
        assert len(server.requests) == 1
    usage = caught.value.usage
    assert (usage.calls, usage.retries, usage.unanswered) == (0, 0, 1)
    with ScriptedChatServer(play(UNANSWERED[name], "answered", "other")) as server:
        model = connect(server, timeout=1.0, resend=True)
        replies = [model.complete(HELLO) for _ in range(2)]
    assert [(reply.text, reply.usage.unanswered) for reply in replies] == [("answered", 1), ("other", 0)]
    keys = [headers["idempotency-key"] for headers in server.headers]
    assert len(keys) == 3 and keys[0] == keys[1] != keys[2]
    with ScriptedChatServer(lambda request, index: UNANSWERED[name]) as server:
        with pytest.raises(ChatUnavailableError, match="2 attempts") as caught:
            connect(server, timeout=0.4, max_retries=1, resend=True).complete(HELLO)
    assert (caught.value.usage.retries, caught.value.usage.unanswered) == (1, 2)


def test_retry_after_is_honoured_up_to_the_ceiling():
    slow = Answer(status=429, headers={"Retry-After": "1"}, body=b"{}")
    with ScriptedChatServer(play(slow, "ok")) as server:
        connect(server).complete(HELLO)
    assert server.times[1] - server.times[0] >= 1.0
    forever = Answer(status=429, headers={"Retry-After": "3600"}, body=b"{}")
    with ScriptedChatServer(play(forever, "ok")) as server:
        connect(server, max_backoff=0.1).complete(HELLO)
    assert 0.1 <= server.times[1] - server.times[0] < 1.0


def test_backoff_doubles():
    with ScriptedChatServer(play(*[Answer(status=500, body=b"")] * 4, "ok")) as server:
        connect(server, backoff=0.1).complete(HELLO)
    waits = np.diff(server.times)
    for index, wait in enumerate(waits):
        assert 0.05 * 2**index <= wait < 0.1 * 2**index + 0.15


def test_a_refusal_is_not_retried_and_says_why():
    with ScriptedChatServer(lambda request, index: Answer(status=401, body=b'{"error": "bad key"}')) as server:
        model = connect(server)
        with pytest.raises(ChatRequestError, match="HTTP 401"):
            model.complete(HELLO)
    assert len(server.requests) == 1


def test_nobody_listens():
    with ScriptedChatServer(play("x")) as server:
        pass
    with pytest.raises(ChatUnavailableError, match="the connection failed"):
        connect(server, max_retries=1).complete(HELLO)


def test_only_the_given_key_is_sent(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("SAM3I_CHAT_API_KEY", raising=False)
    with ScriptedChatServer(lambda request, index: "x") as server:
        connect(server).complete(HELLO)
        connect(server, api_key="given").complete(HELLO)
        monkeypatch.setenv("SAM3I_CHAT_API_KEY", "from-environment")
        connect(server).complete(HELLO)
    assert [headers["authorization"] for headers in server.headers] == [
        "Bearer none",
        "Bearer given",
        "Bearer from-environment",
    ]


def test_nothing_of_another_service_is_sent(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret-of-another-service")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.delenv("SAM3I_CHAT_API_KEY", raising=False)
    with ScriptedChatServer(lambda request, index: "x") as server:
        connect(server).complete(HELLO)
    assert "secret-of-another-service" not in str(server.headers)


def test_credentials_in_the_address_reach_the_server_and_no_message(caplog):
    caplog.set_level(logging.DEBUG)
    with ScriptedChatServer(play("x", Answer(status=500, body=b""), Answer(status=401, body=b"no"))) as server:
        address = server.base_url.replace("http://", "http://ann:top%40secret@")
        model = EndpointChatModel(address, "tiny", backoff=0.01, max_retries=1)
        model.complete(HELLO)
        with pytest.raises(ChatRequestError) as caught:
            model.complete(HELLO)
    assert server.headers[0]["authorization"] == f"Basic {base64.b64encode(b'ann:top@secret').decode()}"
    said = caplog.text + str(caught.value) + str(caught.value.__cause__)
    assert "Retrying" in said and "top%40secret" not in said and "top@secret" not in said and "ann:" not in said


def test_an_error_body_is_shown():
    body = b'{"error": {"message": "image input is not supported"}}'
    with ScriptedChatServer(lambda request, index: Answer(status=500, body=body)) as server:
        with pytest.raises(ChatUnavailableError, match="HTTP 500.*image input is not supported"):
            connect(server, max_retries=1).complete(HELLO)


def slowly(piece, seconds):
    for _ in range(int(seconds / 0.05)):
        yield piece
        time.sleep(0.05)


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_that_drips_is_not_waited_for(status):
    with ScriptedChatServer(lambda request, index: Answer(status=status, body=slowly(b" ", 10))) as server:
        started = time.monotonic()
        with pytest.raises(ChatUnavailableError, match="no whole answer within 0.5 s"):
            connect(server, timeout=0.5, max_retries=0).complete(HELLO)
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_without_an_end_is_not_read(status):
    endless = itertools.repeat(b" " * (1 << 20))
    with ScriptedChatServer(lambda request, index: Answer(status=status, body=endless)) as server:
        with pytest.raises(ChatUnavailableError, match="more than 16 MiB"):
            connect(server, timeout=60, max_retries=0).complete(HELLO)


@pytest.mark.parametrize(
    "usage",
    ["null", "3", '"many"', "[]", '{"prompt_tokens": "7"}', '{"prompt_tokens": -1, "completion_tokens": 1e999}',
     '{"prompt_tokens": null, "completion_tokens": 4}'],
)  # fmt: skip
def test_odd_usage_is_unmetered(usage):
    body = '{"choices": [{"message": {"content": "hi"}, "finish_reason": 3}], "usage": USAGE}'.replace("USAGE", usage)
    with ScriptedChatServer(lambda request, index: Answer(body=body.encode())) as server:
        reply = connect(server).complete(HELLO)
    assert (reply.text, reply.finish_reason, reply.usage.unmetered, reply.usage.tokens) == ("hi", None, 1, 0)


def test_half_a_surrogate_pair_and_deep_nesting_do_no_harm():
    half = b'{"choices": [{"message": {"content": "a \\ud83d cup"}}]}'
    deep = b'{"choices": ' + b"[" * 100_000
    with ScriptedChatServer(play(Answer(body=half), Answer(body=deep))) as server:
        model = connect(server, max_retries=0)
        assert model.complete(HELLO).text == "a ? cup"
        with pytest.raises(ChatUnavailableError, match="not a chat completion"):
            model.complete(HELLO)
    with pytest.raises(ValueError, match="nested too deeply"):
        extract_json("[" * 100_000)


def test_check_says_in_seconds_what_is_wrong():
    image = Image.new("RGB", (8, 8))
    refusal = Answer(status=500, body=b'{"error": "image input is not supported"}')
    script = play("yes", refusal, Answer(status=401, body=b"bad key"))
    with ScriptedChatServer(script) as server:
        connect(server).check(image)
        assert len(images_of(server.requests[0]["messages"][0])) == 1 and server.requests[0]["max_tokens"] == 16
        with pytest.raises(ChatUnavailableError, match="image input is not supported"):
            connect(server).check(image)
        with pytest.raises(ChatRequestError, match="bad key"):
            connect(server).check(image)
    started = time.monotonic()
    with pytest.raises(ChatUnavailableError, match="the connection failed"):
        connect(server, backoff=30.0).check(image)
    assert time.monotonic() - started < 5


def test_without_openai_the_hint_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r'pip install "sam3i\[chat\]"'):
        EndpointChatModel("http://127.0.0.1:9/v1", "tiny")


def test_schema_goes_over_the_wire_in_openai_form():
    with ScriptedChatServer(play('{"noun": "dog", "count": 2}')) as server:
        reply = connect(server).complete(HELLO, json_schema=SCHEMA)
    assert extract_json(reply.text) == {"noun": "dog", "count": 2}
    form = server.requests[0]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"] == SCHEMA
    assert server.requests[0]["messages"] == [{"role": "user", "content": "hello"}]


def test_schema_is_stated_in_words_where_the_server_knows_none():
    with ScriptedChatServer(play('```json\n{"noun": "dog", "count": 2}\n```')) as server:
        reply = connect(server, native_json_schema=False).complete(HELLO, json_schema=SCHEMA)
    assert extract_json(reply.text)["count"] == 2
    assert "response_format" not in server.requests[0]
    assert '"additionalProperties": false' in server.requests[0]["messages"][0]["content"]


def test_threads_share_the_rate_limit_and_the_bill():
    with ScriptedChatServer(lambda request, index: "x") as server:
        model = connect(server, requests_per_minute=600)
        model.complete(HELLO)  # the first call of a client loads its code, on the way to the server
        threads = [threading.Thread(target=model.complete, args=(HELLO,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert model.usage.calls == 7
    assert max(server.times) - min(server.times[1:]) >= 0.45


@pytest.mark.parametrize(
    "text, value",
    [
        ('{"a": 1}', {"a": 1}),
        ("<think>{maybe}</think>\n[1, 2]", [1, 2]),
        ("reasoning without a start</think> 3", 3),
        ('```\n{"a": "```"}\n```', {"a": "```"}),
    ],
)
def test_extract_json(text, value):
    assert extract_json(text) == value


@pytest.mark.parametrize("text", ["", "a dog", '{"a": 1} {"b": 2}', '{"a": 1'])
def test_extract_json_refuses(text):
    with pytest.raises(ValueError):
        extract_json(text)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"base_url": "localhost:8000"}, "http://"),
        ({"timeout": 0}, "timeout"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
    ],
)
def test_faulty_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        EndpointChatModel(**{"base_url": "http://127.0.0.1:9", "name": "tiny", **options})


@pytest.fixture(scope="module")
def tiny_llava():
    """A random image-text-to-text model whose vocabulary is a handful of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<unk>", "<pad>", "</s>", "<image>", "user", "assistant", *"what is this dog cat ball red 1 2".split()]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    template = (
        "{% for m in messages %}{{ m.role }} {% for p in m.content %}"
        "{% if p.type == 'image' %}<image> {% else %}{{ p.text }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(words),
        eos_token_id=2,
        pad_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=3))
    return model, processor


def test_local_model_answers_and_counts_tokens(tiny_llava):
    model, processor = tiny_llava
    chat = LocalChatModel(model, processor, max_tokens=5)
    image = Image.new("RGB", (20, 20), "red")
    reply = chat.complete([chat_message("user", image, "what is this")])
    # user, 4 image patches, three words, assistant
    assert reply.usage.prompt_tokens == 9
    assert 1 <= reply.usage.completion_tokens <= 5 and reply.usage.calls == 1
    assert reply.finish_reason == ("length" if reply.usage.completion_tokens == 5 else "stop")
    assert chat.complete([chat_message("user", image, "what is this")]).text == reply.text
    assert chat.num_parameters == sum(p.numel() for p in model.parameters())
    assert chat.usage.calls == 2


def test_local_model_reads_several_images_and_a_conversation_from_several_threads(tiny_llava):
    chat = LocalChatModel(*tiny_llava, max_tokens=1)
    image = Image.new("RGB", (20, 20), "red")
    messages = [
        chat_message("user", "what", image, "is", image),
        chat_message("assistant", "dog"),
        chat_message("user", "this"),
    ]
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(chat.complete(messages))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # user what 4 is 4, assistant dog, user this, assistant
    assert [reply.usage.prompt_tokens for reply in replies] == [16] * 4
    assert len({reply.text for reply in replies}) == 1 and chat.usage.calls == 4


def test_local_model_samples_by_seed(tiny_llava):
    message = [chat_message("user", "what is this")]
    texts = [
        LocalChatModel(*tiny_llava, max_tokens=8, temperature=5.0, seed=seed).complete(message).text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_local_model_depends_on_the_image(tiny_llava):
    model, processor = tiny_llava
    seen = []
    original = model.generate
    try:
        model.generate = lambda **inputs: seen.append(inputs["pixel_values"]) or original(**inputs)
        chat = LocalChatModel(model, processor, max_tokens=1)
        for color in ("red", "blue"):
            chat.complete([chat_message("user", Image.new("RGB", (20, 20), color), "what is this")])
    finally:
        del model.generate
    assert seen[0].shape == seen[1].shape and not seen[0].equal(seen[1])


def test_local_model_round_trip_through_a_folder(tiny_llava, tmp_path):
    model, processor = tiny_llava
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    message = [chat_message("user", Image.new("RGB", (20, 20), "red"), "what is this")]
    expected = LocalChatModel(model, processor, max_tokens=5).complete(message).text
    loaded = LocalChatModel.from_pretrained(str(tmp_path), max_tokens=5)
    assert loaded.complete(message).text == expected and loaded.name == str(tmp_path)


def test_local_model_needs_a_chat_template(tiny_llava):
    model, processor = tiny_llava

    class Bare:
        chat_template = None

    with pytest.raises(ValueError, match="chat template"):
        LocalChatModel(model, Bare())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_real_server_answers_and_says_what_it_refuses(tiny_llava, tmp_path):
    """`transformers serve`, over a folder with the tiny model: images arrive, tokens are counted, errors are shown."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    for part in tiny_llava:
        part.save_pretrained(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command)
    try:
        model = EndpointChatModel(
            f"http://127.0.0.1:{port}/v1", str(tmp_path), max_tokens=5, timeout=300, max_retries=0
        )
        deadline = time.monotonic() + 1000  # a busy machine takes minutes to import what the server needs
        while True:
            try:
                model.check(Image.new("RGB", (20, 20), "red"), timeout=300)
                break
            except ChatUnavailableError as error:
                assert "the connection failed" in str(error) and server.poll() is None, error
                assert time.monotonic() < deadline
                time.sleep(0.5)
        reply = model.complete([chat_message("user", Image.new("RGB", (20, 20), "red"), "what is this")])
        assert reply.usage.calls == 1 and reply.usage.prompt_tokens >= 9 and reply.usage.completion_tokens <= 5
        try:  # this server knows no schemas: some versions say so, others leave the field out
            assert model.complete(HELLO, json_schema=SCHEMA).usage.completion_tokens <= 5
        except ChatRequestError as error:
            assert "response_format" in str(error)
        free = EndpointChatModel(model.base_url, model.name, max_tokens=3, timeout=300, native_json_schema=False)
        assert free.complete(HELLO, json_schema=SCHEMA).usage.calls == 1
        with pytest.raises((ChatRequestError, ChatUnavailableError), match="HTTP [45]"):
            EndpointChatModel(model.base_url, str(tmp_path / "nothing"), max_retries=0).complete(HELLO)
    finally:
        server.terminate()
        server.wait()
