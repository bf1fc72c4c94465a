# SPDX-License-Identifier: Apache-2.0
"""The page of `sam3i demo`: what each action of a visitor does; importing this needs gradio."""

import tempfile
import uuid
from functools import wraps
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ...processing.result_formats import results_to_json
from . import html
from .examples import demo_examples
from .layout import LIKE, DemoLayout, gr
from .model import DemoModel
from .session import DemoSession, read_corners
from .style import CSS, theme

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_FILE_SECONDS = 3600
"""How long files that were made for a visitor are kept."""

_FOLLOW_LINK = "() => document.querySelector('#archive-link').click()"

Changes = dict[Any, Any]
"""New values of components."""


def _with_notice(action):
    """Say what is wrong with an input under the buttons, instead of failing."""

    @wraps(action)
    def run(self, session: DemoSession, *arguments):
        try:
            return {self.page.notice: "", self.page.session: session} | action(self, session, *arguments)
        except ValueError as error:
            return {self.page.notice: html.notice(str(error), "error"), self.page.session: session}

    return run


class DemoPage:
    """The Gradio page for a model.

    Args:
        model ([`DemoModel`]): Shared by all visitors.
        threshold (`float`, *optional*, defaults to 0.5): Where the slider of scores stands at first.
    """

    def __init__(self, model: DemoModel, threshold: float = 0.5):
        self.model = model
        self.examples = demo_examples()
        self._files = tempfile.TemporaryDirectory(prefix="sam3i_demo_")
        self.blocks = gr.Blocks(
            title="SAM3-I", analytics_enabled=False, fill_width=True, delete_cache=(_FILE_SECONDS, _FILE_SECONDS)
        )
        with self.blocks:
            self.page = DemoLayout(model, self.examples, threshold)
            self._connect()

    def launch(self, host: str | None = None, port: int | None = None, **options) -> tuple[Any, str, str]:
        """Serve the page.

        Args:
            host (`str`, *optional*): Address to listen on; Gradio's own choice if not given: 127.0.0.1, or what a Hub
                Space sets.
            port (`int`, *optional*): The first free one from 7860 on, if not given.
            options: Of `gradio.Blocks.launch`.

        Returns:
            What `gradio.Blocks.launch` does: the application, the local address, and no public one.

        Raises:
            OSError: when the port is taken.
        """
        settings: dict[str, Any] = {"share": False, "show_error": True, "footer_links": [], "ssr_mode": False}
        settings |= {"max_file_size": "20mb", "theme": theme(), "css": CSS, "quiet": True}
        if host in LOOPBACK:  # a name of another site that leads here is not answered
            settings["app_kwargs"] = {"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])]}
        return self.blocks.launch(server_name=host, server_port=port, **(settings | options))

    def _connect(self) -> None:
        page = self.page
        thresholds = [page.score, page.mask_score]
        answer = [page.overlay, page.summary, page.instances, page.code]
        levels = [*page.panels, page.comparison]
        boxes = [page.canvas, page.box_list]
        state = [page.notice, page.session]
        # The model has a lock of its own.
        private: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_limit": 4,
        }
        quiet = private | {"show_progress": "hidden"}
        busy = private | {"show_progress_on": page.overlay}

        everything = [*answer, *levels, *boxes, *state]
        gr.on([page.image.upload, page.image.clear], self._show, [page.session, page.image], everything, **quiet)
        page.gallery.select(
            self._choose_example,
            [page.session, *thresholds],
            [page.image, page.text, page.level, page.tabs, *everything],
            **busy,
        )
        ask = [page.session, page.image, page.text, page.level, *thresholds]
        answered = [page.tabs, *answer, *boxes, *state]
        gr.on([page.run.click, page.text.submit], self._segment, ask, answered, **busy)
        page.level.input(self._switch_level, ask, answered, **busy)
        page.compare.click(
            self._compare,
            [page.session, page.image, page.text, *thresholds],
            [page.tabs, *levels, *boxes, *state],
            **private | {"show_progress_on": page.panels},
        )
        gr.on(
            [page.score.change, page.mask_score.change],
            self._set_thresholds,
            [page.session, *thresholds],
            [*answer, *levels],
            trigger_mode="always_last",
            **quiet,
        )
        page.instances.select(self._highlight, [page.session, *thresholds], page.overlay, **quiet)
        page.show_all.click(self._show_all, [page.session, *thresholds], page.overlay, **quiet)
        page.download.click(self._archive, [page.session, *thresholds], [page.archive, *state], **private).success(
            None, js=_FOLLOW_LINK, api_visibility="private"
        )

        drawn = [*boxes, *state]
        page.canvas.select(self._click, [page.session, page.sign], drawn, **quiet)
        gr.on(
            [page.add_box.click, page.corners.submit],
            self._add_box,
            [page.session, page.sign, page.corners],
            [page.corners, *drawn],
            **quiet,
        )
        page.undo_box.click(self._undo_box, page.session, drawn, **quiet)
        page.clear_boxes.click(self._clear_boxes, page.session, drawn, **quiet)

        gr.Button(visible=False).click(
            self._serve, [page.image, page.text, page.level, *thresholds], gr.JSON(visible=False), api_name="segment"
        )

    # What the components show

    def _answer(self, session: DemoSession, threshold: float, mask_threshold: float) -> Changes:
        page, view = self.page, session.view(threshold, mask_threshold)
        if view is None:
            return {page.overlay: None, page.summary: "", page.instances: [], page.code: ""}
        captions, levels = view.segmentation.captions, view.segmentation.levels
        table = [
            [
                number,
                captions[line.row],
                levels[line.row],
                round(line.score, 3),
                ", ".join(map(str, line.box)),
                round(100 * line.area, 2),
            ]
            for number, line in enumerate(view.lines(), start=1)
        ]
        return {
            page.overlay: view.overlay(),
            page.summary: html.summary(view, self.model.who_chooses),
            page.instances: table,
            page.code: view.segmentation.code(threshold, mask_threshold),
        }

    def _levels(self, session: DemoSession, threshold: float, mask_threshold: float) -> Changes:
        page = self.page
        if not session.comparison:
            return dict.fromkeys(page.panels) | {page.comparison: ""}
        views = [part.view(threshold, mask_threshold) for part in session.comparison]
        panels = {panel: view.panel() for panel, view in zip(page.panels, views, strict=True)}
        return panels | {page.comparison: html.comparison(views)}

    def _boxes(self, session: DemoSession) -> Changes:
        page = self.page
        return {page.canvas: session.canvas(), page.box_list: html.box_list(session.boxes, session.corner)}

    # What a visitor does

    @_with_notice
    def _show(self, session: DemoSession, source: str | None) -> Changes:
        session.show(source)
        return self._answer(session, 1.0, 0.5) | self._levels(session, 1.0, 0.5) | self._boxes(session)

    def _choose_example(
        self, session: DemoSession, threshold: float, mask_threshold: float, event: gr.SelectData
    ) -> Changes:
        example, page = self.examples[event.index], self.page
        text = "\n".join(example.instructions)
        fields = {page.image: example.image, page.text: text, page.level: "auto"}
        changes = self._segment(session, example.image, text, "auto", threshold, mask_threshold)
        return fields | self._levels(session, threshold, mask_threshold) | changes

    @_with_notice
    def _segment(
        self, session: DemoSession, source: Any, text: str, level: str, threshold: float, mask_threshold: float
    ) -> Changes:
        page = self.page
        session.show(source)
        segmentation = session.segment(self.model, text, level)
        changes = self._answer(session, threshold, mask_threshold) | self._boxes(session)
        return changes | {page.tabs: gr.Tabs(selected="result"), page.notice: html.lost_words(segmentation)}

    def _switch_level(self, session: DemoSession, *arguments) -> Changes:
        if session.answer is None:  # nothing was asked yet
            return {self.page.session: session}
        return self._segment(session, *arguments)

    @_with_notice
    def _compare(
        self, session: DemoSession, source: Any, text: str, threshold: float, mask_threshold: float
    ) -> Changes:
        page = self.page
        session.show(source)
        parts = session.compare(self.model, text)
        changes = self._levels(session, threshold, mask_threshold) | self._boxes(session)
        return changes | {page.tabs: gr.Tabs(selected="levels"), page.notice: html.lost_words(parts[0])}

    def _set_thresholds(self, session: DemoSession, threshold: float, mask_threshold: float) -> Changes:
        changes = {} if session.answer is None else self._answer(session, threshold, mask_threshold)
        return changes | (self._levels(session, threshold, mask_threshold) if session.comparison else {})

    def _highlight(self, session: DemoSession, threshold: float, mask_threshold: float, event: gr.SelectData) -> Any:
        view = session.view(threshold, mask_threshold)
        lines = view.lines() if view else []
        number = int(event.row_value[0]) if event.row_value and event.row_value[0] else 0  # the table may be sorted
        return view.spotlight(lines[number - 1]) if view and 0 < number <= len(lines) else gr.skip()

    def _show_all(self, session: DemoSession, threshold: float, mask_threshold: float) -> Any:
        view = session.view(threshold, mask_threshold)
        return view and view.overlay()

    @_with_notice
    def _archive(self, session: DemoSession, threshold: float, mask_threshold: float) -> Changes:
        if session.answer is None:
            raise gr.Error("There is nothing to download yet: segment something first.", print_exception=False)
        path = Path(self._files.name) / uuid.uuid4().hex / "sam3i_masks.zip"
        path.parent.mkdir()
        path.write_bytes(session.answer.archive(threshold, mask_threshold))
        return {self.page.archive: str(path)}

    @_with_notice
    def _click(self, session: DemoSession, sign: str, event: gr.SelectData) -> Changes:
        session.click(tuple(event.index), sign == LIKE)
        return self._boxes(session)

    @_with_notice
    def _add_box(self, session: DemoSession, sign: str, corners: str) -> Changes:
        session.add_box(read_corners(corners), sign == LIKE)
        return {self.page.corners: ""} | self._boxes(session)

    @_with_notice
    def _undo_box(self, session: DemoSession) -> Changes:
        session.undo_box()
        return self._boxes(session)

    @_with_notice
    def _clear_boxes(self, session: DemoSession) -> Changes:
        session.clear_boxes()
        return self._boxes(session)

    def _serve(self, source: str | None, text: str, level: str, threshold: float, mask_threshold: float) -> list:
        """For programs: the instances of each instruction, masks as run-length encodings."""
        session = DemoSession()
        try:
            session.show(source)
            segmentation = session.segment(self.model, text, level)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return results_to_json(segmentation.instances(threshold, mask_threshold))


__all__ = ["DemoPage"]
