# SPDX-License-Identifier: Apache-2.0
"""Rows with known masks and a segmenter whose answers are known: half of each target, or nothing."""

import time

import numpy as np
from PIL import Image

from sam3i.processing.datasets.schema import make_row
from sam3i.processing.masks import box_of_rle, decode_mask, encode_mask
from sam3i.trainer.baselines.segmenters import SegmentationCost, SegmentationResult, Segmenter

HEIGHT, WIDTH = 24, 32


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def square_rows(num_images: int = 4) -> list[dict]:
    """Two rows per image: an 8 x 8 square at a place of its own, and an instruction without target."""
    rows = []
    for index in range(num_images):
        pixels = np.full((HEIGHT, WIDTH, 3), 40 + index, dtype=np.uint8)
        left = 2 * index % 20
        mask = rectangle(left, 4, left + 8, 12)
        pixels[mask] = (200, 60, 40)
        rle = encode_mask(mask)
        shared = {"image": Image.fromarray(pixels), "width": WIDTH, "height": HEIGHT, "image_id": index}
        rows.append(
            make_row(
                **shared,
                row_id=f"{index}-square",
                masks=[rle],
                boxes=[box_of_rle(rle)],
                concept=["square"],
                simple=["the red square", "the <b>square</b> & its friends"],
                complex=["what has four equal sides"],
                target_kind="1-to-1",
                annotation_ids=[index + 100],
                dataset="squares",
            )
        )
        rows.append(
            make_row(
                **shared,
                row_id=f"{index}-none",
                masks=[],
                boxes=[],
                concept=["circle"],
                simple=["the circle"],
                complex=["what has no corner"],
                target_kind="none",
                dataset="squares",
            )
        )
    return rows


class HalfSegmenter(Segmenter):
    """Answers simple instructions with the upper half of the target, complex ones with nothing, concepts exactly."""

    name = "half"

    def __init__(self, rows: list[dict], seconds: float = 0.0, text_source: str = "instruction"):
        self.targets = {}
        for row in rows:
            key = bytes(np.asarray(row["image"])[0, -1].tobytes())
            for text in row["concept"] + row["simple"] + row["complex"]:
                self.targets[key, text] = [decode_mask(mask) for mask in row["masks"]]
        self.seconds, self.text_source = seconds, text_source
        self.seen: list[tuple[int, list[str], list[str | None]]] = []

    @property
    def num_parameters(self) -> int:
        return 7

    def segment(self, image, instructions, levels):
        self.seen.append((image.width, list(instructions), list(levels)))
        time.sleep(self.seconds)
        key = bytes(np.asarray(image)[0, -1].tobytes())
        results = []
        for text, level in zip(instructions, levels, strict=True):
            masks = np.array(self.targets[key, text], dtype=bool).reshape(-1, HEIGHT, WIDTH)
            if level == "complex":
                masks = masks[:0]
            elif level != "concept":
                masks = masks.copy()
                masks[:, 8:] = False
            cost = SegmentationCost(seconds=0.5, passes=1, vision_passes=1 / len(instructions))
            results.append(SegmentationResult(masks, np.full(len(masks), 0.9), level=level or "simple", cost=cost))
        return results
