# SPDX-License-Identifier: Apache-2.0
"""Published figures, to stand beside ours where protocol and data are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFigures:
    """gIoU and P@0.5 in percent of one system on one data set; `kind` None stands for all kinds of target."""

    system: str
    dataset: str
    level: str | None
    kind: str | None
    giou: float
    p50: float


SOURCE = "SAM3-I (arXiv 2512.04585), the authors' protocol"
PROTOCOLS_OF_THE_AUTHORS = ("sam3i-1to1", "sam3i-multi")

_HMPL = "hmpl-instruct"
ALIASES = {"sam3ival": "hmplinstruct"}  # rows of the authors' file are named after it
PUBLISHED = (
    PublishedFigures("SAM3", _HMPL, "concept", None, 29.5, 31.9),
    PublishedFigures("SAM3-I", _HMPL, "concept", None, 29.5, 31.9),
    PublishedFigures("SAM3+Agent (Qwen3-VL-8B)", _HMPL, "simple", None, 28.4, 28.9),
    PublishedFigures("SAM3-I", _HMPL, "simple", None, 59.7, 65.3),
    PublishedFigures("SAM3-I", _HMPL, "simple", "1-to-1", 60.8, 66.7),
    PublishedFigures("SAM3-I", _HMPL, "simple", "1-to-N", 48.9, 50.0),
    PublishedFigures("SAM3-I", _HMPL, "simple", "1-to-all", 60.9, 67.8),
    PublishedFigures("SAM3+Agent (Qwen3-VL-8B)", _HMPL, "complex", None, 26.4, 27.4),
    PublishedFigures("SAM3-I", _HMPL, "complex", None, 49.0, 51.0),
    PublishedFigures("SAM3-I", _HMPL, "complex", "1-to-1", 48.1, 49.6),
    PublishedFigures("SAM3-I", _HMPL, "complex", "1-to-N", 39.9, 39.5),
    PublishedFigures("SAM3-I", _HMPL, "complex", "1-to-all", 54.7, 58.7),
    PublishedFigures("SAM3-I", "refcoco", None, None, 76.3, 85.5),
    PublishedFigures("SAM3-I", "ref-zom", None, None, 73.6, 80.0),
)


def published_for(protocol: str, datasets: Sequence[str], level: str | None) -> list[PublishedFigures]:
    """The published figures that may stand beside a run: the authors' protocol, a data set they report, its level."""
    if protocol not in PROTOCOLS_OF_THE_AUTHORS or len(datasets) != 1:
        return []
    name = ALIASES.get(_plain(datasets[0]), _plain(datasets[0]))
    levels = ("concept", "simple", "complex") if level in (None, "auto") else (level,)
    return [
        figures
        for figures in PUBLISHED
        if _plain(figures.dataset) == name and (figures.level is None or figures.level in levels)
    ]


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum() or character == "+")
