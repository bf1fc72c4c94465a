# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint of the authors' code into a repository, load it, and follow an instruction with it.

    python examples/convert_checkpoint.py                       # a miniature with random weights, made on the spot
    python examples/convert_checkpoint.py --checkpoint sam3i.pt --base facebook/sam3

The miniature shows the way and checks that every weight arrives; what it segments means nothing.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from official_layout import tiny_config, write_synthetic_checkpoint

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor, convert_official_checkpoint
from sam3i.processing.shapes import ShapesWorld


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--base", default=str(Path(__file__).parent / "shapes_tiny"), help="where the processor is")
    parser.add_argument("--output", type=Path, default=Path("runs/converted"))
    options = parser.parse_args()
    if not options.checkpoint:
        shutil.rmtree(options.output, ignore_errors=True)  # of an earlier run
    native = None
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint
        if checkpoint is None:
            checkpoint = Path(folder) / "synthetic.pt"
            native = write_synthetic_checkpoint(checkpoint)
        config = tiny_config() if native else None
        report = convert_official_checkpoint(checkpoint, options.output, config=config, base=options.base)
    print(report.summary())
    print(f"written to {options.output}: {', '.join(sorted(path.name for path in options.output.iterdir()))}")

    model = Sam3IForInstructionSegmentation.from_pretrained(options.output).eval()
    processor = Sam3IProcessor.from_pretrained(options.output)
    picture = ShapesWorld(0, "test").scene(0).image
    inputs = processor(images=picture, text="the circle on the left", instruction_levels="simple", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    print(f"an instruction gives masks {list(outputs.pred_masks.shape)} and scores {list(outputs.pred_logits.shape)}")
    if native:
        state = model.state_dict()
        arrived = sum(torch.equal(state[name], tensor) for name, tensor in native.items())
        print(f"{arrived} of {len(native)} weights arrived bit for bit")
        if arrived != len(native) or len(state) != len(native):
            raise SystemExit("the converted model is not what the checkpoint holds")


if __name__ == "__main__":
    main()
