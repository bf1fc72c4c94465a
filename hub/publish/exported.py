# SPDX-License-Identifier: Apache-2.0
"""Models as graphs: written whole or not at all, held against the model they come from, and run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...processing.atomic import refuse_full, write_whole
from ...trainer.baselines.segmenters import SegmentationResult, Segmenter
from .graphs import OUTPUTS, GraphFormat, require_packages, write_graphs

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ...trainer.evaluation.result import EvaluationResult

README = "README.md"
TEMPLATE = Path(__file__).parents[1] / "cards" / "graphs_readme.md"
TOLERANCE = 1e-4
"""Greatest difference from the model, as a share of an output's largest value. Where logits of +-60 cross zero,
float32 itself is 2e-4 away from float64, so that no smaller scale can tell a wrong graph from rounding."""

Arrays = dict[str, np.ndarray]
Graph = Callable[[Arrays], Sequence[np.ndarray]]


@dataclass
class ExportReport:
    """What was written and how it compares with the model."""

    folder: Path
    parity: dict[str, float]  # greatest difference from the model, as a share of the output's largest value
    results: "list[EvaluationResult]" = field(default_factory=list)  # on the shapes world, where asked for

    def __str__(self) -> str:
        from ...trainer.evaluation.tables import score_table

        lines = [f"Written to {self.folder}:"]
        for path in sorted(self.folder.iterdir()):
            lines.append(f"  {path.name:<26}{path.stat().st_size / 1e6:8.1f} MB")
        lines.append("Greatest difference from the model / largest value of the output:")
        lines += [f"  {name:<26}{value:8.1e}" for name, value in self.parity.items()]
        if self.results:
            lines += ["On the shapes world:", str(score_table(self.results))]
        return "\n".join(lines)


def export_graphs(
    model: "Sam3IForInstructionSegmentation",
    output_dir: str | Path,
    to: str | GraphFormat = GraphFormat.ONNX,
    levels: Sequence[str | InstructionLevel] = tuple(InstructionLevel),
    *,
    int8: bool = False,
    processor: Any = None,
    scenes: int = 0,
) -> ExportReport:
    """Write a model as graphs: `vision` once, `text_LEVEL` and `decoder_LEVEL` for every level, and a README.

    Args:
        model: The model, in float32; a domain LoRA must be merged into it.
        output_dir: Folder to create.
        to: "onnx", "openvino" or "pt2" (torch.export).
        levels: Levels to export.
        int8: Whether weights are stored in 8 bits.
        processor: The model's, for `scenes`.
        scenes: Scenes of the shapes world on which model and graphs are compared, if any.

    Raises:
        ImportError: without the packages of the format.
        ValueError: for another precision than float32, 8 bits in a format without them, or graphs that differ from the
            model; nothing is written then.
        FileExistsError: when `output_dir` holds files already.
    """
    to, output_dir = GraphFormat(to), Path(output_dir)
    chosen = [InstructionLevel.from_any(level) for level in levels]
    if int8 and to is GraphFormat.PT2:
        raise ValueError("Expected onnx or openvino for 8-bit weights, found pt2: quantize the model (torchao).")
    if model.dtype != torch.float32:
        raise ValueError(f"Expected the model in float32, found {model.dtype}: load it with dtype=torch.float32.")
    refuse_full(output_dir)
    require_packages(to.packages(int8))
    with write_whole(output_dir) as folder:
        folder.mkdir()
        write_graphs(model, folder, to, chosen, int8)
        exported = ExportedModel(folder)
        report = ExportReport(output_dir, _parity(model, exported, chosen))
        worst = max(report.parity, key=lambda name: report.parity[name])
        if not int8 and not report.parity[worst] <= TOLERANCE:
            raise ValueError(
                f"The {to.value} graphs differ from the model by {report.parity[worst]:.1e} of the largest value of "
                f"{worst}, more than {TOLERANCE:.0e}: nothing was written."
            )
        if scenes:
            report.results = _scores(model, exported, processor, chosen, scenes)
        config: Any = model.config
        text = TEMPLATE.read_text(encoding="utf-8").format(
            to=to.value,
            ending=to.ending,
            weights="weights in 8 bits" if int8 else "float32",
            levels=", ".join(f"`{level.value}`" for level in chosen),
            side=config.vision_config.backbone_config.image_size,
            length=config.text_config.max_position_embeddings,
            queries=config.detr_decoder_config.num_queries,
            parity=f"{report.parity[worst]:.1e}",
        )
        (folder / README).write_text(text, encoding="utf-8")
    return report


def export_onnx(
    model: "Sam3IForInstructionSegmentation",
    output_dir: str | Path,
    levels: Sequence[str | InstructionLevel] = tuple(InstructionLevel),
) -> Path:
    """Write a model as ONNX graphs; the folder. See [`export_graphs`]."""
    return export_graphs(model, output_dir, GraphFormat.ONNX, levels).folder


@torch.no_grad()
def _parity(
    model: "Sam3IForInstructionSegmentation", exported: "ExportedModel", levels: Sequence[InstructionLevel]
) -> dict[str, float]:
    """Differences on random pixels and words, two instructions of unlike length at each level."""
    config: Any = model.config
    side, length = config.vision_config.backbone_config.image_size, config.text_config.max_position_embeddings
    generator = torch.Generator().manual_seed(0)
    rows = 2 * len(levels)
    ids = torch.randint(1, config.text_config.vocab_size - 1, (rows, length), generator=generator)
    ends = torch.tensor([5, max(5, length // 2)] * len(levels))
    inputs = {
        "pixel_values": torch.rand(1, 3, side, side, generator=generator) * 2 - 1,
        "input_ids": ids,
        "attention_mask": (torch.arange(length)[None] < ends[:, None]).long(),
        "instruction_levels": torch.tensor([level.index for level in levels for _ in range(2)]),
        "image_ids": torch.zeros(rows, dtype=torch.long),
    }
    training = model.training
    expected = model.eval()(**{name: value.to(model.device) for name, value in inputs.items()})
    model.train(training)
    found = exported({name: value.numpy() for name, value in inputs.items()})
    differences = {}
    for name in OUTPUTS:
        reference = expected[name].cpu()
        difference = (torch.from_numpy(found[name]) - reference).abs().max() / reference.abs().max().clamp(min=1e-6)
        differences[name] = float(difference)
    return differences


def _scores(
    model: Any, exported: "ExportedModel", processor: Any, levels: Sequence[InstructionLevel], scenes: int
) -> "list[EvaluationResult]":
    from ...processing.shapes.dataset import shapes_rows
    from ...trainer.evaluation.evaluate import evaluate_model, evaluate_segmenter

    rows, results = list(shapes_rows("test", scenes)), []
    instructed = [level for level in levels if level is not InstructionLevel.CONCEPT]
    for level in instructed or levels:
        asked: dict[str, Any] = {"level": level.value, "progress": False}
        name = f"{exported.format.value}, {level.value}"
        results += [
            evaluate_model(model, processor, rows, name=f"model, {level.value}", **asked),
            evaluate_segmenter(ExportedSegmenter(exported, processor, name), rows, **asked),
        ]
    return results


class ExportedModel:
    """Runs exported graphs, image by image and instruction by instruction.

    Args:
        folder: What [`export_graphs`] wrote.

    Raises:
        ImportError: without the packages of their format.
        FileNotFoundError: when the folder holds no graphs.
    """

    def __init__(self, folder: str | Path):
        found = [to for to in GraphFormat if (Path(folder) / f"vision{to.ending}").is_file()]
        if not found:
            raise FileNotFoundError(f"{folder} holds no graphs: write them with `export_graphs` or `sam3i export`.")
        self.format = found[0]
        require_packages(self.format.runtime)
        opener = {GraphFormat.ONNX: _open_onnx, GraphFormat.OPENVINO: _open_openvino, GraphFormat.PT2: _open_pt2}
        files = sorted(Path(folder).glob(f"*{self.format.ending}"))
        self.graphs = {path.stem: opener[self.format](path) for path in files}

    def run(self, name: str, **inputs: np.ndarray) -> Arrays:
        """The outputs of one graph by name.

        Raises:
            ValueError: for a graph that was not exported.
        """
        if name not in self.graphs:
            raise ValueError(f"Expected one of the exported graphs {sorted(self.graphs)}, found {name!r}.")
        values = self.graphs[name](inputs)
        return dict(zip(_output_names(name.partition("_")[0], len(values)), values, strict=True))

    def __call__(self, inputs: Mapping[str, Any]) -> Arrays:
        """The decoder's outputs, `(rows, ...)`, for the inputs that `Sam3IProcessor` returns; see the model's forward.

        Every image runs once, whatever the number of its instructions.
        """
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        rows, levels = len(arrays["input_ids"]), arrays["instruction_levels"]
        images = arrays.get("image_ids", np.arange(rows))
        maps = [self.run("vision", pixel_values=pixels[None]) for pixels in arrays["pixel_values"]]
        answers = []
        for row in range(rows):
            level = InstructionLevel.from_any(int(levels[row])).value
            prompt = {name: arrays[name][row : row + 1] for name in ("input_ids", "attention_mask")}
            words = self.run(f"text_{level}", **prompt)
            words |= {"attention_mask": prompt["attention_mask"]}
            answers.append(self.run(f"decoder_{level}", **words, **maps[int(images[row])]))
        return {name: np.concatenate([answer[name] for answer in answers]) for name in OUTPUTS}


def _output_names(kind: str, count: int) -> Sequence[str]:
    maps = [f"fpn_{number}" for number in range(count)]
    return {"vision": maps, "text": ["text_features", "word_embeds"], "decoder": OUTPUTS}[kind]


def _open_onnx(path: Path) -> Graph:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})


def _open_openvino(path: Path) -> Graph:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [port.any_name for port in compiled.inputs]
    return lambda inputs: [np.array(value) for value in compiled([inputs[name] for name in names]).to_tuple()]


def _open_pt2(path: Path) -> Graph:
    """Programs take their arguments by place, in the order in which they are named here."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(inputs: Arrays) -> list[np.ndarray]:
        return [value.numpy() for value in module(*(torch.from_numpy(value) for value in inputs.values()))]

    return run


class ExportedSegmenter(Segmenter):
    """Exported graphs as a system under evaluation."""

    def __init__(self, exported: ExportedModel, processor: Any, name: str, threshold: float = 0.5):
        self.exported, self.processor, self.name, self.threshold = exported, processor, name, threshold

    @property
    def num_parameters(self) -> int | None:
        return None

    def segment(self, image: "Image", instructions: list[str], levels: list[str | None]) -> list[SegmentationResult]:
        asked = [level or "auto" for level in levels]
        inputs = self.processor(images=[image], text=[instructions], instruction_levels=[asked], return_tensors="pt")
        found = self.exported({name: value for name, value in inputs.items() if torch.is_tensor(value)})
        outputs = {name: torch.from_numpy(value) for name, value in found.items()}
        results = self.processor.post_process_instruction_segmentation(
            SimpleNamespace(**outputs, instruction_levels=inputs["instruction_levels"]),
            threshold=self.threshold,
            target_sizes=[(image.height, image.width)],
        )
        return [SegmentationResult(row["masks"], row["scores"], row["boxes"], row["level"]) for row in results]
