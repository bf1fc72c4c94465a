# SPDX-License-Identifier: Apache-2.0
"""Weights and constants of every training loss, the paper's numbers as defaults."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

HARD_REGION_DIVERGENCES = ("reversed", "jensen-shannon")


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class Sam3ILossConfig:
    """
    Weights and constants of the losses; `to_dict()` is what `Sam3IConfig.loss_config` stores.

    Raises:
        ValueError: a value is outside its range.

    Source: SAM3-I (arXiv 2512.04585) and its released training configuration.
    """

    box_l1_weight: float = _setting(5.0, "Weight of the L1 distance between matched boxes (cxcywh).")
    box_giou_weight: float = _setting(2.0, "Weight of 1 - GIoU of matched boxes.")
    classification_weight: float = _setting(20.0, "Weight of the IoU-aware classification of queries.")
    presence_weight: float = _setting(20.0, "Weight of the presence loss (is anything denoted at all).")
    mask_focal_weight: float = _setting(200.0, "Weight of the focal loss of matched masks.")
    mask_dice_weight: float = _setting(10.0, "Weight of the dice loss of matched masks.")
    semantic_focal_weight: float = _setting(20.0, "Weight of the focal loss of the semantic map.")
    semantic_dice_weight: float = _setting(30.0, "Weight of the dice loss of the semantic map.")
    one_to_many_weight: float = _setting(2.0, "Factor on all losses of the duplicated, one-to-many queries.")
    scale_by_rows: bool = _setting(True, "Multiply the supervised loss by sqrt(number of instruction rows).")

    classification_positive_weight: float = _setting(10.0, "Factor on the loss of a matched query.")
    classification_score_exponent: float = _setting(0.25, "a in the soft target p^a * IoU^(1-a) of a matched query.")
    classification_gamma: float = _setting(2.0, "Exponent of p that focuses unmatched queries.")
    classification_min_queries: int = _setting(200, "The mean over queries counts at least this many of them.")
    classify_without_target: bool = _setting(
        False, "Whether rows that denote nothing train the classification of queries, besides presence."
    )
    presence_alpha: float = _setting(0.5, "Balance of the focal presence loss.")
    presence_gamma: float = _setting(0.0, "Focusing exponent of the focal presence loss.")
    mask_focal_alpha: float = _setting(0.25, "Balance of the focal mask loss.")
    mask_focal_gamma: float = _setting(2.0, "Focusing exponent of the focal mask loss.")
    semantic_focal_alpha: float = _setting(0.6, "Balance of the focal semantic loss.")
    semantic_focal_gamma: float = _setting(2.0, "Focusing exponent of the focal semantic loss.")

    match_class_cost: float = _setting(2.0, "Weight of the focal class cost in the one-to-one matcher.")
    match_l1_cost: float = _setting(5.0, "Weight of the L1 box cost in the one-to-one matcher.")
    match_giou_cost: float = _setting(2.0, "Weight of the -GIoU cost in the one-to-one matcher.")
    match_focal_alpha: float = _setting(0.25, "Balance of the focal class cost.")
    match_focal_gamma: float = _setting(2.0, "Focusing exponent of the focal class cost.")
    one_to_many_score_weight: float = _setting(0.3, "a in the one-to-many quality a * p + (1-a) * IoU.")
    one_to_many_threshold: float = _setting(0.4, "A query whose quality is at most this is not matched.")
    one_to_many_top_k: int = _setting(4, "At most about this many queries are matched to one object.")

    kl_weight: float = _setting(0.001, "Weight of the KL alignment of semantic maps.")
    hard_region_weight: float = _setting(1.0, "Weight of the hard-region loss.")
    hard_region_divergence: str = _setting(
        "reversed", "Pixel weight of the hard-region loss: 'reversed' (the authors') or 'jensen-shannon' (corrected)."
    )
    info_nce_weight: float = _setting(1.0, "Weight of the contrastive loss between simple and complex features.")
    info_nce_temperature: float = _setting(0.1, "Temperature of the contrastive loss.")
    same_concept_weight: float = _setting(0.5, "Weight of a negative that shares the anchor's concept.")
    margin_weight: float = _setting(1.0, "Weight of the concept margin loss.")
    margin: float = _setting(0.2, "By how much its own concept must be nearer than any other (cosine).")

    def __post_init__(self) -> None:
        unit = {name for name in self._names() if name.endswith(("_alpha", "_exponent", "_score_weight"))}
        unit |= {"one_to_many_threshold", "same_concept_weight"}
        for name in self._names():
            value = getattr(self, name)
            if name == "hard_region_divergence":
                if value not in HARD_REGION_DIVERGENCES:
                    raise ValueError(f"`{name}` must be one of {HARD_REGION_DIVERGENCES}, got {value!r}.")
            elif name in ("scale_by_rows", "classify_without_target"):
                if not isinstance(value, bool):
                    raise ValueError(f"`{name}` must be True or False, got {value!r}.")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
            elif name in unit and not 0.0 <= value <= 1.0:
                raise ValueError(f"`{name}` must lie in [0, 1], got {value!r}.")
            elif name in ("classification_min_queries", "one_to_many_top_k") and (value != int(value) or value < 1):
                raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}.")
            elif name == "info_nce_temperature" and value <= 0:
                raise ValueError(f"`{name}` must be > 0, got {value!r}.")
            elif value < 0:
                raise ValueError(f"`{name}` must be >= 0, got {value!r}.")
        if self.match_class_cost == self.match_l1_cost == self.match_giou_cost == 0:
            raise ValueError("At least one of `match_class_cost`, `match_l1_cost`, `match_giou_cost` must be > 0.")

    @classmethod
    def _names(cls) -> list[str]:
        return [entry.name for entry in fields(cls)]

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, in JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> "Sam3ILossConfig":
        """
        The config with the given fields replaced; None or {} gives the defaults.

        Raises:
            ValueError: a key is not a field, or a value is outside its range.
        """
        values = dict(values or {})
        unknown = sorted(set(values) - set(cls._names()))
        if unknown:
            raise ValueError(f"Unknown loss setting(s) {unknown}; the known ones are {cls._names()}.")
        return cls(**values)


__all__ = ["HARD_REGION_DIVERGENCES", "Sam3ILossConfig"]
