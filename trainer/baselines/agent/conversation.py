# SPDX-License-Identifier: Apache-2.0
"""The agent's conversation: its prompts (Markdown files), and what the chat model is shown each turn."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ....processing.chat.client import Message, chat_message
from ....processing.chat.prompts import PromptError, load_prompts

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT_FOLDER = Path(__file__).parent / "prompts"

TURNS = frozenset(
    (
        "request request_with_history masks masks_superseded no_masks examined examined_superseded examined_none "
        "repeated unusable examine_image examine_request examine_mask examine_close_up unusable_verdict"
    ).split()
)


@dataclass(frozen=True)
class AgentPrompts:
    """What the agent's chat model is told: its two system prompts and the texts of the turns.

    `versions` maps each file's name to the version in its first line, for reports.
    """

    system: str
    examine: str
    turns: dict[str, str]
    versions: dict[str, str]

    @classmethod
    def load(cls, folder: str | Path | None = None) -> AgentPrompts:
        """Reads agent_system.md, agent_examine.md and agent_turns.md: the package's, or those of a folder.

        Raises:
            PromptError: when a file does not start with its version, or a text of a turn is missing.
        """
        files = load_prompts(PROMPT_FOLDER, ("agent_system", "agent_examine", "agent_turns"), folder)
        system, examine, texts = (file.template for file in files.values())
        sections = re.split(r"^## (\w+)\n", texts, flags=re.MULTILINE)
        turns = dict(zip(sections[1::2], map(str.strip, sections[2::2]), strict=True))
        if missing := sorted(TURNS - turns.keys()):
            raise PromptError(f"{folder or PROMPT_FOLDER}/agent_turns.md lacks the sections {', '.join(missing)}.")
        return cls(system, examine, turns, {name: file.version for name, file in files.items()})

    def turn(self, name: str, **values: object) -> str:
        """The text of a turn with its placeholders filled in."""
        return self.turns[name].format(**values)


class AgentConversation:
    """The messages about one instruction: the request, and the turns since the last `segment_phrase`.

    At most two images are shown: the untouched one, and the latest drawing of the available masks. Of answers that
    could not be carried out only the last one stays, until an answer can.

    Attributes:
        is_stuck: the last answer was the one before again, so that the next request is the last one again.
    """

    def __init__(self, prompts: AgentPrompts, image: Image, instruction: str):
        self.prompts = prompts
        self.image = image
        self.instruction = instruction
        self.phrases: list[str] = []
        self._turns: list[Message] = []
        self._superseded = ""
        self._unusable: list[Message] = []
        self.is_stuck = False

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
        before = self._unusable
        self._unusable = [chat_message("assistant", reply or "(empty)"), chat_message("user", text)]
        self.is_stuck = self._unusable == before

    def _show(self, turn: str, count: int, drawing: Image | None, **values: object) -> None:
        text = self.prompts.turn(turn, instruction=self.instruction, count=count, **values)
        self._turns.append(chat_message("user", text, *([] if drawing is None else [drawing])))
        if count:
            self._superseded = self.prompts.turn(f"{turn}_superseded", count=count, **values)

    def ask_to_examine(self, marked: Image, close_up: Image) -> list[Message]:
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

    def ask_to_examine_again(self, messages: list[Message], reply: str) -> list[Message]:
        """The question after a verdict that could not be read; only the last such verdict stays."""
        return [
            *messages[:2],
            chat_message("assistant", reply or "(empty)"),
            chat_message("user", self.prompts.turn("unusable_verdict")),
        ]


def _normalize(phrase: str) -> str:
    return " ".join(phrase.lower().split())


def _listing(phrases: list[str]) -> str:
    return ", ".join(f'"{phrase}"' for phrase in phrases)
