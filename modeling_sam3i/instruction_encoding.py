# SPDX-License-Identifier: Apache-2.0
"""What comes before the DETR encoder: images, instructions and box exemplars, checked and encoded."""

from dataclasses import dataclass

import torch

from ..compat import Sam3VisionEncoderOutput, can_return_tuple
from .adapters.router import choose_levels
from .adapters.routing import LevelRouting
from .configuration_sam3i import AUTO_LEVEL_INDEX
from .inputs import (
    check_chunk_size,
    check_inputs,
    resolve_levels,
    row_images,
    text_encoder_inputs,
    token_embeddings,
)


@dataclass
class InstructionRows:
    """The inputs of a call, checked and encoded: everything that the DETR encoder and what follows it reads.

    Args:
        vision ([`Sam3VisionEncoderOutput`]): Features of `I` images.
        image_ids (`torch.LongTensor` of shape `(R,)`, *optional*): The image of each row; row i uses image i if not
            given.
        levels (`torch.LongTensor` of shape `(R,)`): Level of each row.
        level_logits (`torch.Tensor` of shape `(R, 3)`, *optional*): What the level router said, where it was asked.
        text_features (`torch.Tensor` of shape `(R, L, D)`): Projected tokens.
        words (`torch.Tensor` of shape `(R, L, T)`): Token embeddings, which the selector reads.
        text_mask (`torch.BoolTensor` of shape `(R, L)`, *optional*): `True` for tokens.
        boxes (`torch.Tensor` of shape `(R, N, 4)`, *optional*): Box exemplars.
        box_labels (`torch.LongTensor` of shape `(R, N)`, *optional*): Their labels.
    """

    vision: Sam3VisionEncoderOutput
    image_ids: torch.LongTensor | None
    levels: torch.LongTensor
    level_logits: torch.Tensor | None
    text_features: torch.Tensor
    words: torch.Tensor
    text_mask: torch.Tensor | None
    boxes: torch.Tensor | None
    box_labels: torch.Tensor | None

    def fpn(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The FPN maps that the detector reads, `(I, D, h_i, w_i)`, finest first, and their position encodings."""
        return list(self.vision.fpn_hidden_states[:-1]), list(self.vision.fpn_position_encoding[:-1])


def without_padding(
    settings, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Token ids and their mask `(rows, tokens)` without the last columns, where those are padding in every row.

    Nothing looks at padding, unless adapters were trained to (`mask_padding_in_adapters`); then it stays.
    """
    if not torch.is_tensor(attention_mask) or not torch.is_tensor(input_ids) or not settings.mask_padding_in_adapters:
        return input_ids, attention_mask
    used = attention_mask.any(dim=0).nonzero()
    tokens = int(used.max()) + 1 if len(used) else 1
    return input_ids[:, :tokens], attention_mask[:, :tokens]


class InstructionEncoding:
    """The part of the model that encodes what it is given; a mixin of [`Sam3IForInstructionSegmentation`]."""

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        instruction_levels: torch.LongTensor | None = None,
        **kwargs,
    ):
        """Encode instructions for `text_embeds`.

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, tokens)`): Token ids.
            attention_mask (`torch.Tensor` of shape `(rows, tokens)`, *optional*): 1 for tokens, 0 for padding.
            instruction_levels (`torch.LongTensor` of shape `(rows,)`, *optional*): Level of each row; concept if not
                given.

        Returns:
            [`CLIPTextModelOutput`] with the projected tokens `pooler_output` `(rows, tokens, width)` and the token
            embeddings `word_embeds` `(rows, tokens, text_width)`.

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
        outputs.word_embeds = embeddings.token_embedding(input_ids)
        return outputs

    def read_inputs(
        self,
        pixel_values,
        vision_embeds,
        input_ids,
        attention_mask,
        text_embeds,
        input_boxes,
        input_boxes_labels,
        instruction_levels,
        image_ids,
        row_chunk_size,
        options: dict,
        drop_padding: bool = False,
    ) -> InstructionRows:
        """Check the inputs of a call and encode its images and instructions; arguments as in [`forward`]."""
        options.pop("original_sizes", None)  # the processor returns it for post-processing
        check_chunk_size(row_chunk_size)
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
            options=options,
        )
        device = (input_ids if input_ids is not None else text_features).device
        levels, level_logits = resolve_levels(instruction_levels, rows, device, text_features is None), None
        if drop_padding:
            input_ids, attention_mask = without_padding(self.config, input_ids, attention_mask)
        if text_features is None:
            levels, level_logits = self._choose_levels(levels, input_ids, attention_mask)

        if vision_embeds is None:
            vision_embeds = self.vision_encoder(pixel_values, **options)
        images = vision_embeds.fpn_hidden_states[0].shape[0]
        rows, image_ids = row_images(image_ids, rows, images, input_boxes)
        if text_features is None:
            text_embeds = self._encode_text(input_ids, attention_mask, LevelRouting(levels))
            text_features = text_embeds.pooler_output
        words = token_embeddings(text_embeds, levels, self.config.text_config.hidden_size, self.selects_instances)
        text_mask = attention_mask.bool() if attention_mask is not None else None
        if len(levels) < rows:  # one instruction for all images
            levels = levels.expand(rows)
        if text_features.shape[0] < rows:
            text_features, words = (each.expand(rows, -1, -1) for each in (text_features, words))
            text_mask = text_mask if text_mask is None else text_mask.expand(rows, -1)
        return InstructionRows(
            vision_embeds,
            image_ids,
            levels,
            level_logits,
            text_features,
            words,
            text_mask,
            input_boxes,
            input_boxes_labels,
        )

    def append_geometry(self, text_features, text_mask, boxes, box_labels, fpn_states, fpn_positions):
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
