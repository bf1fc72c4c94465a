# SPDX-License-Identifier: Apache-2.0
"""What a training step computes: the model's loss, on paired instructions the alignment losses, and replay."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging

from ...compat import Sam3VisionEncoderOutput
from ...modeling_sam3i.losses.alignment import Sam3IAlignmentLoss
from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from ..curriculum import TrainingStage

logger = logging.get_logger(__name__)


class FeatureProjector(nn.Sequential):
    """Projects pooled text features for the contrastive losses; shared by all levels, used in training only.

    Source: SAM3-I (arXiv 2512.04585), joint stage.
    """

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))


def pool_tokens(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens that are not padding: `(rows, tokens, width)` and `(rows, tokens)` to `(rows, width)`.

    In float32, whatever the precision of the tokens: the projector is trained."""
    weight = mask.float().unsqueeze(-1)
    return (tokens.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def encode_vision(
    model: Sam3IForInstructionSegmentation, pixel_values: torch.Tensor | None, features: torch.Tensor | None
) -> Sam3VisionEncoderOutput:
    """Image features from pixels `(I, 3, H, W)`, or from kept ViT outputs `(I, h, w, C)`, through the frozen neck."""
    if features is None:
        return model.get_vision_features(pixel_values)
    states, positions = model.vision_encoder.neck(features.permute(0, 3, 1, 2))
    return Sam3VisionEncoderOutput(
        last_hidden_state=features.flatten(1, 2), fpn_hidden_states=states, fpn_position_encoding=positions
    )


def read_model(model: Any) -> Sam3IForInstructionSegmentation:
    """The native model to train; PEFT adapters on it (LoRA) stay as they are, which is said.

    Raises:
        TypeError: when there is no native model in it.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, Sam3IForInstructionSegmentation):
        raise TypeError(
            f"Expected a Sam3IForInstructionSegmentation to train, found {type(inner).__name__}: load it with "
            "`Sam3IForInstructionSegmentation.from_pretrained`, which takes stock SAM3 and adapters alike."
        )
    others = getattr(model, "peft_config", None) or getattr(inner, "peft_config", None) or {}
    if others:
        kinds = ", ".join(f"{name!r} ({getattr(c.peft_type, 'value', c.peft_type)})" for name, c in others.items())
        logger.warning(
            f"The PEFT adapter {kinds} stays as it is: `Sam3ITrainer` trains instruction adapters alone. Train the "
            "other with `transformers.Trainer` and `InstructionCollator`."
        )
    return inner


def prepare_precision(model: Sam3IForInstructionSegmentation, args: TrainingArguments) -> None:
    """Put the adapters in float32, in which steps are not lost to rounding; the frozen SAM3 stays as it was loaded.

    Raises:
        ValueError: for two half precisions on a CPU, which cannot normalize in both.
    """
    if model.vision_encoder.dtype is torch.float16 and args.bf16 and args.device.type == "cpu":
        raise ValueError(
            "Expected a model in bfloat16 or float32 beside `bf16=True` on a CPU, which normalizes in one half "
            "precision only, found float16: load it with `from_pretrained(..., dtype=torch.bfloat16)`."
        )
    for parameter in model.adapter_parameters().values():
        parameter.data = parameter.data.float()


def copy_adapters(model: Sam3IForInstructionSegmentation) -> Sam3IForInstructionSegmentation:
    """The model as it is now, in inference mode: adapters are copied, the tensors of SAM3 are shared."""
    adapters = model.adapter_parameters()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shared = {id(tensor): tensor for name, tensor in tensors.items() if name not in adapters}
    before = copy.deepcopy(model, shared).eval()
    for name in adapters:  # those of SAM3 are the model's own, whose stage decides
        before.get_parameter(name).requires_grad_(False)
    return before


def imitation_loss(found: Any, wanted: Any, score_weight: float = 40.0) -> torch.Tensor:
    """How far outputs are from those wanted: scores of all queries; boxes and masks by the wanted scores.

    Less `score_weight`, that of the scores, leaves more room for what is new.
    """
    scores = wanted.pred_logits.sigmoid() * wanted.presence_logits.sigmoid()  # (rows, queries)
    weights = scores / scores.sum().clamp(min=1e-6)

    def apart(name: str, reduction: str = "mean") -> torch.Tensor:
        targets = getattr(wanted, name).sigmoid()
        return F.binary_cross_entropy_with_logits(getattr(found, name), targets, reduction=reduction)

    masks = (weights * apart("pred_masks", "none").mean((-1, -2))).sum()
    boxes = (weights * (found.pred_boxes - wanted.pred_boxes).abs().sum(-1)).sum()
    others = apart("presence_logits") + apart("semantic_seg") + 2 * masks + 5 * boxes
    return score_weight * apart("pred_logits") + others


class StageModule(nn.Module):
    """The module that a stage trains, and wraps for distributed training: the model, the projector and the losses.

    The frozen vision encoder always runs as in inference. In the joint stage, rows 2p and 2p + 1 of a batch are the
    simple and the complex instruction of pair p. `before` is the model as it answered before training, for batches
    of replay rows.
    """

    def __init__(
        self,
        model: Sam3IForInstructionSegmentation,
        stage: TrainingStage,
        before: Sam3IForInstructionSegmentation | None = None,
    ):
        super().__init__()
        self.model = model
        self.before: tuple[Any] = (before,)  # in a tuple: its parameters are none of this module
        self.alignment = self.projector = None
        if stage is TrainingStage.JOINT:
            config = model.criterion.config
            self.alignment = Sam3IAlignmentLoss(config)
            if config.info_nce_weight or config.margin_weight:
                self.projector = FeatureProjector(model.text_projection.out_features).to(model.device)

    def train(self, mode: bool = True) -> "StageModule":
        super().train(mode)
        self.model.vision_encoder.eval()
        return self

    def activation_checkpointing_enable(self, **kwargs) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.model.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs) -> None:
        """The same, by the name it had before."""
        self.model.gradient_checkpointing_enable(**kwargs)

    def forward(
        self,
        labels: list[dict[str, torch.Tensor]] | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        concept_names: list[str] | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        image_keys: list[str] | None = None,
        replay: bool = False,
        **inputs: torch.Tensor,
    ) -> dict[str, Any]:
        """The loss of a batch of `InstructionCollator` and its parts, detached and before weighting.

        Instead of pixels it may have ViT outputs `(I, h, w, C)`. A batch of `replay` has no labels: on it the model
        shall answer as it did before training.
        """
        with torch.no_grad():
            vision = encode_vision(self.model, pixel_values, vision_features)
        if replay:
            return self._imitate(vision_embeds=vision, **inputs)
        outputs = self.model(vision_embeds=vision, labels=labels, **inputs)
        loss, parts = outputs.loss, dict(outputs.loss_dict)
        if self.alignment is not None:
            # The paper adds the losses of a simple and a complex pass; one pass over both is their mean times sqrt(2).
            loss = loss * (2**0.5 if self.model.criterion.config.scale_by_rows else 2.0)
            aligned, aligned_parts = self._align(
                outputs, labels, concept_names, inputs["attention_mask"], concept_input_ids, concept_attention_mask
            )
            loss, parts = loss + aligned, parts | aligned_parts
        return {"loss": loss, "loss_dict": parts}

    def _imitate(self, **inputs: Any) -> dict[str, Any]:
        with torch.no_grad():
            wanted = self.before[0](**inputs)
        loss = imitation_loss(self.model(**inputs), wanted)
        unused = () if self.projector is None else self.projector.parameters()
        loss = loss + sum(parameter.sum() for parameter in unused) * 0.0  # each has a gradient in each step
        return {"loss": loss, "loss_dict": {"loss_replay": loss.detach()}}

    def _align(self, outputs, labels, names, mask, concept_ids, concept_mask):
        features = (None, None, None)
        if self.projector is not None:
            with torch.no_grad():
                concept = self.model.get_text_features(concept_ids, attention_mask=concept_mask).pooler_output
            pooled = pool_tokens(outputs.text_features, mask)  # (rows, width)
            concept = self.projector(pool_tokens(concept, concept_mask))
            features = (self.projector(pooled[0::2]), self.projector(pooled[1::2]), concept)  # each (pairs, width)
        semantic = outputs.semantic_seg.float()
        return self.alignment(semantic[0::2], semantic[1::2], labels[0::2], *features, names[0::2])
