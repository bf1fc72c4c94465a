# SPDX-License-Identifier: Apache-2.0
"""What the pipeline reads: one image in any form, and streams of inputs in batches."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image


def read_image(source: Any, timeout: float | None = None) -> Image.Image:
    """An RGB image from a path, a URL, base64 text, a PIL image, an array or a tensor.

    Raises:
        TypeError: when `source` is of another type.
        ValueError: when it cannot be read as an image; the message names it.
    """
    if torch.is_tensor(source):
        source = source.detach().cpu().numpy()
    elif hasattr(source, "__fspath__"):
        source = str(source)
    if not isinstance(source, str | Image.Image | np.ndarray):
        raise TypeError(f"Expected an image as path, URL, PIL image, array or tensor, found {type(source).__name__}.")
    try:
        if isinstance(source, np.ndarray):
            if source.size == 0:
                raise ValueError(f"it has no pixels (shape {source.shape})")
            if np.issubdtype(source.dtype, np.floating) and not np.isfinite(source).all():
                raise ValueError("it holds pixels that are NaN or infinite")
            image = to_pil_image(source[..., None] if source.ndim == 2 else source).convert("RGB")
        else:
            image = load_image(source, timeout=timeout).convert("RGB")
    except Exception as error:  # files, decoders and network libraries each raise their own
        name = repr(source)[:200] if isinstance(source, str) else f"<{type(source).__name__}>"
        raise ValueError(f"Cannot read image {name}: {error}") from error
    return image


class Batches:
    """The inputs in lists of `batch_size`, with a length and items where the inputs have them."""

    def __init__(self, inputs: Any, batch_size: int):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"Expected `batch_size` of at least 1, found {batch_size!r}.")
        self.inputs = inputs
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list]:
        items = iter(self.inputs)
        while batch := list(islice(items, self.batch_size)):
            yield batch


class SizedBatches(Batches):
    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __getitem__(self, index: int) -> list:
        stop = min((index + 1) * self.batch_size, len(self.inputs))
        return [self.inputs[item] for item in range(index * self.batch_size, stop)]


class Results:
    """Results one by one from an iterator over batches of them."""

    def __init__(self, batches: Iterable[list], inputs: Any):
        self.batches = batches
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator:
        for batch in self.batches:
            yield from batch


__all__ = ["Batches", "Results", "SizedBatches", "read_image"]
