# SPDX-License-Identifier: Apache-2.0
"""Masks at the size of the original image: bilinear probabilities, thresholded, only where they may pass."""

from functools import cache

import torch
import torch.nn.functional as F

_CHUNK_VALUES = 2**24
"""Mask values resized at once on an accelerator (64 MiB in float32), whatever the number and size of the masks."""
_BLOCK_VALUES = 2**17
"""Likewise on the processor, so that they stay in its cache."""
_ROUNDING = 1e-6
"""By which two ways to interpolate a probability may differ: a few times the resolution of float32 below 1."""
_SMALL = 2**16
"""Maps of fewer pixels are resized whole; PyTorch has kernels of their own for them."""


def resize_and_binarize(
    mask_logits: torch.Tensor, size: tuple[int, int] | None, mask_threshold: float
) -> torch.Tensor:
    """Resize mask probabilities bilinearly, then threshold.

    Args:
        mask_logits (`torch.Tensor` of shape `(K, h, w)`): Mask logits.
        size (`tuple[int, int]`, *optional*): Height and width of the result; unchanged if `None`.
        mask_threshold (`float`): Probability above which a pixel belongs to the mask.

    Returns:
        `torch.BoolTensor` of shape `(K, height, width)`: to the pixel what `F.interpolate` and a comparison give.
    """
    if size is None:
        return mask_logits.float().sigmoid() > mask_threshold
    if mask_logits.device.type != "cpu" or size[0] * size[1] < _SMALL:
        return _resize_whole(mask_logits, size, mask_threshold)
    masks = torch.zeros(len(mask_logits), *size, dtype=torch.bool)
    if masks.numel():
        rows, columns = (Axis(*lengths) for lengths in zip(mask_logits.shape[1:], size, strict=True))
        for logits, mask in zip(mask_logits, masks, strict=True):
            if not _fill(mask, logits.float().sigmoid(), rows, columns, mask_threshold):
                mask.copy_(_resize_whole(logits[None], size, mask_threshold)[0])
    return masks


def _resize_whole(mask_logits: torch.Tensor, size: tuple[int, int], mask_threshold: float) -> torch.Tensor:
    """[`resize_and_binarize`] a few masks at a time, every pixel of them."""
    masks = torch.empty(len(mask_logits), *size, dtype=torch.bool, device=mask_logits.device)
    step = max(1, _CHUNK_VALUES // (size[0] * size[1]))
    for start in range(0, len(mask_logits), step):
        probabilities = mask_logits[start : start + step].float().sigmoid()
        resized = F.interpolate(probabilities[None], size=size, mode="bilinear", align_corners=False)[0]
        masks[start : start + step] = resized > mask_threshold
    return masks


class Axis:
    """Where each of `target` pixels lies between `source` pixels, to the last bit as `F.interpolate` has it.

    It resizes markers of the source pixels modulo three. Of three neighbours at most two have a weight, so the
    markers tell which two and how much.
    """

    def __init__(self, source: int, target: int):
        markers = F.one_hot(torch.arange(source) % 3, 3).float().T.contiguous()  # (3, source)
        # One channel at a time and not a small map: other kernels round the places differently.
        lines = (-(-_SMALL // target), target)
        weights = F.interpolate(markers[:, None, None], size=lines, mode="bilinear", align_corners=False)[:, 0, 0]
        places = (torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5
        lower = places.clamp(min=0).floor().long().clamp(max=source - 1)
        # In float32 a place next to a source pixel may fall on its other side.
        beside = weights.gather(0, ((lower + 2) % 3)[None])[0] != 0
        lower = torch.where(beside, torch.where(places - lower < 0.5, lower - 1, lower + 1), lower)
        self.lower, self.upper = lower, (lower + 1).clamp(max=source - 1)  # (target,)
        self.lower_weight = weights.gather(0, (lower % 3)[None])[0]
        self.upper_weight = weights.gather(0, ((lower + 1) % 3)[None])[0]

    def touching(self, first: int, last: int) -> slice:
        """The target pixels that see any of the source pixels from `first` to `last`."""
        inside = ((self.lower <= last) & (self.upper >= first)).nonzero()
        return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)


def _fill(mask: torch.Tensor, probabilities: torch.Tensor, rows: Axis, columns: Axis, mask_threshold: float) -> bool:
    """Set the pixels of one mask `(height, width)`, all `False` so far, from probabilities `(h, w)`.

    Returns:
        `bool`: `False` when a pixel is so close to the threshold that rounding decides, which is left to the caller.
    """
    possible = probabilities > mask_threshold - _ROUNDING
    where_rows, where_columns = possible.any(1).nonzero(), possible.any(0).nonzero()
    if not len(where_rows):
        return True
    height = rows.touching(int(where_rows[0]), int(where_rows[-1]))
    width = columns.touching(int(where_columns[0]), int(where_columns[-1]))
    if height.start == height.stop or width.start == width.stop:  # a smaller mask may miss every such pixel
        return True
    exact = _rounds_alike()
    # Across first: the source has few rows.
    wide = _mix(probabilities, 1, columns, width)
    step = max(1, _BLOCK_VALUES // wide.shape[1])
    for start in range(height.start, height.stop, step):
        block = slice(start, min(start + step, height.stop))
        values = _mix(wide, 0, rows, block)
        torch.gt(values, mask_threshold, out=mask[block, width])
        if not exact and float(values.sub_(mask_threshold).abs_().min()) <= _ROUNDING:
            return False
    return True


def _mix(values: torch.Tensor, dim: int, axis: Axis, chosen: slice) -> torch.Tensor:
    """Interpolate `values` `(h, w)` along one dimension, at the chosen target pixels."""
    lower_weight, upper_weight = axis.lower_weight[chosen], axis.upper_weight[chosen]
    if dim == 0:
        lower_weight, upper_weight = lower_weight[:, None], upper_weight[:, None]
    mixed = values.index_select(dim, axis.upper[chosen]).mul_(upper_weight)
    return mixed.addcmul_(values.index_select(dim, axis.lower[chosen]), lower_weight)


@cache
def _rounds_alike() -> bool:
    """Whether on this machine [`_mix`] and `F.interpolate` round alike; it depends on how PyTorch was compiled."""
    source, target = (67, 61), (509, 487)
    values = torch.rand(source, generator=torch.Generator().manual_seed(0))
    rows, columns = (Axis(*lengths) for lengths in zip(source, target, strict=True))
    found = _mix(_mix(values, 1, columns, slice(None)), 0, rows, slice(None))
    return torch.equal(found, F.interpolate(values[None, None], target, mode="bilinear", align_corners=False)[0, 0])
