# SPDX-License-Identifier: Apache-2.0
"""The agent over a real HTTP connection: its protocol, its books, and everything a chat model can do wrong."""

import json

import numpy as np
import pytest
from PIL import Image
from scripted_chat import Answer, ScriptedChatServer, images_of, texts_of

from sam3i.processing.chat.client import ChatRequestError
from sam3i.processing.chat.endpoint import EndpointChatModel
from sam3i.trainer.baselines.agent.agent import AgentSegmenter
from sam3i.trainer.baselines.agent.oracle import OracleAgent, OracleTruth, image_key
from sam3i.trainer.baselines.segmenters import EncodedImages, SegmentationResult

HEIGHT, WIDTH = 60, 80
LEFT, MIDDLE, RIGHT = (5, 10, 15, 30), (30, 20, 45, 40), (60, 5, 75, 50)  # x1, y1, x2, y2
SCORES = {LEFT: 0.7, MIDDLE: 0.9, RIGHT: 0.8}
ORDER = [MIDDLE, RIGHT, LEFT]  # by score: masks 1, 2, 3


def box_mask(box):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def union(*boxes):
    return np.any([box_mask(box) for box in boxes], axis=0) if boxes else np.zeros((HEIGHT, WIDTH), dtype=bool)


class SceneDetector:
    """A perfect SAM3 for one picture of three blocks, with two doubles and an empty mask among its findings."""

    num_parameters = 1000

    def __init__(self):
        self.phrases = []

    def encode(self, images):
        return EncodedImages(None, [(image.height, image.width) for image in images], 0.25)

    def detect(self, encoded, phrases, image_ids):
        self.phrases += phrases
        boxes = {"block": [LEFT, MIDDLE, RIGHT], "wide block": [RIGHT]}.get(phrases[0], [])
        masks = [box_mask(box) for box in boxes]
        scores = [SCORES[box] for box in boxes]
        if phrases[0] == "block":
            part, shifted = (32, 22, 40, 38), (62, 8, 77, 50)  # inside MIDDLE, over RIGHT
            masks += [box_mask(part), box_mask(shifted), np.zeros((HEIGHT, WIDTH), dtype=bool)]
            scores += [0.85, 0.5, 0.95]
        stack = np.stack(masks) if masks else np.zeros((0, HEIGHT, WIDTH), dtype=bool)
        return [SegmentationResult(stack, np.array(scores), np.zeros((len(masks), 4)))]


@pytest.fixture
def picture():
    pixels = np.full((HEIGHT, WIDTH, 3), 200, dtype=np.uint8)
    for box, color in zip((LEFT, MIDDLE, RIGHT), ((90, 60, 40), (40, 90, 60), (60, 40, 90)), strict=True):
        pixels[box_mask(box)] = color
    return Image.fromarray(pixels)


def call(name, **parameters):
    return f"<think>hm</think><tool>{json.dumps({'name': name, 'parameters': parameters})}</tool>"


SEARCH = call("segment_phrase", text_prompt="block")


def run(picture, *answers, instruction="the left block", chat=None, **options):
    """Plays answers, the last one for ever; returns result, steps, server, detector."""
    with ScriptedChatServer(lambda request, index: answers[min(index, len(answers) - 1)]) as server:
        options_of_chat = {"backoff": 0.01, "max_retries": 2, "temperature": 0.5} | (chat or {})
        model = EndpointChatModel(server.base_url, "tiny", **options_of_chat)
        detector = SceneDetector()
        result, steps = AgentSegmenter(detector, model, **options).run(picture, instruction)
    return result, steps, server, detector


def assert_answer(result, *boxes):
    assert result.error is None
    assert len(result.masks) == len(boxes)
    np.testing.assert_array_equal(result.masks, np.array([box_mask(box) for box in boxes]))
    np.testing.assert_allclose(result.scores, [SCORES[box] for box in boxes])


def assert_failed(result, reason):
    assert reason in result.error
    assert result.masks.shape == (0, HEIGHT, WIDTH)


class TestProtocol:
    def test_search_and_select(self, picture):
        result, steps, server, _ = run(picture, SEARCH, call("select_masks_and_return", final_answer_masks=[3]))
        assert_answer(result, LEFT)
        assert [(step.tool, step.num_masks) for step in steps] == [
            ("segment_phrase", 3),
            ("select_masks_and_return", 3),
        ]
        assert result.cost.calls == 2 and result.cost.tokens == 220 and result.cost.failures == 0
        assert result.cost.passes == 1 and result.cost.vision_passes == 1 and result.cost.seconds > 0.25

    def test_masks_are_free_of_doubles_ordered_and_numbered(self, picture):
        result, _, server, _ = run(picture, SEARCH, call("select_masks_and_return", final_answer_masks=[3, 1, 3, 2]))
        assert_answer(result, *ORDER)
        assert "numbered from 1 to 3" in texts_of(server.requests[1]["messages"][-1])

    def test_first_turn_shows_the_untouched_image_and_the_request(self, picture):
        _, _, server, _ = run(picture, call("report_no_mask"))
        system, user = server.requests[0]["messages"]
        assert system["role"] == "system" and "segment_phrase" in texts_of(system)
        assert '"the left block"' in texts_of(user)
        np.testing.assert_array_equal(np.asarray(images_of(user)[0]), np.asarray(picture))

    def test_second_turn_shows_the_drawing(self, picture):
        _, _, server, _ = run(picture, SEARCH, call("report_no_mask"))
        messages = server.requests[1]["messages"]
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
        (drawing,) = images_of(messages[3])
        scale = drawing.width / WIDTH
        assert min(drawing.size) == 448
        before = np.asarray(picture.resize(drawing.size, Image.Resampling.BICUBIC), int)
        changed = np.abs(np.asarray(drawing, int) - before).max(-1)
        for box in (LEFT, MIDDLE, RIGHT):
            x1, y1, x2, y2 = (round(v * scale) for v in box)
            assert changed[y1:y2, x1:x2].max() > 60  # an outline and a number,
            assert np.median(changed[y1 + 8 : y2 - 8, x1 + 8 : x2 - 8]) < 10  # which leave the color as it is
        assert np.median(changed[: round(4 * scale)]) < 8  # above all blocks: nothing but JPEG noise

    def test_no_mask(self, picture):
        result, steps, _, detector = run(picture, call("report_no_mask"))
        assert result.error is None and result.masks.shape == (0, HEIGHT, WIDTH)
        assert detector.phrases == [] and result.cost.calls == 1 and result.cost.passes == 0

    def test_a_search_without_result_goes_on(self, picture):
        empty = call("segment_phrase", text_prompt="cloud")
        result, _, server, _ = run(picture, empty, SEARCH, call("select_masks_and_return", final_answer_masks=[2]))
        assert_answer(result, RIGHT)
        assert 'nothing for "cloud"' in texts_of(server.requests[1]["messages"][-1])
        assert sum(len(images_of(message)) for message in server.requests[1]["messages"]) == 1
        assert result.cost.passes == 2

    def test_history_keeps_the_request_and_the_turns_since_the_last_search(self, picture):
        again = call("segment_phrase", text_prompt="wide block")
        result, _, server, _ = run(picture, SEARCH, again, call("select_masks_and_return", final_answer_masks=[1]))
        assert_answer(result, RIGHT)
        messages = server.requests[2]["messages"]
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
        assert "wide block" in texts_of(messages[2]) and '"block"' not in texts_of(messages[2])
        assert texts_of(messages[1]).endswith('may not be searched again: "block".')  # the latest phrase is not in it
        assert sum(len(images_of(message)) for message in messages) == 2

    def test_examination_shows_each_mask_alone_and_keeps_the_accepted(self, picture):
        verdicts = ["<verdict>Reject</verdict>", "ok <verdict> accept </verdict>", "<verdict>Accept</verdict>"]
        select = call("select_masks_and_return", final_answer_masks=[2])
        result, steps, server, _ = run(picture, SEARCH, call("examine_each_mask"), *verdicts, select)
        assert_answer(result, LEFT)  # 2 of the remaining [RIGHT, LEFT]
        assert [step.num_masks for step in steps] == [3, 2, 2]
        assert result.cost.calls == 6 and result.cost.passes == 1
        for request in server.requests[2:5]:
            system, user = request["messages"]
            assert "<verdict>Accept</verdict>" in texts_of(system) and "the left block" in texts_of(user)
            whole, marked, close_up = images_of(user)
            assert whole.size == (WIDTH, HEIGHT) and min(marked.size) == 448 and min(close_up.size) == 448
        after = server.requests[5]["messages"]
        assert [message["role"] for message in after] == ["system", "user", "assistant", "user", "assistant", "user"]
        assert sum(len(images_of(message)) for message in after) == 2  # untouched, and the latest drawing only
        assert "numbered anew from 1 to 2" in texts_of(after[-1])

    def test_examination_that_rejects_all_asks_for_another_search(self, picture):
        no = "<verdict>Reject</verdict>"
        again = call("segment_phrase", text_prompt="wide block")
        select = call("select_masks_and_return", final_answer_masks=[1])
        result, _, server, _ = run(picture, SEARCH, call("examine_each_mask"), no, no, no, again, select)
        assert_answer(result, RIGHT)
        assert "none of them fits" in texts_of(server.requests[5]["messages"][-1])

    def test_of_two_calls_in_a_turn_the_first_counts(self, picture):
        both = SEARCH + call("select_masks_and_return", final_answer_masks=[1])
        result, steps, server, _ = run(picture, both, call("select_masks_and_return", final_answer_masks=[3]))
        assert_answer(result, LEFT)
        assert steps[0].dropped_calls == 1 and len(steps) == 2 and result.cost.failures == 0
        history = texts_of(server.requests[1]["messages"][2])
        assert history.count("<tool>") == 1 and "select_masks" not in history

    @pytest.mark.parametrize("opening", ["<think>", ""])
    def test_a_call_in_the_thoughts_is_no_call(self, picture, opening):
        thought = '<tool>{"name": "report_no_mask", "parameters": {}}</tool>'
        reply = f"{opening}Should I {thought}? No.</think>" + SEARCH.split("</think>")[1]
        result, steps, _, _ = run(picture, reply, call("select_masks_and_return", final_answer_masks=[1]))
        assert_answer(result, MIDDLE)
        assert steps[0].tool == "segment_phrase" and steps[0].dropped_calls == 0

    def test_one_closing_brace_too_many_is_forgiven(self, picture):
        reply = '<tool>{"name": "report_no_mask", "parameters": {}}}</tool>'
        result, _, _, _ = run(picture, reply)
        assert result.error is None and result.cost.failures == 0


class TestFaults:
    @pytest.mark.parametrize(
        "reply, reason",
        [
            ("", "there is no <tool>"),
            ("the left one", "there is no <tool>"),
            ('<tool>{"name": "segment_phrase"', "there is no <tool>"),
            ('<tool>{"name": "segment_phrase", "parameters": {"text_prompt": "bl</tool>', "not one JSON object"),
            ("<tool>segment_phrase(block)</tool>", "not one JSON object"),
            ('<tool>["segment_phrase"]</tool>', "keys"),
            ('<tool>{"name": "segment_phrase", "arguments": {"text_prompt": "block"}}</tool>', "keys"),
            (call("detect", text_prompt="block"), "there is no tool 'detect'"),
            (call("segment_phrase"), "takes these parameters: text_prompt"),
            (call("segment_phrase", text_prompt="block", threshold=1), "takes these parameters: text_prompt"),
            (call("segment_phrase", text_prompt=["block"]), "must be a noun phrase"),
            (call("segment_phrase", text_prompt="  "), "must be a noun phrase"),
            (call("segment_phrase", text_prompt="\ud83d\x00"), "must be a noun phrase"),
            (call("report_no_mask", why="none"), "takes these parameters: none"),
            (call("examine_each_mask"), "the first call is segment_phrase or report_no_mask"),
            (call("select_masks_and_return", final_answer_masks=[1]), "the first call is"),
        ],
    )
    def test_an_unusable_first_reply_is_explained_and_mended(self, picture, reply, reason):
        select = call("select_masks_and_return", final_answer_masks=[1])
        result, steps, server, _ = run(picture, reply, SEARCH, select)
        assert_answer(result, MIDDLE)
        assert reason in texts_of(server.requests[1]["messages"][-1])
        assert result.cost.failures == 1 and result.cost.calls == 3
        assert steps[0].tool is None and reason in steps[0].fault
        assert len(server.requests[2]["messages"]) == 4  # the mended fault is forgotten

    @pytest.mark.parametrize(
        "numbers, reason",
        [
            ([4], "there is no mask [4]; the masks are numbered from 1 to 3"),
            ([1, 0, -1], "there is no mask [0, -1]"),
            ([], "at least one integer"),
            (["1"], "at least one integer"),
            ([True], "at least one integer"),
            ([1.0], "at least one integer"),
            (1, "at least one integer"),
        ],
    )
    def test_unknown_mask_numbers_are_sent_back(self, picture, numbers, reason):
        wrong = call("select_masks_and_return", final_answer_masks=numbers)
        result, _, server, _ = run(picture, SEARCH, wrong, call("select_masks_and_return", final_answer_masks=[2]))
        assert_answer(result, RIGHT)
        messages = server.requests[2]["messages"]
        assert reason in texts_of(messages[-1])
        assert sum(len(images_of(message)) for message in messages) == 2  # the drawing is still there
        assert result.cost.failures == 1

    def test_calls_that_need_masks_when_there_are_none(self, picture):
        empty = call("segment_phrase", text_prompt="cloud")
        result, _, server, _ = run(picture, empty, call("examine_each_mask"), call("report_no_mask"))
        assert result.error is None and result.cost.failures == 1
        assert "needs masks, and there are none" in texts_of(server.requests[2]["messages"][-1])

    @pytest.mark.parametrize("phrase", ["block", "Block", "  block "])
    def test_a_repeated_phrase_is_refused_without_running_sam3(self, picture, phrase):
        again = call("segment_phrase", text_prompt=phrase)
        select = call("select_masks_and_return", final_answer_masks=[1])
        result, steps, server, detector = run(picture, SEARCH, again, again, again, again, select)
        assert_answer(result, MIDDLE)
        assert detector.phrases == ["block"] and result.cost.passes == 1 and result.cost.failures == 4
        assert "may not be searched again" in texts_of(server.requests[2]["messages"][-1])
        assert len(server.requests[5]["messages"]) == 6  # four refusals do not pile up

    def test_unusable_to_the_end(self, picture):
        result, steps, server, _ = run(picture, "I cannot see it.", max_unusable=3)
        assert_failed(result, "3 answers in a row could not be carried out")
        assert len(server.requests) == 3 and result.cost.failures == 3 and result.cost.tokens == 330

    def test_the_count_of_unusable_answers_starts_anew(self, picture):
        select = call("select_masks_and_return", final_answer_masks=[1])
        result, _, _, _ = run(picture, "x", "x", SEARCH, "x", "x", select, max_unusable=3)
        assert_answer(result, MIDDLE)
        assert result.cost.failures == 4

    def test_unreadable_verdicts(self, picture):
        both = "<verdict>Accept</verdict><verdict>Reject</verdict>"
        no, yes = "<verdict>Reject</verdict>", "<verdict>Accept</verdict>"
        select = call("select_masks_and_return", final_answer_masks=[1])
        result, _, server, _ = run(picture, SEARCH, call("examine_each_mask"), both, "fine", yes, no, no, select)
        assert_answer(result, MIDDLE)
        assert result.cost.failures == 2 and result.cost.calls == 8
        assert "That is no verdict" in texts_of(server.requests[3]["messages"][-1])
        result, _, _, _ = run(picture, SEARCH, call("examine_each_mask"), "fine")
        assert_failed(result, "3 verdicts in a row on mask 1 could not be read")

    @pytest.mark.parametrize("reply", ["I cannot see it.", SEARCH], ids=["unusable", "a phrase again"])
    def test_a_model_without_randomness_is_not_paid_for_the_same_request_twice(self, picture, reply):
        result, _, server, _ = run(picture, SEARCH, reply, chat={"temperature": 0}, max_unusable=50)
        assert_failed(result, "the same answer again")
        bodies = [str(request["messages"]) for request in server.requests]
        assert len(bodies) == len(set(bodies)) == 3

    def test_nor_for_the_same_verdict(self, picture):
        answers = (SEARCH, call("examine_each_mask"), "fine")
        result, _, server, _ = run(picture, *answers, chat={"temperature": 0}, max_unusable=50)
        assert_failed(result, "2 verdicts in a row on mask 1 could not be read")
        assert len(server.requests) == 4

    def test_generations_run_out(self, picture):
        with ScriptedChatServer(lambda r, i: call("segment_phrase", text_prompt=f"thing {i}")) as server:
            agent = AgentSegmenter(SceneDetector(), EndpointChatModel(server.base_url, "tiny"))
            assert agent.max_generations == 100
            agent.max_generations = 12
            result, steps = agent.run(picture, "the left block")
        assert_failed(result, "the budget of 12 generations is used up")
        assert len(server.requests) == 12 and result.cost.calls == 12 and result.cost.passes == 12

    def test_examinations_count_as_generations(self, picture):
        result, _, server, _ = run(
            picture, SEARCH, call("examine_each_mask"), "<verdict>Accept</verdict>", max_generations=4
        )
        assert_failed(result, "the budget of 4 generations is used up")
        assert len(server.requests) == 4

    def test_tokens_run_out(self, picture):
        select = call("select_masks_and_return", final_answer_masks=[1])
        result, _, server, _ = run(picture, SEARCH, select, max_tokens=110)
        assert_failed(result, "the budget of 110 tokens is used up (110)")
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_failing_endpoint_is_asked_again(self, picture, status):
        down = Answer(status=status, body=b"{}")
        select = call("select_masks_and_return", final_answer_masks=[1])
        result, _, server, _ = run(picture, down, SEARCH, down, down, select)
        assert_answer(result, MIDDLE)
        assert result.cost.calls == 2 and result.cost.failures == 3 and len(server.requests) == 5

    def test_an_endpoint_that_stays_down_fails_the_instruction(self, picture):
        result, _, server, _ = run(picture, SEARCH, Answer(status=500, body=b""))
        assert_failed(result, "did not answer in 3 attempts; the last one: HTTP 500")
        assert result.cost.calls == 1 and result.cost.tokens == 110 and result.cost.failures == 2

    def test_time_out(self, picture):
        late = Answer(SEARCH, delay=1.0)
        result, _, _, _ = run(picture, late, chat={"timeout": 0.2, "max_retries": 1, "resend": True})
        assert_failed(result, "no whole answer within 0.2 s")
        assert result.cost.calls == 2 and result.cost.seconds > 0.4  # both may be on the bill

    def test_a_cut_reply_is_unusable(self, picture):
        cut = Answer("<think>I see three blocks and", finish_reason="length")
        result, _, _, _ = run(picture, cut, call("report_no_mask"))
        assert result.error is None and result.cost.failures == 1

    def test_one_refused_instruction_does_not_end_the_evaluation_but_a_wrong_key_does(self, picture):
        result, _, _, _ = run(picture, Answer(status=400, body=b'{"error": "too long"}'))
        assert_failed(result, "HTTP 400")
        with pytest.raises(ChatRequestError, match="HTTP 401"):
            run(picture, Answer(status=401, body=b"{}"))


class TestSeveralInstructions:
    def oracle(self, picture, **options):
        truths = {
            "the left block": OracleTruth("block", np.array([box_mask(LEFT)])),
            "left or right": OracleTruth("block", np.array([box_mask(LEFT), box_mask(RIGHT)])),
            "the broad one": OracleTruth("wide block", np.array([box_mask(RIGHT)])),
            "the cloud": OracleTruth("cloud", np.array([box_mask(RIGHT)])),
            "nothing here": OracleTruth("block", np.zeros((0, HEIGHT, WIDTH), dtype=bool)),
            "block": OracleTruth("block", None),
        }
        keyed = {(image_key(picture), text): truth for text, truth in truths.items()}
        return OracleAgent(SceneDetector(), keyed, **options)

    @pytest.mark.parametrize("workers", [1, 4])
    def test_an_oracle_finds_every_target_that_sam3_offers(self, picture, workers):
        texts = ["the left block", "left or right", "the broad one", "the cloud", "nothing here", "block"]
        results = self.oracle(picture, workers=workers).segment(picture, texts, [None] * len(texts))
        expected = [(LEFT,), (LEFT, RIGHT), (RIGHT,), (), (), (LEFT, MIDDLE, RIGHT)]
        for text, result, boxes in zip(texts, results, expected, strict=True):
            assert result.error is None, text
            np.testing.assert_array_equal(result.masks.any(0), union(*boxes), err_msg=text)
        assert [result.cost.calls for result in results] == [
            2,
            2,
            2,
            3,
            1,
            2,
        ]  # "cloud", then "object", then the report
        assert all(result.cost.vision_passes == pytest.approx(1 / 6) for result in results)

    def test_books_are_kept_apart_when_instructions_run_at_once(self, picture):
        def script(request, index):
            text = texts_of(request["messages"][1])
            if "first" in text:
                return call("report_no_mask")
            return SEARCH if len(request["messages"]) == 2 else call("select_masks_and_return", final_answer_masks=[1])

        with ScriptedChatServer(script) as server:
            agent = AgentSegmenter(SceneDetector(), EndpointChatModel(server.base_url, "tiny"), workers=3)
            groups = agent.segment_images([picture, picture], [["first", "second"], ["third"]], [[None] * 2, [None]])
        assert [[result.cost.calls for result in group] for group in groups] == [[1, 2], [2]]
        assert agent.chat.usage.calls == 5

    def test_the_oracle_refuses_what_it_does_not_know(self, picture):
        (result,) = self.oracle(picture).segment(picture, ["a riddle"], [None])
        assert_failed(result, "knows no answer")


def test_parameters_count_the_chat_model_or_are_unknown():
    known = EndpointChatModel("http://127.0.0.1:9/v1", "tiny", num_parameters=50)
    assert AgentSegmenter(SceneDetector(), known).num_parameters == 1050
    assert AgentSegmenter(SceneDetector(), EndpointChatModel("http://127.0.0.1:9/v1", "x")).num_parameters is None


@pytest.mark.parametrize("option", ["max_generations", "max_tokens", "max_unusable", "workers"])
def test_faulty_settings_are_named(option):
    with pytest.raises(ValueError, match=option):
        AgentSegmenter(SceneDetector(), EndpointChatModel("http://127.0.0.1:9/v1", "x"), **{option: 0})
