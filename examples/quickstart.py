# SPDX-License-Identifier: Apache-2.0
"""Segment scenes that the shipped tiny model has never seen, at three levels; print its scores beside stock SAM3's.

Everything runs on a CPU in about a minute. Pictures go to quickstart/.
"""

from pathlib import Path

import torch
from PIL import Image
from shapes_common import ious_of_areas
from shapes_curriculum import Scores, line
from transformers import pipeline

import sam3i  # noqa: F401  registers the pipeline
from sam3i import InstructionLevel, contact_sheet, draw_instances
from sam3i.processing.datasets.schema import TARGET_KINDS
from sam3i.processing.shapes.dataset import ShapesInstructionDataset

MODEL = Path(__file__).parent / "shapes_tiny"
OUTPUT = Path("quickstart")
CASES = 30  # per level and kind of target
PANELS = 4  # per level


def score(pipe) -> dict[InstructionLevel, float]:
    """Print the table and return the threshold of each level, chosen on the validation split."""
    model, processor, thresholds = pipe.model, pipe.processor, {}
    for level in InstructionLevel:
        validation = ShapesInstructionDataset.evaluation("validation", CASES, levels=[level])
        test = ShapesInstructionDataset.evaluation("test", CASES, levels=[level])
        names = ("all", *TARGET_KINDS, "cIoU", "P@0.5", "N-acc")
        print(
            f"\n{f'{level.value}: gIoU of {len(test)} held-out cases':<34}" + "".join(f"{name:>9}" for name in names)
        )
        nothing = torch.tensor([float(case.target.kind == "none") for case in test.cases])
        print(line("answering nothing", test, nothing))
        for name, heard in {"stock SAM3": InstructionLevel.CONCEPT, "SAM3-I": level}.items():
            threshold = Scores(model, processor, validation, [heard.index] * len(validation)).best_threshold()
            areas = Scores(model, processor, test, [heard.index] * len(test)).at({heard.index: threshold})
            print(line(f"{name} (threshold {threshold})", test, ious_of_areas(*areas), areas))
            thresholds[level] = threshold
    return thresholds


def draw(pipe, thresholds: dict[InstructionLevel, float]) -> Path:
    """Write the contact sheet: a row of scenes for each level."""
    panels = []
    for level in InstructionLevel:
        test = ShapesInstructionDataset.evaluation("test", 8, levels=[level])
        by_scene = {}
        for case in test.cases:
            if case.target.kind != "none":
                by_scene.setdefault(case.scene_index, case)
        for case in list(by_scene.values())[:PANELS]:
            image = Image.fromarray(test.scene(case.scene_index).image)
            found = pipe(image, text=case.text, level=level.value, threshold=thresholds[level])
            names = {"instructions": [case.text], "levels": [level.value]}
            panels.append(draw_instances(image, [found], **names, side=360))
    path = OUTPUT / "contact_sheet.png"
    contact_sheet(panels, PANELS, cell=360).save(path)
    return path


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    pipe = pipeline("instruction-segmentation", model=str(MODEL), device="cpu")
    thresholds = score(pipe)
    print(f"\nLook at {draw(pipe, thresholds)}")


if __name__ == "__main__":
    main()
