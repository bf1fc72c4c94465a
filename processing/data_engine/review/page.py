# SPDX-License-Identifier: Apache-2.0
"""The page of `sam3i data review`: people look at what the checks disagree on; importing this needs gradio."""

import hashlib
from typing import Any

from .desk import ACCEPT, EDIT, REJECT, SKIP, EditChecks, ReviewDesk, breaks_a_rule
from .view import (
    edit_report,
    evidence,
    legend,
    notice,
    number_instances,
    picture,
    piece,
    question,
    style_and_script,
    without_hidden,
)

try:
    import gradio as gr
except ImportError as error:
    raise ImportError('The review page needs gradio: pip install "sam3i[demo]"') from error

MAX_NAME = 80
_LEAVE_WORDS = "() => { if (!document.querySelector('#notice .error')) document.activeElement.blur(); }"
_SEEN = "(state, words, seen) => [state, words, window.sam3iPair()]"

State = dict[str, Any]
"""What a browser keeps: reviewer, pair (id of what is shown), back (ids decided on, the last one last), warned (words
that the checks objected to, once)."""


class ReviewPage:
    """The Gradio page on a run's review queue; any number of reviewers may have it open.

    Args:
        reviewer: name of the only reviewer; the page asks if not given.
        checks: what an edit goes through; the engine's checks without a model if not given.
    """

    def __init__(self, desk: ReviewDesk, reviewer: str | None = None, checks: EditChecks | None = None):
        self.desk = desk
        self.reviewer = None if reviewer is None else reviewer_name(reviewer)
        self.checks = checks or EditChecks(desk)
        # The key is no secret: it keeps a browser's state readable when the page is served again.
        key = hashlib.sha256(str(desk.run.path.resolve()).encode()).hexdigest()[:16]
        self.blocks = gr.Blocks(title=f"Review · {desk.run.path.name}", analytics_enabled=False, fill_width=True)
        with self.blocks:
            self.state = gr.BrowserState({}, storage_key=f"sam3i-review-{key}", secret=key)
            self._lay_out()
            self._connect()

    def launch(self, host: str = "127.0.0.1", port: int | None = None, **options) -> tuple[Any, str, str]:
        """Serve the page; returns what `gradio.Blocks.launch` does. Raises OSError: the port is taken."""
        settings: dict[str, Any] = {
            "share": False,
            "show_error": True,
            "footer_links": [],
            "ssr_mode": False,
            "quiet": True,
        }
        css, script = style_and_script()
        settings |= {"theme": theme(), "css": css, "head": script, "allowed_paths": [], "pwa": False}
        return self.blocks.launch(server_name=host, server_port=port, **(settings | options))

    def _lay_out(self) -> None:
        self.head = gr.HTML(elem_id="head")
        with gr.Column(visible=False, elem_id="gate") as self.gate:
            gr.HTML("<h2>Who reviews?</h2><p>Your name is kept with every decision.</p>")
            self.name = gr.Textbox(label="Name", max_length=MAX_NAME, elem_id="name", autofocus=True)
            self.enter = gr.Button("Start", variant="primary", elem_id="enter")
            self.gate_notice = gr.HTML(elem_id="gate-notice")
        with gr.Row(visible=False, elem_id="desk") as self.desk_row:
            with gr.Column(scale=8, min_width=480, elem_id="left"):
                self.picture = gr.HTML(elem_id="stage")
                with gr.Row(elem_id="tools"):
                    self.masks = gr.Button("Masks", size="sm", scale=0, elem_id="masks")
                    self.back = gr.Button("Back", size="sm", scale=0, elem_id="back")
                    gr.HTML(legend())
            with gr.Column(scale=5, min_width=400, elem_id="right") as self.right:
                self.question = gr.HTML(elem_id="question")
                self.words = gr.Textbox(
                    show_label=False, container=False, lines=1, max_lines=6, elem_id="words",
                    placeholder="the instruction",
                    html_attributes={"aria-label": "instruction", "spellcheck": "true"},  # type: ignore[arg-type]
                )  # fmt: skip
                self.notice = gr.HTML(elem_id="notice")
                with gr.Row(elem_classes="buttons"):
                    self.accept = gr.Button("Accept", elem_id="accept", min_width=120)
                    self.reject = gr.Button("Reject", elem_id="reject", min_width=120)
                with gr.Row(elem_classes="buttons"):
                    self.edit = gr.Button("Save edit", elem_id="edit", min_width=120)
                    self.skip = gr.Button("Skip", elem_id="skip", min_width=120)
                self.evidence = gr.HTML(elem_id="evidence")
        self.seen = gr.Textbox(visible=False)

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}
        shown = [self.state, self.head, self.gate, self.desk_row, self.gate_notice, self.picture, self.question]
        shown += [self.right, self.words, self.notice, self.evidence, self.back]
        self.blocks.load(self._open, self.state, shown, **private)
        gr.on([self.enter.click, self.name.submit], self._enter, [self.state, self.name], shown, **private)
        said = [self.state, self.words, self.seen]
        for button, decision in (
            (self.accept, ACCEPT),
            (self.edit, EDIT),
            (self.reject, REJECT),
            (self.skip, SKIP),
        ):
            decided = button.click(self._decider(decision), said, shown, js=_SEEN, **private)
            decided.then(None, js=_LEAVE_WORDS, api_visibility="private")
        self.back.click(self._go_back, self.state, shown, **private)
        self.masks.click(None, js="() => window.sam3iMasks()", api_visibility="private")

    # What the page shows

    def _show(self, state: State, message: str = "", words: str | None = None) -> dict[Any, Any]:
        """New values of all components; `words` keeps what was typed."""
        reviewer, desk = state.get("reviewer"), self.desk
        desk.refresh()
        name = desk.run.path.name
        if reviewer is None:
            head = piece("header", name, desk.progress(), desk.agreement(), None)
            return self._values(state, gate=True, head=head, say=message)
        queue = desk.queue(reviewer)
        item = desk.find(state["pair"]) if state.get("pair") else None
        if item is None:
            item = queue[0] if queue else None
            state = {**state, "pair": item and item.pair["pair_id"]}
        progress = desk.progress(reviewer)
        head = piece("header", name, progress, desk.agreement(), reviewer)
        if item is None:
            return self._values(state, head=head, picture=piece("finished", progress, len(desk.queue())), say=message)
        numbers = number_instances(item)
        return self._values(
            state,
            head=head,
            picture=picture(item, desk.run.path, numbers, _attribute(item.pair["pair_id"])),
            question=question(item),
            words=without_hidden(item.pair["text"]) if words is None else words,
            evidence=evidence(item, numbers),
            say=message,
        )

    def _values(self, state: State, gate: bool = False, say: str = "", **pieces: str) -> dict[Any, Any]:
        asked = "question" in pieces
        return {
            self.state: state,
            self.head: pieces["head"],
            self.gate: gr.Column(visible=gate),
            self.desk_row: gr.Row(visible=not gate),
            self.gate_notice: say if gate else "",
            self.picture: pieces.get("picture", ""),
            self.question: pieces.get("question", ""),
            self.right: gr.Column(visible=asked),
            self.words: pieces.get("words", ""),
            self.notice: "" if gate else say,
            self.evidence: pieces.get("evidence", ""),
            self.back: gr.Button(interactive=bool(state.get("back"))),
        }

    # What a reviewer does

    def _open(self, state: State | None) -> dict[Any, Any]:
        state = dict(state or {})
        if self.reviewer is not None and state.get("reviewer") != self.reviewer:
            state = {"reviewer": self.reviewer}
        return self._show(state)

    def _enter(self, state: State | None, name: str) -> dict[Any, Any]:
        try:
            return self._show({"reviewer": reviewer_name(name)})
        except ValueError as error:
            return self._show(dict(state or {}), notice(str(error), "error"))

    def _decider(self, decision: str):
        return lambda state, words, seen: self._decide(decision, dict(state or {}), words, seen)

    def _decide(self, decision: str, state: State, words: str | None, seen: str) -> dict[Any, Any]:
        """Keep a decision on the pair that was on the page; an accepted text that was changed is an edit."""
        item = self.desk.find(state.get("pair") or "")
        if item is None or seen != _attribute(item.pair["pair_id"]):
            return self._show(state)  # pressed twice, or in another tab: nothing is decided unseen
        pair, words = item.pair, " ".join((words or "").split())
        changed = words != " ".join(without_hidden(pair["text"]).split())
        if decision == ACCEPT and changed:
            decision = EDIT
        if decision == EDIT and not changed:
            return self._show(state, notice("Change the words first (E), then save them (Ctrl+Enter)."), words)
        if decision == EDIT:
            failed = [result for result in self.checks(item, words) if result.verdict == "fail"]
            if failed and (breaks_a_rule(failed) or state.get("warned") != words):
                report = edit_report(failed, may_insist=not breaks_a_rule(failed))
                return self._show({**state, "warned": words}, report, words)
        self.desk.decide(pair["pair_id"], decision, state["reviewer"], words if decision == EDIT else None)
        back = [*state.get("back", []), pair["pair_id"]][-50:]
        return self._show({"reviewer": state["reviewer"], "back": back})

    def _go_back(self, state: State | None) -> dict[Any, Any]:
        """Show what was decided last once more; a new decision replaces the old one, which stays on file."""
        state = dict(state or {})
        back, reviewer = list(state.get("back", [])), state.get("reviewer")
        if not back:
            return self._show(state)
        pair_id = back.pop()
        return self._show({"reviewer": reviewer, "pair": pair_id, "back": back}, self._said(pair_id, reviewer))

    def _said(self, pair_id: str, reviewer: str | None) -> str:
        said = [item for item in self.desk.decisions(pair_id) if item.author == reviewer]
        if not said:
            return ""
        words = f" “{said[-1].text}”" if said[-1].text else ""
        return notice(f"You said: {said[-1].decision}{words}. Decide again, and this replaces it.")


def reviewer_name(name: str | None) -> str:
    """A reviewer's name as it is kept.

    Raises:
        ValueError: no name, a very long one, or one with characters that cannot be seen.
    """
    name = " ".join((name or "").split())
    if not name:
        raise ValueError("A reviewer's name is needed: it is kept with every decision.")
    if len(name) > MAX_NAME:
        raise ValueError(f"A reviewer's name has up to {MAX_NAME} characters, this one has {len(name)}.")
    if without_hidden(name) != name:
        raise ValueError("The reviewer's name has characters that cannot be seen; type it anew.")
    return name


def _attribute(pair_id: str) -> str:
    """A pair's id as a plain word."""
    return hashlib.sha256(pair_id.encode()).hexdigest()[:24]


def theme() -> gr.themes.Base:
    """Gradio's plain theme in the fonts of the system."""
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")
    return gr.themes.Base(
        primary_hue="violet", secondary_hue="violet", neutral_hue="slate", radius_size="lg", font=sans, font_mono=mono
    ).set(body_background_fill="*neutral_100", body_background_fill_dark="*neutral_950")
