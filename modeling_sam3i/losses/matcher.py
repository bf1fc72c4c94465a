# SPDX-License-Identifier: Apache-2.0
"""Which query answers for which object: the one-to-one (Hungarian) and the one-to-many matcher, and box overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ...compat import box_cxcywh_to_xyxy
from .config import Sam3ILossConfig
from .targets import PackedTargets


@dataclass
class Match:
    """
    K pairs of a query and an object, ordered by row.

    row_index, query_index, target_index (into packed targets): each [K]
    row_counts: pairs of each row, targets: the objects again (host integers)
    """

    row_index: Tensor
    query_index: Tensor
    target_index: Tensor
    row_counts: list[int]
    targets: list[int]

    @classmethod
    def of(cls, rows: list[int], queries: list[int], objects: list[int], targets: PackedTargets) -> "Match":
        """A match from host integers, on the device of the targets."""
        index = torch.tensor([rows, queries, objects], dtype=torch.long).to(targets.boxes.device)  # [3,K]
        counts = [0] * targets.num_rows
        for row in rows:
            counts[row] += 1
        return cls(index[0], index[1], index[2], counts, objects)

    def __len__(self) -> int:
        return len(self.query_index)


def box_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """
    IoU and generalized IoU of xyxy boxes, elementwise with broadcasting: [...,4] and [...,4] -> [...], [...].

    Two boxes without area give 0 and a finite gradient instead of 0 / 0.
    """
    tiny = torch.finfo(a.dtype).tiny
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    intersection = inner[..., 0] * inner[..., 1]
    hull = outer[..., 0] * outer[..., 1]
    union = area_a + area_b - intersection
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


class HungarianMatcher(nn.Module):
    """
    One query per object, at the least total cost: focal class cost, L1 on cxcywh and -GIoU on xyxy.

    The cost of all rows (and all decoder layers given) is computed on their device and moved to the host once.
    Source: SAM3-I (arXiv 2512.04585), released training configuration.
    """

    def __init__(self, config: Sam3ILossConfig):
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, layers: Sequence[Mapping[str, Tensor]], targets: PackedTargets) -> list[Match]:
        """
        Match each of the outputs in `layers`, all with Q queries per row, to the same targets.

        layers: dicts with pred_logits [R,Q], pred_boxes [R,Q,4] xyxy and pred_boxes_cxcywh [R,Q,4]
        returns: one `Match` per layer, ordered by object; with more objects than queries only Q objects are matched

        Raises:
            ValueError: a prediction is NaN or infinite.
        """
        if not layers:
            return []
        if len(targets.boxes) == 0:
            return [Match.of([], [], [], targets) for _ in layers]
        return self.assign(torch.stack([self.cost(layer, targets) for layer in layers]).cpu(), targets)

    def cost(self, layer: Mapping[str, Tensor], targets: PackedTargets) -> Tensor:
        """Cost of every query for every object of its row: [R,Q,M] float32; padded objects cost something too."""
        config = self.config
        logits = layer["pred_logits"].float()
        wanted = targets.padded_boxes[:, None]  # [R,1,M,4]
        probability = logits.sigmoid()
        alpha, gamma = config.match_focal_alpha, config.match_focal_gamma
        found = -alpha * (1 - probability) ** gamma * F.logsigmoid(logits)
        missed = -(1 - alpha) * probability**gamma * F.logsigmoid(-logits)
        class_cost = (found - missed)[..., None]  # [R,Q,1]
        l1_cost = (layer["pred_boxes_cxcywh"].float()[:, :, None] - wanted).abs().sum(-1)  # [R,Q,M]
        _, giou = box_overlap(layer["pred_boxes"].float()[:, :, None], box_cxcywh_to_xyxy(wanted))  # [R,Q,M]
        return config.match_class_cost * class_cost + config.match_l1_cost * l1_cost - config.match_giou_cost * giou

    def assign(self, costs: Tensor, targets: PackedTargets) -> list[Match]:
        """One `Match` per layer from their costs [layers,R,Q,M] on the host.

        Raises:
            ValueError: a cost is NaN or infinite.
        """
        if not bool(torch.isfinite(costs).all()):
            raise ValueError(
                "The matching cost is not finite: pred_logits or pred_boxes contain NaN or Inf. "
                "Lower the learning rate, or use bf16 or fp32 instead of fp16."
            )
        matches = []
        for cost in costs:
            rows, queries, objects = [], [], []
            for row, (count, offset) in enumerate(zip(targets.counts, targets.offsets, strict=True)):
                slots, chosen = linear_sum_assignment(cost[row, :, :count].T.numpy())
                rows += [row] * len(slots)
                queries += chosen.tolist()
                objects += (slots + offset).tolist()
            matches.append(Match.of(rows, queries, objects, targets))
        return matches


class OneToManyMatcher(nn.Module):
    """
    Several queries per object: those whose quality a * p + (1 - a) * IoU passes a threshold and is among the best few.

    "Among the best few" is: strictly above the (1 - k/Q) quantile over the queries of the row.
    Source: SAM3-I (arXiv 2512.04585), released training configuration.
    """

    def __init__(self, config: Sam3ILossConfig):
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, layer: Mapping[str, Tensor], targets: PackedTargets) -> Match:
        """Match pred_logits [R,Q] and pred_boxes [R,Q,4] xyxy; the pairs are ordered by row, query, object."""
        if len(targets.boxes) == 0:
            return Match.of([], [], [], targets)
        return self.assign(self.candidates(layer, targets).cpu(), targets)

    def candidates(self, layer: Mapping[str, Tensor], targets: PackedTargets) -> Tensor:
        """Which query answers for which object of its row: Bool[R,Q,M]."""
        config = self.config
        probability = layer["pred_logits"].float().sigmoid()[..., None]  # [R,Q,1]
        wanted = box_cxcywh_to_xyxy(targets.padded_boxes)[:, None]  # [R,1,M,4]
        iou, _ = box_overlap(layer["pred_boxes"].float()[:, :, None], wanted)  # [R,Q,M]
        a = config.one_to_many_score_weight
        quality = a * probability + (1 - a) * iou  # [R,Q,M]
        rank = max(0.0, 1.0 - config.one_to_many_top_k / quality.shape[1])
        best = quality > torch.quantile(quality, rank, dim=1, keepdim=True)
        return best & (quality > config.one_to_many_threshold) & targets.padded_valid[:, None]

    @staticmethod
    def assign(candidates: Tensor, targets: PackedTargets) -> Match:
        """The pairs from Bool[R,Q,M] on the host."""
        rows, queries, slots = (index.tolist() for index in candidates.nonzero(as_tuple=True))
        offsets = targets.offsets
        return Match.of(rows, queries, [offsets[row] + slot for row, slot in zip(rows, slots, strict=True)], targets)
