# SPDX-License-Identifier: Apache-2.0
"""Segment scenes that the shipped tiny model has never seen, at three levels; print its scores beside stock SAM3's.

Everything runs on a CPU in about a minute. quickstart/contact_sheet.png shows truth and prediction side by side.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from shapes_common import WORLDS
from shapes_tables import header, nothing_line, score_level, splits, system_line
from transformers import pipeline

import sam3i  # noqa: F401  registers the pipeline
from sam3i import InstructionLevel, contact_sheet, draw_comparison

WORLD, MODEL = "pictograms", Path(__file__).parent / "things_tiny"
OUTPUT = Path("quickstart")
CASES = 30  # per level and kind of target
PAIRS = 2  # per level, beside each other
SIDE = 200  # pixels of a picture: the sheet is read at the size it has
NEXT = """
Next:
  {bin}sam3i demo --model examples/things_tiny                   # the same in a browser; pip install "sam3i[demo]"
  {bin}sam3i predict --model examples/things_tiny --image quickstart/scene.png --text "the purple hat"
  {bin}python examples/finetune_domain.py                        # teach a model shapes and words it has never seen"""


def score(pipe) -> None:
    """Print the table; SAM3-I at the usual 0.5, stock SAM3 at the threshold that suits it best."""
    for level in InstructionLevel:
        _, test = splits(level, CASES, 0, WORLD)
        print("\n" + header(f"{level.value}: gIoU of {len(test)} held-out cases"))
        stock = score_level(pipe.model, pipe.processor, level, CASES, 0, InstructionLevel.CONCEPT, WORLD)
        found = score_level(pipe.model, pipe.processor, level, CASES, world=WORLD, threshold=0.5)
        print(nothing_line(found), system_line("stock SAM3", stock), system_line("SAM3-I", found), sep="\n")


def draw(pipe) -> Path:
    """Write the contact sheet: for each level truth and prediction of some scenes."""
    pictures, captions, seen = [], [], set()
    for level in InstructionLevel:
        test = WORLDS[WORLD].evaluation("test", 8, levels=[level])
        by_scene = {case.scene_index: case for case in reversed(test.cases) if case.target.kind != "none"}
        for scene in sorted(by_scene.keys() - seen)[:PAIRS]:
            seen.add(scene)
            case, sample = by_scene[scene], test.sample(by_scene[scene])
            image = Image.fromarray(sample["image"])
            found = pipe(image, text=case.text, level=level.value)
            masks, scores = [np.asarray(one["mask"]) for one in found], [one["score"] for one in found]
            pictures.append(draw_comparison(image, sample["masks"], {"SAM3-I": (masks, scores)}, side=SIDE))
            captions.append(f"{case.text}\n{level.value}")
    image.save(OUTPUT / "scene.png")
    path = OUTPUT / "contact_sheet.png"
    contact_sheet(pictures, PAIRS, captions=captions).save(path)
    return path


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    pipe = pipeline("instruction-segmentation", model=str(MODEL), device="cpu")
    print(f"Look at {draw(pipe)}: what was asked for, and beside it what was found. The scores take a minute.")
    score(pipe)
    print(NEXT.format(bin=".venv/bin/" if Path(".venv/bin/sam3i").exists() else ""))


if __name__ == "__main__":
    main()
