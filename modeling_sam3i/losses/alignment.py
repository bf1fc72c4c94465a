# SPDX-License-Identifier: Apache-2.0
"""Alignment of the simple and the complex instruction of one object set: semantic maps and text features."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import HARD_REGION_DIVERGENCES, Sam3ILossConfig
from .criteria import resize_logits

# Keeps the logarithms of the hard-region weight finite.
PROBABILITY_FLOOR = 1e-6


def semantic_kl_loss(a: Tensor, b: Tensor) -> Tensor:
    """
    Pull semantic map `a` towards `b`: KL(p_b || p_a) of softmaxes over all pixels, mean over rows, no gradient to b.

    a, b: semantic logits [R,1,h,w] of the two instructions of each row
    Source: SAM3-I (arXiv 2512.04585), stage 3.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(a, b)
    with torch.autocast(a.device.type, enabled=False):
        log_a = a.float().flatten(1).log_softmax(1)  # [R,hw]
        log_b = b.detach().float().flatten(1).log_softmax(1)  # [R,hw]
        return (log_b.exp() * (log_b - log_a)).sum() / max(1, len(a))


def hard_region_loss(a: Tensor, b: Tensor, target: Tensor, *, divergence: str = "reversed") -> Tensor:
    """
    Binary cross-entropy of semantic map `a`, weighted by how much `a` and `b` disagree on a pixel (no gradient to b).

    a, b: semantic logits [R,1,h,w]; target: union of the row's masks, Bool[R,H,W] or [R,1,H,W]; the logits are resized
    (bilinear) to H x W; mean over rows and pixels.
    divergence: with m = (p_a + p_b) / 2,
        "reversed": (KL(m || p_a) + KL(m || p_b)) / 2, the foreground term only: what the authors compute. It is a
            Jensen-Shannon divergence with its arguments swapped: never negative (the logarithm is concave), but not
            bounded by log 2, and for equal differences of logits far smaller in the foreground than in the background.
        "jensen-shannon": (KL(p_a || m) + KL(p_b || m)) / 2 of the two Bernoulli distributions, in [0, log 2].
    Source: SAM3-I (arXiv 2512.04585), stage 3.

    Raises:
        ValueError: the shapes do not fit, or an unknown divergence.
    """
    _check_same_shape(a, b)
    if divergence not in HARD_REGION_DIVERGENCES:
        raise ValueError(f"`divergence` must be one of {HARD_REGION_DIVERGENCES}, got {divergence!r}.")
    if target.ndim == 4 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != 3 or len(target) != len(a):
        raise ValueError(f"`target` must have the shape [{len(a)},H,W] or [{len(a)},1,H,W], got {list(target.shape)}.")
    with torch.autocast(a.device.type, enabled=False):
        size = tuple(target.shape[-2:])
        logits_a = resize_logits(a[:, 0], size)  # [R,H,W]
        with torch.no_grad():
            p_a = logits_a.sigmoid().clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
            p_b = resize_logits(b[:, 0], size).sigmoid().clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
            m = (p_a + p_b) / 2
            if divergence == "reversed":
                weight = m * (m.log() - (p_a.log() + p_b.log()) / 2)
            else:
                weight = (_bernoulli_kl(p_a, m) + _bernoulli_kl(p_b, m)) / 2
        loss = F.binary_cross_entropy_with_logits(logits_a, target.to(logits_a), reduction="none")
        return (loss * weight).mean()


def _bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    return p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log())


def instruction_info_nce_loss(
    simple: Tensor,
    complex: Tensor,
    concept_names: Sequence[str],
    temperature: float = 0.1,
    same_concept_weight: float = 0.5,
) -> Tensor:
    """
    Contrast the two instructions of a row against all other rows; negatives of the same concept count less.

    simple, complex [B,D]: features of the two instructions; concept_names: B noun phrases.
    With z the 2B normalized features, S = z z^T / temperature and w the weights (1; same-concept negatives less; the
    anchor itself 0): mean over anchors of log(sum_j w_j exp(S_j - c) + 1e-8) - (S_positive - c), c the row maximum.
    Source: SAM3-I (arXiv 2512.04585), stage 3.

    Raises:
        ValueError: the shapes differ, or there is not one name per row.
    """
    _check_same_shape(simple, complex)
    _check_names(concept_names, len(simple))
    with torch.autocast(simple.device.type, enabled=False):
        z = F.normalize(torch.cat([simple, complex]).float(), dim=1)  # [2B,D]
        similarity = z @ z.T / temperature  # [2B,2B]
        anchors = torch.arange(len(z), device=z.device)
        positives = anchors.roll(len(simple))
        concept = _concept_ids(concept_names, z.device).repeat(2)  # [2B]
        same = concept[:, None] == concept[None, :]  # [2B,2B]
        weight = torch.where(same, same_concept_weight, 1.0)
        weight[anchors, positives] = 1.0
        weight[anchors, anchors] = 0.0
        # The authors subtract the maximum of the whole row, the anchor itself included; it shows in the 1e-8.
        shifted = similarity - similarity.max(dim=1, keepdim=True).values.detach()
        contrast = ((weight * shifted.exp()).sum(1) + 1e-8).log()
        return (contrast - shifted[anchors, positives]).mean()


def concept_margin_loss(
    simple: Tensor,
    complex: Tensor,
    concept: Tensor,
    concept_names: Sequence[str],
    margin: float = 0.2,
) -> Tensor:
    """
    The mean of a row's instructions must be nearer to its own concept than to any other concept, by a margin (cosine).

    simple, complex, concept [B,D]; concept_names: B noun phrases. Mean over the rows for which the batch holds another
    concept; 0 when there is none.
    Source: SAM3-I (arXiv 2512.04585), stage 3.

    Raises:
        ValueError: the shapes differ, or there is not one name per row.
    """
    _check_same_shape(simple, complex)
    _check_same_shape(simple, concept)
    _check_names(concept_names, len(simple))
    with torch.autocast(simple.device.type, enabled=False):
        instruction = F.normalize((simple.float() + complex.float()) / 2, dim=1)  # [B,D]
        similarity = instruction @ F.normalize(concept.float(), dim=1).T  # [B,B]
        ids = _concept_ids(concept_names, similarity.device)
        other = ids[:, None] != ids[None, :]  # [B,B]
        valid = other.any(1)
        if not bool(valid.any()):
            return similarity.sum() * 0.0
        hardest = similarity.masked_fill(~other, -torch.inf)[valid].max(1).values
        return (hardest - similarity.diagonal()[valid] + margin).clamp(min=0).mean()


class Sam3IAlignmentLoss(nn.Module):
    """
    The alignment terms of stage 3 between the simple and the complex instruction of the same rows.

    loss = 0.001 KL + hard region (both the mean of the two directions) + InfoNCE + concept margin. The last two see
    the features of all processes. Nothing is scaled by the number of rows.
    Source: SAM3-I (arXiv 2512.04585), stage 3; the weights are `Sam3ILossConfig`, and a weight of 0 skips its term.
    """

    def __init__(self, config: Sam3ILossConfig | Mapping[str, Any] | None = None):
        super().__init__()
        self.config = config if isinstance(config, Sam3ILossConfig) else Sam3ILossConfig.from_dict(config)

    def forward(
        self,
        simple_semantic: Tensor,
        complex_semantic: Tensor,
        labels: Sequence[Mapping[str, Tensor]],
        simple: Tensor,
        complex: Tensor,
        concept: Tensor,
        concept_names: Sequence[str],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        simple_semantic, complex_semantic [R,1,h,w] logits; labels as for `Sam3ICriterion`, shared by both levels;
        simple, complex, concept [R,D] projected text features; concept_names: R noun phrases.
        returns: the weighted sum, and detached unweighted scalars loss_kl, loss_hard_region, loss_info_nce,
        loss_margin
        """
        config = self.config
        parts: dict[str, tuple[float, Tensor]] = {}
        a, b = simple_semantic, complex_semantic
        if config.kl_weight:
            parts["loss_kl"] = (config.kl_weight, (semantic_kl_loss(a, b) + semantic_kl_loss(b, a)) / 2)
        if config.hard_region_weight:
            parts["loss_hard_region"] = (config.hard_region_weight, self._hard_region(a, b, labels))
        if config.info_nce_weight or config.margin_weight:
            (simple, complex, concept), names = gather_with_gradients([simple, complex, concept], concept_names)
        if config.info_nce_weight:
            contrast = instruction_info_nce_loss(
                simple, complex, names, config.info_nce_temperature, config.same_concept_weight
            )
            parts["loss_info_nce"] = (config.info_nce_weight, contrast)
        if config.margin_weight:
            parts["loss_margin"] = (
                config.margin_weight,
                concept_margin_loss(simple, complex, concept, names, config.margin),
            )
        loss = sum((weight * value for weight, value in parts.values()), start=a.new_zeros((), dtype=torch.float32))
        return loss, {name: value.detach() for name, (_, value) in parts.items()}

    def _hard_region(self, a: Tensor, b: Tensor, labels: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Mean of both directions; rows are grouped by the size of their masks."""
        total = a.new_zeros((), dtype=torch.float32)
        divergence = self.config.hard_region_divergence
        for rows, target in union_targets(labels, tuple(a.shape[-2:]), a.device):
            forth = hard_region_loss(a[rows], b[rows], target, divergence=divergence)
            back = hard_region_loss(b[rows], a[rows], target, divergence=divergence)
            total = total + (forth + back) / 2 * (len(rows) / len(labels))
        return total


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


def union_targets(
    labels: Sequence[Mapping[str, Tensor]], logits_size: tuple[int, ...], device: torch.device
) -> list[tuple[list[int], Tensor]]:
    """
    Per mask size: the rows of that size and the union of their masks, Bool[R_g,H,W]; every row is in one group.

    A row without objects keeps the H x W of its empty masks [0,H,W] (the size of the logits if that is 0). In a batch
    where no row denotes anything all unions are one pixel: the authors compare the map resized to 1 x 1 with it.
    """
    nothing = not any(len(label["masks"]) for label in labels)
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, label in enumerate(labels):
        size = (1, 1) if nothing else tuple(label["masks"].shape[-2:])
        groups.setdefault(size if 0 not in size else logits_size, []).append(row)
    unions = []
    for size, rows in groups.items():
        union = torch.zeros(len(rows), *size, dtype=torch.bool, device=device)
        for position, row in enumerate(rows):
            if len(labels[row]["masks"]):
                union[position] = labels[row]["masks"].to(device).any(0)
        unions.append((rows, union))
    return unions


def _concept_ids(names: Sequence[str], device: torch.device) -> Tensor:
    """Equal names get equal numbers: [B]."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names], device=device)


def _check_same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"Both inputs must have the same shape, got {list(a.shape)} and {list(b.shape)}.")


def _check_names(names: Sequence[str], rows: int) -> None:
    if isinstance(names, str) or len(names) != rows:
        raise ValueError(f"`concept_names` must be a list with one noun phrase per row ({rows}), got {names!r}.")
