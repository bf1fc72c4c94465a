# SPDX-License-Identifier: Apache-2.0
"""SAM3-I: frozen SAM3 that follows instructions at three levels in one forward pass."""

import torch
from transformers.models.sam3.modeling_sam3 import (
    Sam3VisionEncoderOutput,
    box_cxcywh_to_xyxy,
    inverse_sigmoid,
)
from transformers.utils import can_return_tuple

from .adapters_sam3i import adapter_sites, build_adapter
from .configuration_sam3i import AUTO_LEVEL_INDEX, Sam3IConfig
from .decoder_sam3i import Sam3IDetrDecoder, Sam3IMaskDecoder
from .inputs_sam3i import check_inputs, resolve_levels, row_images, text_encoder_inputs
from .layers_sam3i import adopt
from .loss_sam3i import Sam3ICriterion
from .outputs_sam3i import Sam3IInstructionSegmentationOutput, predictions_for_loss
from .pretrained_sam3i import Sam3IPreTrainedModel
from .router_sam3i import LevelRouter, choose_levels
from .routing_sam3i import LevelRouting


class Sam3IForInstructionSegmentation(Sam3IPreTrainedModel):
    """
    Stock [`Sam3Model`] with instruction adapters in its text encoder, DETR encoder, DETR decoder and mask decoder.

    Weights of stock SAM3 (layout `sam3` or `sam3_video`) load as they are; adapters that no file provides start as
    the identity. Rows at the concept level compute exactly what stock computes, whatever the adapters learned.

    Source: SAM3-I (arXiv 2512.04585).
    """

    def __init__(self, config: Sam3IConfig):
        config.check_adapters()
        super().__init__(config)
        # Two stock sub-models become ours; the weights keep their names.
        self.detr_decoder = Sam3IDetrDecoder(config.detr_decoder_config)
        self.mask_decoder = Sam3IMaskDecoder(config.mask_decoder_config)
        if not config.clamp_presence_logits:
            self.detr_decoder.clamp_presence_logit_max_val = float("inf")
        embeddings = adopt(self.text_encoder.text_model.embeddings)
        if config.max_instruction_length > config.text_config.max_position_embeddings:
            embeddings.extend(config.max_instruction_length)
        for _, site in adapter_sites(self):
            adapter = build_adapter(site, config)
            if not isinstance(adapter, LevelRouter):  # the router is asked, it takes no part in its site's forward
                adopt(site)
            site.sam3i_adapter = adapter
        self.selects_instances = hasattr(self.dot_product_scoring, "sam3i_adapter")
        self.criterion = Sam3ICriterion(config.loss_config)
        self.post_init()

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        instruction_levels: torch.LongTensor | None = None,
        **kwargs,
    ):
        """Encode instructions; `pooler_output` holds the projected tokens that `text_embeds` accepts.

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, tokens)`): Token ids.
            attention_mask (`torch.Tensor` of shape `(rows, tokens)`, *optional*): 1 for tokens, 0 for padding.
            instruction_levels (`torch.LongTensor` of shape `(rows,)`, *optional*): Level of each row; concept if not
                given.

        Returns:
            [`CLIPTextModelOutput`] whose `pooler_output` has shape `(rows, tokens, width)`.

        Raises:
            ValueError: for levels or lengths that do not fit.
        """
        levels = resolve_levels(instruction_levels, input_ids.shape[0], input_ids.device)
        return self._encode_text(input_ids, attention_mask, LevelRouting(levels), return_dict=True, **kwargs)

    def predict_levels(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """What the level router says of instructions; its highest logit is the level of a row left to it (-1).

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, tokens)`): Token ids.
            attention_mask (`torch.Tensor` of shape `(rows, tokens)`, *optional*): 1 for tokens, 0 for padding.

        Returns:
            `torch.Tensor` of shape `(rows, 3)`: logits of concept, simple and complex.

        Raises:
            ValueError: when the model has no router.
        """
        undecided = torch.full((input_ids.shape[0],), AUTO_LEVEL_INDEX, device=input_ids.device)
        return self._choose_levels(undecided, input_ids, attention_mask)[1]

    def _choose_levels(self, levels: torch.LongTensor, input_ids, attention_mask):
        def states() -> torch.Tensor:
            with torch.no_grad():  # SAM3 is frozen and the concept path has no adapters
                concept = LevelRouting(torch.zeros_like(levels))
                return self._encode_text(input_ids, attention_mask, concept).last_hidden_state

        return choose_levels(levels, getattr(self.text_encoder, "sam3i_adapter", None), states, attention_mask)

    def _encode_text(self, input_ids, attention_mask, routing: LevelRouting, **kwargs):
        embeddings = self.text_encoder.text_model.embeddings
        inputs = text_encoder_inputs(embeddings, self.config, input_ids, attention_mask)
        outputs = self.text_encoder(input_ids=input_ids, level_routing=routing, **inputs, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.last_hidden_state)
        return outputs

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_embeds: Sam3VisionEncoderOutput | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        input_boxes: torch.Tensor | None = None,
        input_boxes_labels: torch.LongTensor | None = None,
        instruction_levels: torch.LongTensor | None = None,
        image_ids: torch.LongTensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs,
    ) -> Sam3IInstructionSegmentationOutput:
        r"""
        Segment `I` images by `R` instructions; image features are computed once per image.

        Args:
            pixel_values (`torch.Tensor` of shape `(I, 3, height, width)`): Images, as the processor returns them.
            vision_embeds ([`Sam3VisionEncoderOutput`]): Output of `get_vision_features`, instead of `pixel_values`.
            input_ids (`torch.LongTensor` of shape `(R, L)`): Token ids of the instructions.
            attention_mask (`torch.Tensor` of shape `(R, L)`, *optional*): 1 for tokens, 0 for padding.
            text_embeds (`torch.Tensor` of shape `(R, L, D)`, or the output of `get_text_features`): Encoded
                instructions, instead of `input_ids`; encode them at the level given here.
            input_boxes (`torch.Tensor` of shape `(R, N, 4)`, *optional*): Box exemplars (cx, cy, w, h) in [0, 1].
            input_boxes_labels (`torch.LongTensor` of shape `(R, N)`, *optional*): 1 positive, 0 negative, -10 padding.
            instruction_levels (`torch.LongTensor` of shape `(R,)`, *optional*): 0 concept, 1 simple, 2 complex, -1
                as the level router finds; concept if not given.
            image_ids (`torch.LongTensor` of shape `(R,)`, *optional*): The image of each row; row i uses image i if
                not given.
            labels (`list[dict]` of length `R`, *optional*): Targets of each row: `"masks"` (`torch.BoolTensor` of
                shape `(N, H, W)`) and `"boxes"` (`torch.FloatTensor` of shape `(N, 4)`, (cx, cy, w, h) in [0, 1]); `N`
                may be 0.

        Returns:
            [`Sam3IInstructionSegmentationOutput`]

        Raises:
            ValueError: when inputs are missing, given twice, or do not fit each other.

        Example:

        ```python
        >>> from PIL import Image
        >>> from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor

        >>> model = Sam3IForInstructionSegmentation.from_pretrained("org/sam3-i")
        >>> processor = Sam3IProcessor.from_pretrained("org/sam3-i")
        >>> image = Image.open("dogs.jpg")
        >>> inputs = processor(images=image, text="the dog on the left", return_tensors="pt")
        >>> outputs = model(**inputs)
        >>> results = processor.post_process_instruction_segmentation(outputs, target_sizes=[image.size[::-1]])
        ```
        """
        kwargs.pop("original_sizes", None)  # the processor returns it for post-processing
        text_features = getattr(text_embeds, "pooler_output", text_embeds)
        rows = check_inputs(
            self.config,
            pixel_values,
            vision_embeds,
            input_ids,
            attention_mask,
            text_features,
            input_boxes,
            input_boxes_labels,
            options=kwargs,
        )
        device = (input_ids if input_ids is not None else text_features).device
        levels, level_logits = resolve_levels(instruction_levels, rows, device, text_features is None), None
        if text_features is None:
            levels, level_logits = self._choose_levels(levels, input_ids, attention_mask)

        if vision_embeds is None:
            vision_embeds = self.vision_encoder(pixel_values, **kwargs)
        fpn_states = list(vision_embeds.fpn_hidden_states[:-1])
        fpn_positions = list(vision_embeds.fpn_position_encoding[:-1])
        images = fpn_states[0].shape[0]
        rows, image_ids = row_images(image_ids, rows, images, input_boxes)
        if len(levels) < rows:
            levels = levels.expand(rows)
        routing = LevelRouting(levels)
        if image_ids is not None:
            fpn_states = [level[image_ids] for level in fpn_states]
            fpn_positions = [level[image_ids] for level in fpn_positions]

        if text_features is None:
            text_routing = routing if input_ids.shape[0] == rows else LevelRouting(levels[: input_ids.shape[0]])
            text_features = self._encode_text(input_ids, attention_mask, text_routing).pooler_output
        text_mask = attention_mask.bool() if attention_mask is not None else None
        if text_features.shape[0] < rows:
            text_features = text_features.expand(rows, -1, -1)
            text_mask = text_mask if text_mask is None else text_mask.expand(rows, -1)
        prompt, prompt_mask = self._append_geometry(
            text_features, text_mask, input_boxes, input_boxes_labels, fpn_states, fpn_positions
        )

        encoded = self.detr_encoder(
            vision_features=[fpn_states[-1]],
            text_features=prompt,
            vision_pos_embeds=[fpn_positions[-1]],
            text_mask=prompt_mask,
            level_routing=routing,
            **kwargs,
        )
        supervised = self.training and labels is not None
        decoded = self.detr_decoder(
            vision_features=encoded.last_hidden_state,
            text_features=encoded.text_features,
            vision_pos_encoding=encoded.pos_embeds_flattened,
            text_mask=prompt_mask,
            spatial_shapes=encoded.spatial_shapes,
            level_routing=routing,
            one_to_many=supervised and self.criterion.config.one_to_many_weight > 0,
            **kwargs,
        )
        queries = decoded.intermediate_hidden_states  # (layers, rows, queries, width)
        offsets = self.detr_decoder.box_head(queries)
        boxes_cxcywh = (inverse_sigmoid(decoded.reference_boxes) + offsets).sigmoid()
        num_queries = self.config.detr_decoder_config.num_queries
        selection = {}
        if self.selects_instances:
            selection = {
                "boxes": boxes_cxcywh,
                "instruction": (text_features, text_mask),
                "level_routing": routing,
                "one_to_many_queries": queries.shape[2] - num_queries,
                "last_layer_only": labels is None,
            }
        logits = self.dot_product_scoring(
            decoder_hidden_states=queries, text_features=encoded.text_features, text_mask=prompt_mask, **selection
        ).squeeze(-1)  # (layers, rows, queries)
        mask_outputs = self.mask_decoder(
            decoder_queries=queries[-1],
            backbone_features=fpn_states,
            encoder_hidden_states=encoded.last_hidden_state,
            prompt_features=prompt,
            prompt_mask=prompt_mask,
            level_routing=routing,
            predict_all_masks=not supervised,
            **kwargs,
        )
        loss = loss_dict = None
        if labels is not None:
            predictions = predictions_for_loss(
                logits, boxes_cxcywh, decoded.presence_logits, mask_outputs, num_queries
            )
            loss, loss_dict = self.criterion(predictions, labels)
        return Sam3IInstructionSegmentationOutput(
            loss=loss,
            loss_dict=loss_dict,
            pred_masks=None if supervised else mask_outputs.pred_masks,
            pred_boxes=box_cxcywh_to_xyxy(boxes_cxcywh[-1])[:, :num_queries],
            pred_logits=logits[-1][:, :num_queries],
            presence_logits=decoded.presence_logits[-1],
            semantic_seg=mask_outputs.semantic_seg,
            text_features=text_features,
            instruction_levels=levels,
            level_logits=level_logits,
            decoder_hidden_states=decoded.hidden_states,
            decoder_reference_boxes=decoded.reference_boxes,
            encoder_hidden_states=encoded.hidden_states,
            vision_hidden_states=vision_embeds.hidden_states,
            vision_attentions=vision_embeds.attentions,
            detr_encoder_attentions=encoded.attentions,
            detr_decoder_attentions=decoded.attentions,
            mask_decoder_attentions=mask_outputs.attentions,
        )

    def _append_geometry(self, text_features, text_mask, boxes, box_labels, fpn_states, fpn_positions):
        """The prompt `(rows, tokens + boxes + 1, width)` of text and box exemplars, and its mask."""
        rows, device = fpn_states[0].shape[0], text_features.device
        if boxes is None or boxes.numel() == 0:
            if not self.config.always_encode_geometry:
                return text_features, text_mask
            # A box that is only padding leaves the geometry CLS token alone.
            boxes = torch.zeros(rows, 1, 4, dtype=text_features.dtype, device=device)
            box_labels = torch.full((rows, 1), -10, dtype=torch.long, device=device)
        if box_labels is None:
            box_labels = torch.ones(boxes.shape[:2], dtype=torch.long, device=device)
        geometry = self.geometry_encoder(
            box_embeddings=boxes,
            box_mask=box_labels != -10,
            box_labels=torch.where(box_labels == -10, 0, box_labels),
            img_feats=tuple(fpn_states),
            img_pos_embeds=tuple(fpn_positions),
        )
        if text_mask is None:
            text_mask = torch.ones(text_features.shape[:2], dtype=torch.bool, device=device)
        prompt = torch.cat([text_features, geometry.last_hidden_state], dim=1)
        return prompt, torch.cat([text_mask, geometry.attention_mask], dim=1)
