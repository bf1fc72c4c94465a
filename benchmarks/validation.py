# SPDX-License-Identifier: Apache-2.0
"""Rows a second that `sam3i data validate --no-pictures` checks on one core, and its memory, per format.

python -m sam3i.benchmarks.validation --rows 200000
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sam3i.processing.datasets.image_roots import ReadOptions
from sam3i.processing.datasets.loading import find_source, iterate_items
from sam3i.processing.masks import box_of_rle, encode_mask

HEIGHT, WIDTH = 480, 640
TEXTS = {"concept": ["cup"], "simple": ["the cup on the left"], "complex": ["what one drinks from"]}


def make_masks(count: int = 3000) -> list[dict]:
    """Ellipses of all sizes: 50 to 500 characters of run lengths."""
    generator, rows, columns = np.random.default_rng(0), *np.mgrid[:HEIGHT, :WIDTH]
    masks = []
    for _ in range(count):
        (y, x), (a, b) = generator.uniform((60, 80), (420, 560)), generator.uniform((5, 5), (55, 75))
        masks.append(encode_mask(((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 <= 1))
    return masks


def write_jsonl(path: Path, rows: int, masks: list[dict]) -> None:
    size = {"width": WIDTH, "height": HEIGHT}
    lines = [json.dumps({"masks": [mask], "boxes": [box_of_rle(mask)], **size, **TEXTS})[1:] for mask in masks]
    with open(path, "w") as file:
        file.writelines(f'{{"row_id": "{n}", {lines[n % len(lines)]}\n' for n in range(rows))


def write_official(path: Path, rows: int, masks: list[dict]) -> None:
    texts = {"concept": TEXTS["concept"], "simple_query": TEXTS["simple"], "complex_query": TEXTS["complex"]}
    image = json.dumps({"file_name": "x.jpg", "width": WIDTH, "height": HEIGHT, "text_inst_input": texts})[1:]
    parts = [{"category_id": 1, "iscrowd": 0, "bbox": box_of_rle(mask), "segmentation": mask} for mask in masks]
    annotations = [json.dumps(part)[1:] for part in parts]
    with open(path, "w") as file:
        file.write('{"categories": [{"id": 1, "name": "object"}], "images": [')
        file.write(",\n".join(f'{{"id": {n}, {image}' for n in range(rows)) + '], "annotations": [')
        every = (f'{{"id": {n}, "image_id": {n}, {annotations[n % len(annotations)]}' for n in range(rows))
        file.write(",\n".join(every) + "]}")


def rates(path: Path, rows: int) -> list[float]:
    """Rows a second of processor time, for each of 20 parts of the file; the first part holds the indexing."""
    source, name = find_source(path)
    part, found, start = max(1, rows // 20), [], time.process_time()
    for number, _ in enumerate(iterate_items(source, name, ReadOptions()), start=1):
        if number % part == 0:
            now = time.process_time()
            found.append(part / (now - start))
            start = now
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    rows, masks = parser.parse_args().rows, make_masks()
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("rows.jsonl", write_jsonl), ("official.json", write_official)):
            path = Path(folder) / name
            write(path, rows, masks)
            size, found = path.stat().st_size / 1e6, rates(path, rows)
            print(
                f"{name:<14} {rows} rows ({size:.0f} MB): {rows / sum(rows / 20 / rate for rate in found):,.0f} rows "
                f"a second of processor time; of 20 parts the slowest {min(found):,.0f}, the fastest {max(found):,.0f}"
            )
            command = [sys.executable, "-m", "sam3i", "data", "validate", "--no-pictures", str(path)]
            subprocess.run(command, check=True, capture_output=True)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            print(f"{'':<14} peak memory of `sam3i data validate` {peak:.0f} MB")


if __name__ == "__main__":
    main()
