# SPDX-License-Identifier: Apache-2.0
"""What is in a data set: counts per level, kind and size of target, and a contact sheet to look at."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..masks import decode_mask, rle_area, union_mask
from .schema import LEVEL_FIELDS, InstructionRow

SMALL, LARGE = 32 * 32, 96 * 96  # pixels: the limits of COCO
UNKNOWN = "unknown"


@dataclass
class DatasetSummary:
    """Counts over rows.

    Attributes:
        rows, images: number of targets and of pictures.
        instances: number of masks.
        instructions: number of texts per level.
        words: number of words per level.
        kinds: rows per target kind.
        sizes: rows per size of the target (all its masks together; COCO's limits, 32 x 32 and 96 x 96 pixels).
        splits, datasets: rows per split and data set.
    """

    rows: int = 0
    instances: int = 0
    instructions: Counter = field(default_factory=Counter)
    words: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    splits: Counter = field(default_factory=Counter)
    datasets: Counter = field(default_factory=Counter)
    _images: set[tuple[str, str]] = field(default_factory=set, repr=False)

    @property
    def images(self) -> int:
        return len(self._images)

    def add(self, row: InstructionRow) -> None:
        """Count a row; its picture is not touched."""
        self.rows += 1
        self.instances += len(row["masks"])
        self._images.add((row["dataset"], row["image_id"]))
        for level in LEVEL_FIELDS:
            self.instructions[level] += len(row[level])
            self.words[level] += sum(len(text.split()) for text in row[level])
        self.kinds[row["target_kind"] or UNKNOWN] += 1
        self.sizes[target_size(row)] += 1
        self.splits[row["split"] or UNKNOWN] += 1
        self.datasets[row["dataset"] or UNKNOWN] += 1

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            "rows": self.rows,
            "images": self.images,
            "instances": self.instances,
            "instructions": dict(self.instructions),
            "mean_words": {k: round(self.words[k] / n, 2) for k, n in self.instructions.items() if n},
            "kinds": dict(self.kinds),
            "sizes": dict(self.sizes),
            "splits": dict(self.splits),
            "datasets": dict(self.datasets),
        }


def summarize(rows: Iterable[InstructionRow]) -> DatasetSummary:
    """Count rows one by one."""
    summary = DatasetSummary()
    for row in rows:
        summary.add(row)
    return summary


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


def contact_sheet_of(rows: Sequence[InstructionRow], pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Rows drawn on their pictures, side by side."""
    from ..drawing.sheet import contact_sheet

    return contact_sheet([draw_row(row, picture) for row, picture in zip(rows, pictures, strict=True)], columns)
