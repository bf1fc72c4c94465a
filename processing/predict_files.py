# SPDX-License-Identifier: Apache-2.0
"""The files that `sam3i predict` makes from its records: for one image, and for all of them together."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import write_whole
from .drawing.instances import draw_instances
from .result_formats import from_json, label_studio_config

if TYPE_CHECKING:
    from PIL.Image import Image


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole."""
    with write_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def remove_files(output: Path, stem: str) -> int:
    """Remove what was made from a record that no longer holds; the number of files."""
    names = re.compile(re.escape(stem) + r"\.(overlay\.png|\d+_\d+\.png|txt)")
    stale = [path for path in output.iterdir() if names.fullmatch(path.name)]
    for path in stale:
        path.unlink()
    return len(stale)


def write_files(document: dict, image: Image, output: Path, stem: str, formats: Sequence[str]) -> list[Path]:
    """The overlay and the masks of one image."""
    results = document["results"]
    rows = [from_json(row["instances"]) for row in results]
    pictures = {}
    if "overlay" in formats:
        notes = [
            f"nothing above {document['threshold']:g}, best {row['best_score']:.2f}"
            if not row["instances"] and row["best_score"]
            else None
            for row in results
        ]
        texts, levels = [row["text"] for row in results], [row["level"] for row in results]
        pictures["overlay"] = draw_instances(image, rows, instructions=texts, levels=levels, notes=notes)
    if "png" in formats:
        for number, row in enumerate(rows, start=1):
            for place, instance in enumerate(row, start=1):
                pictures[f"{number:02d}_{place:02d}"] = instance["mask"]
    for name, picture in pictures.items():
        with write_whole(output / f"{stem}.{name}.png") as partial:
            picture.save(partial)
    return [output / f"{stem}.{name}.png" for name in pictures]


def write_collections(documents: list[tuple[str, dict]], output: Path, formats: Sequence[str]) -> list[Path]:
    """The files that need all images: classes and categories are the instructions, in the order they were given."""
    asked = [row["text"] for _, document in documents for row in document["results"]]
    classes = {text: number for number, text in enumerate(dict.fromkeys(asked))}
    files, images, annotations, tasks = [], [], [], []
    for number, (stem, document) in enumerate(documents, start=1):
        rows = [(classes[row["text"]], from_json(row["instances"])) for row in document["results"]]
        name = document["image"]
        if "yolo" in formats:
            files.append(write_text(output / f"{stem}.txt", "".join(found.to_yolo(kind) for kind, found in rows)))
        if "coco" in formats:
            images.append({"id": number, "file_name": name, "width": document["width"], "height": document["height"]})
            annotations += [entry for kind, found in rows for entry in found.to_coco(number, kind + 1)]
        if "label-studio" in formats:
            regions = [
                region for _, found in rows for region in found.to_label_studio(name)["predictions"][0]["result"]
            ]
            for place, region in enumerate(regions, start=1):
                region["id"] = str(place)
            tasks.append({"data": {"image": name}, "predictions": [{"model_version": "sam3i", "result": regions}]})
    texts = {}
    if "yolo" in formats:
        texts["classes.txt"] = "".join(f"{name}\n" for name in classes)
    if "coco" in formats:
        categories = [{"id": number + 1, "name": name} for name, number in classes.items()]
        index = {"info": {}, "images": images, "categories": categories, "annotations": []}
        texts["coco_images.json"] = json.dumps(index, ensure_ascii=False)
        texts["coco_results.json"] = json.dumps(annotations)
    if "label-studio" in formats:
        texts["label_studio.json"] = json.dumps(tasks, ensure_ascii=False)
        texts["label_studio.xml"] = label_studio_config(list(classes))
    return files + [write_text(output / name, text) for name, text in texts.items()]
