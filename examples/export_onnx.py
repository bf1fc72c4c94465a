# SPDX-License-Identifier: Apache-2.0
"""Export SAM3-I to graphs (vision, text at a level, decoder at a level), compare them with the model, and run them.

python examples/export_onnx.py
python examples/export_onnx.py --model org/sam3-i --to openvino --image dogs.jpg --text "the dog on the left"
"""

import argparse
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor, ShapesInstructionDataset
from sam3i.hub.publish import ExportedModel, export_graphs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "shapes_tiny"))
    parser.add_argument("--to", default="onnx", help="onnx, openvino or pt2")
    parser.add_argument("--levels", nargs="+", default=["concept", "simple"])
    parser.add_argument("--image", type=Path)
    parser.add_argument("--text", nargs="+", default=[], help="instructions about --image, followed at every level")
    parser.add_argument("--output", type=Path, default=Path("runs/onnx"))
    options = parser.parse_args()
    model = Sam3IForInstructionSegmentation.from_pretrained(options.model, dtype=torch.float32)
    processor = Sam3IProcessor.from_pretrained(options.model)

    report = export_graphs(model, options.output, options.to, options.levels)
    print(report)
    print(f"parity {max(report.parity.values()):.1e}")

    if options.image:
        image, texts = Image.open(options.image).convert("RGB"), options.text
    else:
        cases = ShapesInstructionDataset("test", 3, targets_per_scene=4)
        image = Image.fromarray(cases.scene(0).image)
        texts = sorted({case.text for case in cases.cases if case.scene_index == 0})
    levels = [level for level in options.levels for _ in texts]
    inputs = processor(
        images=[image], text=[texts * len(options.levels)], instruction_levels=[levels], return_tensors="pt"
    )
    runtime = ExportedModel(options.output)
    started = time.monotonic()
    outputs = {name: torch.from_numpy(value) for name, value in runtime(inputs).items()}
    print(f"{len(levels)} instructions on one image in {time.monotonic() - started:.2f} s:")
    found = processor.post_process_instruction_segmentation(
        SimpleNamespace(**outputs, instruction_levels=inputs["instruction_levels"]),
        target_sizes=[(image.height, image.width)],
    )
    for text, row in zip(texts * len(options.levels), found, strict=True):
        print(f"  {row['level']:<8} {text}: {len(row['scores'])} found")


if __name__ == "__main__":
    main()
