# SPDX-License-Identifier: Apache-2.0
"""The components of the page of `sam3i demo`; importing this needs gradio."""

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from . import html
from .model import DemoModel
from .segmentation import LOWEST_THRESHOLD
from .session import DemoExample, DemoSession

try:
    import gradio as gr
except ImportError as error:
    raise ImportError('The demo needs gradio: pip install "sam3i[demo]"') from error

LIKE, UNLIKE = "like this", "not like this"

_LEVELS = ["auto", *(level.value for level in InstructionLevel)]
_HEADERS = ["#", "instruction", "level", "score", "box (pixels)", "area %"]
_SESSION_SECONDS = 3600


class DemoLayout:
    """Questions on the left, answers on the right; made inside a `gradio.Blocks`."""

    def __init__(self, model: DemoModel, examples: list[DemoExample], threshold: float):
        self.session = gr.State(DemoSession(), time_to_live=_SESSION_SECONDS)
        gr.HTML(html.header(model))
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=400):
                self._build_questions(examples)
                self._build_boxes()
            with gr.Column(scale=7, min_width=400):
                self._build_answers(threshold)

    def _build_questions(self, examples: list[DemoExample]) -> None:
        self.image = gr.Image(
            type="filepath",
            image_mode=None,
            format="png",  # the model sees what comes back from the page
            sources=["upload", "clipboard"],
            label="Picture",
            height=420,
            elem_id="picture",
            alt_text="the picture to segment",
        )
        self.gallery = gr.Gallery(
            [example.image for example in examples],
            label="Examples",
            show_label=False,
            columns=6,
            allow_preview=False,
            interactive=False,
            height=108,
            object_fit="cover",
            elem_id="examples",
            buttons=[],
        )
        self.text = gr.Textbox(
            label="Instructions, one a line (Shift+Enter to segment)",
            placeholder="the star on the left",
            lines=4,
            max_lines=8,
            elem_id="instructions",
        )
        self.level = gr.Radio(_LEVELS, value="auto", label="Level", elem_id="level")
        with gr.Row():
            self.run = gr.Button("Segment", variant="primary", elem_id="run", scale=2, min_width=120)
            self.compare = gr.Button("Compare levels", elem_id="compare", scale=2, min_width=120)
        self.notice = gr.HTML(elem_id="notice")

    def _build_boxes(self) -> None:
        with gr.Accordion("Boxes: segment what is (not) like this", open=False, elem_id="boxes"):
            self.sign = gr.Radio([LIKE, UNLIKE], value=LIKE, label="The next box says", elem_id="sign")
            self.canvas = gr.Image(
                label="Click two opposite corners",
                interactive=False,
                format="png",
                buttons=[],
                elem_id="canvas",
                height=330,
                alt_text="the picture to draw boxes on",
            )
            self.box_list = gr.HTML(html.box_list([], None), elem_id="box-list")
            self.corners = gr.Textbox(
                label="Or type corners and press Enter",
                placeholder="x1, y1, x2, y2 in pixels",
                max_lines=1,
                elem_id="corners",
            )
            with gr.Row():
                self.add_box = gr.Button("Add", size="sm", elem_id="add-box", min_width=60)
                self.undo_box = gr.Button("Undo", size="sm", elem_id="undo-box", min_width=60)
                self.clear_boxes = gr.Button("Clear", size="sm", elem_id="clear-boxes", min_width=60)

    def _build_answers(self, threshold: float) -> None:
        with gr.Row():
            self.score = gr.Slider(
                LOWEST_THRESHOLD, 1, threshold, step=0.01, label="Score above", elem_id="threshold", min_width=150
            )
            self.mask_score = gr.Slider(
                0.05, 0.95, 0.5, step=0.01, label="Mask probability above", elem_id="mask-threshold", min_width=150
            )
        self.unique = gr.Checkbox(True, label="Hide duplicates", elem_id="unique", container=False)
        with gr.Tabs(elem_id="tabs") as self.tabs:
            with gr.Tab("Result", id="result"):
                self.overlay = gr.Image(
                    label="What was found",
                    show_label=False,
                    interactive=False,
                    format="png",
                    elem_id="overlay",
                    buttons=["download", "fullscreen"],
                    height=540,
                    alt_text="the picture with outlines and scores",
                )
                self.summary = gr.HTML(
                    html.notice("Choose an example, or upload a picture and say what to segment in it."),
                    elem_id="summary",
                )
                self.lower = gr.Button("", size="sm", visible=False, elem_id="lower")
                self.instances = gr.Dataframe(
                    headers=_HEADERS,
                    datatype=["number", "str", "str", "number", "str", "number"],
                    type="array",
                    interactive=False,
                    wrap=True,
                    max_height=300,
                    label="Instances: select one to see it alone",
                    show_label=True,
                    elem_id="instances",
                    column_widths=["6%", "41%", "12%", "10%", "20%", "11%"],
                    buttons=["copy"],
                )
                with gr.Row():
                    self.show_all = gr.Button("Show all instances", size="sm", elem_id="show-all")
                    self.download = gr.Button("Download masks (ZIP)", size="sm", elem_id="download")
                self.archive = gr.DownloadButton("ZIP", visible="hidden", elem_id="archive-link")
            with gr.Tab("Levels", id="levels"):
                with gr.Row():
                    self.panels = [
                        gr.Image(
                            label=level.value,
                            interactive=False,
                            format="png",
                            elem_id=f"panel-{level.value}",
                            buttons=["fullscreen"],
                            min_width=220,
                            alt_text=f"what was found at the {level.value} level",
                        )
                        for level in InstructionLevel
                    ]
                self.comparison = gr.HTML(
                    html.notice("Press “Compare levels”: one call follows each instruction at every level."),
                    elem_id="comparison",
                )
            with gr.Tab("Batch", id="batch"):
                self.batch = gr.File(
                    label="Pictures that the same instructions are for",
                    file_count="multiple",
                    file_types=["image"],
                    elem_id="batch",
                    height=140,
                )
                self.batch_run = gr.Button("Segment all", variant="primary", elem_id="batch-run")
                self.batch_notice = gr.HTML(elem_id="batch-notice")
                self.batch_gallery = gr.Gallery(
                    label="What was found", columns=2, object_fit="contain", interactive=False, elem_id="batch-gallery"
                )
                self.batch_archive = gr.DownloadButton(
                    "Download all masks (ZIP)", visible=False, elem_id="batch-archive"
                )
            with gr.Tab("Python", id="python"):
                self.code = gr.Code(
                    "# Segment something: the same call in Python appears here.",
                    language="python",
                    interactive=False,
                    label="The same call",
                    elem_id="code",
                    buttons=["copy"],
                )
