# SPDX-License-Identifier: Apache-2.0
"""One instruction on one image on a CPU: stock in float32 at full size against every cheaper way, and what it costs.

Ways: `fp32` and `bf16` (the whole model), `fast` (what `--fast` is: linear layers of the image encoder in 8 bits, its
attention and neck in bfloat16 where the processor multiplies that), `int8 all` (dynamic, all linear layers),
`torchao` (linear layers of the image encoder by torchao), `onnx`, `openvino` and their 8-bit weights (`sam3i export`),
`openvino bf16`, and `openvino int8` with activations in 8 bits in the vision graph.
Sides other than the model's own are set through the configuration (`image_size`), as stock allows it.

Distances are those of the mask logits to stock's in float32 at the model's own side, on random weights: correlation,
largest difference over the largest value, share of pixels on the same side of zero. The accuracy is that of the small
model of examples/ run the same way on the shapes world; what a lower side costs real weights cannot be known from it.

Run: `OMP_NUM_THREADS=1 python benchmarks/cpu.py --size real --ways fp32 fast --sides 1008 672 --keep` (8 GB),
`--accuracy` for the second table.
"""

import argparse
import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from kept import add_options, finish, ratios
from models import SIZES, build_model, image, instructions, stock_twin
from timing import Timing, clock, ratio, table
from torch import nn
from transformers.initialization import no_init_weights

from sam3i import InstructionLevel, Sam3IForInstructionSegmentation, Sam3IProcessor
from sam3i.hub.publish.exported import ExportedModel, ExportedSegmenter
from sam3i.hub.publish.graphs import OUTPUTS, GraphFormat, write_graphs
from sam3i.modeling_sam3i.fast_vision import make_vision_fast
from sam3i.processing.shapes.dataset import shapes_rows
from sam3i.trainer.evaluation.evaluate import evaluate_model, evaluate_segmenter

WAYS = (
    "fp32",
    "bf16",
    "fast",
    "int8 all",
    "torchao",
    "onnx",
    "onnx int8",
    "openvino",
    "openvino bf16",
    "openvino int8",
)
SHAPES_TINY = Path(__file__).resolve().parents[1] / "examples" / "shapes_tiny"


def at_side(model: Sam3IForInstructionSegmentation, side: int) -> Sam3IForInstructionSegmentation:
    """The same weights for pictures of another side: a module of its own, no second copy in memory."""
    config = copy.deepcopy(model.config)
    config.image_size = side
    with no_init_weights():
        other = type(model)(config)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval()


@contextmanager
def one_core() -> Iterator[None]:
    """Runtimes that are opened here take one thread."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)


def export(
    model: Sam3IForInstructionSegmentation, way: str, folder: Path, levels: list[InstructionLevel]
) -> ExportedModel:
    """The graphs of a way, opened on one thread."""
    name, _, precision = way.partition(" ")
    to = GraphFormat(name)
    write_graphs(model, folder, to, levels, int8=way == "onnx int8")
    with one_core():
        exported = ExportedModel(folder)
        if precision and to is GraphFormat.OPENVINO:
            hint = "bf16" if precision == "bf16" else "f32"
            exported.graphs["vision"] = open_openvino(folder / "vision.xml", hint, precision == "int8", model)
    return exported


def open_openvino(path: Path, hint: str, int8: bool, model) -> Callable:
    """A graph in a precision, or with weights and activations in 8 bits after a calibration on random pixels."""
    import openvino

    graph = openvino.Core().read_model(path)
    if int8:
        import nncf

        pixels = nncf.Dataset([image(model, seed).numpy() for seed in range(2, 4)])
        graph = nncf.quantize(graph, pixels, model_type=nncf.ModelType.TRANSFORMER, subset_size=2)
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    names = [port.any_name for port in compiled.inputs]
    return lambda inputs: list(compiled([inputs[name] for name in names]).to_tuple())


def torch_way(model: Sam3IForInstructionSegmentation, way: str) -> Sam3IForInstructionSegmentation:
    """The model in the precision of a way; the given one keeps its own."""
    other = copy.deepcopy(model) if way == "bf16" else at_side(model, model.config.image_size)
    if way == "bf16":
        return other.bfloat16()
    if way == "fast":
        make_vision_fast(other)
    elif way == "int8 all":
        settings = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        torch.ao.quantization.quantize_dynamic(other, settings, dtype=torch.qint8, inplace=True)
    elif way == "torchao":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        other.vision_encoder.backbone = copy.deepcopy(other.vision_encoder.backbone)
        quantize_(other.vision_encoder.backbone, Int8DynamicActivationInt8WeightConfig())
    return other


def prepare(
    model: Sam3IForInstructionSegmentation, way: str, folder: Path
) -> Callable[[dict], dict[str, torch.Tensor]]:
    """What answers the inputs of a call in the way that is named."""
    if way.startswith(("onnx", "openvino")):
        exported = export(model, way, folder, [InstructionLevel.CONCEPT])
        return lambda inputs: {name: torch.from_numpy(value) for name, value in exported(inputs).items()}
    other = torch_way(model, way)

    def run(inputs: dict) -> dict[str, torch.Tensor]:
        outputs = other(**inputs | {"pixel_values": inputs["pixel_values"].to(other.dtype)})
        return {name: outputs[name].float() for name in OUTPUTS}

    return run


def distance(masks: torch.Tensor, reference: torch.Tensor) -> list:
    """Correlation, largest difference over the largest value, share of pixels on the same side of zero."""
    if masks.shape != reference.shape:
        masks = nn.functional.interpolate(masks, size=reference.shape[-2:], mode="bilinear", align_corners=False)
    correlation = torch.corrcoef(torch.stack([masks.flatten(), reference.flatten()]))[0, 1]
    largest = (masks - reference).abs().max() / reference.abs().max()
    same = ((masks > 0) == (reference > 0)).float().mean()
    return [f"{correlation:.5f}", float(largest), f"{same:.4%}"]


@torch.no_grad()
def measure_time(options: argparse.Namespace) -> None:
    """The table of time and distance; systems run in turn."""
    model = build_model(options.size, adapter_design=options.design)
    own_side = model.config.image_size
    text = instructions(model, 1) | {"instruction_levels": torch.tensor([0]), "image_ids": torch.tensor([0])}
    pixels = image(model)
    base = f"stock fp32 {own_side}"
    stock = stock_twin(model)
    plain = {name: text[name] for name in ("input_ids", "attention_mask")}
    systems = {base: lambda: {"pred_masks": stock(pixel_values=pixels, **plain).pred_masks}}
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sides or [own_side]:
            resized = model if side == own_side else at_side(model, side)
            smaller = nn.functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
            inputs = text | {"pixel_values": pixels if side == own_side else smaller}
            for way in options.ways:
                where = Path(folder) / f"{way} {side}"
                where.mkdir()
                try:
                    run = prepare(resized, way, where)
                except (ImportError, RuntimeError, ValueError) as error:
                    print(f"{way} {side}: not run: {str(error).splitlines()[0]}", flush=True)
                    continue
                systems[f"{way} {side}"] = lambda run=run, inputs=inputs: run(inputs)
        timings, distances, reference = {name: Timing() for name in systems}, {}, None
        for _ in range(options.rounds):
            for name, run in systems.items():
                with clock(timings[name]):
                    outputs = run()
                if name == base:
                    reference = outputs["pred_masks"]
                distances.setdefault(name, distance(outputs["pred_masks"], reference))
                print(f"{name}: {timings[name].cpu[-1]:.2f} s of processor time, {distances[name]}", flush=True)
    rows = [
        [name, timing.wall_s, timing.cpu_s, 1 / ratio(timing, timings[base]), *distances[name]]
        for name, timing in timings.items()
    ]
    header = ["", "wall s", "cpu s", "times faster", "correlation", "max diff / max", "pixels equal"]
    table(f"One instruction on one image, {options.size} size, random weights", header, rows)
    finish("cpu", options.size, ratios(timings, base), options, distances=distances)


def measure_accuracy(options: argparse.Namespace) -> None:
    """The table of accuracies of the small trained model, each way and side (its own, two thirds, a half)."""
    model = Sam3IForInstructionSegmentation.from_pretrained(SHAPES_TINY, dtype=torch.float32).eval()
    examples, rows = list(shapes_rows("test", options.scenes)), []
    patch = model.config.vision_config.backbone_config.patch_size
    sides = [round(model.config.image_size * share / patch) * patch for share in (1, 2 / 3, 1 / 2)]
    for side in sides:
        resized = at_side(model, side)
        processor = Sam3IProcessor.from_pretrained(SHAPES_TINY)
        processor.image_processor.size = {"height": side, "width": side}
        for way in options.ways:
            try:
                rows.append([f"{way} {side}", *accuracy(resized, processor, way, examples)])
            except (ImportError, RuntimeError, ValueError) as error:
                print(f"{way} {side}: not run: {str(error).splitlines()[0]}", flush=True)
    levels = [level.value for level in InstructionLevel]
    header = ["", *(f"{level}: {figure}" for level in levels for figure in ("gIoU", "AP50", "exact"))]
    table(f"Accuracy of examples/shapes_tiny on {options.scenes} test scenes, percent", header, rows)


def accuracy(model, processor, way: str, examples: list[dict]) -> list[float]:
    """gIoU, AP50 and exact of each level."""
    with tempfile.TemporaryDirectory() as folder:
        levels = list(InstructionLevel)
        if way.startswith(("onnx", "openvino")):
            segmenter = ExportedSegmenter(export(model, way, Path(folder), levels), processor, way)

            def evaluate(level):
                return evaluate_segmenter(segmenter, examples, level=level, progress=False)
        else:
            other = torch_way(model, way)

            def evaluate(level):
                return evaluate_model(other, processor, examples, level=level, progress=False)

        results = [evaluate(level.value).figures for level in levels]
    return [result[name] for result in results for name in ("gIoU", "AP50", "exact")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--design", choices=("cascade", "selective"), default="selective")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--sides", type=int, nargs="+", help="of the picture, in pixels; the model's own if not given")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--accuracy", action="store_true", help="the accuracies instead of the times")
    parser.add_argument("--scenes", type=int, default=60)
    add_options(parser)
    options = parser.parse_args()
    measure_accuracy(options) if options.accuracy else measure_time(options)


if __name__ == "__main__":
    main()
