# SPDX-License-Identifier: Apache-2.0
"""Weights and constants of every training loss, the paper's numbers as defaults."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Literal

from huggingface_hub.dataclasses import strict, validated_field
from huggingface_hub.errors import StrictDataclassError

Number = float | int
HARD_REGION_DIVERGENCES = ("reversed", "jensen-shannon")


def _check_weight(value: Any) -> None:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"must be a finite number >= 0, got {value!r}.")


def _check_share(value: Any) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"must lie in [0, 1], got {value!r}.")


def _check_positive(value: Any) -> None:
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"must be a finite number > 0, got {value!r}.")


def _check_count(value: Any) -> None:
    if value < 1:
        raise ValueError(f"must be a whole number >= 1, got {value!r}.")


def _setting(default: Any, help_text: str, check: Callable[[Any], None] = lambda value: None) -> Any:
    return validated_field(check, default=default, metadata={"help": help_text})


_weight = partial(_setting, check=_check_weight)
_share = partial(_setting, check=_check_share)
_positive = partial(_setting, check=_check_positive)
_count = partial(_setting, check=_check_count)


@strict
@dataclass
class Sam3ILossConfig:
    """
    Weights and constants of the losses; `to_dict()` is what `Sam3IConfig.loss_config` stores.

    Raises:
        StrictDataclassError: a value is of another type or outside its range.

    Source: SAM3-I (arXiv 2512.04585) and its released training configuration.
    """

    box_l1_weight: Number = _weight(5.0, "Weight of the L1 distance between matched boxes (cxcywh).")
    box_giou_weight: Number = _weight(2.0, "Weight of 1 - GIoU of matched boxes.")
    classification_weight: Number = _weight(20.0, "Weight of the IoU-aware classification of queries.")
    presence_weight: Number = _weight(20.0, "Weight of the presence loss (is anything denoted at all).")
    mask_focal_weight: Number = _weight(200.0, "Weight of the focal loss of matched masks.")
    mask_dice_weight: Number = _weight(10.0, "Weight of the dice loss of matched masks.")
    semantic_focal_weight: Number = _weight(20.0, "Weight of the focal loss of the semantic map.")
    semantic_dice_weight: Number = _weight(30.0, "Weight of the dice loss of the semantic map.")
    one_to_many_weight: Number = _weight(2.0, "Factor on all losses of the duplicated, one-to-many queries.")
    scale_by_rows: bool = _setting(True, "Multiply the supervised loss by sqrt(number of instruction rows).")

    classification_positive_weight: Number = _weight(10.0, "Factor on the loss of a matched query.")
    classification_score_exponent: Number = _share(0.25, "a in the soft target p^a * IoU^(1-a) of a matched query.")
    classification_gamma: Number = _weight(2.0, "Exponent of p that focuses unmatched queries.")
    classification_min_queries: int = _count(200, "The mean over queries counts at least this many of them.")
    classify_without_target: bool = _setting(
        False, "Whether rows that denote nothing train the queries' classification, too."
    )
    presence_alpha: Number = _share(0.5, "Balance of the focal presence loss.")
    presence_gamma: Number = _weight(0.0, "Focusing exponent of the focal presence loss.")
    mask_focal_alpha: Number = _share(0.25, "Balance of the focal mask loss.")
    mask_focal_gamma: Number = _weight(2.0, "Focusing exponent of the focal mask loss.")
    semantic_focal_alpha: Number = _share(0.6, "Balance of the focal semantic loss.")
    semantic_focal_gamma: Number = _weight(2.0, "Focusing exponent of the focal semantic loss.")

    match_class_cost: Number = _weight(2.0, "Weight of the focal class cost in the one-to-one matcher.")
    match_l1_cost: Number = _weight(5.0, "Weight of the L1 box cost in the one-to-one matcher.")
    match_giou_cost: Number = _weight(2.0, "Weight of the -GIoU cost in the one-to-one matcher.")
    match_focal_alpha: Number = _share(0.25, "Balance of the focal class cost.")
    match_focal_gamma: Number = _weight(2.0, "Focusing exponent of the focal class cost.")
    one_to_many_score_weight: Number = _share(0.3, "a in the one-to-many quality a * p + (1-a) * IoU.")
    one_to_many_threshold: Number = _share(0.4, "A query whose quality is at most this is not matched.")
    one_to_many_top_k: int = _count(4, "At most about this many queries are matched to one object.")

    kl_weight: Number = _weight(0.001, "Weight of the KL alignment of semantic maps.")
    hard_region_weight: Number = _weight(1.0, "Weight of the hard-region loss.")
    hard_region_divergence: Literal["reversed", "jensen-shannon"] = _setting(
        "reversed", "Pixel weight of the hard-region loss: 'reversed' (the authors') or 'jensen-shannon' (corrected)."
    )
    info_nce_weight: Number = _weight(1.0, "Weight of the contrastive loss between simple and complex features.")
    info_nce_temperature: Number = _positive(0.1, "Temperature of the contrastive loss.")
    same_concept_weight: Number = _share(0.5, "Weight of a negative that shares the anchor's concept.")
    margin_weight: Number = _weight(1.0, "Weight of the concept margin loss.")
    margin: Number = _weight(0.2, "By how much its own concept must be nearer than any other (cosine).")

    def validate_matching(self) -> None:
        """Something must tell queries apart."""
        if self.match_class_cost == self.match_l1_cost == self.match_giou_cost == 0:
            raise ValueError("At least one of `match_class_cost`, `match_l1_cost`, `match_giou_cost` must be > 0.")

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, in JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "Sam3ILossConfig":
        """
        The config with the given fields replaced; None or {} gives the defaults.

        Raises:
            ValueError: a key is not a field, or a value is outside its range.
        """
        values, known = dict(values or {}), [entry.name for entry in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"Unknown loss setting(s) {unknown}; the known ones are {known}.")
        try:
            return cls(**values)
        except StrictDataclassError as error:
            raise ValueError("Loss settings: " + " ".join(str(error).split())) from error
