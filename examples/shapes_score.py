# SPDX-License-Identifier: Apache-2.0
"""Score a model on scenes of any seed, per level, kind of target and family, at .5 and at the best threshold.

    python examples/shapes_score.py --model examples/shapes_tiny --seed 12345 --cases 100

Figures are those of the package's evaluation, in percent: gIoU, AP50, instances found per true instance, and the share
of cases with exactly the true instances; "top-1", of no threshold, is the share of cases of one true instance of which
the best scored instance is it. Below stands the expected calibration error of a level's scores. The best threshold of
a level is the one of its highest gIoU on these very cases: it says how far .5 is from it, and is no figure to report.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from shapes_common import WORLDS
from shapes_tables import evaluate_cases

from sam3i import (
    InstructionLevel,
    Sam3IForInstructionSegmentation,
    Sam3IProcessor,
    ShapesInstructionDataset,
)
from sam3i.processing.shapes import UNHEARD
from sam3i.trainer.evaluation import (
    THRESHOLDS,
    EvaluationResult,
    choose_threshold,
    get_protocol,
    match_instances,
    run_samples,
    sweep_masks,
)

FIGURES = {"gIoU": "gIoU", "AP50": "AP50", "inst/true": "count_ratio", "exact": "exact"}


def table(dataset: ShapesInstructionDataset, result: EvaluationResult, level: InstructionLevel) -> Iterator[str]:
    """The lines of one level: all cases, then by kind of target, by family, and of held-out words."""
    protocol = get_protocol("default")
    predictions, references = run_samples(result.predictions, protocol)  # in the order of the cases
    swept = dict(zip(THRESHOLDS, sweep_masks(predictions, references, THRESHOLDS), strict=True))
    best = choose_threshold({threshold: protocol.mean_iou(scores) for threshold, scores in swept.items()})
    cells = "".join(f"{name:>10}" for name in FIGURES)
    yield f"\n{level.value:<28}{'cases':>7}{'top-1':>8}{cells}  |{cells}"
    yield f"{'':<43}{'at 0.5':>40}  |{f'at {best}':>40}"
    groups = {"all": np.ones(len(dataset), dtype=bool)}
    for of_case in (lambda case: case.target.kind, lambda case: case.target.meaning.family):
        names = [of_case(case) for case in dataset.cases]
        groups |= {name: np.array([each == name for each in names]) for name in Counter(names)}
    held_out = np.array([case.is_held_out for case in dataset.cases])
    unheard = np.array([case.target.phrasings[case.level].template.endswith(UNHEARD) for case in dataset.cases])
    groups |= {"held-out words": held_out, "words of training": ~held_out} if held_out.any() else {}
    groups |= {"words never heard": unheard} if unheard.any() else {}
    matches = list(map(match_instances, predictions, references))
    single = np.array([match.instances == 1 for match in matches])
    top_1 = np.array([match.correct[:1].any() for match in matches])
    for name, rows in groups.items():
        top = format(top_1[rows & single].mean() * 100, ".1f") if (rows & single).any() else "-"
        sides = []
        for threshold in (0.5, best):
            figures = protocol.compute(swept[threshold].take(rows))
            values = [figures[key] for key in FIGURES.values()]
            sides.append("".join(f"{'-' if value is None else format(value, '.2f'):>10}" for value in values))
        yield f"{name:<28}{rows.sum():>7}{top:>8}{sides[0]}  |{sides[1]}"
    error = result.thresholds[level.value]["calibration_error"]
    yield f"expected calibration error: {'-' if error is None else format(error, '.1f')} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a SAM3-I repository")
    parser.add_argument("--world", choices=WORLDS, default="shapes", help="what scenes show")
    parser.add_argument("--seed", type=int, default=0, help="of the world; 0 is the one that the recipe trains on")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--cases", type=int, default=100, help="per level and kind of target")
    parser.add_argument("--levels", nargs="+", choices=[level.value for level in InstructionLevel])
    parser.add_argument("--max-overlap", type=float, help="mask IoU above which the lower-scored instance is dropped")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    model = Sam3IForInstructionSegmentation.from_pretrained(options.model, dtype=torch.float32).to(options.device)
    processor = Sam3IProcessor.from_pretrained(options.model)
    print(f"{options.model}, {options.split} scenes of {options.world}, seed {options.seed}")
    for level in InstructionLevel if options.levels is None else map(InstructionLevel.from_any, options.levels):
        dataset = WORLDS[options.world].evaluation(options.split, options.cases, options.seed, [level])
        with tempfile.TemporaryDirectory() as folder:
            kept = {"output_dir": folder, "fingerprint": False, "max_overlap": options.max_overlap}
            result = evaluate_cases(model, processor, dataset, **kept)
            for line in table(dataset, result, level):
                print(line, flush=True)


if __name__ == "__main__":
    main()
