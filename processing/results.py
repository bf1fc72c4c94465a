# SPDX-License-Identifier: Apache-2.0
"""Results of the pipeline as JSON."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .masks import encode_mask

Instances = list[dict[str, Any]]


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
    if not isinstance(results, list):
        raise TypeError(f"Expected results as the pipeline returns them, a list, found {type(results).__name__}.")
    if results and all(isinstance(row, list) for row in results):
        return [list(_encoded(row)) for row in results]
    return list(_encoded(results))


def _encoded(row: Instances) -> Iterator[dict[str, Any]]:
    for instance in row:
        pixels = np.asarray(instance["mask"].convert("L")) > 127
        entry = {key: value for key, value in instance.items() if key != "mask"}
        yield entry | {"segmentation": encode_mask(pixels), "area": int(pixels.sum())}


__all__ = ["results_to_json"]
