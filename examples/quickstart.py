# SPDX-License-Identifier: Apache-2.0
"""Segment scenes that the shipped tiny model has never seen, at three levels; print its scores beside stock SAM3's.

Everything runs on a CPU in about a minute. Images go to quickstart/.
"""

from pathlib import Path

from PIL import Image
from shapes_tables import header, nothing_line, score_level, splits, system_line
from transformers import pipeline

import sam3i  # noqa: F401  registers the pipeline
from sam3i import InstructionLevel, ShapesInstructionDataset, contact_sheet, draw_instances

MODEL = Path(__file__).parent / "shapes_tiny"
OUTPUT = Path("quickstart")
CASES = 30  # per level and kind of target
PANELS = 4  # per level


def score(pipe) -> None:
    """Print the table; SAM3-I at the usual 0.5, stock SAM3 at the threshold that suits it best."""
    for level in InstructionLevel:
        _, test = splits(level, CASES, 0)
        print("\n" + header(f"{level.value}: gIoU of {len(test)} held-out cases"))
        stock = score_level(pipe.model, pipe.processor, level, CASES, asked_at=InstructionLevel.CONCEPT)
        found = score_level(pipe.model, pipe.processor, level, CASES, threshold=0.5)
        print(nothing_line(found), system_line("stock SAM3", stock), system_line("SAM3-I", found), sep="\n")


def draw(pipe) -> Path:
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
            found = pipe(image, text=case.text, level=level.value)
            names = {"instructions": [case.text], "levels": [level.value]}
            panels.append(draw_instances(image, [found], **names, side=360))
    path = OUTPUT / "contact_sheet.png"
    contact_sheet(panels, PANELS, cell=360).save(path)
    return path


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    pipe = pipeline("instruction-segmentation", model=str(MODEL), device="cpu")
    score(pipe)
    print(f"\nLook at {draw(pipe)}")


if __name__ == "__main__":
    main()
