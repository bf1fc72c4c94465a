# SPDX-License-Identifier: Apache-2.0
"""The page of `sam3i demo`: what each action of a visitor does; importing this needs gradio."""

import io
import json
import tempfile
import uuid
import zipfile
from functools import wraps
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ...processing.result_formats import results_to_json
from . import html
from .html import CSS, theme
from .layout import LIKE, DemoLayout, gr
from .model import DemoModel, read_instructions
from .segmentation import Shown
from .session import DemoSession, demo_examples, read_corners

LOOPBACK = ("127.0.0.1", "localhost", "::1")

MOST_PICTURES = 20  # pictures of one batch: a bound on the time of a shared page

_PANEL_SIDE = 320  # longest side, in pixels, of pictures that stand beside each other

_FILE_SECONDS = 3600  # how long files that were made for a visitor are kept

_FOLLOW_LINK = "() => document.querySelector('#archive-link').click()"

_hidden = gr.Button(visible=False)

Changes = dict[Any, Any]  # new values of components


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
    """The Gradio page for a model, which all visitors share; the slider of scores stands at `threshold` first.

    With `for_agents` `segment` is also a tool of the Model Context Protocol; then it answers with JSON as text, since
    Gradio hands agents the text of a value.
    """

    def __init__(self, model: DemoModel, threshold: float = 0.5, for_agents: bool = False):
        self.model = model
        self.for_agents = for_agents
        self.examples = demo_examples()
        self._files = tempfile.TemporaryDirectory(prefix="sam3i_demo_")
        self.blocks = gr.Blocks(
            title="SAM3-I", analytics_enabled=False, fill_width=True, delete_cache=(_FILE_SECONDS, _FILE_SECONDS)
        )
        with self.blocks:
            self.page = DemoLayout(model, self.examples, threshold)
            self._connect()

    def launch(self, host: str | None = None, port: int | None = None, **options) -> tuple[Any, str, str]:
        """Serve the page; where host and port are not given, as Gradio chooses, or a Hub Space says.

        Returns:
            What `gradio.Blocks.launch` does: the application, the local address, and no public one.

        Raises:
            OSError: when the port is taken.
        """
        settings: dict[str, Any] = {"share": False, "show_error": True, "footer_links": [], "ssr_mode": False}
        settings |= {"max_file_size": "20mb", "theme": theme(), "css": CSS, "quiet": True}
        settings["mcp_server"] = self.for_agents
        if host in LOOPBACK:  # a name of another site that leads here is not answered
            settings["app_kwargs"] = {"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])]}
        return self.blocks.launch(server_name=host, server_port=port, **(settings | options))

    def _connect(self) -> None:
        page = self.page
        thresholds = [page.score, page.mask_score, page.unique]
        answer = [page.overlay, page.summary, page.lower, page.instances, page.code]
        levels = [*page.panels, page.comparison]
        boxes = [page.canvas, page.box_list]
        state = [page.notice, page.session]
        # The model has a lock of its own.
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 4}
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
            [page.score.change, page.mask_score.change, page.unique.change],
            self._set_thresholds,
            [page.session, *thresholds],
            [*answer, *levels],
            trigger_mode="always_last",
            **quiet,
        )
        page.lower.click(self._lower, [page.session, *thresholds], page.score, **quiet)
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

        page.batch_run.click(
            self._batch,
            [page.batch, page.text, page.level, *thresholds],
            [page.batch_gallery, page.batch_archive, page.batch_notice],
            **private | {"show_progress_on": page.batch_gallery},
        )
        asked = [page.image, page.text, page.level, page.score, page.mask_score]
        answered_with = gr.Textbox(visible=False) if self.for_agents else gr.JSON(visible=False)
        gr.Button(visible=False).click(self.segment, asked, answered_with, api_name="segment")

    # What the components show

    def _answer(self, session: DemoSession, shown: Shown) -> Changes:
        page, view = self.page, session.view(shown)
        if view is None:
            return {page.overlay: None, page.summary: "", page.lower: _hidden, page.instances: [], page.code: ""}
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
        lower = view.lower_threshold
        return {
            page.overlay: view.overlay(),
            page.summary: html.summary(view, self.model.who_chooses),
            page.lower: _hidden if lower is None else gr.Button(f"Show what scores above {lower:.2f}", visible=True),
            page.instances: table,
            page.code: view.segmentation.code(shown),
        }

    def _levels(self, session: DemoSession, shown: Shown) -> Changes:
        page = self.page
        if not session.comparison:
            return dict.fromkeys(page.panels) | {page.comparison: ""}
        views = [part.view(shown) for part in session.comparison]
        panels = {panel: view.overlay(side=_PANEL_SIDE) for panel, view in zip(page.panels, views, strict=True)}
        return panels | {page.comparison: html.comparison(views)}

    def _boxes(self, session: DemoSession) -> Changes:
        page = self.page
        return {page.canvas: session.canvas(), page.box_list: html.box_list(session.boxes, session.corner)}

    # What a visitor does

    @_with_notice
    def _show(self, session: DemoSession, source: str | None) -> Changes:
        session.show(source)
        return self._answer(session, Shown()) | self._levels(session, Shown()) | self._boxes(session)

    def _choose_example(self, event: gr.SelectData, session: DemoSession, *shown: Any) -> Changes:
        example, page = self.examples[event.index], self.page
        text = "\n".join(example.instructions)
        fields = {page.image: example.image, page.text: text, page.level: "auto"}
        changes = self._segment(session, example.image, text, "auto", *shown)
        return fields | self._levels(session, Shown(*shown)) | changes

    @_with_notice
    def _segment(self, session: DemoSession, source: Any, text: str, level: str, *shown: Any) -> Changes:
        page = self.page
        session.show(source)
        segmentation = session.segment(self.model, text, level)
        changes = self._answer(session, Shown(*shown)) | self._boxes(session)
        notices = html.lost_words(segmentation)
        if not session.was_explained:
            notices, session.was_explained = html.notice(html.EXPLANATION) + notices, True
        return changes | {page.tabs: gr.Tabs(selected="result"), page.notice: notices}

    def _switch_level(self, session: DemoSession, *arguments: Any) -> Changes:
        if session.answer is None:  # nothing was asked yet
            return {self.page.session: session}
        return self._segment(session, *arguments)

    @_with_notice
    def _compare(self, session: DemoSession, source: Any, text: str, *shown: Any) -> Changes:
        page = self.page
        session.show(source)
        parts = session.compare(self.model, text)
        changes = self._levels(session, Shown(*shown)) | self._boxes(session)
        return changes | {page.tabs: gr.Tabs(selected="levels"), page.notice: html.lost_words(parts[0])}

    def _set_thresholds(self, session: DemoSession, *shown: Any) -> Changes:
        changes = {} if session.answer is None else self._answer(session, Shown(*shown))
        return changes | (self._levels(session, Shown(*shown)) if session.comparison else {})

    def _lower(self, session: DemoSession, *shown: Any) -> Any:
        view = session.view(Shown(*shown))
        return gr.skip() if view is None or view.lower_threshold is None else view.lower_threshold

    def _highlight(self, event: gr.SelectData, session: DemoSession, *shown: Any) -> Any:
        view = session.view(Shown(*shown))
        lines = view.lines() if view else []
        number = int(event.row_value[0]) if event.row_value and event.row_value[0] else 0  # the table may be sorted
        return view.overlay(lines[number - 1]) if view and 0 < number <= len(lines) else gr.skip()

    def _show_all(self, session: DemoSession, *shown: Any) -> Any:
        view = session.view(Shown(*shown))
        return view and view.overlay()

    @_with_notice
    def _archive(self, session: DemoSession, *shown: Any) -> Changes:
        if session.answer is None:
            raise gr.Error("There is nothing to download yet: segment something first.", print_exception=False)
        return {self.page.archive: self._file("sam3i_masks.zip", session.answer.archive(Shown(*shown)))}

    def _file(self, name: str, content: bytes) -> str:
        """The path of a file made for a visitor."""
        path = Path(self._files.name) / uuid.uuid4().hex / name
        path.parent.mkdir()
        path.write_bytes(content)
        return str(path)

    def _batch(self, sources: list[str] | None, text: str, level: str, *shown: Any) -> Changes:
        page = self.page
        if not sources or not read_instructions(text):
            return {page.batch_notice: html.notice("Choose pictures, and write instructions for them.", "error")}
        if len(sources) > MOST_PICTURES:
            told = f"{len(sources)} pictures are too many at once: expected at most {MOST_PICTURES}."
            return {page.batch_notice: html.notice(told, "error")}
        pictures, problems, buffer = [], [], io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for number, source in enumerate(sources, start=1):
                session, name = DemoSession(), Path(source).name
                try:
                    session.show(source)
                    segmentation = session.segment(self.model, text, level)
                except ValueError as error:
                    problems.append(f"{name}: {str(error).replace(f' {source!r}', '')}")
                    continue
                pictures.append(segmentation.view(Shown(*shown)).sheet(name, _PANEL_SIDE))
                archive.writestr(f"{number:02d}_{name}.zip", segmentation.archive(Shown(*shown)))
        return {
            page.batch_gallery: pictures,
            page.batch_archive: gr.DownloadButton(
                value=self._file("sam3i_pictures.zip", buffer.getvalue()), visible=bool(pictures)
            ),
            page.batch_notice: html.notice(" ".join(problems), "error"),
        }

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

    def segment(
        self,
        image: str | None,
        instructions: str,
        level: str = "auto",
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
    ) -> list | str:
        """Segment what instructions denote in an image. Returns for every instruction a list of instances: score,
        level, box in pixels, and the mask as COCO run lengths.

        Args:
            image: The image, as the address of a file or in base64.
            instructions: What to segment, one instruction a line; a noun, a description, or a riddle ("what barks").
            level: How to read them; auto, concept (a noun), simple (names the thing) or complex (does not name it).
            threshold: Score in [0, 1] that an instance must exceed; lower it when nothing is found.
            mask_threshold: Probability in [0, 1] from which a pixel belongs to a mask.
        """
        session = DemoSession()
        try:
            session.show(image)
            segmentation = session.segment(self.model, instructions, level)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        results = results_to_json(segmentation.instances(Shown(threshold, mask_threshold)))
        return json.dumps(results) if self.for_agents else results
