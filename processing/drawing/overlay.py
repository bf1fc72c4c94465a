# SPDX-License-Identifier: Apache-2.0
"""Pictures of results: masks with outlines, boxes, scores and a legend, at any image size; and results as JSON."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..masks import encode_mask
from .legend import BACKGROUND, PictureScale, draw_legend, draw_pill

Instances = list[dict[str, Any]]

PALETTE = (
    (40, 150, 255),
    (255, 196, 40),
    (50, 205, 120),
    (255, 92, 92),
    (190, 110, 255),
    (255, 128, 200),
    (30, 205, 215),
    (255, 140, 60),
    (165, 205, 50),
    (120, 130, 255),
)
_MASK_OPACITY = 0.42
_SMALLEST_SIDE = 480
"""Images with a shorter long side are enlarged, so that text and outlines can be read."""


def _rows(results: Instances | list[Instances]) -> list[Instances]:
    """One list of instances for each instruction."""
    if not isinstance(results, list):
        raise TypeError(f"Expected results as the pipeline returns them, a list, found {type(results).__name__}.")
    if results and all(isinstance(row, list) for row in results):
        return results
    if not all(isinstance(instance, dict) and "mask" in instance for instance in results):
        raise TypeError(
            "Expected results as the pipeline returns them: dicts with 'score', 'label', 'box' and 'mask'."
        )
    return [results]


def _colours(rows: list[Instances]) -> list[list[tuple[int, int, int]]]:
    """A colour for each instance of the only instruction, or one for each of several instructions."""
    if len(rows) == 1:
        return [[PALETTE[index % len(PALETTE)] for index in range(len(rows[0]))]]
    return [[PALETTE[index % len(PALETTE)]] * len(row) for index, row in enumerate(rows)]


def _paint_mask(canvas: np.ndarray, mask: Image.Image, colour: Sequence[int], line: float) -> None:
    """Blend one mask into `canvas` `(H, W, 3)` in place: a translucent area and an opaque, smooth outline."""
    bounds = mask.getbbox()
    if bounds is None:
        return
    margin = math.ceil(2 * line) + 1
    left, top = max(0, bounds[0] - margin), max(0, bounds[1] - margin)
    right, bottom = min(mask.width, bounds[2] + margin), min(mask.height, bounds[3] + margin)
    piece = mask.crop((left, top, right, bottom))
    soft = np.asarray(piece.filter(ImageFilter.GaussianBlur(line / 2)), dtype=np.float32) / 255
    edge = np.clip((0.40 - np.abs(soft - 0.5)) / 0.16, 0, 1)[..., None]
    halo = np.clip((0.498 - np.abs(soft - 0.5)) / 0.05, 0, 1)[..., None]  # a shadow that parts like from like
    area = np.asarray(piece, dtype=np.float32)[..., None] / 255
    paint = np.asarray(colour, dtype=np.float32)
    view = canvas[top:bottom, left:right]
    view += area * _MASK_OPACITY * (paint - view)
    view *= 1 - 0.3 * halo
    view += edge * (paint - view)


def _enlarge(mask: Image.Image, size: tuple[int, int], factor: int) -> Image.Image:
    """Enlarge a mask and round off the steps of its pixels."""
    smooth = mask.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(0.8 * factor))
    return smooth.point(lambda value: max(0, min(255, round((value - 127.5) * 8 + 127.5))))


def _overlaps(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _place_tag(
    box: Sequence[float], tag: tuple[int, int], size: tuple[int, int], taken: list[tuple[int, ...]]
) -> tuple[int, int]:
    """The corner of a score tag: above, inside or below its box, in the picture and off other tags."""
    (width, height), (image_width, image_height) = tag, size
    corners = [
        (box[0], box[1] - height - 1),
        (box[0] + 2, box[1] + 2),
        (box[2] - width, box[1] - height - 1),
        (box[0], box[3] + 1),
        (box[2] - width - 2, box[3] - height - 2),
        ((box[0] + box[2] - width) / 2, (box[1] + box[3] - height) / 2),
    ]
    places = []
    for x, y in corners:
        inside = 0 <= x <= image_width - width and 0 <= y <= image_height - height
        x, y = max(0, min(round(x), image_width - width)), max(0, min(round(y), image_height - height))
        places.append((sum(_overlaps((x, y, x + width, y + height), other) for other in taken), not inside, (x, y)))
    _, _, (x, y) = min(places, key=lambda place: place[:2])
    taken.append((x, y, x + width, y + height))
    return x, y


def draw_instances(
    image: Image.Image,
    results: Instances | list[Instances],
    *,
    title: str | None = None,
    instructions: Sequence[str] | None = None,
    levels: Sequence[str] | None = None,
) -> Image.Image:
    """Draw the results of the pipeline on their image.

    Args:
        image (`PIL.Image.Image`): The image the results belong to; small ones are enlarged in the picture.
        results: What [`InstructionSegmentationPipeline`] returns for one image: instances of one instruction, each in
            its own colour, or a list of those for several instructions, one colour for each.
        title (`str`, *optional*): A line above the legend.
        instructions, levels (`list[str]`, *optional*): What the legend says of instructions that found nothing; one
            for each instruction.

    Returns:
        `PIL.Image.Image` in mode "RGB": the picture above a legend with every instruction and its level.

    Raises:
        TypeError: when `results` are not the pipeline's.
        ValueError: when a mask has another size than the image, or the captions another number than the rows.
    """
    rows = _rows(results)
    for name, given in (("instructions", instructions), ("levels", levels)):
        if given is not None and len(given) != len(rows):
            raise ValueError(f"Expected `{name}` for each of {len(rows)} rows of results, found {len(given)}.")
    captions = [
        (row[0]["label"], row[0]["level"])
        if row
        else (instructions[index] if instructions else "(no instruction given)", levels[index] if levels else None)
        for index, row in enumerate(rows)
    ]
    for instance in (instance for row in rows for instance in row):
        if instance["mask"].size != image.size:
            raise ValueError(f"Expected masks of the image's size {image.size}, found {instance['mask'].size}.")
    factor = max(1, math.ceil(_SMALLEST_SIDE / max(image.size)))
    size = (image.width * factor, image.height * factor)
    scale, colours = PictureScale(size), _colours(rows)
    canvas = np.array(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    instances = [
        (instance, colour)
        for row, own in zip(rows, colours, strict=True)
        for instance, colour in zip(row, own, strict=True)
    ]
    instances.sort(key=lambda entry: entry[0]["score"])
    for instance, colour in instances:
        mask = instance["mask"].convert("L")
        _paint_mask(canvas, _enlarge(mask, size, factor) if factor > 1 else mask, colour, scale.line)
    picture = Image.fromarray(canvas.clip(0, 255).round().astype(np.uint8))
    _draw_boxes(picture, instances, factor, scale)
    legend = draw_legend(picture.width, colours, captions, title, scale)
    result = Image.new("RGB", (picture.width, picture.height + legend.height))
    result.paste(picture, (0, 0))
    result.paste(legend, (0, picture.height))
    return result


def _draw_boxes(picture: Image.Image, instances: list[tuple], factor: int, scale: PictureScale) -> None:
    draw, taken = ImageDraw.Draw(picture), []
    boxes = []
    for instance, colour in instances:
        box = [instance["box"][key] * factor for key in ("xmin", "ymin", "xmax", "ymax")]
        box = [min(box[0], picture.width - 1), min(box[1], picture.height - 1), *box[2:]]
        box[2:] = [max(box[0], min(box[2], picture.width) - 1), max(box[1], min(box[3], picture.height) - 1)]
        draw.rectangle(box, outline=colour, width=scale.box_line)
        boxes.append((instance, colour, box))
    for instance, colour, box in reversed(boxes):  # the best score gets the best place
        tag = draw_pill(f"{instance['score']:.2f}", scale.tag_font, colour, scale.gap * 0.8)
        picture.paste(tag, _place_tag(box, tag.size, picture.size, taken), tag)


def contact_sheet(images: Sequence[Image.Image], columns: int, *, cell: int = 480, gap: int = 12) -> Image.Image:
    """Lay pictures out in a grid, each fitted into a cell and centred.

    Args:
        images: The pictures, row by row.
        columns (`int`): Pictures in a row.
        cell (`int`, *optional*, defaults to 480): Longest width and height of a picture, in pixels.
        gap (`int`, *optional*, defaults to 12): Space around the pictures, in pixels.

    Raises:
        ValueError: without pictures or columns.
    """
    if not images or columns < 1:
        raise ValueError(f"Expected pictures and at least one column, found {len(images)} and {columns}.")
    fitted = []
    for image in images:
        ratio = min(cell / image.width, cell / image.height)
        new_size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        fitted.append(image.convert("RGB").resize(new_size, Image.Resampling.LANCZOS))
    columns = min(columns, len(fitted))
    lines = [fitted[start : start + columns] for start in range(0, len(fitted), columns)]
    width = max(image.width for image in fitted)
    heights = [max(image.height for image in line) for line in lines]
    sheet_size = (columns * (width + gap) + gap, sum(heights) + gap * (len(lines) + 1))
    sheet = Image.new("RGB", sheet_size, BACKGROUND)
    y = gap
    for line, height in zip(lines, heights, strict=True):
        for column, image in enumerate(line):
            x = gap + column * (width + gap) + (width - image.width) // 2
            sheet.paste(image, (x, y + (height - image.height) // 2))
        y += height + gap
    return sheet


def results_to_json(results: Instances | list[Instances]) -> Any:
    """The results of the pipeline with masks as COCO run-length encodings, ready for `json.dump`.

    Args:
        results: What [`InstructionSegmentationPipeline`] returns for one image.

    Returns:
        The same lists, where `"segmentation"` `{"size": [height, width], "counts": str}` and `"area"` in pixels stand
        for `"mask"`.

    Raises:
        TypeError: when `results` are not the pipeline's.
    """
    rows = [list(_encoded(row)) for row in _rows(results)]
    return rows if results and isinstance(results[0], list) else rows[0]


def _encoded(row: Instances) -> Iterator[dict[str, Any]]:
    for instance in row:
        pixels = np.asarray(instance["mask"].convert("L")) > 127
        entry = {key: value for key, value in instance.items() if key != "mask"}
        yield entry | {"segmentation": encode_mask(pixels), "area": int(pixels.sum())}


__all__ = ["contact_sheet", "draw_instances", "results_to_json"]
