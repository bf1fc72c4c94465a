# SPDX-License-Identifier: Apache-2.0
"""Polygons to pixels as OpenCV draws them (`fillPoly` plus a one-pixel outline), without OpenCV."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def fill_polygon(points: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Bool mask [height, width] of a polygon [[x, y], ...] in pixels; the outline belongs to it.

    Coordinates are cut to whole numbers as an integer cast does. Inside is decided even-odd, at pixel centers.
    Pixel-equal to OpenCV inside the picture; a side that leaves the picture may differ by a pixel along its edge.
    """
    corners = [(int(x), int(y)) for x, y in points]
    mask = np.zeros((height, width), dtype=bool)
    array = np.asarray(corners, dtype=np.float64)
    x0, y0 = array.T
    x1, y1 = np.roll(array, -1, axis=0).T
    for row in range(max(0, int(y0.min())), min(height - 1, int(y0.max())) + 1):
        crossed = ((y0 <= row) & (y1 > row)) | ((y1 <= row) & (y0 > row))
        slope = (x1[crossed] - x0[crossed]) / (y1[crossed] - y0[crossed])
        crossings = np.sort(x0[crossed] + (row - y0[crossed]) * slope)
        for left, right in zip(crossings[::2], crossings[1::2], strict=True):
            mask[row, max(0, math.ceil(left)) : max(0, math.floor(right) + 1)] = True
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        _draw_line(mask, start, end)
    return mask


def _draw_line(mask: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Bresenham's line from left to right: the direction decides how ties are broken."""
    if start[0] > end[0]:
        start, end = end, start
    (x, y), (x_end, y_end) = start, end
    dx, dy, step = x_end - x, abs(y_end - y), 1 if y_end >= y else -1
    steep = dy > dx
    major, minor = (dy, dx) if steep else (dx, dy)
    error = major - 2 * minor
    for _ in range(major + 1):
        if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
            mask[y, x] = True
        aside = error < 0
        error += (2 * major if aside else 0) - 2 * minor
        if steep:
            x, y = x + aside, y + step
        else:
            x, y = x + 1, y + step * aside
