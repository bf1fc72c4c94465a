# SPDX-License-Identifier: Apache-2.0
"""Segment what an instruction denotes, through the pipeline, and draw it.

python examples/inference.py                                        # a held-out scene, the shipped tiny model
python examples/inference.py --model org/sam3-i --images dogs.jpg --text "the brown dog on the left"
"""

import argparse
import time
from pathlib import Path

from PIL import Image
from transformers import pipeline

import sam3i  # noqa: F401  registers the pipeline
from sam3i import ShapesInstructionDataset, draw_instances


def held_out_scene() -> tuple[Image.Image, str]:
    """A picture and an instruction that the tiny model was not trained on."""
    dataset = ShapesInstructionDataset("test", 20, levels=["simple"], concepts_per_scene=0)
    case = next(case for case in dataset.cases if case.target.kind == "1-to-all")
    return Image.fromarray(dataset.scene(case.scene_index).image), case.text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "shapes_tiny"))
    parser.add_argument("--images", type=Path, nargs="+")
    parser.add_argument("--text", help="the instruction")
    parser.add_argument("--level", default="auto", choices=("auto", "concept", "simple", "complex"))
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/inference"))
    options = parser.parse_args()
    if options.images and not options.text:
        parser.error("--images needs --text, the instruction")
    pipe = pipeline("instruction-segmentation", model=options.model, device=options.device)
    scene, text = (None, options.text) if options.images else held_out_scene()
    pictures = [(path.stem, Image.open(path).convert("RGB")) for path in options.images or []] or [("scene", scene)]
    options.output.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures:
        started = time.monotonic()
        found = pipe(picture, text=options.text or text, level=options.level, threshold=options.threshold)
        print(f"{name}: {len(found)} instances of {options.text or text!r} in {time.monotonic() - started:.2f} s")
        for instance in found:
            box = [round(instance["box"][side]) for side in ("xmin", "ymin", "xmax", "ymax")]
            print(f"  score {instance['score']:.2f}  level {instance['level']}  box {box}")
        path = options.output / f"{name}.png"
        draw_instances(picture, [found], instructions=[options.text or text]).save(path)
        print(f"  look at {path}")


if __name__ == "__main__":
    main()
