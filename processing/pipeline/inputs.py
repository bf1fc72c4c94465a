# SPDX-License-Identifier: Apache-2.0
"""Streams of inputs in batches, and the results one by one."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any


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
