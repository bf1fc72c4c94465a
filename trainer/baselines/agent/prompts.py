# SPDX-License-Identifier: Apache-2.0
"""The agent's prompts: versioned Markdown files in `prompts/`, read once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PROMPT_FOLDER = Path(__file__).parent / "prompts"
PROMPT_FILES = ("agent_system", "agent_examine", "agent_turns")


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
    def load(cls, folder: str | Path = PROMPT_FOLDER) -> AgentPrompts:
        """Reads agent_system.md, agent_examine.md and agent_turns.md.

        Raises:
            ValueError: when a file does not start with its version, or a text of a turn is missing.
        """
        texts, versions = {}, {}
        for name in PROMPT_FILES:
            path = Path(folder) / f"{name}.md"
            first, _, body = path.read_text(encoding="utf-8").partition("\n")
            found = re.fullmatch(r"<!-- version: (\S+) -->", first.strip())
            if found is None:
                raise ValueError(f"{path} must start with a line like '<!-- version: 1 -->', found {first!r}.")
            versions[name], texts[name] = found.group(1), body.strip()
        sections = re.split(r"^## (\w+)\n", texts["agent_turns"], flags=re.MULTILINE)
        turns = dict(zip(sections[1::2], map(str.strip, sections[2::2]), strict=True))
        if missing := sorted(TURNS - turns.keys()):
            raise ValueError(f"{folder}/agent_turns.md lacks the sections {', '.join(missing)}.")
        return cls(texts["agent_system"], texts["agent_examine"], turns, versions)

    def turn(self, name: str, **values: object) -> str:
        """The text of a turn with its placeholders filled in."""
        return self.turns[name].format(**values)


TURNS = frozenset(
    {
        "request",
        "request_with_history",
        "masks",
        "masks_superseded",
        "no_masks",
        "examined",
        "examined_superseded",
        "examined_none",
        "repeated",
        "unusable",
        "examine_image",
        "examine_request",
        "examine_mask",
        "examine_close_up",
        "unusable_verdict",
    }
)

__all__ = ["AgentPrompts"]
