# SPDX-License-Identifier: Apache-2.0
"""Looks and fragments of the page of `sam3i demo`; every text from outside is escaped here."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...processing.drawing.style import LEVEL_COLORS, NEGATIVE, PALETTE, POSITIVE
from .model import DemoModel
from .segmentation import BoxExemplar, Segmentation, View

_LEVELS = "".join(f".level-{name} {{ background: rgb{color}; }}\n" for name, color in LEVEL_COLORS.items())
_SIGNS = f".chip.like {{ border-color: rgb{POSITIVE}; }} .chip.unlike {{ border-color: rgb{NEGATIVE}; }}"

CSS = _LEVELS + _SIGNS + "\n" + (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def theme() -> Any:
    """The theme; needs gradio."""
    import gradio as gr

    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")
    return gr.themes.Base(
        primary_hue="violet", secondary_hue="violet", neutral_hue="slate", radius_size="lg", font=sans, font_mono=mono
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_500",
        button_primary_background_fill_dark="*primary_600",
        button_primary_text_color="white",
        block_label_text_weight="600",
        block_title_text_weight="600",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_shadow="0 1px 2px rgb(15 23 42 / 0.06)",
    )


_WHO = {"rules": "by the rules", "router": "by the router"}


def _pill(level: str) -> str:
    return f'<span class="level level-{level}">{level}</span>'


def _dot(row: int, rows: int) -> str:
    """The color of an instruction, and among several its number, as the overlay's tags have them."""
    return f'<i class="dot" style="background:rgb{PALETTE[row % len(PALETTE)]}">{row + 1 if rows > 1 else ""}</i>'


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M parameters"


def header(model: DemoModel) -> str:
    """The head of the page: what this is, and which model runs where."""
    facts = [model.name, _millions(model.parameters), model.device, f"auto level {_WHO[model.who_chooses]}"]
    chips = "".join(f'<span class="chip">{escape(fact)}</span>' for fact in facts)
    return (
        '<div class="head"><div><h1>SAM3-I</h1>'
        "<p>Say what to segment: a noun, a description, or a riddle about what it is for.</p></div>"
        f'<div class="chips">{chips}</div></div>'
    )


def notice(text: str = "", kind: str = "info") -> str:
    """A message under the buttons; `kind` is `"info"`, `"warning"` or `"error"`."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}">{escape(text)}</div>' if text else ""


def lost_words(segmentation: Segmentation) -> str:
    """A warning that names the words that did not fit."""
    lines = [
        f"“{text}” is too long for the model, which did not read: “{lost}”."
        for text, lost in zip(segmentation.captions, segmentation.lost, strict=True)
        if lost
    ]
    return notice(" ".join(dict.fromkeys(lines)), "warning")


def _bars(probabilities: Sequence[float]) -> str:
    bars = "".join(
        f'<span class="bar" title="{level.value} {value:.1%}"><i class="level-{level.value}" '
        f'style="width:{100 * value:.1f}%"></i><em>{level.value} {value:.0%}</em></span>'
        for level, value in zip(InstructionLevel, probabilities, strict=True)
    )
    return f'<div class="bars">{bars}</div>'


EXPLANATION = (
    "Each outline is one instance, in the color of its instruction, with its score. A level is the path that an "
    "instruction takes: concept finds every instance of a noun, simple names the thing and says which, complex does "
    "not name it. “Score above” decides what is shown; the model does not run again."
)


def summary(view: View, who_chooses: str) -> str:
    """A card for each instruction: its level and who chose it, and how many instances it found."""
    segmentation, cards = view.segmentation, []
    for row, (text, level) in enumerate(zip(segmentation.captions, segmentation.levels, strict=True)):
        chosen = f'<span class="faint">{_WHO[who_chooses]}</span>' if segmentation.asked == "auto" else ""
        bars = _bars(segmentation.probabilities[row]) if segmentation.probabilities else ""
        cards.append(
            f'<div class="card">{_dot(row, len(view.rows))}'
            f'<div class="grow"><div class="line"><span class="text">{escape(text)}</span>'
            f'<span class="facts">{chosen}{_pill(level)}<b>{view.found_words(row)}</b></span></div>{bars}</div></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div><div class="faint timing">{timing(segmentation)}</div>'


def timing(segmentation: Segmentation) -> str:
    """How long the call took, and whether the picture had to be encoded."""
    count = len(segmentation.texts)
    rows = f"{count} instruction{'s' * (count > 1)}"
    if segmentation.vision_seconds is None:
        return f"{segmentation.seconds:.2f} s: {rows}, the picture was encoded before"
    rest = segmentation.seconds - segmentation.vision_seconds
    return (
        f"{segmentation.seconds:.2f} s: the picture encoded once in {segmentation.vision_seconds:.2f} s, {rows} in "
        f"{rest:.2f} s"
    )


def comparison(views: Sequence[View]) -> str:
    """What each instruction found at each level: the number of instances and the best score."""
    levels = [level.value for level in InstructionLevel]
    head = "".join(f"<th>{_pill(level)}</th>" for level in levels)
    lines = []
    for row, text in enumerate(views[0].segmentation.captions):
        cells = []
        for view in views:
            words, instances = view.found_words(row), view.rows[row]
            words += f", best {instances[0]['score']:.2f}" if instances else ""
            cells.append(f"<td{'' if instances else ' class=faint'}>{words}</td>")
        name = f"{_dot(row, len(views[0].rows))}{escape(text)}"
        lines.append(f"<tr><td>{name}</td>{''.join(cells)}</tr>")
    table = f'<table class="levels"><tr><th>instruction</th>{head}</tr>{"".join(lines)}</table>'
    time = f"{timing(views[0].segmentation)}, at three levels"
    return f'<div class="scroll">{table}</div><div class="faint timing">{time}</div>'


def box_list(boxes: Sequence[BoxExemplar], corner: tuple[int, int] | None) -> str:
    """The exemplars, and what the next click does."""
    items = "".join(
        f'<span class="chip {"like" if box.positive else "unlike"}">{"like" if box.positive else "not like"} '
        f"{', '.join(map(str, box.corners))}</span>"
        for box in boxes
    )
    if corner is not None:
        items += f'<span class="faint">first corner at {corner[0]}, {corner[1]}: click the opposite one</span>'
    return f'<div class="chips" role="status">{items or "<span class=faint>no boxes yet</span>"}</div>'
