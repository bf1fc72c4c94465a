# SPDX-License-Identifier: Apache-2.0
"""The looks of `sam3i demo`: one theme for light and dark, with fonts of the system only."""

from typing import Any

from ...processing.drawing.style import LEVEL_COLORS, NEGATIVE, POSITIVE

_LEVELS = "".join(f".level-{name} {{ background: rgb{color}; }}\n" for name, color in LEVEL_COLORS.items())
_SIGNS = f".chip.like {{ border-color: rgb{POSITIVE}; }} .chip.unlike {{ border-color: rgb{NEGATIVE}; }}"

CSS = (
    _LEVELS
    + _SIGNS
    + """
.gradio-container { max-width: 1320px !important; margin: 0 auto !important; }
.head { display: flex; justify-content: space-between; align-items: center; gap: 12px 32px; flex-wrap: wrap; }
.head h1 { font-size: 1.7rem; font-weight: 700; letter-spacing: -0.02em; margin: 0; line-height: 1.2; }
.head p { margin: 2px 0 0; color: var(--body-text-color-subdued); }
.chips { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
.chip { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: 2px 11px; font-size: 0.82rem;
  background: var(--background-fill-secondary); overflow-wrap: anywhere; }
.faint { color: var(--body-text-color-subdued); font-size: 0.85rem; }
.level { color: #fff; border-radius: 999px; padding: 1px 10px; font-size: 0.8rem; font-weight: 600;
  white-space: nowrap; }
.notice { border-radius: 8px; padding: 9px 13px; border-left: 4px solid #607d9b; overflow-wrap: anywhere;
  background: var(--background-fill-secondary); }
.notice.warning { border-color: #e0a020; } .notice.error { border-color: #eb4646; }
.cards { display: grid; gap: 6px; }
.card { display: flex; gap: 10px; align-items: baseline; padding: 8px 12px; border-radius: 8px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); }
.dot { display: inline-block; min-width: 18px; height: 18px; border-radius: 9px; flex: none; color: #101216;
  font: 600 12px/18px var(--font); text-align: center; }
.card .grow { flex: 1; min-width: 0; }
.card .line { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 14px; }
.card .text { overflow-wrap: anywhere; white-space: pre-wrap; }
.card .facts { display: flex; flex-wrap: wrap; justify-content: flex-end; gap: 2px 8px; align-items: center;
  margin-left: auto; }
.bars { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px; margin-top: 6px; }
.bar { position: relative; display: block; padding-bottom: 6px; }
.bar::after { content: ""; position: absolute; inset: auto 0 0 0; height: 4px; border-radius: 2px;
  background: var(--border-color-primary); }
.bar i { position: absolute; bottom: 0; left: 0; height: 4px; border-radius: 2px; z-index: 1; }
.bar em { font-style: normal; font-size: 0.75rem; color: var(--body-text-color-subdued); }
.timing { margin-top: 8px; }
.scroll { overflow-x: auto; }
table.levels { width: 100%; min-width: 440px; border-collapse: collapse; }
table.levels th { white-space: nowrap; }
table.levels th, table.levels td { text-align: left; padding: 7px 10px; overflow-wrap: anywhere; border: none;
  border-bottom: 1px solid var(--border-color-primary); }
table.levels, table.levels tr { border: none !important; }
table.levels .dot { margin-right: 8px; }
#examples .grid-container { grid-template-columns: repeat(6, minmax(0, 1fr)) !important; gap: 6px !important; }
#examples .grid-wrap { padding: 8px !important; overflow: hidden; }
#examples .thumbnail-item { aspect-ratio: auto; height: 90px; }
#instances { overflow-x: auto !important; }
#instances [role=grid], #instances table { min-width: 640px; font-family: var(--font); }
#instances [role=grid] * { font-family: var(--font); }
#instances [role=gridcell] { cursor: pointer; word-break: normal; }
#notice:not(:has(.notice)) { display: none; }
#picture img, #overlay img, #canvas img { width: 100%; height: 100%; object-fit: contain; }
@media (max-width: 640px) {
  .head h1 { font-size: 1.35rem; }
  #examples { height: 76px !important; }
  #examples .thumbnail-item { height: 58px; }
  #overlay { height: auto !important; }
  #instances, .scroll { max-width: calc(100vw - 64px); }
}
"""
)


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
