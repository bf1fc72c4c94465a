# SPDX-License-Identifier: Apache-2.0
"""Ask several things of one picture, at levels of their own: the picture is encoded once.

python examples/many_instructions.py
python examples/many_instructions.py --model org/sam3-i --images dogs.jpg --text "dog" "the dog on the left"
"""

import argparse
import time
from pathlib import Path

import torch
from PIL import Image

from sam3i import InstructionLevel, Sam3IForInstructionSegmentation, Sam3IProcessor, ShapesInstructionDataset


def held_out_scene() -> tuple[Image.Image, list[str]]:
    """A picture that the tiny model was not trained on, and what can be asked of it."""
    dataset = ShapesInstructionDataset("test", 1, targets_per_scene=6)
    return Image.fromarray(dataset.scene(0).image), sorted({case.text for case in dataset.cases})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "shapes_tiny"))
    parser.add_argument("--images", type=Path, nargs="+")
    parser.add_argument("--text", nargs="+", default=[], help="the instructions, asked of every image")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.images and not options.text:
        parser.error("--images needs --text, the instructions")
    model = Sam3IForInstructionSegmentation.from_pretrained(options.model, dtype=torch.float32)
    model, processor = model.to(options.device).eval(), Sam3IProcessor.from_pretrained(options.model)
    if options.images:
        pictures, texts = [Image.open(path).convert("RGB") for path in options.images], options.text
    else:
        picture, texts = held_out_scene()
        pictures = [picture]
    encoded = []
    model.vision_encoder.register_forward_hook(lambda module, args, outputs: encoded.append(len(args[0])))

    # One list of instructions for each picture; "auto" reads the level of each from its words.
    inputs = processor(
        images=pictures, text=[texts] * len(pictures), instruction_levels="auto", return_tensors="pt"
    ).to(options.device)
    started = time.monotonic()
    with torch.no_grad():
        outputs = model(**inputs)
    together = time.monotonic() - started
    results = processor.post_process_instruction_segmentation(
        outputs,
        threshold=options.threshold,
        target_sizes=[picture.size[::-1] for picture in pictures],
        image_ids=inputs["image_ids"],
    )
    for row, result in enumerate(results):
        level = InstructionLevel.from_any(result["level"]).value
        print(f"{level:<8}{len(result['scores'])} found  {texts[row % len(texts)]}")
    print(f"{len(results)} instructions, {sum(encoded)} pictures encoded, {together:.2f} s together", end=", ")

    started = time.monotonic()
    for row, text in enumerate(texts * len(pictures)):
        alone = processor(images=pictures[row // len(texts)], text=text, return_tensors="pt").to(options.device)
        with torch.no_grad():
            model(**alone)
    print(f"{time.monotonic() - started:.2f} s one by one ({sum(encoded) - len(pictures)} pictures encoded)")
    if encoded[0] != len(pictures) or sum(encoded[1:]) != len(results):
        raise SystemExit(f"expected every picture to be encoded once for all its instructions, found {encoded}")


if __name__ == "__main__":
    main()
