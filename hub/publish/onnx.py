# SPDX-License-Identifier: Apache-2.0
"""SAM3-I as ONNX graphs: vision once per image, text once per instruction, a decoder for every pair of them.

The level of an instruction decides which adapters run, so text and decoder have one graph per level. Shapes are fixed:
one image of the model's size, one instruction of the model's length. Box exemplars are not in the graphs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils import is_onnx_available, logging

from ...compat import Sam3VisionEncoderOutput, box_cxcywh_to_xyxy
from ...modeling_sam3i.adapters.routing import LevelRouting
from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...modeling_sam3i.instruction_encoding import EncodedInstructions
from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

logger = logging.get_logger(__name__)

OUTPUTS = ("pred_masks", "pred_boxes", "pred_logits", "presence_logits", "semantic_seg")
OPSET = 18
README = "README.md"
MOST_BYTES = 1 << 30  # one file of ONNX holds 2 GiB; larger weights go beside it


class VisionGraph(nn.Module):
    """`pixel_values` (1, 3, H, W) to the FPN maps that the decoder reads, finest first."""

    def __init__(self, model: Sam3IForInstructionSegmentation):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model.vision_encoder(pixel_values).fpn_hidden_states[:-1])


class TextGraph(nn.Module):
    """`input_ids`, `attention_mask` (1, L) to `text_features` (1, L, D), `word_embeds` (1, L, T), at one level."""

    def __init__(self, model: Sam3IForInstructionSegmentation, level: InstructionLevel):
        super().__init__()
        self.model = model
        self.routing = LevelRouting(torch.tensor([level.index]))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        masked = self.model.config.mask_padding_in_adapters
        outputs = self.model.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask if masked else None,
            adapter_padding_mask=attention_mask.bool() if masked else None,
            level_routing=self.routing,
        )
        words = self.model.text_encoder.text_model.embeddings.token_embedding(input_ids)
        return self.model.text_projection(outputs.last_hidden_state), words


class DecoderGraph(nn.Module):
    """FPN maps of an image, `text_features` and `word_embeds` of an instruction to its instances, at one level.

    The position encodings of the maps depend on their sizes alone and are constants of the graph.
    """

    def __init__(
        self, model: Sam3IForInstructionSegmentation, level: InstructionLevel, positions: Sequence[torch.Tensor]
    ):
        super().__init__()
        self.model = model
        self.routing = LevelRouting(torch.tensor([level.index]))
        self.positions = list(positions)

    def forward(
        self,
        text_features: torch.Tensor,
        word_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        *fpn_states: torch.Tensor,
    ):
        model, text_mask = self.model, attention_mask.bool()
        vision = Sam3VisionEncoderOutput(fpn_hidden_states=fpn_states, fpn_position_encoding=self.positions)
        rows = EncodedInstructions(vision, None, self.routing, None, text_features, word_embeds, text_mask, None, None)
        prompt = model.make_prompt(rows, list(fpn_states), self.positions)
        encoded = model.detr_encoder(
            vision_features=[fpn_states[-1]],
            text_features=prompt.features,
            vision_pos_embeds=[self.positions[-1]],
            text_mask=prompt.attention_mask,
            level_routing=self.routing,
        )
        decoded, boxes, logits = model.decode_queries(
            encoded.last_hidden_state,
            encoded.pos_embeds_flattened,
            fpn_states[-1].shape[-2:],
            prompt,
        )
        masks = model.mask_decoder(
            decoder_queries=decoded.intermediate_hidden_states[-1],
            backbone_features=list(fpn_states),
            encoder_hidden_states=encoded.last_hidden_state,
            prompt_features=prompt.features,
            prompt_mask=prompt.attention_mask,
            level_routing=self.routing,
        )
        presence, logits = decoded.presence_logits[-1], model.calibrate(logits[-1], self.routing)
        return masks.pred_masks, box_cxcywh_to_xyxy(boxes[-1]), logits, presence, masks.semantic_seg


@torch.no_grad()
def export_onnx(
    model: Sam3IForInstructionSegmentation,
    output_dir: str | Path,
    levels: Sequence[str | InstructionLevel] = tuple(InstructionLevel),
) -> Path:
    """Write a model as ONNX graphs: `vision.onnx`, and `text_LEVEL.onnx` and `decoder_LEVEL.onnx` for every level.

    Args:
        model: The model, in float32; a domain LoRA must be merged into it.
        output_dir: Folder to write to; a README beside the graphs names their inputs and outputs.
        levels: Levels to export.

    Returns:
        `Path`: The folder.

    Raises:
        ImportError: without the packages that write ONNX.
        ValueError: for another precision than float32.
    """
    if not is_onnx_available():
        raise ImportError('Writing ONNX graphs needs further packages: pip install "sam3i[onnx]"')
    if model.dtype != torch.float32:
        raise ValueError(f"Expected the model in float32, found {model.dtype}: load it with dtype=torch.float32.")
    chosen = [InstructionLevel.from_any(level) for level in levels]
    folder, was_training = Path(output_dir), model.training
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    try:
        config: Any = model.config
        backbone = config.vision_config.backbone_config
        pixels = torch.zeros(1, backbone.num_channels, backbone.image_size, backbone.image_size)
        ids = torch.zeros(1, config.text_config.max_position_embeddings, dtype=torch.long)
        mask = (torch.arange(ids.shape[1]) < 4).long()[None]
        pixels, ids, mask = (tensor.to(model.device) for tensor in (pixels, ids, mask))
        positions = model.get_vision_features(pixels).fpn_position_encoding[:-1]
        vision = VisionGraph(model)
        maps = vision(pixels)
        names = [f"fpn_{number}" for number in range(len(maps))]
        _write(vision, (pixels,), folder / "vision.onnx", ["pixel_values"], names)
        for level in chosen:
            text, decoder = TextGraph(model, level), DecoderGraph(model, level, positions)
            features, words = text(ids, mask)
            prompt = ["input_ids", "attention_mask"]
            _write(text, (ids, mask), folder / f"text_{level.value}.onnx", prompt, ["text_features", "word_embeds"])
            inputs = ["text_features", "word_embeds", "attention_mask", *names]
            _write(decoder, (features, words, mask, *maps), folder / f"decoder_{level.value}.onnx", inputs, OUTPUTS)
    finally:
        model.train(was_training)
    _write_readme(folder, model, chosen, [tuple(each.shape) for each in maps], features.shape)
    return folder


def _write(graph: nn.Module, args: tuple, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    logger.info(f"Writing {path}")
    torch.onnx.export(
        graph.eval(),
        args,
        str(path),
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=OPSET,
        dynamo=True,
        external_data=sum(weight.nbytes for weight in graph.parameters()) > MOST_BYTES,
        verbose=False,
    )


def _write_readme(folder: Path, model, levels: list[InstructionLevel], maps: list[tuple], text: tuple) -> None:
    """What goes into the graphs and comes out of them."""
    side = model.config.vision_config.backbone_config.image_size
    queries, width = model.config.detr_decoder_config.num_queries, text[-1]
    height = ", ".join(str(size) for size in maps[0][2:])
    fpn = ", ".join(f"`fpn_{number}` {list(shape)}" for number, shape in enumerate(maps))
    names = ", ".join(f"`{level.value}`" for level in levels)
    (folder / README).write_text(
        f"""# SAM3-I as ONNX graphs

Opset {OPSET}, float32, shapes fixed: one image, one instruction. LEVEL is one of {names}.

| graph | runs | inputs | outputs |
|---|---|---|---|
| `vision.onnx` | once per image | `pixel_values` [1, 3, {side}, {side}] as the processor makes them | {fpn} |
| `text_LEVEL.onnx` | once per instruction | `input_ids`, `attention_mask` [1, {text[1]}] int64, padded | \
`text_features` [1, {text[1]}, {width}], `word_embeds` [1, {text[1]}, {model.config.text_config.hidden_size}] |
| `decoder_LEVEL.onnx` | for an instruction on an image | `text_features`, `word_embeds`, `attention_mask`, the \
maps | below |

The decoder's outputs: `pred_masks` [1, {queries}, {height}] logits, `pred_boxes` [1, {queries}, 4] x1, y1, x2, y2 in
[0, 1], `pred_logits` [1, {queries}], `presence_logits` [1, 1], `semantic_seg` [1, 1, {height}] logits. The score of a
query is sigmoid(`pred_logits`) * sigmoid(`presence_logits`). Text and decoder must be of the same level. Box exemplars
are not in the graphs.
""",
        encoding="utf-8",
    )


class OnnxInstructionModel:
    """Runs exported graphs with onnxruntime, image by image and instruction by instruction.

    Args:
        folder: What [`export_onnx`] wrote.

    Raises:
        ImportError: without onnxruntime.
        FileNotFoundError: when the folder holds no graphs.
    """

    def __init__(self, folder: str | Path):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError('Running ONNX graphs needs onnxruntime: pip install "sam3i[onnx]"') from error
        files = {path.stem: path for path in Path(folder).glob("*.onnx")}
        if "vision" not in files:
            raise FileNotFoundError(f"{folder} holds no vision.onnx: write the graphs with `export_onnx` first.")
        self.graphs = {
            name: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            for name, path in files.items()
        }

    def run(self, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of one graph by name.

        Raises:
            ValueError: for a graph that was not exported.
        """
        if name not in self.graphs:
            raise ValueError(f"Expected one of the exported graphs {sorted(self.graphs)}, found {name!r}.")
        graph = self.graphs[name]
        values = graph.run(None, {each.name: inputs[each.name] for each in graph.get_inputs()})
        return {each.name: value for each, value in zip(graph.get_outputs(), values, strict=True)}

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
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
            prompt |= self.run(f"text_{level}", **prompt)
            answers.append(self.run(f"decoder_{level}", **prompt, **maps[images[row]]))
        return {name: np.concatenate([answer[name] for answer in answers]) for name in OUTPUTS}


__all__ = ["DecoderGraph", "OnnxInstructionModel", "TextGraph", "VisionGraph", "export_onnx"]
