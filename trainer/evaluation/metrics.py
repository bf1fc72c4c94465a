# SPDX-License-Identifier: Apache-2.0
"""The figures of instruction segmentation as an `evaluate.Metric`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate

from .mask_scores import encode_prediction, number_references, score_masks
from .protocols import get_protocol

METRIC_FOLDER = str(Path(__file__).with_name("instruction_segmentation"))
"""`evaluate.load(METRIC_FOLDER, "grefcoco")` gives the metric as any other of the library; nothing is downloaded."""

_DESCRIPTION = """\
Scores answers to segmentation instructions: gIoU, cIoU, P@0.5 ... P@0.9, AP and AP50 (pycocotools), instances found
per true instance (count_ratio), answers with exactly the true instances (exact), N-acc and T-acc, over everything and
per level, kind of target and size of target, in percent. The protocol decides what a sample is and how empty answers
count; `config_name` chooses it.
"""
_INPUTS = """
        predictions: one per sample: what the pipeline returns for one text, or {"masks": list[str], compressed RLE
            counts, "scores": list[float], "failed": bool}, an entry per instance, as `encode_prediction` makes it.
        references: one per sample, {"id", "group": str, "level", "target_kind": str ("" where unknown), "height",
            "width": int, "masks", "ignore_masks": list[str] of RLE counts, "is_crowd": bool per mask}.
            Make them with `encode_reference`.
        protocol (`str`, *optional*): overrides the protocol of `config_name`.
        breakdown (`bool`, defaults to True): add "per_level", "per_kind" and "per_size".
"""


class InstructionSegmentationMetric(evaluate.Metric):
    """gIoU, cIoU, P@t, AP, N-acc and T-acc under a named protocol; works with add, add_batch and across processes.

    Everything goes through Arrow files as run lengths, so memory does not grow with the pixels. With `num_process`
    and `process_id` every process adds its own share and process 0 computes (the others get None); `experiment_id`
    keeps runs on one file system apart. Nothing is downloaded.

    Args:
        config_name (`str`, defaults to `"default"`): the protocol, see `PROTOCOLS`.

    Raises:
        ValueError: for an unknown protocol.

    Example:

        metric = InstructionSegmentationMetric("grefcoco")
        metric.add(prediction=encode_prediction(result), reference=encode_reference(masks, level="simple"))
        metric.compute()["gIoU"]
    """

    def __init__(self, config_name: str | None = None, **kwargs):
        self.protocol = get_protocol(config_name or "default")
        super().__init__(config_name=config_name, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text, texts = datasets.Value("string"), datasets.List(datasets.Value("string"))
        number = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="SAM3-I (arXiv 2512.04585)",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": {
                        "masks": texts,
                        "scores": datasets.List(datasets.Value("float64")),
                        "failed": datasets.Value("bool"),
                    },
                    "references": {
                        "id": text,
                        "group": text,
                        "level": text,
                        "target_kind": text,
                        "height": number,
                        "width": number,
                        "masks": texts,
                        "ignore_masks": texts,
                        "is_crowd": datasets.List(datasets.Value("bool")),
                    },
                }
            ),
        )

    def add(self, *, prediction: Any = None, reference: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds one answer (pipeline output, arrays or run lengths) and its target."""
        super().add(prediction=encode_prediction(prediction), reference=reference, **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds answers and their targets."""
        encoded = [encode_prediction(prediction) for prediction in predictions]
        super().add_batch(predictions=encoded, references=references, **kwargs)

    def _compute(
        self,
        *,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        protocol: str | None = None,
        breakdown: bool = True,
    ) -> dict[str, Any]:
        chosen = get_protocol(protocol) if protocol else self.protocol
        scores = score_masks(predictions, number_references(references))
        figures: dict[str, Any] = chosen.compute(scores)
        if breakdown:
            figures |= {f"per_{name}": parts for name, parts in chosen.compute_breakdown(scores).items()}
        return figures
