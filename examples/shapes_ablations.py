# SPDX-License-Identifier: Apache-2.0
"""What each part of SAM3-I's training earns, on the shapes world: the two designs and one change at a time.

    python examples/shapes_ablations.py --stock runs/shapes_stock --output runs/shapes_ablations --seeds 0 1 2

Every run has the same data, steps and batches and a process of its own; a run that has been scored is not repeated,
and one that was interrupted goes on. A change that concerns later stages only starts from the reference's earlier
ones. Thresholds are chosen on the validation split, figures are gIoU, AP50 and the share of cases with exactly the
true instances on the test split.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from shapes_curriculum import (
    LOSS,
    SCENES,
    SELECTOR_STEPS,
    STEPS,
    load,
    training_arguments,
    training_rows,
)
from shapes_tables import giou_by_kind, score_level

from sam3i import (
    InstructionLevel,
    Sam3ILossConfig,
    Sam3ITrainer,
    TrainingStage,
    load_instruction_adapter,
)
from sam3i.processing.datasets import TARGET_KINDS

REFERENCE = "selective"
INSTANCES = ("AP50", "exact")  # figures of single instances, beside gIoU by kind of target
NO_ALIGNMENT = {name: 0.0 for name in ("kl_weight", "hard_region_weight", "info_nce_weight", "margin_weight")}
CLASSIFICATION = ("classification_positive_weight", "classification_gamma", "classify_without_target")
PAPER_CLASSIFICATION = {name: getattr(Sam3ILossConfig(), name) for name in CLASSIFICATION}
# name: design, changed adapters, changed losses, changed training arguments, first stage that differs
VARIANTS = {
    "selective": ("selective", {}, {}, {}, 0),
    "cascade": ("cascade", {}, {}, {}, 0),
    "without alignment losses": ("selective", {}, NO_ALIGNMENT, {}, 2),
    "corrected hard-region weight": ("selective", {}, {"hard_region_divergence": "jensen-shannon"}, {}, 2),
    "without cascade": ("selective", {}, {}, {"start_complex_from": "own"}, 1),
    "low-rank without selector": ("selective", {"selector_queries": 0}, {}, {}, 0),
    "selector never trained alone": ("selective", {}, {}, {"selector_steps": 0}, 0),
    "selector without low-rank": ("selective", {"adapter_rank": 0}, {}, {}, 0),
    "the paper's classification loss": ("selective", {}, PAPER_CLASSIFICATION, {}, 0),
    "cascade, authors' initialization": ("cascade", {"decoder_c_adapter_skip": False}, {}, {}, 0),
}


def initialize_as_the_authors(model) -> None:
    """Every matrix of the text adapters at zero, and every tensor of the C-Adapters, LayerNorm gains included.

    The gradient of a product of two zero matrices is zero in both, so most of these weights never move.
    """
    with torch.no_grad():
        for name, parameter in model.adapter_parameters().items():
            is_text = name.startswith("text_encoder.text_model.") and "norm" not in name
            if is_text or ".c_adapter." in name:
                parameter.zero_()


def run(options: argparse.Namespace, folder: Path) -> dict:
    """Train and score the variant and seed of the options."""
    design, adapters, loss, changes, first = VARIANTS[options.only]
    torch.manual_seed(options.seed)
    model, processor = load(options.stock, design, LOSS | loss, **adapters)
    if "authors' initialization" in options.only:
        initialize_as_the_authors(model)
    stages = list(TrainingStage)[first:]
    if first:
        source = folder_of(options.output, REFERENCE, options.seed) / list(TrainingStage)[first - 1].folder / "final"
        load_instruction_adapter(model, source)
    arguments = training_arguments(
        design,
        options.steps,
        folder,
        seed=options.seed,
        stages=[stage.value for stage in stages],
        feature_cache=str(options.output / "vision_features"),
        **{"selector_steps": options.selector_steps} | changes,
    )
    rows = training_rows(options.scenes, options.world_seed, options.output / "data")
    trainer = Sam3ITrainer(model, arguments, rows, processing_class=processor)
    begin = time.process_time()
    trainer.train(resume_from_checkpoint=True)
    seconds = time.process_time() - begin
    if not trainer.concept_check.is_unchanged(model):
        raise SystemExit("The concept path has changed.")
    result: dict[str, Any] = {
        "steps": sum(options.steps[first:]),
        "seconds": seconds,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "weights": sum(weight.numel() for weight in model.adapter_parameters().values()),
    }
    for level in (InstructionLevel.SIMPLE, InstructionLevel.COMPLEX):
        score = score_level(model.eval(), processor, level, options.cases, options.world_seed)
        result[level.value] = giou_by_kind(score) | {name: score.figures[name] for name in INSTANCES}
    return result


def folder_of(output: Path, variant: str, seed: int) -> Path:
    return output / f"{re.sub('[^a-z]+', '-', variant)}-{seed}"


def table(results: dict[str, list[dict]]) -> str:
    """Mean over the seeds and, for the gIoU of all cases, lowest and highest; seconds are those of the processor."""
    columns = ("all", *TARGET_KINDS, *INSTANCES)
    names = [f"{level} {column}" for level in ("simple", "complex") for column in columns]
    lines = ["| " + " | ".join(["variant", "seeds", "weights", "seconds", "peak MB", *names]) + " |"]
    lines.append("|" + "---|" * (5 + len(names)))
    for variant, runs in results.items():
        cells = [variant, str(len(runs)), f"{runs[0]['weights']:,}"]
        cells.append(f"{sum(run['seconds'] for run in runs) / len(runs):.0f}")
        cells.append(f"{max(run['peak MB'] for run in runs):.0f}")
        for level in ("simple", "complex"):
            for column in columns:
                found = [run[level][column] for run in runs]
                spread = f" ({min(found):.1f}-{max(found):.1f})" if column == "all" and len(found) > 1 else ""
                cells.append(f"{sum(found) / len(found):.1f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", default="runs/shapes_stock", help="repository of the tiny stock SAM3")
    parser.add_argument("--output", type=Path, default=Path("runs/shapes_ablations"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="what to compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--steps", type=int, nargs=3, default=STEPS, help="steps of each stage")
    parser.add_argument("--selector-steps", type=int, nargs=3, default=SELECTOR_STEPS, help="of the selectors alone")
    parser.add_argument("--scenes", type=int, default=SCENES, help="training scenes")
    parser.add_argument("--cases", type=int, default=125, help="test cases per level and kind of target")
    parser.add_argument("--world-seed", type=int, default=0, help="seed of the world")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        folder = folder_of(options.output, options.only, options.seed)
        result = run(options, folder)
        (folder / "result.json").write_text(json.dumps(result, indent=2))
        return
    results: dict[str, list[dict]] = {}
    for seed in options.seeds:
        for variant in options.variants:
            path = folder_of(options.output, variant, seed) / "result.json"
            if not path.exists():
                print(f"{variant}, seed {seed}", flush=True)
                command = [sys.executable, *sys.argv, "--only", variant, "--seed", str(seed)]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                print(path.read_text(), flush=True)
            results.setdefault(variant, []).append(json.loads(path.read_text()))
    print(table(results))


if __name__ == "__main__":
    main()
