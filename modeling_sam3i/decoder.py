# SPDX-License-Identifier: Apache-2.0
"""The DETR decoder and the mask decoder of SAM3-I: stock's, with levels and one-to-many queries."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..compat import (
    Sam3DetrDecoder,
    Sam3DETRDecoderOutput,
    Sam3MaskDecoder,
    Sam3MaskDecoderOutput,
    box_cxcywh_to_xyxy,
    capture_outputs,
    create_bidirectional_mask,
    inverse_sigmoid,
    merge_with_config_defaults,
)
from .adapters.routing import LevelRouting


class Sam3IDetrDecoder(Sam3DetrDecoder):
    """The stock DETR decoder, able to decode a second set of queries for one-to-many supervision.

    The second set are the same queries again. They skip self-attention, so that several of them may settle on one
    object. Source: SAM3-I (arXiv 2512.04585), training; used in training only.
    """

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        vision_features: torch.Tensor,
        text_features: torch.Tensor,
        vision_pos_encoding: torch.Tensor,
        text_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | Sequence[Sequence[int]] | None = None,
        one_to_many: bool = False,
        clamp_presence_logits: bool = True,
        **kwargs,
    ) -> Sam3DETRDecoderOutput:
        """
        Args:
            vision_features (`torch.Tensor` of shape `(rows, pixels, hidden_size)`): Output of the DETR encoder.
            text_features (`torch.Tensor` of shape `(rows, tokens, hidden_size)`): Prompt.
            vision_pos_encoding (`torch.Tensor` of shape `(rows, pixels, hidden_size)`): Position encoding.
            text_mask (`torch.BoolTensor` of shape `(rows, tokens)`, *optional*): `True` where a token is valid.
            spatial_shapes (`torch.LongTensor` of shape `(1, 2)`, or a list): Height and width of the feature map.
                Numbers need not be fetched from an accelerator, and an exported graph has them as constants.
            one_to_many (`bool`): Decode the queries a second time; doubles the query axis of the output.
            clamp_presence_logits (`bool`): Whether presence logits are clamped as stock does.

        Returns:
            [`Sam3DETRDecoderOutput`]: layer-first tensors, as in stock.
        """
        rows, copies = vision_features.shape[0], 2 if one_to_many else 1

        def entries(table: nn.Embedding) -> torch.Tensor:
            # Not its weight, which may lie on the disk until the module runs.
            return table(torch.arange(table.num_embeddings, device=vision_features.device))

        queries = entries(self.query_embed).repeat(copies, 1).expand(rows, -1, -1)
        reference_boxes = entries(self.reference_points).repeat(copies, 1).expand(rows, -1, -1).sigmoid()
        hidden_states = torch.cat([entries(self.presence_token).expand(rows, -1, -1), queries], dim=1)
        text_cross_attn_mask = None
        if text_mask is not None:
            text_cross_attn_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=text_mask,
                encoder_hidden_states=text_features,
            )
        outputs, boxes, presence = [], [reference_boxes], []
        for layer in self.layers:
            query_pos = self.ref_point_head(self.position_encoding.encode_boxes(reference_boxes))
            box_bias = None
            if spatial_shapes is not None and len(spatial_shapes) == 1:
                box_bias = self._box_bias(reference_boxes, spatial_shapes[0])
            hidden_states = layer(
                hidden_states,
                query_pos=query_pos,
                text_features=text_features,
                vision_features=vision_features,
                vision_pos_encoding=vision_pos_encoding,
                text_cross_attn_mask=text_cross_attn_mask,
                vision_cross_attn_mask=box_bias,
                one_to_many_queries=self.config.num_queries if one_to_many else 0,
                **kwargs,
            )
            normed = self.output_layer_norm(hidden_states[:, 1:])
            refined = (self.box_head(normed) + inverse_sigmoid(reference_boxes)).sigmoid()
            reference_boxes = refined.detach()
            boxes.append(refined)  # not detached: a layer's loss also trains the box refinement of the layer before
            outputs.append(normed)
            logits = self.presence_head(self.presence_layer_norm(hidden_states[:, :1])).squeeze(-1)
            if clamp_presence_logits:
                logits = logits.clamp(-self.clamp_presence_logit_max_val, self.clamp_presence_logit_max_val)
            presence.append(logits)
        return Sam3DETRDecoderOutput(
            intermediate_hidden_states=torch.stack(outputs),
            reference_boxes=torch.stack(boxes[:-1]),
            presence_logits=torch.stack(presence),
        )

    def _box_bias(self, boxes: torch.Tensor, size: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """How each query is drawn to the pixels in and around its box, added to its attention.

        Stock's numbers, bit for bit, written once where stock writes them four times.

        Args:
            boxes (`torch.Tensor` of shape `(rows, queries, 4)`): Boxes (cx, cy, w, h) in [0, 1].

        Returns:
            `torch.Tensor` of shape `(rows, heads, 1 + queries, height * width)`; zero for the presence token, which
            attends everywhere alike.
        """
        corners = box_cxcywh_to_xyxy(boxes)
        ys, xs = self._get_coords(*size, dtype=boxes.dtype, device=boxes.device)
        biases = []
        for places, first, embed in ((ys, 1, self.box_rpb_embed_y), (xs, 0, self.box_rpb_embed_x)):
            offsets = places[:, None] - corners[:, :, None, first::2]  # (rows, queries, side, 2)
            offsets = offsets * 8
            offsets = torch.sign(offsets) * torch.log2(torch.abs(offsets) + 1.0) / math.log2(8)
            bias = embed(offsets).permute(0, 3, 1, 2).contiguous()  # the sum below is laid out as its terms are
            biases.append(F.pad(bias, (0, 0, 1, 0)))  # (rows, heads, 1 + queries, side)
        down, across = biases
        return (down[..., None] + across[..., None, :]).flatten(3)


class Sam3IMaskDecoder(Sam3MaskDecoder):
    """The stock mask decoder with a mask embedder per level, and pixels that can be queried later.

    Splitting the forward pass in two lets training compute masks of the matched queries only.
    """

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        decoder_queries: torch.Tensor,
        backbone_features: list[torch.Tensor],
        encoder_hidden_states: torch.Tensor,
        prompt_features: torch.Tensor | None = None,
        prompt_mask: torch.Tensor | None = None,
        level_routing: LevelRouting | None = None,
        predict_all_masks: bool = True,
        **kwargs,
    ) -> Sam3MaskDecoderOutput:
        """
        Args:
            decoder_queries (`torch.Tensor` of shape `(rows, queries, hidden_size)`): Last decoder layer.
            backbone_features (`list[torch.Tensor]`): FPN maps `(rows, hidden_size, h_i, w_i)`, finest first.
            encoder_hidden_states (`torch.Tensor` of shape `(rows, pixels, hidden_size)`): Output of the DETR encoder.
            prompt_features (`torch.Tensor` of shape `(rows, tokens, hidden_size)`, *optional*): Prompt.
            prompt_mask (`torch.BoolTensor` of shape `(rows, tokens)`, *optional*): `True` where a token is valid.
            level_routing: Rows of each level.
            predict_all_masks (`bool`): With `False`, `pred_masks` is the pair (mask embeddings
                `(rows, queries, hidden_size)`, pixel embeddings `(rows, hidden_size, height, width)`) whose product
                the masks are.

        Returns:
            [`Sam3MaskDecoderOutput`]: masks `(rows, queries, height, width)` and semantic map
            `(rows, 1, height, width)`, both logits.
        """
        if prompt_features is not None:
            encoder_hidden_states = self.read_prompt(encoder_hidden_states, prompt_features, prompt_mask, **kwargs)
        pixels = self.embed_pixels(backbone_features, encoder_hidden_states)
        mask_embeddings = self.mask_embedder(decoder_queries, level_routing)
        pixel_embeddings = self.instance_projection(pixels)
        masks: Any = (mask_embeddings, pixel_embeddings)
        if predict_all_masks:
            masks = torch.einsum("bqc,bchw->bqhw", *masks)
        return Sam3MaskDecoderOutput(pred_masks=masks, semantic_seg=self.semantic_projection(pixels))

    def read_prompt(
        self, states: torch.Tensor, prompt: torch.Tensor, prompt_mask: torch.Tensor | None, **kwargs
    ) -> torch.Tensor:
        """Encoder states `(rows, pixels, hidden_size)` after attention to the prompt `(rows, tokens, hidden_size)`."""
        normed = self.prompt_cross_attn_norm(states)
        mask = None
        if prompt_mask is not None:
            mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=normed, encoder_hidden_states=prompt, attention_mask=prompt_mask
            )
        attended, _ = self.prompt_cross_attn(query=normed, key=prompt, value=prompt, attention_mask=mask, **kwargs)
        return states + self.prompt_cross_attn_dropout(attended)

    def embed_pixels(self, backbone_features: list[torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        """Pixel embeddings `(rows, hidden_size, height, width)`; the encoder states replace the coarsest map.

        Stock clones the maps first, which nothing needs.
        """
        coarsest = backbone_features[-1]
        encoded = states[:, : coarsest.shape[-2:].numel()].transpose(1, 2)
        encoded = encoded.reshape(len(states), -1, *coarsest.shape[-2:])
        return self.pixel_decoder([*backbone_features[:-1], encoded])
