# SPDX-License-Identifier: Apache-2.0
"""What the model returns, and how decoder layers are laid out for the loss."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from ..compat import Sam3MaskDecoderOutput, box_cxcywh_to_xyxy
from .losses.matcher import Match


@dataclass
class Sam3IInstructionSegmentationOutput(ModelOutput):
    """
    The fields of stock SAM3's output and, first, the training loss.

    The score of a query is `pred_logits.sigmoid() * presence_logits.sigmoid()`. `R` rows (instructions), `I` images,
    `Q` queries, `L` tokens, `D` width.

    Args:
        loss (`torch.Tensor`, *optional*): Weighted sum of the training losses, when `labels` are given.
        loss_dict (`dict[str, torch.Tensor]`, *optional*): Its terms before weighting, detached.
        pred_masks (`torch.Tensor` of shape `(R, Q, height, width)`): Mask logits; `None` in training with `labels`,
            where only the masks of matched queries are computed.
        pred_boxes (`torch.Tensor` of shape `(R, Q, 4)`): Boxes (x1, y1, x2, y2) in [0, 1].
        pred_logits (`torch.Tensor` of shape `(R, Q)`): Classification logits.
        presence_logits (`torch.Tensor` of shape `(R, 1)`): Logit of "the row's target is in the image".
        semantic_seg (`torch.Tensor` of shape `(R, 1, height, width)`): Logits of the union of all targets.
        text_features (`torch.Tensor` of shape `(R, L, D)`): Projected text tokens after the text adapters.
        instruction_levels (`torch.LongTensor` of shape `(R,)`): The level each row followed.
        level_logits (`torch.Tensor` of shape `(R, 3)`, *optional*): What the level router said of the rows, when it
            was asked (`instruction_levels` of -1).
        decoder_hidden_states, encoder_hidden_states (`tuple[torch.Tensor]`, *optional*): Adapted states per layer.
        decoder_reference_boxes (`torch.Tensor` of shape `(layers, R, Q, 4)`): Reference boxes, layer first.
        vision_hidden_states, vision_attentions (`tuple[torch.Tensor]`, *optional*): Of the ViT, `I` images first.
        detr_encoder_attentions, detr_decoder_attentions, mask_decoder_attentions (`tuple[torch.Tensor]`, *optional*).
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    pred_masks: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    pred_logits: torch.Tensor | None = None
    presence_logits: torch.Tensor | None = None
    semantic_seg: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    instruction_levels: torch.Tensor | None = None
    level_logits: torch.Tensor | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_reference_boxes: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    vision_hidden_states: tuple[torch.Tensor, ...] | None = None
    vision_attentions: tuple[torch.Tensor, ...] | None = None
    detr_encoder_attentions: tuple[torch.Tensor, ...] | None = None
    detr_decoder_attentions: tuple[torch.Tensor, ...] | None = None
    mask_decoder_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class Sam3IInstancesOutput(ModelOutput):
    """
    The instances of [`Sam3IForInstructionSegmentation.segment`]: row `r` has those `K_r` queries whose score exceeds
    the threshold, in the order of the queries. Post-processing reads it like the output of the forward pass.

    Args:
        pred_masks (`list[torch.Tensor]` of shapes `(K_r, height, width)`): Mask logits.
        pred_boxes (`list[torch.Tensor]` of shapes `(K_r, 4)`): Boxes (x1, y1, x2, y2) in [0, 1].
        pred_logits (`list[torch.Tensor]` of shapes `(K_r,)`): Classification logits.
        presence_logits (`torch.Tensor` of shape `(R, 1)`): Logit of "the row's target is in the image".
        instruction_levels (`torch.LongTensor` of shape `(R,)`): The level each row followed.
        level_logits (`torch.Tensor` of shape `(R, 3)`, *optional*): What the level router said, where it was asked.
        threshold (`float`): The score that they exceed.
    """

    pred_masks: list[torch.Tensor] | None = None
    pred_boxes: list[torch.Tensor] | None = None
    pred_logits: list[torch.Tensor] | None = None
    presence_logits: torch.Tensor | None = None
    instruction_levels: torch.Tensor | None = None
    level_logits: torch.Tensor | None = None
    threshold: float | None = None


@dataclass
class Sam3IQueriesOutput(ModelOutput):
    """
    What [`Sam3IForInstructionSegmentation.instruction_queries`] finds for `R` instructions: `Q` queries each, as the
    selector reads them.

    Args:
        pred_logits (`torch.Tensor` of shape `(R, Q)`): Classification logits before selection and calibration.
        pred_boxes (`torch.Tensor` of shape `(R, Q, 4)`): Boxes (cx, cy, w, h) in [0, 1].
        queries (`torch.Tensor` of shape `(R, Q, D)`): Decoder output of the last layer.
        presence_logits (`torch.Tensor` of shape `(R, 1)`): Logit of "the row's target is in the image", before
            calibration.
        words (`torch.Tensor` of shape `(R, L, T)`): Token embeddings of the instructions.
        text_mask (`torch.BoolTensor` of shape `(R, L)`, *optional*): `True` for tokens.
        instruction_levels (`torch.LongTensor` of shape `(R,)`): The level each row followed.
        level_logits (`torch.Tensor` of shape `(R, 3)`, *optional*): What the level router said, where it was asked.
    """

    pred_logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    presence_logits: torch.Tensor | None = None
    words: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None
    instruction_levels: torch.Tensor | None = None
    level_logits: torch.Tensor | None = None


def predictions_for_loss(
    logits: torch.Tensor,
    boxes_cxcywh: torch.Tensor,
    presence_logits: torch.Tensor,
    mask_outputs: Sam3MaskDecoderOutput,
    num_queries: int,
) -> dict[str, Any]:
    """Lay the decoder layers out as [`Sam3ICriterion`] reads them.

    Args:
        logits (`torch.Tensor` of shape `(layers, rows, queries)`): Classification logits; more than `num_queries`
            queries are the one-to-many ones.
        boxes_cxcywh (`torch.Tensor` of shape `(layers, rows, queries, 4)`): Boxes in [0, 1].
        presence_logits (`torch.Tensor` of shape `(layers, rows, 1)`): Presence logits.
        mask_outputs: Masks, or the pair (mask embeddings, pixel embeddings).
        num_queries (`int`): Queries supervised one-to-one.

    Returns:
        `dict`: the final layer, `"auxiliary_outputs"` (earlier layers) and `"one_to_many"` where there is one.
    """
    # Boxes in half precision may lose their area when corners are taken; float32 costs nothing here.
    logits, boxes_cxcywh, presence_logits = logits.float(), boxes_cxcywh.float(), presence_logits.float()
    boxes_xyxy = box_cxcywh_to_xyxy(boxes_cxcywh)

    def layers(queries: slice) -> list[dict[str, torch.Tensor]]:
        return [
            {
                "pred_logits": logits[layer][:, queries],
                "pred_boxes": boxes_xyxy[layer][:, queries],
                "pred_boxes_cxcywh": boxes_cxcywh[layer][:, queries],
                "presence_logits": presence_logits[layer],
            }
            for layer in range(len(logits))
        ]

    def masks(offset: int):
        if torch.is_tensor(mask_outputs.pred_masks):
            return mask_outputs.pred_masks[:, offset : offset + num_queries]
        embeddings, pixels = mask_outputs.pred_masks

        def predict(match: Match) -> torch.Tensor:
            """Mask logits `(chosen, height, width)` of the queries of a match."""
            chosen = embeddings[match.row_index, match.query_index + offset]  # (chosen, width)
            # Row by row: indexing the pixels by row would copy a whole feature map for every query.
            by_row = zip(chosen.split(match.row_counts), pixels, strict=True)
            return torch.cat([torch.einsum("kc,chw->khw", queries, row_pixels) for queries, row_pixels in by_row])

        return predict

    *auxiliary, final = layers(slice(None, num_queries))
    predictions = final | {
        "auxiliary_outputs": auxiliary,
        "pred_masks": masks(0),
        "semantic_seg": mask_outputs.semantic_seg,
    }
    if logits.shape[-1] > num_queries:
        *auxiliary, final = layers(slice(num_queries, None))
        predictions["one_to_many"] = final | {"auxiliary_outputs": auxiliary, "pred_masks": masks(num_queries)}
    return predictions
