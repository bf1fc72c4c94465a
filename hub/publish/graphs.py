# SPDX-License-Identifier: Apache-2.0
"""SAM3-I as graphs for ONNX, OpenVINO and torch.export: vision per image, text per instruction, a decoder per pair.

The level of an instruction decides which adapters run, so text and decoder have one graph per level. Shapes are fixed:
one image of the model's size, one instruction of the model's length. Box exemplars are not in the graphs.
"""

import tempfile
from collections.abc import Sequence
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ...compat import Sam3VisionEncoderOutput, box_cxcywh_to_xyxy
from ...modeling_sam3i.adapters.routing import LevelRouting
from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...modeling_sam3i.detector import EncodedInstructions
from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

logger = logging.get_logger(__name__)

OUTPUTS = ("pred_masks", "pred_boxes", "pred_logits", "presence_logits", "semantic_seg")
OPSET = 18
MOST_BYTES = 1 << 30  # one file of ONNX holds 2 GiB; larger weights go beside it


class GraphFormat(str, Enum):
    """Where graphs run: onnxruntime, OpenVINO, or PyTorch alone."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    PT2 = "pt2"

    @property
    def ending(self) -> str:
        """Of a graph's file."""
        return ".xml" if self is GraphFormat.OPENVINO else f".{self.value}"

    def packages(self, int8: bool = False) -> tuple[str, ...]:
        """What must be installed to write it."""
        if self is GraphFormat.PT2:
            return ()
        runtime = ("openvino", "nncf") if int8 else ("openvino",)
        return ("onnx", "onnxscript", *(runtime if self is GraphFormat.OPENVINO else ("onnxruntime",)))

    @property
    def runtime(self) -> tuple[str, ...]:
        """What must be installed to run it."""
        return {GraphFormat.ONNX: ("onnxruntime",), GraphFormat.OPENVINO: ("openvino",), GraphFormat.PT2: ()}[self]


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
        words = self.model.get_input_embeddings()(input_ids)
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
        self.positions = tuple(positions)

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
        prompt = model.make_prompt(rows, list(fpn_states), list(self.positions))
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
            (fpn_states[-1].shape[-2], fpn_states[-1].shape[-1]),
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
        scores = model.calibrate(logits[-1], decoded.presence_logits[-1], self.routing)
        return masks.pred_masks, box_cxcywh_to_xyxy(boxes[-1]), *scores, masks.semantic_seg


@torch.no_grad()
def write_graphs(
    model: Sam3IForInstructionSegmentation,
    folder: Path,
    to: GraphFormat,
    levels: Sequence[InstructionLevel],
    int8: bool,
) -> None:
    """Write `vision`, and `text_LEVEL` and `decoder_LEVEL` for every level, into a folder; see `export_graphs`."""
    config: Any = model.config
    was_training = model.training
    model.eval()
    try:
        backbone = config.vision_config.backbone_config
        pixels = torch.zeros(1, backbone.num_channels, backbone.image_size, backbone.image_size)
        ids = torch.zeros(1, config.text_config.max_position_embeddings, dtype=torch.long)
        mask = (torch.arange(ids.shape[1]) < 4).long()[None]
        pixels, ids, mask = (tensor.to(model.device) for tensor in (pixels, ids, mask))
        positions = model.get_vision_features(pixels).fpn_position_encoding[:-1]
        writer = _GraphWriter(folder, to, int8)
        vision = VisionGraph(model)
        maps = vision(pixels)
        names = [f"fpn_{number}" for number in range(len(maps))]
        writer.write("vision", vision, {"pixel_values": pixels}, names)
        for level in levels:
            text, decoder = TextGraph(model, level), DecoderGraph(model, level, positions)
            features, words = text(ids, mask)
            prompt = {"input_ids": ids, "attention_mask": mask}
            writer.write(f"text_{level.value}", text, prompt, ["text_features", "word_embeds"])
            inputs = {"text_features": features, "word_embeds": words, "attention_mask": mask}
            writer.write(f"decoder_{level.value}", decoder, inputs | dict(zip(names, maps, strict=True)), OUTPUTS)
    finally:
        model.train(was_training)


class _GraphWriter:
    """Writes graphs of one format, their weights in 8 bits where that was asked for."""

    def __init__(self, folder: Path, to: GraphFormat, int8: bool):
        self.folder, self.to, self.int8 = folder, to, int8

    def write(self, name: str, graph: nn.Module, inputs: dict[str, torch.Tensor], outputs: Sequence[str]) -> None:
        path = self.folder / f"{name}{self.to.ending}"
        logger.info(f"Writing {path}")
        program = torch.export.export(graph.eval(), tuple(inputs.values()))
        if self.to is GraphFormat.PT2:
            torch.export.save(program, path)
        elif self.to is GraphFormat.ONNX:
            self._write_onnx(program, path, list(inputs), outputs)
            if self.int8:
                self._quantize_onnx(path)
        else:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / f"{name}.onnx"
                self._write_onnx(program, source, list(inputs), outputs)
                self._convert_to_openvino(source, path)

    def _write_onnx(self, program: Any, path: Path, inputs: list[str], outputs: Sequence[str]) -> None:
        torch.onnx.export(
            program,
            (),
            str(path),
            input_names=inputs,
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            external_data=sum(weight.nbytes for weight in program.state_dict.values()) > MOST_BYTES,
            verbose=False,
        )

    def _quantize_onnx(self, path: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        kinds = ["MatMul", "Gemm", "Gather"]  # a convolution in 8 bits is slower on the CPU
        # Signed weights beside unsigned activations overflow on processors that have AVX2 but no VNNI.
        quantize_dynamic(path, path, op_types_to_quantize=kinds, weight_type=QuantType.QUInt8, per_channel=True)

    def _convert_to_openvino(self, source: Path, path: Path) -> None:
        """By way of ONNX: OpenVINO's own reader of PyTorch lacks some operations."""
        import openvino

        graph = openvino.convert_model(source)
        if self.int8:
            import nncf

            graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
        openvino.save_model(graph, path, compress_to_fp16=False)


def require_packages(names: Sequence[str]) -> None:
    """Say which packages are missing. Raises ImportError when one of them is."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ImportError(f'Exported graphs need {", ".join(missing)}: pip install "sam3i[export]"')
