# SPDX-License-Identifier: Apache-2.0
"""The looks and the keys of the review page; fonts of the system only, nothing is fetched."""

from __future__ import annotations

from typing import Any

from ...drawing.style import LEVEL_COLORS

KEYS = {"a": "accept", "e": "edit", "r": "reject", "s": "skip", "b": "back"}
_LEVELS = "".join(f".pill.level-{name} {{ background: rgb{colour}; }}\n" for name, colour in LEVEL_COLORS.items())
_HINTS = "".join(f'#{name}::after {{ content: "{key.upper()}"; }}\n' for key, name in {**KEYS, "m": "masks"}.items())

CSS = (
    _LEVELS
    + _HINTS
    + """
.gradio-container { max-width: none !important; padding: 0 !important; }
.gradio-container main.app { max-width: 1720px !important; margin: 0 auto !important; padding: 10px 22px !important; }
.gradio-container main.app > .column { gap: 10px !important; }
.gradio-container .html-container { padding: 0 !important; }
footer { display: none !important; }
.head { display: flex; align-items: center; gap: 8px 26px; flex-wrap: wrap; min-height: 36px; }
.head .title { display: flex; align-items: baseline; gap: 12px; min-width: 0; }
.head h1 { font-size: 1.25rem; font-weight: 700; letter-spacing: -0.02em; margin: 0; }
.head .run { color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.head .bar { flex: 1 1 160px; height: 8px; border-radius: 99px; overflow: hidden;
  background: var(--border-color-primary); }
.head .bar i { display: block; height: 100%; border-radius: 99px; background: linear-gradient(90deg, #7c3aed, #db2777);
  transition: width .25s; }
.head .facts { display: flex; gap: 18px; flex-wrap: wrap; }
.head .fact { color: var(--body-text-color-subdued); font-size: .9rem; white-space: nowrap; }
.head .fact b { color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.head .who { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: 2px 12px; max-width: 260px;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; background: var(--background-fill-primary); }
#desk { gap: 22px; align-items: flex-start; flex-wrap: wrap; }
#left { position: sticky; top: 10px; gap: 10px; }
#right { gap: 14px; }
.stage { display: flex; align-items: center; justify-content: center; border-radius: 14px; background: #0f1219;
  height: calc(100vh - 128px); min-height: 320px; padding: 10px; }
.picture { position: relative; width: min(100%, calc((100vh - 148px) * var(--ratio))); max-height: 100%; }
.picture img { position: absolute; inset: 0; width: 100%; height: 100%; border-radius: 6px; display: block; }
.picture .layer { transition: opacity .12s; }
.masks-off .picture .layer { opacity: 0; }
.stage .missing { color: #cbd5e1; padding: 20px; overflow-wrap: anywhere; }
.finished { border-radius: 14px; padding: 16vh 20px; text-align: center; background: var(--background-fill-primary);
  border: 1px solid var(--border-color-primary); }
.finished h2 { font-size: 1.6rem; font-weight: 700; margin: 0 0 8px; }
.question { display: flex; gap: 8px; align-items: center; flex-wrap: wrap; }
.pill { border-radius: 999px; padding: 2px 12px; font-size: .85rem; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-primary); }
.pill[class*="level-"] { color: #fff; font-weight: 600; border-color: transparent; }
.wanted { color: var(--body-text-color-subdued); font-size: .92rem; overflow-wrap: anywhere; }
.why { margin: 8px 0 0 !important; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
#words textarea { font-size: 1.42rem !important; line-height: 1.35 !important; font-weight: 550;
  padding: 14px 16px !important; border-radius: 12px !important; background: var(--background-fill-primary) !important;
  border: 1px solid var(--border-color-primary) !important; }
#words { border: none !important; box-shadow: none !important; background: transparent !important;
  padding: 0 !important; }
#words textarea:focus { box-shadow: 0 0 0 3px rgb(124 58 237 / .28) !important; border-color: #7c3aed !important; }
.buttons { gap: 10px !important; }
.buttons button, #tools button { border-radius: 11px !important; }
.buttons button { min-height: 52px; font-size: 1.02rem !important; }
.buttons button::after, #tools button::after { margin-left: 9px; padding: 0 7px; border-radius: 6px; font-size: .74rem;
  font-weight: 600; line-height: 1.55; border: 1px solid currentColor; opacity: .55; }
#accept { background: #16a34a !important; color: #fff !important; } #accept:hover { background: #15803d !important; }
#reject { background: #dc2626 !important; color: #fff !important; } #reject:hover { background: #b91c1c !important; }
#tools { gap: 10px !important; align-items: center; }
#tools button { min-width: 96px !important; font-size: .88rem !important; }
.legend { display: flex; gap: 6px 16px; flex-wrap: wrap; font-size: .86rem; justify-content: flex-end;
  color: var(--body-text-color-subdued); }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 4px; margin-right: 6px;
  vertical-align: -1px; }
.checks { list-style: none; margin: 0; padding: 0; border: 1px solid var(--border-color-primary); border-radius: 12px;
  background: var(--background-fill-primary); overflow: hidden; }
.check { display: grid; grid-template-columns: 24px 118px 1fr; gap: 4px 8px; padding: 8px 14px; margin: 0 !important;
  align-items: baseline; }
.check + .check { border-top: 1px solid var(--border-color-primary); }
.check .mark { font-weight: 700; text-align: center; color: #94a3b8; }
.check.pass .mark { color: #16a34a; } .check.fail .mark { color: #dc2626; }
.check.fail { background: rgb(220 38 38 / .06); }
.check .name { font-weight: 600; font-size: .92rem; }
.check .found { min-width: 0; overflow-wrap: anywhere; font-size: .92rem; }
.check .reason { display: block; } .check .details { color: var(--body-text-color-subdued); }
.number { display: inline-block; min-width: 20px; text-align: center; border-radius: 99px; padding: 0 5px;
  font-size: .8rem; font-weight: 700; color: #0f1219 !important; background: #22d3ee; }
.number.target { color: #fff !important; background: #ff2e93; }
.notice { border-radius: 11px; padding: 10px 14px; border-left: 4px solid #64748b; overflow-wrap: anywhere;
  background: var(--background-fill-primary); }
.notice.error { border-color: #dc2626; } .notice.good { border-color: #16a34a; }
.notice p { margin: 0 !important; } .notice ul { margin: 4px 0 !important; padding-left: 18px; list-style: disc; }
#notice:not(:has(.notice)) { display: none; }
#gate { max-width: 460px; margin: 14vh auto 0 !important; }
#gate h2 { font-size: 1.4rem; font-weight: 700; margin: 0; }
bdi { unicode-bidi: isolate; color: inherit !important; font-weight: inherit !important; }
@media (max-width: 900px) {
  #left { position: static; }
  .stage { height: 52vh; } .picture { width: min(100%, calc(50vh * var(--ratio))); }
}
"""
)

# Keys press the buttons. The pair that was on the page when a key or button was pressed goes along with the decision:
# a second press, made before the next pair has come, decides nothing.
SCRIPT = (
    "<script>(() => {\n"
    f"const keys = {KEYS!r};\n"
    + """
const masks = () => {
  const off = document.body.classList.toggle("masks-off");
  try { localStorage.setItem("sam3i-masks-off", off ? "1" : ""); } catch (error) { /* the page works without it */ }
};
window.sam3iMasks = masks;
window.sam3iPair = () => document.querySelector("[data-pair]")?.dataset.pair ?? "";
window.sam3iWords = () => document.querySelector("#words textarea");
try { if (localStorage.getItem("sam3i-masks-off")) document.addEventListener("DOMContentLoaded",
  () => document.body.classList.add("masks-off")); } catch (error) { /* the page works without it */ }
document.addEventListener("keydown", (event) => {
  const words = window.sam3iWords(), field = event.target.closest("input, textarea, select, [contenteditable=true]");
  if (field) {
    if (field !== words) return;
    if (event.key === "Escape") { field.blur(); event.preventDefault(); }
    if (event.key === "Enter") {
      event.preventDefault(); event.stopPropagation();
      if (event.ctrlKey || event.metaKey) document.querySelector("#edit").click();
    }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  const key = event.key.toLowerCase();
  if (key === "m") { masks(); return; }
  const button = keys[key] && document.querySelector("#" + keys[key]);
  if (!button || button.disabled || !button.offsetParent) return;
  event.preventDefault();
  if (keys[key] === "edit") { words.focus(); words.setSelectionRange(words.value.length, words.value.length); return; }
  button.click();
}, true);
})();</script>"""
)


def theme() -> Any:
    """The theme; needs gradio."""
    import gradio as gr

    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")
    return gr.themes.Base(
        primary_hue="violet", secondary_hue="violet", neutral_hue="slate", radius_size="lg", font=sans, font_mono=mono
    ).set(body_background_fill="*neutral_100", body_background_fill_dark="*neutral_950")
