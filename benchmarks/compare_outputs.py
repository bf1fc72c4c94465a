# SPDX-License-Identifier: Apache-2.0
"""Whether two checkouts compute the same: every output of a model, tensor by tensor, to the last bit.

    git worktree add ../before COMMIT
    python benchmarks/compare_outputs.py ../before .

Each checkout answers in a process of its own: the shipped model, all levels, several instructions an image, box
exemplars, `segment`, training losses and gradients.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ANSWER = """
import sys, torch
from PIL import Image
torch.set_num_threads(1)
from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor
model = Sam3IForInstructionSegmentation.from_pretrained(sys.argv[1]).float().eval()
processor = Sam3IProcessor.from_pretrained(sys.argv[1])
generator = torch.Generator().manual_seed(0)
images = [Image.fromarray(torch.randint(0, 255, (112, 112, 3), generator=generator, dtype=torch.uint8).numpy())
          for _ in range(2)]
text = [["moon", "the blue star on the left", "the objects that could move the tide"], ["the largest heart"]]
levels = [["concept", "simple", "complex"], ["simple"]]
inputs = processor(images=images, text=text, instruction_levels=levels, return_tensors="pt")
found = {}
def keep(name, outputs):
    for key, value in outputs.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        found.update({f"{name}.{key}.{i}": each for i, each in enumerate(values) if torch.is_tensor(each)})
for name, gradients in (("forward, images shared", False), ("forward, row by row", True)):
    with torch.set_grad_enabled(gradients):
        keep(name, model(**inputs))
keep("segment", model.segment(threshold=0.05, **inputs))
boxes = processor(images=images, text=["star", "the blue star"], instruction_levels=["concept", "simple"],
                  input_boxes=[[[10, 10, 60, 60]], [[5, 20, 50, 80]]], return_tensors="pt")
with torch.no_grad():
    keep("boxes", model(**boxes))
masks = torch.zeros(1, 112, 112, dtype=torch.bool); masks[:, 20:60, 30:70] = True
target = {"masks": masks, "boxes": torch.tensor([[0.45, 0.36, 0.36, 0.36]])}
model.train()
loss = model(**inputs, labels=[target] * 4)
loss.loss.backward()
found["loss"] = loss.loss.detach()
found.update({f"gradient.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None})
torch.save({key: value.detach().clone() for key, value in found.items()}, sys.argv[2])
"""


def answers(checkout: Path, model: Path, folder: Path) -> dict[str, torch.Tensor]:
    """What one checkout computes, in a process that sees no other."""
    home, file = folder / checkout.resolve().name, folder / f"{checkout.resolve().name}.pt"
    home.mkdir()
    (home / "sam3i").symlink_to(checkout.resolve())
    code = f"import sys; sys.path.insert(0, {str(home)!r}); sys.argv[0] = 'compare'\n{ANSWER}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(model.resolve()), str(file)], check=True)
    return torch.load(file, weights_only=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "examples" / "shapes_tiny")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = answers(arguments.before, arguments.model, Path(folder))
        after = answers(arguments.after, arguments.model, Path(folder))
    equal = [name for name in before if name in after and torch.equal(before[name], after[name])]
    print(f"{len(equal)} of {len(before)} tensors are equal to the last bit.")
    for name in before:
        if name not in after or before[name].shape != after[name].shape:
            print(
                f"{name}: {list(before[name].shape)} before, "
                f"{list(after[name].shape) if name in after else 'missing'} after"
            )
        elif name not in equal:
            print(f"{name}: differs by up to {(before[name].double() - after[name].double()).abs().max():.3g}")
    print(*(f"{name}: new" for name in after if name not in before), sep="\n")
    return int(len(equal) < len(before))


if __name__ == "__main__":
    sys.exit(main())
