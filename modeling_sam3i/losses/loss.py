# SPDX-License-Identifier: Apache-2.0
"""The supervised training loss: all decoder layers, one-to-one and one-to-many queries, masks, semantic map."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import Sam3ILossConfig
from .criteria import (
    BoxCriterion,
    ClassificationCriterion,
    MaskCriterion,
    Normalizer,
    PresenceCriterion,
    SemanticCriterion,
)
from .matcher import HungarianMatcher, Match, OneToManyMatcher
from .targets import PackedTargets, pack_targets, validate_labels

LAYER_KEYS = ("pred_logits", "pred_boxes", "pred_boxes_cxcywh")


def average_over_processes(values: Tensor) -> Tensor:
    """
    Mean of a tensor over the processes of `torch.distributed`; the tensor itself with one process.

    Without gradients (evaluation) nothing is exchanged: a process may then run on its own without blocking.
    """
    if not torch.is_grad_enabled() or _world_size() == 1:
        return values
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values / _world_size()


def _world_size() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


class Sam3ICriterion(nn.Module):
    """
    The supervised loss of a batch of instruction rows.

    loss = sqrt(rows) * (sum over layers of {one-to-one + 2 * one-to-many} + semantic), where a layer gives
    5 L1 + 2 (1 - GIoU) + 20 classification + 20 presence, the final one also 200 focal + 10 dice on masks.
    Rows that denote nothing train the presence logit. Everything is computed in float32, under autocast too: no term
    is a matrix product.
    Source: SAM3-I (arXiv 2512.04585), released training configuration; the weights are `Sam3ILossConfig`.
    """

    def __init__(self, config: Sam3ILossConfig | Mapping[str, Any] | None = None):
        super().__init__()
        self.config = config if isinstance(config, Sam3ILossConfig) else Sam3ILossConfig.from_dict(config)
        config = self.config
        self.one_to_one_matcher = HungarianMatcher(config)
        self.one_to_many_matcher = OneToManyMatcher(config)
        self.boxes = BoxCriterion()
        self.classification = ClassificationCriterion(config)
        self.presence = PresenceCriterion(config)
        self.masks = MaskCriterion(config)
        self.semantic = SemanticCriterion(config)
        self.weights = {
            "loss_bbox": config.box_l1_weight,
            "loss_giou": config.box_giou_weight,
            "loss_ce": config.classification_weight,
            "loss_presence": config.presence_weight,
            "loss_mask": config.mask_focal_weight,
            "loss_dice": config.mask_dice_weight,
            "loss_semantic_seg": config.semantic_focal_weight,
            "loss_semantic_dice": config.semantic_dice_weight,
        }

    def forward(
        self, outputs: Mapping[str, Any], labels: Sequence[Mapping[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Loss of R rows and its named parts.

        outputs: pred_logits [R,Q], pred_boxes [R,Q,4] xyxy and pred_boxes_cxcywh [R,Q,4] in [0,1], presence_logits
            [R,1], pred_masks [R,Q,h,w] or a callable Match -> [K,h,w], semantic_seg
            [R,1,h,w], auxiliary_outputs: list of dicts (logits, both boxes, presence) of the earlier decoder layers;
            optionally one_to_many: the same for the duplicated queries, without presence and semantic_seg
        labels: per row {"masks": Bool[N,H,W], "boxes": Float[N,4] cxcywh in [0,1]}, N >= 0, H and W any size
        returns: loss (scalar) and loss_dict: detached scalars before weighting; suffix `_aux_{i}` for the i-th earlier
            layer, `_o2m` for one-to-many; next to the losses ce_f1, presence_accuracy, semantic_iou to watch

        Raises:
            TypeError, ValueError: unusable labels (`validate_labels`) or a missing output.
        """
        auxiliary = list(outputs.get("auxiliary_outputs") or ())
        one_to_many = outputs.get("one_to_many")
        self._check_outputs(outputs, auxiliary, one_to_many)
        validate_labels(labels, num_rows=len(outputs["pred_logits"]))
        targets = pack_targets(labels, outputs["pred_logits"].device)
        norm = self.normalizer(targets)
        matches, one_to_many_matches = self._match([outputs, *auxiliary], one_to_many, targets)
        parts = self._layer_losses(outputs, matches[0], targets, norm)
        for number, (layer, match) in enumerate(zip(auxiliary, matches[1:], strict=True)):
            parts |= _suffixed(self._layer_losses(layer, match, targets, norm), f"_aux_{number}")
        if one_to_many is not None:
            layers = [one_to_many, *(one_to_many.get("auxiliary_outputs") or ())]
            for number, (layer, match) in enumerate(zip(layers, one_to_many_matches, strict=True)):
                layer = {key: value for key, value in layer.items() if key != "presence_logits"}  # one-to-one's
                suffix = "_o2m" if number == 0 else f"_aux_{number - 1}_o2m"
                parts |= _suffixed(self._layer_losses(layer, match, targets, norm), suffix)
        parts |= self.semantic(outputs["semantic_seg"], targets, norm)
        loss = self._weighted_sum(parts)
        if self.config.scale_by_rows:
            loss = loss * norm.total_rows.sqrt()
        return loss, {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def _match(
        self, layers: list[Mapping[str, Any]], one_to_many: Mapping[str, Any] | None, targets: PackedTargets
    ) -> tuple[list[Match], list[Match]]:
        """Matches of all layers, and of the one-to-many queries, from one copy to the host.

        Earlier layers of the one-to-many queries are matched one to one, as the others are.
        """
        repeated = [] if one_to_many is None else list(one_to_many.get("auxiliary_outputs") or ())
        if not sum(targets.counts):
            empty = Match.of([], [], [], targets)
            return [empty] * len(layers), [] if one_to_many is None else [empty] * (1 + len(repeated))
        tables = [self.one_to_one_matcher.cost(layer, targets) for layer in (*layers, *repeated)]
        if one_to_many is not None:
            tables.append(self.one_to_many_matcher.candidates(one_to_many, targets).float())
        on_host = torch.stack(tables).cpu()  # [layers,R,Q,M]
        matches = self.one_to_one_matcher.assign(on_host[: len(layers) + len(repeated)], targets)
        first, rest = matches[: len(layers)], matches[len(layers) :]
        if one_to_many is None:
            return first, []
        return first, [self.one_to_many_matcher.assign(on_host[-1] > 0, targets), *rest]

    def normalizer(self, targets: PackedTargets) -> Normalizer:
        """Counts of objects and rows, averaged over processes in one exchange."""
        with_target = sum(count > 0 for count in targets.counts)
        local = [float(sum(targets.counts)), float(targets.num_rows), float(with_target)]
        boxes, rows, rows_with_target = average_over_processes(torch.tensor(local, device=targets.boxes.device))
        world_size = _world_size() if torch.is_grad_enabled() else 1
        return Normalizer(
            num_boxes=boxes.clamp(min=1 / world_size),
            num_rows=rows.clamp(min=1 / world_size),
            num_rows_with_target=rows_with_target.clamp(min=1 / world_size),
            total_rows=rows * world_size,
        )

    def _layer_losses(
        self, layer: Mapping[str, Any], match: Match, targets: PackedTargets, norm: Normalizer
    ) -> dict[str, Tensor]:
        parts = self.boxes(layer, match, targets, norm) | self.classification(layer, match, targets, norm)
        if layer.get("presence_logits") is not None:
            parts |= self.presence(layer["presence_logits"], targets, norm)
        if layer.get("pred_masks") is not None:
            parts |= self.masks(layer["pred_masks"], match, targets, norm)
        return parts

    def _weighted_sum(self, parts: Mapping[str, Tensor]) -> Tensor:
        terms = []
        for name, value in parts.items():
            weight = self.weights.get(name.removesuffix("_o2m").split("_aux_")[0])
            if weight is None:  # a figure to watch, not a loss
                continue
            term = value * (weight * (self.config.one_to_many_weight if name.endswith("_o2m") else 1.0))
            terms.append(term)
        return sum(terms[1:], start=terms[0])

    @staticmethod
    def _check_outputs(outputs: Mapping[str, Any], auxiliary: list, one_to_many: Mapping[str, Any] | None) -> None:
        wanted: list[tuple[str, Mapping[str, Any], tuple[str, ...]]] = [
            ("outputs", outputs, (*LAYER_KEYS, "presence_logits", "pred_masks", "semantic_seg"))
        ]
        for number, layer in enumerate(auxiliary):
            wanted.append((f"outputs['auxiliary_outputs'][{number}]", layer, (*LAYER_KEYS, "presence_logits")))
        if one_to_many is not None:
            wanted.append(("outputs['one_to_many']", one_to_many, (*LAYER_KEYS, "pred_masks")))
            for number, layer in enumerate(one_to_many.get("auxiliary_outputs") or ()):
                wanted.append((f"outputs['one_to_many']['auxiliary_outputs'][{number}]", layer, LAYER_KEYS))
        for name, values, keys in wanted:
            missing = [key for key in keys if values.get(key) is None]
            if missing:
                present = sorted(key for key in values if values[key] is not None)
                raise ValueError(f"{name} must hold {list(keys)}; missing {missing}, found {present}.")


def _suffixed(parts: Mapping[str, Tensor], suffix: str) -> dict[str, Tensor]:
    return {name + suffix: value for name, value in parts.items()}
