# SPDX-License-Identifier: Apache-2.0
"""Export SAM3-I to ONNX (vision, text at a level, decoder at a level) and compare onnxruntime with the model.

python examples/export_onnx.py
python examples/export_onnx.py --model org/sam3-i --levels concept simple complex --image dogs.jpg --text "the dog"
"""

import argparse
import time
from pathlib import Path

import torch
from PIL import Image

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor, ShapesInstructionDataset, export_onnx
from sam3i.hub.publish import OUTPUTS, OnnxInstructionModel

# As a share of the largest magnitude of an output. Where logits of +-60 cross zero, float32 itself is 2e-4 away from
# float64, so that no smaller scale can tell a wrong graph from rounding.
TOLERANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "shapes_tiny"))
    parser.add_argument("--levels", nargs="+", default=["concept", "simple"])
    parser.add_argument("--image", type=Path)
    parser.add_argument("--text", nargs="+", default=[], help="instructions to compare on --image, at every level")
    parser.add_argument("--output", type=Path, default=Path("runs/onnx"))
    options = parser.parse_args()
    model = Sam3IForInstructionSegmentation.from_pretrained(options.model, dtype=torch.float32).eval()
    processor = Sam3IProcessor.from_pretrained(options.model)

    started = time.monotonic()
    export_onnx(model, options.output, options.levels)
    print(f"{time.monotonic() - started:.0f} s to write {options.output}:")
    for path in sorted(options.output.iterdir()):
        print(f"  {path.name:<24}{path.stat().st_size / 1e6:6.1f} MB")

    if options.image:
        image, texts = Image.open(options.image).convert("RGB"), options.text
    else:
        cases = ShapesInstructionDataset("test", 3, targets_per_scene=4)
        image, texts = cases.scene(0).image, sorted({case.text for case in cases.cases if case.scene_index == 0})
    levels = [level for level in options.levels for _ in texts]
    inputs = processor(
        images=[image], text=[texts * len(options.levels)], instruction_levels=[levels], return_tensors="pt"
    )
    runtime = OnnxInstructionModel(options.output)
    started = time.monotonic()
    found = runtime({name: value.numpy() for name, value in inputs.items() if torch.is_tensor(value)})
    seconds = time.monotonic() - started
    with torch.no_grad():
        expected = model(**inputs)
    print(f"{len(levels)} instructions on one image in {seconds:.2f} s; greatest difference / largest value:")
    worst = 0.0
    for name in OUTPUTS:
        reference = getattr(expected, name)
        difference = ((torch.from_numpy(found[name]) - reference).abs().max() / reference.abs().max()).item()
        worst = max(worst, difference)
        print(f"  {name:<18}{difference:.1e}")
    if worst > TOLERANCE:
        raise SystemExit(f"onnxruntime differs from the model by {worst:.1e}, more than {TOLERANCE:.0e}")
    print(f"parity {worst:.1e}")


if __name__ == "__main__":
    main()
