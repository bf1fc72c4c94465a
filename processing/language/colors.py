# SPDX-License-Identifier: Apache-2.0
"""The name of a mask's color, or none where people might disagree."""

import numpy as np

# Hue ranges in degrees; the gaps between them are nobody's.
HUES = {
    "red": ((0, 14), (346, 360)),
    "orange": ((20, 39),),
    "yellow": ((43, 68),),
    "green": ((80, 165),),
    "blue": ((190, 255),),
    "purple": ((262, 300),),
    "pink": ((310, 342),),
}
COLOR_NAMES = (*HUES, "black", "grey", "white")
_AGREEING = 0.6  # share of a mask's pixels that must have the color's name


def name_colors(pixels: np.ndarray) -> np.ndarray:
    """Index into `COLOR_NAMES` of every pixel, -1 for none; pixels uint8 [..., 3] (RGB)."""
    rgb = pixels.astype(np.float32)
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    spread = high - low
    safe = np.maximum(spread, 1e-6)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(
        high == red,
        ((green - blue) / safe) % 6,
        np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = hue * 60
    saturation = spread / np.maximum(high, 1e-6)
    names = np.full(rgb.shape[:-1], -1, dtype=np.int8)
    vivid = (saturation > 0.4) & (high > 90)
    for number, ranges in enumerate(HUES.values()):
        for start, end in ranges:
            names[vivid & (hue >= start) & (hue <= end)] = number
    pale = saturation < 0.12
    names[high < 45] = COLOR_NAMES.index("black")
    names[pale & (high >= 80) & (high <= 175)] = COLOR_NAMES.index("grey")
    names[pale & (high > 215)] = COLOR_NAMES.index("white")
    return names


def mask_color(image: np.ndarray, mask: np.ndarray) -> str | None:
    """The color that most pixels of a mask agree on, or None.

    Args:
        image: uint8 [height, width, 3].
        mask: bool [height, width].
    """
    names = name_colors(image[mask])
    if not len(names):
        return None
    counts = np.bincount(names + 1, minlength=len(COLOR_NAMES) + 1)[1:]
    best = int(counts.argmax())
    return COLOR_NAMES[best] if counts[best] >= _AGREEING * len(names) else None
