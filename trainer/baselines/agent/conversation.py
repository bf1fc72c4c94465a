# SPDX-License-Identifier: Apache-2.0
"""The agent's conversation: what the chat model is shown each turn, pruned to what still counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....processing.chat.client import Message, chat_message
from .prompts import AgentPrompts

if TYPE_CHECKING:
    from PIL.Image import Image


class AgentConversation:
    """The messages about one instruction: the request, and the turns since the last `segment_phrase`.

    At most two images are shown: the untouched one, and the latest drawing of the available masks. Of answers that
    could not be carried out only the last one stays, until an answer can.
    """

    def __init__(self, prompts: AgentPrompts, image: Image, instruction: str):
        self.prompts = prompts
        self.image = image
        self.instruction = instruction
        self.phrases: list[str] = []
        self._turns: list[Message] = []
        self._superseded: str | None = None
        self._unusable: list[Message] = []

    def messages(self) -> list[Message]:
        """The conversation as it stands."""
        request = self.prompts.turn("request", instruction=self.instruction)
        earlier = self.phrases[:-1]
        if earlier:
            request = self.prompts.turn(
                "request_with_history", instruction=self.instruction, phrases=_listing(earlier)
            )
        return [
            chat_message("system", self.prompts.system),
            chat_message("user", self.image, request),
            *self._turns,
            *self._unusable,
        ]

    def is_used(self, phrase: str) -> bool:
        """Whether a phrase was searched; case and spaces do not count, the text encoder does not see them either."""
        return _normalize(phrase) in map(_normalize, self.phrases)

    def segmented(self, reply: str, phrase: str, count: int, drawing: Image | None) -> None:
        """Takes in the result of segment_phrase; everything after the request is forgotten."""
        self.phrases.append(phrase)
        self._turns = [chat_message("assistant", reply)]
        self._unusable = []
        self._show("masks" if count else "no_masks", count, drawing, phrase=phrase)

    def examined(self, reply: str, count: int, drawing: Image | None) -> None:
        """Takes in the result of examine_each_mask; the drawing before it is forgotten."""
        self._turns[-1] = chat_message("user", self._superseded)
        self._turns.append(chat_message("assistant", reply))
        self._unusable = []
        self._show("examined" if count else "examined_none", count, drawing)

    def unusable(self, reply: str, reason: str) -> None:
        """Takes in an answer that could not be carried out, and why."""
        self._send_back(reply, self.prompts.turn("unusable", reason=reason))

    def repeated(self, reply: str, phrase: str) -> None:
        """Takes in a search for a phrase that was searched before."""
        self._send_back(reply, self.prompts.turn("repeated", phrase=phrase, phrases=_listing(self.phrases)))

    def _send_back(self, reply: str, text: str) -> None:
        # An empty assistant turn is refused by many chat templates.
        self._unusable = [chat_message("assistant", reply or "(empty)"), chat_message("user", text)]

    def _show(self, turn: str, count: int, drawing: Image | None, **values: object) -> None:
        text = self.prompts.turn(turn, instruction=self.instruction, count=count, **values)
        self._turns.append(chat_message("user", text, *([] if drawing is None else [drawing])))
        if count:
            self._superseded = self.prompts.turn(f"{turn}_superseded", count=count, **values)

    def examination(self, marked: Image, close_up: Image) -> list[Message]:
        """The separate conversation that judges one mask."""
        turn = self.prompts.turn
        return [
            chat_message("system", self.prompts.examine),
            chat_message(
                "user",
                turn("examine_image"),
                self.image,
                turn("examine_request", instruction=self.instruction),
                turn("examine_mask"),
                marked,
                turn("examine_close_up"),
                close_up,
            ),
        ]

    def examination_again(self, messages: list[Message], reply: str) -> list[Message]:
        """The examination after a verdict that could not be read; only the last such verdict stays."""
        return [
            *messages[:2],
            chat_message("assistant", reply or "(empty)"),
            chat_message("user", self.prompts.turn("unusable_verdict")),
        ]


def _normalize(phrase: str) -> str:
    return " ".join(phrase.lower().split())


def _listing(phrases: list[str]) -> str:
    return ", ".join(f'"{phrase}"' for phrase in phrases)


__all__ = ["AgentConversation"]
