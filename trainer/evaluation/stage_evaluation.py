# SPDX-License-Identifier: Apache-2.0
"""What is looked at while training: figures by level and kind of target, and whether the concept path is untouched."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...processing.datasets.schema import TARGET_KINDS
from ..processes import process_state
from .evaluate import evaluate_model, row_image
from .protocols import get_protocol
from .result import run_records, score_records

FIGURES = ("gIoU", "cIoU", "P@0.5", "AP50", "count_ratio", "exact", "N-acc")
KIND_FIGURES = ("gIoU", "P@0.5", "AP50", "count_ratio", "exact")


def evaluate_levels(
    model: Any,
    processor: Any,
    dataset: Any,
    trained: Sequence[InstructionLevel],
    *,
    batch_size: int,
    threshold: float,
    folder: Path,
    keep_records: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """Figures of the default protocol, in percent, for every level and every kind of target that the data has.

    They are `{level}_{figure}`, `{level}_{kind}_{figure}`, `{level}_best_threshold`, `{level}_best_gIoU`,
    `{level}_calibration_error`; `stage_gIoU` over the instructions of the trained levels, and `stage_best_gIoU` with
    every level at its own best threshold. The last one depends on no threshold, so it is what checkpoints are chosen
    by: scores move in training and are calibrated after it, and at a fixed one that movement would pass for progress.

    Args:
        folder: Where predictions lie while they are scored; shared by all processes, removed at the end.
        keep_records: Called with the record of each answer (see `make_record`).

    Raises:
        ValueError: when the data has no instruction of the trained levels.
    """
    state = process_state()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # of an evaluation that was cut off
    state.wait_for_everyone()
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "threshold": threshold,
        "output_dir": folder,
        "fingerprint": False,
    }
    result = evaluate_model(model, processor, dataset, progress=False, **options)
    protocol = get_protocol("default")
    records = list(run_records(str(result.predictions), protocol))
    if keep_records is not None:
        for record in records:
            keep_records(record)
    scores, _ = score_records(records, protocol, threshold)
    levels, kinds = scores.levels, scores.kinds
    figures: dict[str, float] = {}

    def add(prefix: str, chosen: np.ndarray, names: Sequence[str]) -> None:
        if chosen.any():
            computed = protocol.compute(scores.take(chosen))
            known = {f"{prefix}_{name}": computed[name] for name in names}
            figures.update({name: value for name, value in known.items() if value is not None})

    for level in (each.value for each in InstructionLevel):
        add(level, levels == level, FIGURES)
        for kind in TARGET_KINDS:
            add(f"{level}_{kind}", (levels == level) & (kinds == kind), KIND_FIGURES)
    for level, entry in result.thresholds.items():
        known = {"best_threshold": entry["best"], "best_gIoU": entry["figures"]["gIoU"]}
        known["calibration_error"] = entry["calibration_error"]
        figures.update({f"{level}_{name}": value for name, value in known.items() if value is not None})
    add("stage", np.isin(levels, [level.value for level in trained]), ("gIoU",))
    best = [(entry["figures"], level) for level, entry in result.thresholds.items()]
    counted = [(each["gIoU"], each["n"]) for each, level in best if level in [each.value for each in trained]]
    if counted:
        values, weights = zip(*counted, strict=True)
        figures["stage_best_gIoU"] = float(np.average(values, weights=weights))
    if "stage_gIoU" not in figures:
        wanted = " or ".join(level.value for level in trained)
        raise ValueError(f"Expected evaluation data with instructions of the level {wanted}, found none.")
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder)
    return figures


class ConceptCheck:
    """Tells whether the model still answers concepts, a fixed batch, bit for bit as it did when the check was made."""

    _COMPARED = ("pred_masks", "pred_boxes", "pred_logits", "presence_logits", "semantic_seg", "text_features")

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor]):
        self.inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        self.before = self._outputs(model)

    @classmethod
    def on_rows(cls, model: Any, processor: Any, rows: Sequence[Any]) -> "ConceptCheck":
        """Check the images of some rows with their concept, or with "object" where they have none."""
        concepts = [row["concept"][0] if row["concept"] else "object" for row in rows]
        images = [row_image(row) for row in rows]
        encoded = processor(images=images, text=concepts, instruction_levels="concept", return_tensors="pt")
        names = ("pixel_values", "input_ids", "attention_mask", "instruction_levels")
        return cls(model, {name: encoded[name] for name in names})

    def _outputs(self, model: Any) -> dict[str, torch.Tensor]:
        training = model.training
        model.eval()
        with torch.no_grad():
            outputs = model(**self.inputs)
        model.train(training)
        return {name: getattr(outputs, name).clone() for name in self._COMPARED}

    def is_unchanged(self, model: Any) -> bool:
        """Whether every output equals the recorded one (`torch.equal`)."""
        after = self._outputs(model)
        return all(torch.equal(after[name], before) for name, before in self.before.items())
