# SPDX-License-Identifier: Apache-2.0
"""Pictures of masks, results and boxes: the colors inside an object stay as they are.

An object is outlined, what belongs to no object is dimmed; nothing is laid over its inside, since instructions ask for
colors. Pictures are drawn at the size at which they are shown (`side`), so that text is never reduced afterwards.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .style import BACKGROUND, NEGATIVE, PALETTE, POSITIVE, Color, LegendEntry, PictureScale, draw_legend, draw_tag

SMALLEST_SIDE = 480
"""Images with a shorter long side are enlarged, so that outlines and text can be read."""
_DIMMED = 0.5


def draw_masks(
    image: Image.Image,
    masks: Any,
    *,
    colors: Sequence[Color] | None = None,
    tags: Sequence[str | None] | None = None,
    tags_inside: bool = False,
    dim: bool = True,
    side: int | None = None,
) -> Image.Image:
    """Outline masks on their image.

    Args:
        image (`PIL.Image.Image`): The image.
        masks: N masks of the image's size, the most important first: arrays or tensors [N, height, width], or PIL
            images (255 inside).
        colors (*optional*): Of each mask; those of [`PALETTE`] in turn if not given.
        tags (*optional*): A few characters for each mask, beside its largest piece.
        tags_inside (`bool`, *optional*): Put the tags where the masks are thickest instead.
        dim (`bool`, *optional*, defaults to `True`): Darken what no mask covers.
        side (`int`, *optional*): Longest side of the picture in pixels; small images are enlarged to 480 if not given.

    Returns:
        `PIL.Image.Image` in mode "RGB".

    Raises:
        ValueError: a mask has another size than the image.
    """
    fitted = [_as_mask(mask, image.size) for mask in masks]
    colors = colors or [PALETTE[index % len(PALETTE)] for index in range(len(fitted))]
    size = _shown_size(image.size, side)
    shown = [_resize_mask(mask, size) for mask in fitted]
    scale, canvas = PictureScale(size), np.array(_resize(image.convert("RGB"), size), dtype=np.float32)
    if dim and shown:
        _dim(canvas, shown, scale.line)
    for mask, color in reversed(list(zip(shown, colors, strict=True))):
        _outline(canvas, mask, color, scale.line)
    picture = Image.fromarray(canvas.clip(0, 255).round().astype(np.uint8))
    taken: list[tuple[int, int, int, int]] = []
    for mask, color, text in zip(shown, colors, tags or [None] * len(shown), strict=True):
        if text and (box := mask.getbbox()):
            tag = draw_tag(text, scale.tag_font, color, scale.gap * 0.7)
            part, center = _main_part(mask, box)
            centers = [center] if tags_inside else []
            picture.paste(tag, _place_tag(part, centers, tag.size, picture.size, taken), tag)
    return picture


def draw_instances(
    image: Image.Image,
    results: Any,
    *,
    title: str | None = None,
    instructions: Sequence[str] | None = None,
    levels: Sequence[str | None] | None = None,
    notes: Sequence[str | None] | None = None,
    legend: bool = True,
    side: int | None = None,
) -> Image.Image:
    """Draw the results of the pipeline on their image.

    Args:
        image (`PIL.Image.Image`): The image the results belong to.
        results: What [`InstructionSegmentationPipeline`] returns for one image: instances of one instruction, each in
            its own color, or a list of those for several instructions, one color and number for each.
        title (`str`, *optional*): A line above the legend.
        instructions, levels (`list[str]`, *optional*): What the legend says of each row; what its instances say if
            not given.
        notes (*optional*): For each row, said instead of how many were found.
        legend (`bool`, *optional*, defaults to `True`): Whether a strip with the instructions follows below.
        side (`int`, *optional*): Longest side of the picture above the legend; as in [`draw_masks`].

    Returns:
        `PIL.Image.Image` in mode "RGB".

    Raises:
        TypeError: when `results` are not the pipeline's.
        ValueError: when a mask has another size than the image, or the captions another number than the rows.
    """
    rows = _rows(results)
    for name, given in (("instructions", instructions), ("levels", levels), ("notes", notes)):
        if given is not None and len(given) != len(rows):
            raise ValueError(f"Expected `{name}` for each of {len(rows)} rows of results, found {len(given)}.")
    several = len(rows) > 1
    drawn = []  # (score, mask, color, tag)
    entries = []
    for index, row in enumerate(rows):
        own = [PALETTE[(index if several else place) % len(PALETTE)] for place in range(max(1, len(row)))]
        for instance, color in zip(row, own, strict=False):
            score = instance.get("score")
            number = str(index + 1) if several else ""
            words = [word for word in (number, "" if score is None else f"{score:.2f}") if word]
            mask = instance["mask"] if instance["mask"] is not None else _box_mask(instance["box"], image.size)
            drawn.append((score or 0.0, mask, color, " · ".join(words)))
        dots = [(own[0], str(index + 1))] if several else [(color, " ") for color in own[: min(5, len(row))]]
        text = instructions[index] if instructions else row[0]["label"] if row else "(no instruction given)"
        level = levels[index] if levels else row[0].get("level") if row else None
        found = f"{len(row)} found" if row else "nothing found"
        entries.append(LegendEntry(text, level, (notes[index] if notes else None) or found, dots))
    drawn.sort(key=lambda entry: -entry[0])
    picture = draw_masks(
        image,
        [entry[1] for entry in drawn],
        colors=[entry[2] for entry in drawn],
        tags=[entry[3] for entry in drawn],
        side=side,
    )
    if not legend:
        return picture
    width = max(picture.width, min(SMALLEST_SIDE, side or SMALLEST_SIDE))
    strip = draw_legend(width, entries, title, PictureScale(picture.size))
    whole = Image.new("RGB", (width, picture.height + strip.height), BACKGROUND)
    whole.paste(picture, ((width - picture.width) // 2, 0))
    whole.paste(strip, (0, picture.height))
    return whole


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
    *,
    corner: tuple[float, float] | None = None,
    side: int | None = None,
) -> Image.Image:
    """Draw box exemplars: "+" for like this, "-" for not like this.

    Args:
        image (`PIL.Image.Image`): The image.
        boxes: (x1, y1, x2, y2) in pixels of the image.
        labels (*optional*): 1 (like this) or 0 (not like this) for each; all 1 if not given.
        corner (*optional*): (x, y) of a cross, the first corner of a box that is being drawn.
        side (`int`, *optional*): As in [`draw_masks`].
    """
    size = _shown_size(image.size, side)
    factor, picture = size[0] / image.width, _resize(image.convert("RGB"), size)
    draw, scale = ImageDraw.Draw(picture), PictureScale(size)
    width = max(2, math.ceil(scale.line * 1.4))
    for number, (box, label) in enumerate(zip(boxes, labels or [1] * len(boxes), strict=True), start=1):
        color = POSITIVE if label else NEGATIVE
        left, top, right, bottom = (round(value * factor) for value in box)
        right, bottom = max(left, right - 1), max(top, bottom - 1)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=BACKGROUND, width=width + 2)
        draw.rectangle((left, top, right, bottom), outline=color, width=width)
        tag = draw_tag(f"{'+' if label else '-'}{number}", scale.tag_font, color, scale.gap * 0.7)
        picture.paste(tag, (max(0, min(left, size[0] - tag.width)), max(0, top - tag.height - 2)), tag)
    if corner is not None:
        x, y = (round(value * factor) for value in corner)
        for color, thickness in ((BACKGROUND, width + 2), ((255, 255, 255), width)):
            draw.line((x - 5 * width, y, x + 5 * width, y), fill=color, width=thickness)
            draw.line((x, y - 5 * width, x, y + 5 * width), fill=color, width=thickness)
    return picture


def _rows(results: Any) -> list[list[dict[str, Any]]]:
    """One list of instances for each instruction."""
    if not isinstance(results, list):
        raise TypeError(f"Expected results as the pipeline returns them, a list, found {type(results).__name__}.")
    rows = results if results and all(isinstance(row, list) for row in results) else [results]
    if not all(isinstance(instance, dict) and "mask" in instance for row in rows for instance in row):
        raise TypeError(
            "Expected results as the pipeline returns them: dicts with 'score', 'label', 'box' and 'mask'."
        )
    return rows


def _as_mask(mask: Any, size: tuple[int, int]) -> Image.Image:
    if not isinstance(mask, Image.Image):
        array = mask.detach().cpu().numpy() if hasattr(mask, "detach") else np.asarray(mask)
        mask = Image.fromarray((array != 0).astype(np.uint8) * 255)
    if mask.size != size:
        raise ValueError(f"Expected masks of the image's size {size}, found {mask.size}.")
    return mask.convert("L")


def _box_mask(box: Any, size: tuple[int, int]) -> Image.Image:
    """What stands for an instance that has a box and no mask."""
    left, top, right, bottom = (box[side] for side in ("xmin", "ymin", "xmax", "ymax"))
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=255)
    return mask


def longest_side(image: Image.Image, shorter: int) -> int:
    """The `side` of a picture that is drawn at its own size, or larger where its shorter side lacks pixels."""
    return round(max(image.size) * max(1.0, shorter / min(image.size)))


def _shown_size(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    factor = side / max(size) if side else max(1, math.ceil(SMALLEST_SIDE / max(size)))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image.copy()
    return image.resize(size, Image.Resampling.BICUBIC if size > image.size else Image.Resampling.LANCZOS)


def _resize_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A mask at the size it is shown at; enlarged, the steps of its pixels are rounded off."""
    factor = size[0] / mask.width
    if factor <= 1:
        return mask if factor == 1 else mask.resize(size, Image.Resampling.BOX)
    smooth = mask.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(0.8 * factor))
    return smooth.point([max(0, min(255, round((value - 127.5) * 8 + 127.5))) for value in range(256)])


def _dim(canvas: np.ndarray, masks: Sequence[Image.Image], line: float) -> None:
    """Darken and gray what no mask covers, in place."""
    union = masks[0]
    for mask in masks[1:]:
        union = ImageChops.lighter(union, mask)
    outside = 1 - np.asarray(union.filter(ImageFilter.GaussianBlur(line / 2)), dtype=np.float32)[..., None] / 255
    gray = canvas.mean(axis=2, keepdims=True)
    canvas += outside * (_DIMMED * (0.6 * canvas + 0.4 * gray) - canvas)


def _outline(canvas: np.ndarray, mask: Image.Image, color: Color, line: float) -> None:
    """Draw one smooth outline with a thin dark halo into `canvas` `(H, W, 3)`, in place."""
    bounds = mask.getbbox()
    if bounds is None:
        return
    margin = math.ceil(2 * line) + 1
    left, top = max(0, bounds[0] - margin), max(0, bounds[1] - margin)
    right, bottom = min(mask.width, bounds[2] + margin), min(mask.height, bounds[3] + margin)
    piece = mask.crop((left, top, right, bottom))
    soft = np.asarray(piece.filter(ImageFilter.GaussianBlur(line / 2)), dtype=np.float32) / 255
    soft = soft / max(float(soft.max()), 1e-3)  # what is thinner than a line has an outline, too
    distance = np.abs(soft - 0.5)[..., None]
    view = canvas[top:bottom, left:right]
    view += np.clip((0.494 - distance) / 0.03, 0, 1) * 0.75 * (np.asarray(BACKGROUND, dtype=np.float32) - view)
    view += np.clip((0.40 - distance) / 0.12, 0, 1) * (np.asarray(color, dtype=np.float32) - view)


def _main_part(mask: Image.Image, box: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, float]]:
    """The box of the largest piece of a mask and the place where that is thickest, found on a reduced copy."""
    from scipy import ndimage

    ratio = min(1.0, 200 / max(box[2] - box[0], box[3] - box[1]))
    size = (max(1, round((box[2] - box[0]) * ratio)), max(1, round((box[3] - box[1]) * ratio)))
    small = np.pad(np.asarray(mask.crop((box[0], box[1], box[2], box[3])).resize(size, Image.Resampling.BOX)) > 127, 1)
    pieces, count = ndimage.label(small)
    if not count:  # thinner than a pixel of the copy
        return tuple(box), ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    largest = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    y, x = np.unravel_index(int(ndimage.distance_transform_edt(largest).argmax()), small.shape)
    rows, columns = (np.flatnonzero(largest.any(axis)) for axis in (1, 0))
    left, top = (box[0] + (columns[0] - 1) / ratio, box[1] + (rows[0] - 1) / ratio)
    right, bottom = (box[0] + columns[-1] / ratio, box[1] + rows[-1] / ratio)
    return (left, top, right, bottom), (box[0] + (x - 0.5) / ratio, box[1] + (y - 0.5) / ratio)


def _place_tag(
    box: Sequence[float],
    centers: Sequence[tuple[float, float]],
    tag: tuple[int, int],
    size: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int]:
    """The corner of a tag: on a center, else above, below or beside its box, in the picture and off other tags."""
    (width, height), (image_width, image_height) = tag, size
    middle = (box[1] + box[3] - height) / 2
    corners = [(x - width / 2, y - height / 2) for x, y in centers] + [
        (box[0], box[1] - height - 3),
        (box[2] - width, box[1] - height - 3),
        (box[0], box[3] + 3),
        (box[2] + 3, middle),
        (box[0] - width - 3, middle),
        (box[0] + 2, box[1] + 2),
        (box[2] - width - 2, box[3] - height - 2),
        ((box[0] + box[2] - width) / 2, middle),
    ]
    places = []
    for x, y in corners:
        inside = 0 <= x <= image_width - width and 0 <= y <= image_height - height
        x, y = max(0, min(round(x), image_width - width)), max(0, min(round(y), image_height - height))
        hidden = sum(x < x2 and x1 < x + width and y < y2 and y1 < y + height for x1, y1, x2, y2 in taken)
        places.append((hidden, not inside, (x, y)))
    _, _, (x, y) = min(places, key=lambda place: place[:2])
    taken.append((x, y, x + width, y + height))
    return x, y
