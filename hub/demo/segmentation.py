# SPDX-License-Identifier: Apache-2.0
"""One answer of the model in `sam3i demo`: thresholds, pictures, tables and files, without running the model again."""

import io
import json
import math
import zipfile
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...processing.drawing.instances import draw_instances
from ...processing.post_processing import MAX_OVERLAP
from ...processing.result_formats import results_to_json
from ...processing.results import InstructionResult

LOWEST_THRESHOLD = 0.05  # instances with a lower score are not remembered

_DISPLAY_SIDE = 1280  # longest side, in pixels, of the pictures that are shown; files keep the size of the upload

Rows = list[list[dict[str, Any]]]


@dataclass(frozen=True)
class BoxExemplar:
    """A box that says "like this" or, where it is not positive, "not like this"."""

    corners: tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels
    positive: bool = True


@dataclass(frozen=True)
class Shown:
    """What of an answer is shown: higher scores, of at least [`LOWEST_THRESHOLD`], and higher mask probabilities."""

    threshold: float = 0.5
    mask_threshold: float = 0.5
    hide_duplicates: bool = True  # of instances with nearly the same mask only the best is shown

    @property
    def max_overlap(self) -> float | None:
        """The IoU of two masks above which one of them is hidden."""
        return MAX_OVERLAP if self.hide_duplicates else None


@dataclass(frozen=True)
class InstanceLine:
    """One instance in the list: numbers as a person reads them."""

    row: int  # of the instruction
    place: int  # among the instances of its instruction
    score: float
    box: tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the upload
    area: float  # share of the picture, in [0, 1]


@dataclass(frozen=True)
class Segmentation:
    """What one call of the model found for `R` instructions, before thresholds."""

    pipe: Any  # the pipeline, which turns outputs into instances
    model: str  # folder or Hub name
    image: Image.Image  # the upload
    texts: tuple[str | None, ...]  # None where boxes speak alone
    asked: str  # the level, or "auto"
    boxes: tuple[BoxExemplar, ...]  # of all instructions
    outputs: dict[str, Any]  # masks, boxes and logits of the candidates of each row, best first
    probabilities: list[list[float]] | None  # (R, 3), of the levels, by the learned router
    lost: tuple[str, ...]  # for each instruction the words that did not fit
    vision_seconds: float | None  # spent on the picture; None when its features were at hand
    seconds: float  # spent in all

    @property
    def levels(self) -> list[str]:
        """The level each instruction followed."""
        return [InstructionLevel.from_any(index).value for index in self.outputs["instruction_levels"].tolist()]

    @property
    def captions(self) -> list[str]:
        """What to call each instruction."""
        return [text or "what the boxes show" for text in self.texts]

    def part(self, rows: slice, asked: str) -> "Segmentation":
        """Some of the instructions, as if they had been asked for alone."""
        return replace(
            self,
            texts=self.texts[rows],
            asked=asked,
            outputs={name: values[rows] for name, values in self.outputs.items()},
            probabilities=self.probabilities and self.probabilities[rows],
            lost=self.lost[rows],
        )

    def results(
        self, shown: Shown, size: tuple[int, int] | None, max_overlap: float | None
    ) -> list[InstructionResult]:
        """What passes the thresholds for every instruction; `size` is the (width, height) of the masks."""
        sizes = None if size is None else [(size[1], size[0])]
        found = self.pipe.processor.post_process_instruction_segmentation(
            SimpleNamespace(**self.outputs), shown.threshold, shown.mask_threshold, sizes, max_overlap=max_overlap
        )
        for row, caption in zip(found, self.captions, strict=True):
            row.text = caption
        return found

    def instances(self, shown: Shown) -> Rows:
        """Instances of every instruction as the pipeline returns them, in pixels of the upload."""
        return [row.to_instances() for row in self.results(shown, self.image.size, shown.max_overlap)]

    def view(self, shown: Shown) -> "View":
        """The instances at the size at which they are shown."""
        ratio = min(1.0, _DISPLAY_SIDE / max(self.image.size))
        size = (max(1, round(self.image.width * ratio)), max(1, round(self.image.height * ratio)))
        image = self.image if ratio == 1 else self.image.resize(size, Image.Resampling.LANCZOS)
        kept = self.results(shown, size, shown.max_overlap)
        everything = self.results(shown, None, None)
        hidden = [len(row["scores"]) - len(left["scores"]) for row, left in zip(everything, kept, strict=True)]
        rows: Rows = [row.to_instances() for row in kept]
        return View(self, shown, image, rows, [row.best_score for row in kept], hidden)

    def archive(self, shown: Shown) -> bytes:
        """A ZIP of the overlay, a PNG for each mask (255 inside, 0 outside) and `results.json` with RLE masks."""
        rows = self.instances(shown)
        results = results_to_json(rows)
        masks = {}
        for index, (row, encoded) in enumerate(zip(rows, results, strict=True)):
            for place, (instance, entry) in enumerate(zip(row, encoded, strict=True)):
                entry["file"] = f"masks/{index + 1:02d}_{place + 1:02d}.png"
                masks[entry["file"]] = instance["mask"]
        document = {
            "model": self.model,
            "width": self.image.width,
            "height": self.image.height,
            "threshold": shown.threshold,
            "mask_threshold": shown.mask_threshold,
            "max_overlap": shown.max_overlap,
            "level": self.asked,
            "boxes": [{"box": list(box.corners), "label": int(box.positive)} for box in self.boxes],
            "results": [
                {"text": text, "level": level, "instances": encoded}
                | ({"level_probabilities": self.probabilities[index]} if self.probabilities else {})
                for index, (text, level, encoded) in enumerate(zip(self.texts, self.levels, results, strict=True))
            ],
        }
        pictures = {"overlay.png": self.view(shown).sheet(), **masks}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("results.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
            for name, picture in pictures.items():
                encoded = io.BytesIO()
                picture.save(encoded, "PNG")
                archive.writestr(name, encoded.getvalue())
        return buffer.getvalue()

    def code(self, shown: Shown) -> str:
        """Python that makes the same call."""
        settings: dict[str, Any] = {"level": self.asked, "threshold": shown.threshold}
        settings |= {"mask_threshold": shown.mask_threshold}
        if not shown.hide_duplicates:
            settings["max_overlap"] = None
        if self.boxes:
            settings["boxes"] = [list(box.corners) for box in self.boxes]
            settings["box_labels"] = [int(box.positive) for box in self.boxes]
        texts = [f"        {text!r},\n" for text in self.texts]
        arguments = f"    text=[\n{''.join(texts)}    ],\n"
        arguments += "".join(f"    {name}={value!r},\n" for name, value in settings.items())
        return (
            "import sam3i  # registers the pipeline\n"
            "from transformers import pipeline\n\n"
            f'pipe = pipeline("instruction-segmentation", model={self.model!r})\n'
            f'results = pipe(\n    "image.png",\n{arguments})\n'
            "for instances in results:  # a list for each instruction\n"
            "    for found in instances:\n"
            '        print(found["score"], found["level"], found["label"], found["box"])\n'
            '        found["mask"]  # a PIL image: 255 inside, 0 outside\n'
        )


@dataclass(frozen=True)
class View:
    """The instances of a [`Segmentation`] at given thresholds, ready to be shown."""

    segmentation: Segmentation
    shown: Shown
    image: Image.Image  # at the size of the masks
    rows: Rows  # the instances of each instruction
    best: list[float]  # score of each instruction, above the threshold or not; 0 where none is known
    hidden: list[int]  # how many instances of each are hidden as duplicates

    @property
    def lower_threshold(self) -> float | None:
        """The highest threshold at which an instruction that found nothing finds something; None if none helps."""
        missed = [best for row, best in zip(self.rows, self.best, strict=True) if not row and best]
        step = max(missed, default=0.0)
        lower = math.ceil(step * 100 - 1) / 100  # below the score, also where that is a whole number of hundredths
        return max(lower, LOWEST_THRESHOLD) if LOWEST_THRESHOLD < step <= self.shown.threshold else None

    def found_words(self, row: int) -> str:
        """How many instances an instruction found, or how near it came."""
        count, hidden, best = len(self.rows[row]), self.hidden[row], self.best[row]
        if not count:
            return f"nothing above {self.shown.threshold:g}, best {best:.2f}" if best else "nothing found"
        return f"{count} found" + (f", {hidden} duplicate{'s' * (hidden > 1)} hidden" if hidden else "")

    def overlay(self, only: InstanceLine | None = None, side: int | None = None) -> Image.Image:
        """The picture with masks and scores; with `only`, everything but that instance is dimmed."""
        rows = self.rows
        if only is not None:
            rows = [[] if index != only.row else [row[only.place]] for index, row in enumerate(rows)]
        return draw_instances(self.image, rows[0] if len(rows) == 1 else rows, legend=False, side=side)

    def sheet(self, title: str | None = None, side: int | None = None) -> Image.Image:
        """The picture over a legend: what it looks like away from the page."""
        return draw_instances(
            self.image,
            self.rows[0] if len(self.rows) == 1 else self.rows,
            title=title,
            instructions=self.segmentation.captions,
            levels=self.segmentation.levels,
            notes=[self.found_words(row) for row in range(len(self.rows))],
            side=side,
        )

    def lines(self) -> list[InstanceLine]:
        """The instances, instruction by instruction, best first."""
        ratio = self.segmentation.image.width / self.image.width
        lines = []
        for index, row in enumerate(self.rows):
            for place, instance in enumerate(row):
                left, top, right, bottom = (round(value * ratio) for value in instance["box"].values())
                area = float((np.asarray(instance["mask"]) > 127).mean())
                lines.append(InstanceLine(index, place, instance["score"], (left, top, right, bottom), area))
        return lines
