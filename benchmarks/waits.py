# SPDX-License-Identifier: Apache-2.0
"""How often the host waits for an accelerator in a call, counted without one: stock SAM3 against SAM3-I.

Tensors of the stand-in device of the tests lie on the processor and count what would stop an accelerator: values that
the host reads, boolean indices, copies to it. The numbers are those of any size of the model.
Run: `python benchmarks/waits.py` (a minute).
"""

import argparse
import sys
from pathlib import Path

import torch
from kept import Figure, add_options, finish
from models import build_model, image, instructions
from timing import table
from transformers import Sam3Model

from sam3i.processing.post_processing import segment_rows

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "modeling_sam3i"))
from stand_in_device import NAME, StandInDevice, set_up, waits  # noqa: E402

ROWS = (3, 6)


def waits_of(call, *args, **kwargs) -> tuple[int, object]:
    """The waits of a call, and what it returned."""
    waits.clear()
    result = call(*args, **kwargs)
    return sum(waits.values()), result


def inputs_of(model, rows: int) -> dict[str, torch.Tensor]:
    """Instructions of all three levels on one image, on the device."""
    made = {"pixel_values": image(model), "image_ids": torch.zeros(rows, dtype=torch.long)} | instructions(model, rows)
    made["instruction_levels"] = torch.arange(rows) % 3
    return {name: tensor.to(NAME) for name, tensor in made.items()}


def labels_of(rows: int) -> list[dict[str, torch.Tensor]]:
    """None, one and two targets, again and again."""
    label = {"masks": torch.ones(2, 112, 112, dtype=torch.bool), "boxes": torch.full((2, 4), 0.4)}
    return [{name: value[: row % 3].to(NAME) for name, value in label.items()} for row in range(rows)]


@torch.no_grad()
def count(design: str) -> dict[str, list[int]]:
    """Waits by call, for fewer and for more rows."""
    model = build_model("tiny", adapter_design=design).to(NAME)
    stock = Sam3Model(model.config).eval().to(NAME)
    found: dict[str, list[int]] = {}
    for rows in ROWS:
        inputs = inputs_of(model, rows)
        plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        pixels = inputs["pixel_values"].expand(rows, -1, -1, -1)
        forward, outputs = waits_of(model, **inputs)
        counts = {
            "stock, forward": waits_of(stock, pixel_values=pixels, **plain)[0],
            "forward": forward,
            "segment": waits_of(model.segment, threshold=0.0, **inputs)[0],
            "post-processing": waits_of(segment_rows, outputs, 0.0, 0.5, [(40, 50)] * rows, 0.8)[0],
        }
        with torch.enable_grad():
            model.train().freeze_stock()
            counts["forward and loss"], outputs = waits_of(model, **inputs, labels=labels_of(rows))
            counts["backward"] = waits_of(outputs.loss.backward)[0]
            model.eval()
        for name, number in counts.items():
            found.setdefault(name, []).append(number)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    set_up()
    figures = {}
    for design in ("cascade", "selective"):
        with StandInDevice():
            counts = count(design)
        rows = [[name, *numbers] for name, numbers in counts.items()]
        table(f"Waits of the host, {design}", ["", *(f"{rows} rows" for rows in ROWS)], rows)
        figures |= {f"{design}: {name}": Figure(numbers[-1]) for name, numbers in counts.items()}
    finish("waits", "tiny", figures, options)


if __name__ == "__main__":
    main()
