# SPDX-License-Identifier: Apache-2.0
"""What is in a data set: counts per level, kind and size of target, and a contact sheet to look at."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from ..masks import decode_mask, rle_area, union_mask
from .schema import LEVEL_FIELDS, InstructionRow

SMALL, LARGE = 32 * 32, 96 * 96  # pixels: the limits of COCO
UNKNOWN = "unknown"


def summarize(rows: Iterable[InstructionRow]) -> dict[str, Any]:
    """Rows (targets), images and masks (`instances`), texts per level and their mean length, rows by kind and so on.

    The size of a target is that of all its masks together. Pictures are not touched.
    """
    number = instances = 0
    images: set[tuple[str, str]] = set()
    instructions, words, kinds, sizes, splits, datasets = (Counter[str]() for _ in range(6))
    for row in rows:
        number += 1
        instances += len(row["masks"])
        images.add((row["dataset"], row["image_id"]))
        for level in LEVEL_FIELDS:
            instructions[level] += len(row[level])
            words[level] += sum(len(text.split()) for text in row[level])
        kinds[row["target_kind"] or UNKNOWN] += 1
        sizes[target_size(row)] += 1
        splits[row["split"] or UNKNOWN] += 1
        datasets[row["dataset"] or UNKNOWN] += 1
    return {
        "rows": number,
        "images": len(images),
        "instances": instances,
        "instructions": dict(instructions),
        "mean_words": {level: round(words[level] / count, 2) for level, count in instructions.items() if count},
        "kinds": dict(kinds),
        "sizes": dict(sizes),
        "splits": dict(splits),
        "datasets": dict(datasets),
    }


def target_size(row: InstructionRow) -> str:
    """ "none", "small", "medium" or "large" by the pixels that the masks of the row cover together."""
    masks = [mask for mask in row["masks"] if mask is not None]
    if not masks:
        return "none" if not row["masks"] else UNKNOWN
    area = rle_area(masks[0]) if len(masks) == 1 else int(union_mask(masks, row["height"], row["width"]).sum())
    return "small" if area < SMALL else "medium" if area < LARGE else "large"


def spread_rows(rows: Iterable[InstructionRow], count: int) -> list[InstructionRow]:
    """At most `count` rows, of every target kind as evenly as the first 200 rows of each kind allow."""
    kinds: dict[str, list[InstructionRow]] = {}
    for row in rows:
        kept = kinds.setdefault(row["target_kind"] or UNKNOWN, [])
        if len(kept) < 200:
            kept.append(row)
    chosen: list[InstructionRow] = []
    share = -(-count // max(1, len(kinds)))
    for kept in kinds.values():
        places = np.linspace(0, len(kept) - 1, min(share, len(kept))).round().astype(int)
        chosen.extend(kept[place] for place in places)
    return chosen[:count]


def draw_row(row: InstructionRow, picture: Image.Image) -> Image.Image:
    """A row as a picture: its masks, and one instruction of each level."""
    from ..drawing.instances import draw_instances

    texts = {level: row[level][0] for level in LEVEL_FIELDS if row[level]}
    level, text = next(reversed(texts.items()))
    instances = []
    for mask, (x, y, width, height) in zip(row["masks"], row["boxes"], strict=True):
        instances.append(
            {
                "score": None,
                "label": text,
                "level": level,
                "box": {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height},
                "mask": None if mask is None else Image.fromarray(decode_mask(mask)),
            }
        )
    others = " · ".join(f"{name}: {value}" for name, value in texts.items() if name != level)
    title = " · ".join(part for part in (f"[{row['target_kind'] or UNKNOWN}]", others) if part)
    return draw_instances(picture, instances, title=title, instructions=[text], side=480)
