# SPDX-License-Identifier: Apache-2.0
"""Prompts as versioned files: readable, replaceable one by one by files of the same name in another folder."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

_VERSION = re.compile(r"\A<!-- version: (\S+) -->\n")


class PromptError(ValueError):
    """A prompt file that cannot be used; the message names it and what it needs."""


@dataclass(frozen=True)
class VersionedPrompt:
    """One prompt: its name, version, fingerprint and template."""

    name: str
    version: str
    sha256: str
    template: str

    def fill(self, **values: object) -> str:
        """The text with its `$slots` filled; slots of a replaced prompt that are not known raise [`PromptError`]."""
        try:
            return Template(self.template).substitute({key: str(value) for key, value in values.items()}).strip()
        except (KeyError, ValueError) as error:
            raise PromptError(
                f"Prompt {self.name!r}: slot {error} is unknown; it may use {sorted(values)}."
            ) from error


def load_prompts(own: Path, names: Sequence[str], folder: str | Path | None = None) -> dict[str, VersionedPrompt]:
    """Prompts by name: from `folder` where it has the file, else from `own`, the package's.

    Raises:
        PromptError: a file without its version line, or a folder without any prompt.
    """
    if folder is not None and not any((Path(folder) / f"{name}.md").is_file() for name in names):
        raise PromptError(f"{folder}: expected one of {', '.join(f'{name}.md' for name in names)}, found none.")
    prompts = {}
    for name in names:
        path = Path(folder or own) / f"{name}.md"
        text = (path if path.is_file() else own / path.name).read_text(encoding="utf-8")
        match = _VERSION.match(text)
        if match is None:
            raise PromptError(f"{path}: expected a first line '<!-- version: NAME -->'; add it.")
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        prompts[name] = VersionedPrompt(name, match.group(1), digest, text[match.end() :].strip())
    return prompts
