# SPDX-License-Identifier: Apache-2.0
"""The supervised losses one by one: boxes, IoU-aware classification, presence, masks, semantic map."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...compat import box_cxcywh_to_xyxy
from .config import Sam3ILossConfig
from .matcher import Match, box_overlap
from .targets import PackedTargets

# A callable gives the mask logits [K,h,w] of the K queries of a match, so that no other mask is ever computed.
MaskPredictor = Callable[[Match], Tensor]

# Mask logits are upsampled to the size of their target in pieces of this many pixels (16 MiB in float32); the pieces
# are recomputed in the backward pass, so that only one of them is in memory at a time.
PIXELS_PER_CHUNK = 2**22


@dataclass
class Normalizer:
    """
    What the sums of the losses are divided by, averaged over processes: so that the mean over processes of a loss is
    the loss of one process with all rows.

    num_boxes: objects (>= 1); num_rows: instruction rows; num_rows_with_target: rows that denote something
    total_rows: rows of all processes together
    """

    num_boxes: Tensor
    num_rows: Tensor
    num_rows_with_target: Tensor
    total_rows: Tensor


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """alpha_t (1 - p_t)^gamma BCE, elementwise; `targets` holds 0 and 1. Source: arXiv 1708.02002, equation 5."""
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if gamma != 0:
        # 1 - p_t written as a sigmoid keeps its digits where p_t is nearly 1.
        loss = loss * torch.sigmoid(logits * (1 - 2 * targets)) ** gamma
    return loss * (alpha * targets + (1 - alpha) * (1 - targets))


def mask_losses(logits: Tensor, targets: Tensor, index: Tensor, alpha: float, gamma: float) -> tuple[Tensor, ...]:
    """
    Focal loss (mean over pixels), dice loss (+1 smoothing) and IoU of K masks against targets of another size.

    logits [K,h,w]; targets Bool[T,H,W]; index [K] says which target a mask is held against
    returns: focal [K], dice [K], IoU [K] without gradient; logits are upsampled (bilinear) to H x W
    """
    height, width = targets.shape[-2:]
    step = max(1, PIXELS_PER_CHUNK // (height * width))
    if len(logits) <= step:
        return _mask_losses_chunk(logits, targets, index, alpha, gamma)
    pieces = [
        checkpoint(_mask_losses_chunk, part, targets, part_index, alpha, gamma, use_reentrant=False)
        for part, part_index in zip(logits.split(step), index.split(step), strict=True)
    ]
    return tuple(torch.cat(values) for values in zip(*pieces, strict=True))


def _mask_losses_chunk(logits: Tensor, targets: Tensor, index: Tensor, alpha: float, gamma: float):
    wanted = targets[index].flatten(1).float()  # [K,HW]
    logits = resize_logits(logits, targets.shape[-2:]).flatten(1)  # [K,HW]
    focal = sigmoid_focal_loss(logits, wanted, alpha, gamma).mean(1)
    probability = logits.sigmoid()
    overlap = (probability * wanted).sum(1)
    dice = 1 - (2 * overlap + 1) / (probability.sum(1) + wanted.sum(1) + 1)
    with torch.no_grad():
        found = (logits > 0).float()
        intersection = (found * wanted).sum(1)
        iou = intersection / (found.sum(1) + wanted.sum(1) - intersection).clamp(min=1)
    return focal, dice, iou


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of [K,h,w] logits to [K,H,W], in float32."""
    return F.interpolate(logits[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


class BoxCriterion(nn.Module):
    """L1 (cxcywh) and 1 - GIoU (xyxy) of matched boxes: sums over pairs / number of objects."""

    def forward(
        self, layer: Mapping[str, Tensor], match: Match, targets: PackedTargets, norm: Normalizer
    ) -> dict[str, Tensor]:
        """pred_boxes [R,Q,4] xyxy, pred_boxes_cxcywh [R,Q,4] -> loss_bbox, loss_giou."""
        wanted = targets.boxes[match.target_index]  # [K,4]
        centered = layer["pred_boxes_cxcywh"][match.row_index, match.query_index].float()  # [K,4]
        corners = layer["pred_boxes"][match.row_index, match.query_index].float()  # [K,4]
        _, giou = box_overlap(corners, box_cxcywh_to_xyxy(wanted))
        return {
            "loss_bbox": (centered - wanted).abs().sum() / norm.num_boxes,
            "loss_giou": (1 - giou).sum() / norm.num_boxes,
        }


class ClassificationCriterion(nn.Module):
    """
    IoU-aware binary classification of queries.

    A matched query learns the soft target p^a IoU^(1-a) (at least 0.01), weighted; an unmatched one learns 0, weighted
    by p^gamma. Rows without a target teach the presence logit alone, as SAM3-I (arXiv 2512.04585) does, unless
    `classify_without_target`.
    """

    def __init__(self, config: Sam3ILossConfig):
        super().__init__()
        self.config = config

    def forward(
        self, layer: Mapping[str, Tensor], match: Match, targets: PackedTargets, norm: Normalizer
    ) -> dict[str, Tensor]:
        """pred_logits [R,Q], pred_boxes [R,Q,4] xyxy -> loss_ce, and ce_f1 (of p > 0.5, all rows) without gradient."""
        config = self.config
        logits = layer["pred_logits"].float()  # [R,Q]
        probability = logits.sigmoid()
        with torch.no_grad():
            boxes = layer["pred_boxes"][match.row_index, match.query_index].float()  # [K,4]
            iou, _ = box_overlap(boxes, box_cxcywh_to_xyxy(targets.boxes[match.target_index]))  # [K]
            exponent = config.classification_score_exponent
            score = probability[match.row_index, match.query_index] ** exponent
            quality = (score * iou.clamp(min=0) ** (1 - exponent)).clamp(min=0.01)
            flat = match.row_index * logits.shape[1] + match.query_index
            # One query may answer for several objects (one-to-many): it learns the best of them.
            soft = torch.zeros_like(logits).flatten().scatter_reduce_(0, flat, quality, reduce="amax").view_as(logits)
            positive = soft > 0
        loss = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
        weight = torch.where(positive, config.classification_positive_weight, probability**config.classification_gamma)
        keep = 1.0 if config.classify_without_target else targets.has_target[:, None]  # [R,1]
        count = max(logits.shape[1], config.classification_min_queries)
        with torch.no_grad():
            found = probability > 0.5
            f1 = 2 * (found & positive).sum() / (found.sum() + positive.sum()).clamp(min=1)
        return {"loss_ce": (loss * weight * keep).sum() / (count * norm.num_rows), "ce_f1": f1}


class PresenceCriterion(nn.Module):
    """Focal loss of the presence logit against "this row denotes something", mean over all rows."""

    def __init__(self, config: Sam3ILossConfig):
        super().__init__()
        self.config = config

    def forward(self, presence_logits: Tensor, targets: PackedTargets, norm: Normalizer) -> dict[str, Tensor]:
        """presence_logits [R,1] -> loss_presence, and presence_accuracy without gradient."""
        logits = presence_logits.float().squeeze(-1)  # [R]
        loss = sigmoid_focal_loss(logits, targets.has_target, self.config.presence_alpha, self.config.presence_gamma)
        with torch.no_grad():
            accuracy = ((logits > 0) == (targets.has_target > 0)).float().mean()
        return {"loss_presence": loss.sum() / norm.num_rows, "presence_accuracy": accuracy}


class MaskCriterion(nn.Module):
    """Focal and dice loss of matched masks at the size of their targets: sums over pairs / number of objects."""

    def __init__(self, config: Sam3ILossConfig):
        super().__init__()
        self.config = config

    def forward(
        self, pred_masks: Tensor | MaskPredictor, match: Match, targets: PackedTargets, norm: Normalizer
    ) -> dict[str, Tensor]:
        """
        Mask logits -> loss_mask, loss_dice.

        pred_masks: [R,Q,h,w], or a callable Match -> [K,h,w]. The callable is asked even
        when K = 0, so that the parameters behind it always get a gradient.
        """
        focal_alpha, focal_gamma = self.config.mask_focal_alpha, self.config.mask_focal_gamma
        if callable(pred_masks):
            logits = pred_masks(match)  # [K,h,w]
        else:
            logits = pred_masks[match.row_index, match.query_index]  # [K,h,w]
        loss_mask = loss_dice = logits[:0].float().sum()
        for masks, chosen, index in self._by_size(match, targets):
            focal, dice, _ = mask_losses(
                logits if chosen is None else logits[chosen], masks, index, focal_alpha, focal_gamma
            )
            loss_mask = loss_mask + focal.sum()
            loss_dice = loss_dice + dice.sum()
        return {"loss_mask": loss_mask / norm.num_boxes, "loss_dice": loss_dice / norm.num_boxes}

    @staticmethod
    def _by_size(match: Match, targets: PackedTargets) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Per target size: masks Bool[T_g,H,W], which pairs (None for all), and their index into those masks."""
        if len(match) == 0:
            return
        index = targets.index_in_group[match.target_index]
        if len(targets.mask_groups) == 1:
            yield targets.mask_groups[0], None, index
            return
        for number, masks in enumerate(targets.mask_groups):
            members = [pair for pair, target in enumerate(match.targets) if targets.group_of[target] == number]
            if members:
                chosen = torch.tensor(members, device=index.device)
                yield masks, chosen, index[chosen]


class SemanticCriterion(nn.Module):
    """
    Focal and dice loss of the semantic map against the union of a row's masks, mean over rows that denote something.

    With no such row the loss is 0 (with a zero gradient), as in SAM3-I (arXiv 2512.04585).
    """

    def __init__(self, config: Sam3ILossConfig):
        super().__init__()
        self.config = config

    def forward(self, semantic_seg: Tensor, targets: PackedTargets, norm: Normalizer) -> dict[str, Tensor]:
        """semantic_seg [R,1,h,w] logits -> loss_semantic_seg, loss_semantic_dice, and semantic_iou (local rows)."""
        alpha, gamma = self.config.semantic_focal_alpha, self.config.semantic_focal_gamma
        loss_seg = loss_dice = semantic_seg[:0].float().sum()
        ious = []
        for rows, union in targets.union_groups:
            index = torch.arange(len(rows), device=union.device)
            focal, dice, iou = mask_losses(semantic_seg[rows, 0], union, index, alpha, gamma)
            loss_seg = loss_seg + focal.sum()
            loss_dice = loss_dice + dice.sum()
            ious.append(iou)
        return {
            "loss_semantic_seg": loss_seg / norm.num_rows_with_target,
            "loss_semantic_dice": loss_dice / norm.num_rows_with_target,
            # Nothing to find and nothing asked for: correct.
            "semantic_iou": torch.cat(ious).mean() if ious else targets.has_target.new_ones(()),
        }
