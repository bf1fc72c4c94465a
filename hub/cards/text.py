# SPDX-License-Identifier: Apache-2.0
"""Text of a model card: names and instructions of a run made harmless, and the part of a card that is generated.

What is generated stands between two markers; the first one carries its hash. So text outside is never touched, and
text inside no longer once somebody has changed it.
"""

import hashlib
import re
from dataclasses import dataclass

LONGEST = 200
_LINK = re.compile(r"(?i)(?<=[a-z]):(?=//)|(?<=www)\.")
_SHOWN = str.maketrans(
    {letter: f"\\{letter}" for letter in "\\`*_[]{}~$"}
    | {letter: f"&#{ord(letter)};" for letter in "#|@"}
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
)
_BEGIN = "<!-- sam3i:card sha256={} -->"
_END = "<!-- /sam3i:card -->"
_BLOCK = re.compile(r"<!-- sam3i:card sha256=([0-9a-f]{16}) -->\n(.*?)\n<!-- /sam3i:card -->", re.DOTALL)
_METADATA = re.compile(r"\A\ufeff?---\r?\n.*?^---[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.MULTILINE)


def plain_text(value: object, longest: int = LONGEST) -> str:
    """One line without control characters, of at most so many characters."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def markdown_text(value: object, longest: int = LONGEST) -> str:
    """The value as text that Markdown and HTML show as it is, wherever it stands: in a line, a table or a heading."""
    text = plain_text(value, longest).translate(_SHOWN)
    return _LINK.sub(lambda match: f"&#{ord(match[0])};", text)  # else addresses become links by themselves


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def generated_block(text: str) -> str:
    """Text between the markers."""
    return f"{_BEGIN.format(_hash(text))}\n{text.strip()}\n{_END}"


@dataclass(frozen=True)
class CardBody:
    """What follows the metadata of a card.

    Attributes:
        text: all of it.
        is_ours: whether it holds nothing but a generated part that nobody changed.
    """

    text: str

    @classmethod
    def of_card(cls, card: str) -> "CardBody":
        """The body of a whole README.md."""
        return cls(_METADATA.sub("", card, count=1).lstrip("\r\n"))

    @property
    def is_ours(self) -> bool:
        match = _BLOCK.fullmatch(self.text.replace("\r\n", "\n").strip())
        return match is not None and match[1] == _hash(match[2])

    def with_generated(self, block: str) -> str:
        """The body with the generated part brought up to date; as it is where there is none, or a changed one."""

        def update(match: re.Match) -> str:
            return block if match[1] == _hash(match[2]) else match[0]

        return _BLOCK.sub(update, self.text.replace("\r\n", "\n"), count=1) if self.text.strip() else block + "\n"
