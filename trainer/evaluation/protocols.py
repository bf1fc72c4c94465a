# SPDX-License-Identifier: Apache-2.0
"""How instruction segmentation is scored: protocols by name, each with a statement that can be printed.

The names of the figures are the same everywhere: gIoU is the mean of the samples' IoUs, cIoU the sum of their
intersections over the sum of their unions, P@t the share of samples with IoU >= t; all in percent. Merged masks hide
what was found twice, so every protocol also has figures of single instances (`INSTANCE_STATEMENT`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...processing.datasets.schema import LEVEL_FIELDS, TARGET_KINDS
from .mask_scores import SIZES, MaskScores, average_precision, score_masks

INSTANCE_STATEMENT = (
    "Instance by instance, one to one at IoU .5: count_ratio is the instances found per true instance, exact the "
    "share of answers with exactly the true instances, and AP50 COCO's, where no other is stated. An answer in error "
    "has IoU 0 and is never correct."
)
PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Protocol:
    """One way of turning masks into figures.

    Attributes:
        statement: what it does, in words to print beside its figures; `source` is where that was published.
        unit: what a sample is: "instruction" scores an answer against the whole target of its row, "instance" against
            every instance of the target by itself.
        texts: whether the "first" instruction of a level is asked, or "all" of them.
        empty_iou: IoU of a sample where neither the prediction nor the target has a pixel.
        averaged: the samples that gIoU and cIoU cover, `precision_over` those of P@t; "targeted" leaves those without
            a target out.
        mean_within_groups: average within each group (image record) first, then over the groups.
        detections: what COCO's AP takes as a detection: "merged" (one mask per answer), "instances", or None (no AP).
        accuracies: names of N-acc (share of no-target samples answered with nothing) and T-acc (share of targeted
            samples answered with something), where the protocol reports them.
        synonyms: further names of gIoU and cIoU that the source uses.
    """

    name: str
    statement: str
    source: str
    unit: Literal["instruction", "instance"] = "instruction"
    texts: Literal["first", "all"] = "all"
    empty_iou: float = 0.0
    averaged: Literal["all", "targeted"] = "all"
    precision_over: Literal["all", "targeted"] = "all"
    mean_within_groups: bool = False
    detections: Literal["merged", "instances"] | None = None
    accuracies: tuple[str, ...] = ()
    synonyms: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.statement} Source: {self.source}. {INSTANCE_STATEMENT}"

    def sample_iou(self, scores: MaskScores) -> np.ndarray:
        """IoU of each sample in [0, 1], float [S]."""
        return scores.iou(self.empty_iou)

    def mean_iou(self, scores: MaskScores) -> float | None:
        """gIoU in percent."""
        return self._mean(self.sample_iou(scores), self._covered(scores, self.averaged), scores.groups)

    def compute(self, scores: MaskScores) -> dict[str, float | int | None]:
        """The figures in percent, "count_ratio", "n" (units averaged over) and "failures" (answers in error).

        `gIoU-nothing` is what a system that always answers with nothing would get. A figure without a sample to
        average over (N-acc without a no-target sample) is None.

        Raises:
            ValueError: without samples.
        """
        if not len(scores):
            raise ValueError(f"Protocol {self.name!r} has no samples to score: the data gives none at this level.")
        iou = self.sample_iou(scores)
        nothing = np.where(scores.target_area > 0, 0.0, self.empty_iou)
        averaged = self._covered(scores, self.averaged)
        precise = self._covered(scores, self.precision_over)
        total_union = scores.union[averaged].sum()
        figures: dict[str, float | int | None] = {
            "gIoU": self.mean_iou(scores),
            "cIoU": float(scores.intersection[averaged].sum() / total_union * 100) if total_union else None,
        }
        for threshold in PRECISION_THRESHOLDS:
            figures[f"P@{threshold}"] = self._mean(iou >= threshold, precise, scores.groups)
        precision = average_precision(scores, merged=self.detections == "merged")
        for name in ("AP50",) if self.detections is None else ("AP", "AP50"):
            figures[name] = None if precision[name] is None else precision[name] * 100
        answers = _whole_answers(scores) if self.unit == "instance" else scores
        true = int(answers.instances.sum())
        figures["count_ratio"] = int(answers.found.sum()) / true if true else None
        figures["exact"] = self._mean(answers.exact, np.ones(len(answers), dtype=bool), answers.groups)
        silent = (scores.predicted_area == 0) & ~scores.failed
        correct = {"N-acc": (silent, scores.no_target), "T-acc": (scores.predicted_area > 0, ~scores.no_target)}
        correct["Acc"] = correct["N-acc"]
        for name in self.accuracies:
            figures[name] = self._mean(*correct[name])
        figures |= {synonym: figures[name] for synonym, name in self.synonyms}
        figures["gIoU-nothing"] = self._mean(nothing, averaged, scores.groups)
        figures["n"] = len(set(scores.groups)) if self.mean_within_groups else len(scores)
        figures["failures"] = int(scores.failed.sum())
        return figures

    def compute_breakdown(self, scores: MaskScores) -> dict[str, dict[str, dict[str, Any]]]:
        """The figures per level, kind of target and size of target: {"level": {"simple": figures, ...}, ...}."""
        columns: dict[str, tuple[np.ndarray, Sequence[str]]] = {
            "level": (scores.levels, LEVEL_FIELDS),
            "kind": (scores.kinds, TARGET_KINDS),
            "size": (scores.sizes, SIZES),
        }
        return {
            name: {value: self.compute(scores.take(found == value)) for value in order if (found == value).any()}
            for name, (found, order) in columns.items()
        }

    @staticmethod
    def _covered(scores: MaskScores, which: str) -> np.ndarray:
        return ~scores.no_target if which == "targeted" else np.ones(len(scores), dtype=bool)

    def _mean(self, values: np.ndarray, covered: np.ndarray, groups: list[str] | None = None) -> float | None:
        values = np.asarray(values, dtype=np.float64)[covered]
        if not len(values):
            return None
        if groups is not None and self.mean_within_groups:
            _, places = np.unique(np.array(groups, dtype=object)[covered].astype(str), return_inverse=True)
            values = np.bincount(places, weights=values) / np.bincount(places)
        return float(values.mean() * 100)


def _whole_answers(scores: MaskScores) -> MaskScores:
    """Samples of single instances put together again: one answer against all the instances it was scored against."""
    answers: dict[tuple, tuple[Any, list[Any]]] = {}
    for prediction, reference in zip(scores.predictions, scores.references, strict=True):
        key = reference["group"], tuple(prediction["masks"]), tuple(prediction["scores"]), prediction.get("failed")
        answers.setdefault(key, (prediction, []))[1].append(reference)
    references = []
    for _, parts in answers.values():
        lists = {name: [entry for part in parts for entry in part[name]] for name in ("masks", "is_crowd")}
        references.append({**parts[0], **lists})
    return score_masks([prediction for prediction, _ in answers.values()], references, check=False)


_KNOWN = (
    Protocol(
        name="default",
        statement="One sample per instruction; its instances are merged and compared with the whole target. Nothing "
        "predicted where nothing is asked for has IoU 1. P@t and gIoU cover all samples. AP matches single instances, "
        "one image per instruction. N-acc and T-acc are the shares of no-target samples answered with nothing and of "
        "targeted samples answered with something.",
        source="this package",
        empty_iou=1.0,
        detections="instances",
        accuracies=("N-acc", "T-acc"),
    ),
    Protocol(
        name="sam3i-1to1",
        statement="One sample per ANNOTATION: the first instruction of its image record is asked, all predicted masks "
        "are merged by OR and compared with this one annotation, so several targets of one instruction are scored one "
        "by one. An annotation without prediction has IoU 0, and so has an empty prediction for an empty annotation; "
        "records without annotation are not scored. cIoU is the figure the authors' script prints as mIoU. AP takes "
        "the merged mask with its highest score as the one detection, all annotations being one category; the merged "
        "mask may match any annotation of its image record.",
        source="SAM3-I (arXiv 2512.04585), scripts/evaluate.py --mode 1to1, recovered from its printed figures",
        unit="instance",
        texts="first",
        detections="merged",
    ),
    Protocol(
        name="sam3i-multi",
        statement="The target of an image record is the union of its annotations. Each prediction record of the image "
        "(the authors make one per annotation) is merged by OR and compared with that union; figures are averaged "
        "within an image record, then over ALL image records of the file: one without annotation, or without "
        "prediction, counts 0, even where both are rightly empty. cIoU is ours (sums over prediction records).",
        source="SAM3-I (arXiv 2512.04585), scripts/evaluate.py --mode multi_inst, recovered from its printed figures",
        texts="first",
        mean_within_groups=True,
    ),
    Protocol(
        name="grefcoco",
        statement="One sample per expression. A no-target expression has IoU 1 if nothing is predicted and 0 "
        "otherwise; then its false pixels enlarge the union of cIoU. P@t covers the expressions with a target. N-acc "
        "and T-acc are recall on no-target and on targeted expressions; a prediction without a pixel means no target.",
        source="GRES (Liu, Ding, Jiang, CVPR 2023, arXiv 2306.00968, section 5.1) and the evaluator of its code "
        "(henghuiding/ReLA)",
        empty_iou=1.0,
        precision_over="targeted",
        accuracies=("N-acc", "T-acc"),
    ),
    Protocol(
        name="refcoco",
        statement="One sample per expression, each expression denoting one object. gIoU is the literature's mIoU and "
        "cIoU its oIoU (overall IoU).",
        source="Yu et al., Modeling Context in Referring Expressions (ECCV 2016); LAVT (Yang et al., CVPR 2022, "
        "section 4) for oIoU, mIoU and P@t",
        synonyms=(("mIoU", "gIoU"), ("oIoU", "cIoU")),
    ),
    Protocol(
        name="reasonseg",
        statement="One sample per instruction. Pixels of ignore regions count on neither side; where nothing is left "
        "of prediction and target the IoU is 1. (The 1e-5 that the authors add to each union is left out.)",
        source="LISA (Lai et al., CVPR 2024, arXiv 2308.00692, section 5.1) and the validation of its code "
        "(dvlab-research/LISA)",
        empty_iou=1.0,
    ),
    Protocol(
        name="refzom",
        statement="One sample per expression. gIoU (the source's mIoU), cIoU (its oIoU) and P@t cover the expressions "
        "with a target; Acc is the share of no-target expressions answered without a pixel.",
        source="Ref-ZOM and DMMI (Hu et al., Beyond One-to-One, ICCV 2023, arXiv 2308.13853, section 5)",
        averaged="targeted",
        precision_over="targeted",
        accuracies=("Acc",),
        synonyms=(("mIoU", "gIoU"), ("oIoU", "cIoU")),
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _KNOWN}


def get_protocol(name: str | Protocol) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: lists the known names.
    """
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise ValueError(f"Unknown protocol: expected one of {', '.join(PROTOCOLS)}, found {name!r}.")
    return PROTOCOLS[name]
