# SPDX-License-Identifier: Apache-2.0
"""The agent's four tools as a grammar: what a reply may call, and what is wrong with one that may not."""

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ....processing.chat.client import one_line


class AgentTool(str, Enum):
    SEGMENT_PHRASE = "segment_phrase"
    EXAMINE_EACH_MASK = "examine_each_mask"
    SELECT_MASKS_AND_RETURN = "select_masks_and_return"
    REPORT_NO_MASK = "report_no_mask"


PARAMETERS = {
    AgentTool.SEGMENT_PHRASE: {"text_prompt"},
    AgentTool.EXAMINE_EACH_MASK: set(),
    AgentTool.SELECT_MASKS_AND_RETURN: {"final_answer_masks"},
    AgentTool.REPORT_NO_MASK: set(),
}


@dataclass(frozen=True)
class ToolCall:
    """One call read from a reply.

    `text` is the reply up to the end of the call, which is what the history keeps; `dropped` counts further calls of
    the same reply, which the protocol ignores.
    """

    tool: AgentTool
    parameters: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    dropped: int = 0


class UnusableReplyError(ValueError):
    """A reply of the chat model that cannot be carried out; the message is for the model."""


def parse_tool_call(text: str) -> ToolCall:
    """Reads the first call of a reply, `<tool>{"name": ..., "parameters": {...}}</tool>`, thoughts aside.

    Raises:
        UnusableReplyError: when there is no call, or it is not one of the four forms.
    """
    calls = list(re.finditer(r"<tool>(.*?)</tool>", blank_thoughts(text), flags=re.DOTALL))
    if not calls:
        raise UnusableReplyError("there is no <tool> ... </tool> in it.")
    try:
        # One closing brace too many is a frequent slip that leaves no doubt about what is meant.
        value, end = json.JSONDecoder().raw_decode(calls[0].group(1).strip())
        if calls[0].group(1).strip()[end:].strip("} \n\t"):
            raise ValueError("more follows after the JSON object")
    except (ValueError, RecursionError) as error:
        raise UnusableReplyError(f"the call is not one JSON object ({error}).") from error
    if not isinstance(value, dict) or value.keys() - {"name", "parameters"}:
        raise UnusableReplyError('the call must be a JSON object with the keys "name" and "parameters" only.')
    try:
        tool = AgentTool(value.get("name"))
    except ValueError as error:
        names = ", ".join(tool.value for tool in AgentTool)
        raise UnusableReplyError(f"there is no tool {_short(value.get('name'))}; the tools are {names}.") from error
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, dict) or parameters.keys() != PARAMETERS[tool]:
        wanted = ", ".join(sorted(PARAMETERS[tool])) or "none"
        raise UnusableReplyError(f"{tool.value} takes these parameters: {wanted}.")
    _check_values(tool, parameters)
    return ToolCall(tool, parameters, text[: calls[0].end()], len(calls) - 1)


def blank_thoughts(text: str) -> str:
    """Replaces thoughts by as many spaces, so that positions stay; the opening tag may be missing (chat templates)."""
    text = re.sub(r"<think>.*?</think>", lambda thought: " " * len(thought.group()), text, flags=re.DOTALL)
    end = text.find("</think>")
    return text if end < 0 else " " * (end + len("</think>")) + text[end + len("</think>") :]


def _check_values(tool: AgentTool, parameters: dict[str, Any]) -> None:
    if tool is AgentTool.SEGMENT_PHRASE:
        phrase = parameters["text_prompt"]
        if not isinstance(phrase, str) or not one_line(phrase):
            raise UnusableReplyError("text_prompt must be a noun phrase.")
    elif tool is AgentTool.SELECT_MASKS_AND_RETURN:
        numbers = parameters["final_answer_masks"]
        if not isinstance(numbers, list) or not numbers or any(type(number) is not int for number in numbers):
            raise UnusableReplyError(
                "final_answer_masks must be a list of at least one integer; call report_no_mask if nothing fits."
            )


def check_call(call: ToolCall, num_masks: int, segmented_before: bool) -> None:
    """Checks a call against the state of the conversation.

    Raises:
        UnusableReplyError: when the call is not allowed now, or names masks that do not exist.
    """
    if call.tool in (AgentTool.SEGMENT_PHRASE, AgentTool.REPORT_NO_MASK):
        return
    if not segmented_before:
        raise UnusableReplyError(f"the first call is segment_phrase or report_no_mask, not {call.tool.value}.")
    if num_masks == 0:
        raise UnusableReplyError(f"{call.tool.value} needs masks, and there are none at present.")
    if call.tool is AgentTool.SELECT_MASKS_AND_RETURN:
        unknown = [number for number in call.parameters["final_answer_masks"] if not 1 <= number <= num_masks]
        if unknown:
            shown = _short(unknown)
            raise UnusableReplyError(f"there is no mask {shown}; the masks are numbered from 1 to {num_masks}.")


def _short(value: Any) -> str:
    return one_line(repr(value), 80)


def parse_verdict(text: str) -> bool:
    """Reads the verdict about one mask: True for Accept. Raises UnusableReplyError when there is not exactly one."""
    verdicts = re.findall(r"<verdict>\s*(accept|reject)\s*</verdict>", blank_thoughts(text), re.IGNORECASE)
    if len({verdict.lower() for verdict in verdicts}) != 1:
        raise UnusableReplyError(f"expected one verdict, found {_short(verdicts)}.")
    return verdicts[0].lower() == "accept"
