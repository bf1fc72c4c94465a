# SPDX-License-Identifier: Apache-2.0
"""Features and names of all processes, with gradients: what the contrastive losses compare."""

from collections.abc import Sequence

import torch
from torch import Tensor


class _AllGather(torch.autograd.Function):
    """Concatenate [B_r,D] over processes; the gradient of a row is summed over the processes that used it."""

    @staticmethod
    def forward(ctx, local: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = local.new_zeros(max(sizes), local.shape[1])
        padded[: len(local)] = local
        received = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(received, padded)
        return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous().clone()
        torch.distributed.all_reduce(gradient)
        return gradient.split(ctx.sizes)[torch.distributed.get_rank()], None


def gather_with_gradients(features: Sequence[Tensor], names: Sequence[str]) -> tuple[list[Tensor], list[str]]:
    """
    Gather features [B,D_i] and their B names from all processes, in the order of the ranks; B may differ by process.

    Every process then computes the same loss; the backward pass sums the gradients of all processes, so that the mean
    over processes that `DistributedDataParallel` takes is the gradient of one process with all rows.
    With one process, or without gradients (evaluation), the inputs come back unchanged.

    Raises:
        ValueError: the features and names differ in number.
    """
    features, names = list(features), list(names)
    lengths = [len(feature) for feature in features]
    if any(length != len(names) for length in lengths):
        raise ValueError(f"Every feature needs one name: got {lengths} features and {len(names)} names.")
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_world_size() == 1 or not torch.is_grad_enabled():
        return features, names
    names_by_rank: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(names_by_rank, names)
    widths = [feature.shape[1] for feature in features]
    together = torch.cat([feature.float() for feature in features], dim=1)  # [B,sum D_i]
    gathered = _AllGather.apply(together, [len(part) for part in names_by_rank])  # [sum B,sum D_i]
    return list(gathered.split(widths, dim=1)), [name for part in names_by_rank for name in part]


__all__ = ["gather_with_gradients"]
