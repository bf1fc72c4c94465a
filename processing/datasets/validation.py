# SPDX-License-Identifier: Apache-2.0
"""Every fault of a data file, one after the other: file, record, field, what was found, what was expected, the fix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .faults import DatasetFormatError, RecordFault
from .image_roots import ImageChecks, ReadOptions
from .loading import find_source, iterate_items


def validate_dataset(
    source: str | Path, format: str = "auto", options: ReadOptions | None = None, check_images: bool = True
) -> Iterator[RecordFault]:
    """Faults of a file, folder or table; goes on after each and never raises for content.

    Args:
        options: how the source is read; `options.account` is filled while the generator is read.
        check_images: decode every image once and compare its size with the row's.
    """
    options = ReadOptions() if options is None else options
    account = options.account
    try:
        source, name = find_source(source, format)
        for item in iterate_items(source, name, options, ImageChecks(decode=True) if check_images else None):
            if isinstance(item, RecordFault):
                yield item
        if not account.kept and not account.num_faults:
            raise DatasetFormatError(f"no usable row: {account}")
    except (DatasetFormatError, OSError) as error:
        reason = str(error).removeprefix(f"{source}: ")
        fault = RecordFault(
            str(source), "(file)", "(format)", reason, "a data file that can be read", "see the message"
        )
        account.add_fault(fault)
        yield fault
