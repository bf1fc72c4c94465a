# SPDX-License-Identifier: Apache-2.0
"""Several pictures on one page: truth and answers side by side, or any in a grid with captions."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from .instances import draw_masks
from .style import BACKGROUND, FAINT, PREDICTION, TEXT, TRUTH, fit_text, load_font, wrap_text


def _fit_width(image: Image.Image, width: int) -> Image.Image:
    """The picture, reduced where it is wider; what was drawn for this width keeps its text as it is."""
    if image.width <= width:
        return image.convert("RGB")
    height = max(1, round(image.height * width / image.width))
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def draw_comparison(
    image: Image.Image,
    truth: Any,
    answers: Mapping[str, tuple[Any, Sequence[float]]],
    *,
    side: int = 480,
    gap: int = 8,
) -> Image.Image:
    """Draw what is asked for beside what systems answered, each under its name and with the number of instances.

    Args:
        image (`PIL.Image.Image`): The image.
        truth: The true masks, none where nothing is asked for; as in [`draw_masks`].
        answers: Masks and scores of each system.
        side (`int`, *optional*, defaults to 480): Longest side of each picture, in pixels.
        gap (`int`, *optional*, defaults to 8): Space between them, in pixels.

    Raises:
        ValueError: when a mask has another size than the image.
    """
    tiles = [(f"truth: {len(truth) or 'nothing'}", draw_masks(image, truth, colors=[TRUTH] * len(truth), side=side))]
    for name, (masks, scores) in answers.items():
        tags, colors = [f"{score:.2f}" for score in scores], [PREDICTION] * len(masks)
        found = f"{len(masks)} found" if len(masks) else "nothing found"
        tiles.append((f"{name}: {found}", draw_masks(image, masks, colors=colors, tags=tags, side=side)))
    font, head = load_font(15), 26
    width, height = tiles[0][1].size
    page = Image.new("RGB", (len(tiles) * (width + gap) - gap, head + height), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for number, (name, picture) in enumerate(tiles):
        x = number * (width + gap)
        draw.text((x + 4, head / 2), fit_text(name, font, width - 8), font=font, fill=TEXT, anchor="lm")
        page.paste(picture, (x, head))
    return page


def contact_sheet(
    images: Sequence[Image.Image],
    columns: int,
    *,
    captions: Sequence[str] | None = None,
    title: str | None = None,
    cell: int = 480,
    gap: int = 12,
) -> Image.Image:
    """Lay pictures out in a grid.

    Args:
        images: The pictures, row by row.
        columns (`int`): Pictures in a row.
        captions (*optional*): A text under each picture; its lines after the first are fainter.
        title (`str`, *optional*): A line above all.
        cell (`int`, *optional*, defaults to 480): Largest width of a picture, in pixels. Draw the pictures with
            `side=` at this size: reduced pictures have reduced text.
        gap (`int`, *optional*, defaults to 12): Space around the pictures, in pixels.

    Raises:
        ValueError: without pictures or columns, or when captions and pictures differ in number.
    """
    if not images or columns < 1:
        raise ValueError(f"Expected pictures and at least one column, found {len(images)} and {columns}.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"Expected a caption for each of {len(images)} pictures, found {len(captions)}.")
    fitted = [_fit_width(image, cell) for image in images]
    columns = min(columns, len(fitted))
    width = max(image.width for image in fitted)
    font, line = load_font(14), 20
    notes = [
        [
            (part, first == 0)
            for first, text in enumerate(caption.split("\n"))
            for part in wrap_text(text, font, width, 2)
        ]
        for caption in captions or [""] * len(fitted)
    ]
    starts = range(0, len(fitted), columns)
    heights = [max(image.height for image in fitted[start : start + columns]) for start in starts]
    below = [max(len(lines) * line for lines in notes[start : start + columns]) if captions else 0 for start in starts]
    head = 34 if title else 0
    size = (columns * (width + gap) + gap, head + sum(heights) + sum(below) + gap * (len(heights) + 1))
    sheet = Image.new("RGB", size, BACKGROUND)
    draw, y = ImageDraw.Draw(sheet), gap + head
    if title:
        text_font = load_font(19)
        draw.text(
            (gap, gap + 10), fit_text(title, text_font, size[0] - 2 * gap), font=text_font, fill=TEXT, anchor="lm"
        )
    for start, height, text_height in zip(starts, heights, below, strict=True):
        for column, (image, lines) in enumerate(zip(fitted[start : start + columns], notes[start:], strict=False)):
            x = gap + column * (width + gap)
            sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
            for number, (text, is_first) in enumerate(lines):
                place = (x, y + height + line * (number + 0.5))
                draw.text(place, text, font=font, fill=TEXT if is_first else FAINT, anchor="lm")
        y += height + text_height + gap
    return sheet
