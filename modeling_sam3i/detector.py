# SPDX-License-Identifier: Apache-2.0
"""The model in parts: inputs checked and encoded, prompts made, queries decoded and scored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Sam3Model

from ..compat import (
    CLIPTextEmbeddings,
    Sam3DETRDecoderOutput,
    Sam3VisionEncoderOutput,
    attention_of,
    can_return_tuple,
    create_bidirectional_mask,
    inverse_sigmoid,
    text_embeddings,
)
from .adapters.base import adapter_of, has_selector
from .adapters.calibration import ScoreCalibration
from .adapters.routing import LevelRouting
from .configuration_sam3i import AUTO_LEVEL_INDEX, AdapterSettings, InstructionLevel, Sam3IConfig
from .decoder import Sam3IDetrDecoder, Sam3IMaskDecoder
from .inputs import PADDING_LABEL, ModelInputs, read_rows, row_images, text_encoder_inputs, token_embeddings


@dataclass
class EncodedInstructions:
    """The inputs of a call, checked and encoded: everything that the DETR encoder and what follows it reads."""

    vision: Sam3VisionEncoderOutput  # of `I` images
    images: list[int] | None  # the image of each of `R` rows; row i uses image i if None
    routing: LevelRouting
    level_logits: torch.Tensor | None  # (R, 3), where the level router was asked
    text_features: torch.Tensor  # (R, L, D): projected tokens
    words: torch.Tensor  # (R, L, T): token embeddings, which the selector reads
    text_mask: torch.Tensor | None  # (R, L), `True` for tokens
    boxes: torch.Tensor | None  # (R, N, 4): box exemplars
    box_labels: torch.Tensor | None  # (R, N)

    def fpn(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The FPN maps that the detector reads, `(I, D, h_i, w_i)`, finest first, and their position encodings."""
        return list(self.vision.fpn_hidden_states[:-1]), list(self.vision.fpn_position_encoding[:-1])

    def take(self, rows: list[int]) -> "EncodedInstructions":
        """Some of the rows, on the same images."""
        index = torch.tensor(rows, device=self.text_features.device)
        return replace(
            self,
            images=rows if self.images is None else [self.images[row] for row in rows],
            routing=self.routing.take(rows, index),
            text_features=self.text_features[index],
            words=self.words[index],
            text_mask=None if self.text_mask is None else self.text_mask[index],
            boxes=None if self.boxes is None else self.boxes[index],
            box_labels=None if self.box_labels is None else self.box_labels[index],
        )


@dataclass
class Prompt:
    """What the detector is asked for by some rows."""

    features: torch.Tensor  # (rows, tokens, width): text, and box exemplars after it
    mask: torch.Tensor | None  # (rows, tokens), `True` where there is something to read
    attention_mask: torch.Tensor | None  # the same as attention reads it
    words: torch.Tensor  # (rows, text tokens, text_width): token embeddings
    text_mask: torch.Tensor | None  # (rows, text tokens), `True` for tokens
    routing: LevelRouting


class Sam3IDetector(Sam3Model):
    """The model in parts, as the forward pass and [`SharedImages`] put them together: encode, decode, score.

    Subclasses say whose adapters are in force: the native model's own, or those that PEFT keeps on a stock SAM3.
    """

    detr_decoder: Sam3IDetrDecoder
    mask_decoder: Sam3IMaskDecoder
    static_level: InstructionLevel | None = None

    if TYPE_CHECKING:  # a stock model's has the same parts
        config: Sam3IConfig

    @property
    def adapter_settings(self) -> AdapterSettings | Sam3IConfig:
        """The settings of the adapters in force."""
        raise NotImplementedError

    @property
    def selects_instances(self) -> bool:
        """Whether the adapters in force choose among queries."""
        return has_selector(self.adapter_settings)

    def set_level(self, level: str | int | InstructionLevel | None) -> None:
        """Fix the level of all instructions to a Python value; with `None`, calls choose it again.

        With a fixed level the forward pass reads no value from a tensor, so that it exports and compiles as stock's
        does. A call that names `instruction_levels` as well is refused. Raises ValueError for an unknown level.
        """
        self.static_level = None if level is None else InstructionLevel.from_any(level)

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of the text encoder."""
        return text_embeddings(self.text_encoder).token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the text encoder."""
        text_embeddings(self.text_encoder).token_embedding = value

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        instruction_levels: torch.Tensor | None = None,
        **kwargs,
    ):
        """Encode instructions for `text_embeds`.

        Args:
            instruction_levels (`torch.LongTensor` of shape `(rows,)`, *optional*): Level of each row; concept if not
                given.

        Returns:
            [`CLIPTextModelOutput`] with the projected tokens `pooler_output` `(rows, tokens, width)` and the token
            embeddings `word_embeds` `(rows, tokens, text_width)`.

        Raises:
            ValueError: for levels or lengths that do not fit.
        """
        levels = self._levels(instruction_levels)
        routing, _ = read_rows(levels, input_ids.shape[0], input_ids.device)
        return self._encode_text(input_ids, attention_mask, routing, return_dict=True, **kwargs)

    def predict_levels(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """What the level router says of instructions; its highest logit is the level of a row left to it (-1).

        Returns:
            `torch.Tensor` of shape `(rows, 3)`: logits of concept, simple and complex.

        Raises:
            ValueError: when the model has no router.
        """
        undecided = torch.full((input_ids.shape[0],), AUTO_LEVEL_INDEX, device=input_ids.device)
        _, logits = self.choose_levels(LevelRouting(undecided, AUTO_LEVEL_INDEX), input_ids, attention_mask)
        assert logits is not None  # all rows were left to it
        return logits

    def choose_levels(
        self, routing: LevelRouting, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[LevelRouting, torch.Tensor | None]:
        """The routing after the level router has chosen where it was left to it (-1), and its logits `(rows, 3)`.

        Raises:
            ValueError: when there is a choice and no router.
        """
        if not routing.has_open_rows:
            return routing, None
        router = adapter_of(self.text_encoder)
        if router is None:
            raise ValueError(
                "`instruction_levels` leaves rows to the model's level router (-1), and this model has none. Load the "
                "processor with auto_levels='rules', or name the levels."
            )
        with torch.no_grad():  # SAM3 is frozen and the concept path has no adapters
            concept = LevelRouting(torch.zeros_like(routing.levels), InstructionLevel.CONCEPT.index)
            states = self._encode_text(input_ids, attention_mask, concept).last_hidden_state
        logits, levels = router(states, attention_mask), routing.levels
        return LevelRouting(torch.where(levels == AUTO_LEVEL_INDEX, logits.argmax(-1), levels)), logits

    def _levels(self, given: Any) -> Any:
        if self.static_level is None:
            return given
        if given is not None:
            raise ValueError(
                f"The level of this model is fixed to {self.static_level.value!r}: leave `instruction_levels` out, or "
                "call `set_level(None)` to choose it in each call."
            )
        return self.static_level

    def _encode_text(self, input_ids, attention_mask, routing: LevelRouting, **kwargs):
        inputs = text_encoder_inputs(self.text_encoder, self.adapter_settings, input_ids, attention_mask)
        outputs = self.text_encoder(input_ids=input_ids, level_routing=routing, **inputs, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.last_hidden_state)
        outputs.word_embeds = self.get_input_embeddings()(input_ids)
        return outputs

    def read_inputs(
        self, inputs: ModelInputs, options: dict[str, Any], drop_padding: bool = False
    ) -> EncodedInstructions:
        """Check the inputs of a call and encode its images and instructions.

        Args:
            drop_padding (`bool`): Leave out the last columns of the token ids where those are padding in every row.
        """
        rows = inputs.check(self.config, options)
        text_features, input_ids, text_mask = inputs.text_features, inputs.input_ids, inputs.attention_mask
        device = (input_ids if text_features is None else text_features).device
        used = inputs.used_columns() if drop_padding and self._ignores_padding() else None
        levels = inputs.instruction_levels
        if levels is None:  # text that is encoded beforehand may know its level
            levels = getattr(inputs.text_embeds, "instruction_levels", None)
        routing, (images, columns) = read_rows(
            self._levels(levels),
            rows,
            device,
            inputs.image_ids,
            used,
            may_be_open=text_features is None,
        )
        if columns is not None:
            input_ids, text_mask = input_ids[:, : columns[0]], text_mask[:, : columns[0]]
        level_logits = None
        if routing.has_open_rows:
            routing, level_logits = self.choose_levels(routing, input_ids, text_mask)
        vision = inputs.vision_embeds
        if vision is None:
            vision = self.vision_encoder(inputs.pixel_values, **options)
        count = vision.fpn_hidden_states[0].shape[0]
        rows, images = row_images(inputs.image_ids, images, rows, count, inputs.input_boxes)
        text_embeds = inputs.text_embeds
        if text_features is None:
            text_embeds = self._encode_text(input_ids, text_mask, routing)
            text_features = text_embeds.pooler_output
        words = token_embeddings(text_embeds, routing, self.config.text_config.hidden_size, self.selects_instances)
        text_mask = None if text_mask is None else text_mask.bool()
        if text_features.shape[0] < rows:  # one instruction for all images
            text_features, words = (each.expand(rows, -1, -1) for each in (text_features, words))
            text_mask = None if text_mask is None else text_mask.expand(rows, -1)
        boxes, labels = inputs.input_boxes, inputs.input_boxes_labels
        return EncodedInstructions(
            vision, images, routing.expand(rows), level_logits, text_features, words, text_mask, boxes, labels
        )

    def _ignores_padding(self) -> bool:
        """Whether nothing looks at padding: no later token, and no adapter that was trained to."""
        has_causal_text = isinstance(text_embeddings(self.text_encoder), CLIPTextEmbeddings)
        return has_causal_text and self.adapter_settings.mask_padding_in_adapters

    def make_prompt(
        self, rows: EncodedInstructions, fpn_states: list[torch.Tensor], fpn_positions: list[torch.Tensor]
    ) -> Prompt:
        """The prompt of rows: their text and box exemplars.

        Args:
            fpn_states (`list[torch.Tensor]`): FPN maps of the image of each row `(rows, width, h_i, w_i)`, the
                coarsest last; and their position encodings.
        """
        features, mask, boxes, labels = rows.text_features, rows.text_mask, rows.boxes, rows.box_labels
        count, device = features.shape[0], features.device
        if boxes is not None and not boxes.shape[1]:
            boxes = None
        if boxes is None and self.adapter_settings.always_encode_geometry:
            # A box that is only padding leaves the geometry CLS token alone.
            boxes = torch.zeros(count, 1, 4, device=device)
            labels = torch.full((count, 1), PADDING_LABEL, dtype=torch.long, device=device)
        if boxes is not None:
            if labels is None:
                labels = torch.ones(boxes.shape[:2], dtype=torch.long, device=device)
            geometry = self.geometry_encoder(
                box_embeddings=boxes.to(features.dtype),
                box_mask=labels != PADDING_LABEL,
                box_labels=torch.where(labels == PADDING_LABEL, 0, labels),
                img_feats=tuple(fpn_states),
                img_pos_embeds=tuple(fpn_positions),
            )
            if mask is None:
                mask = torch.ones(features.shape[:2], dtype=torch.bool, device=device)
            features = torch.cat([features, geometry.last_hidden_state], dim=1)
            mask = torch.cat([mask, geometry.attention_mask], dim=1)
        attention_mask = self._attention_mask(features, mask)
        return Prompt(features, mask, attention_mask, rows.words, rows.text_mask, rows.routing)

    def _attention_mask(self, prompt: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """What encoder, decoder and mask decoder would each make of the mask of a prompt, made once for any query."""
        configs = (self.detr_encoder.config, self.detr_decoder.config, self.mask_decoder.config)
        implementations = {attention_of(config) for config in configs}
        if mask is None or implementations not in ({"eager"}, {"sdpa"}):
            return mask
        return create_bidirectional_mask(
            config=configs[0], inputs_embeds=prompt[:, :1], attention_mask=mask, encoder_hidden_states=prompt
        )

    def decode_queries(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        size: Sequence[int],
        prompt: Prompt,
        *,
        one_to_many: bool = False,
        last_layer_only: bool = True,
        select: bool = True,
        **kwargs,
    ) -> tuple[Sam3DETRDecoderOutput, torch.Tensor, torch.Tensor]:
        """Decode the queries of some rows and score them.

        Args:
            states (`torch.Tensor` of shape `(rows, pixels, width)`): Output of the DETR encoder.
            positions (`torch.Tensor` of shape `(rows, pixels, width)`): Position encoding.
            size (`Sequence[int]`): Height and width of the feature map.
            prompt ([`Prompt`]): Of the rows.
            one_to_many (`bool`): Decode the queries a second time, for one-to-many supervision.
            last_layer_only (`bool`): Whether nobody reads the scores of earlier layers.
            select (`bool`): Whether the selector chooses among the queries.

        Returns:
            The decoder's output, boxes (cx, cy, w, h) `(layers, rows, queries, 4)` in [0, 1] and classification
            logits `(layers, rows, queries)`, not calibrated.
        """
        decoded = self.detr_decoder(
            vision_features=states,
            text_features=prompt.features,
            vision_pos_encoding=positions,
            text_mask=prompt.attention_mask,
            spatial_shapes=[size],
            level_routing=prompt.routing,
            one_to_many=one_to_many,
            clamp_presence_logits=self.adapter_settings.clamp_presence_logits,
            **kwargs,
        )
        queries = decoded.intermediate_hidden_states  # (layers, rows, queries, width)
        offsets = self.detr_decoder.box_head(queries)
        boxes_cxcywh = (inverse_sigmoid(decoded.reference_boxes) + offsets).sigmoid()
        selection = {}
        if self.selects_instances and select:
            selection = {
                "boxes": boxes_cxcywh,
                "instruction": (prompt.words, prompt.text_mask),
                "level_routing": prompt.routing,
                "one_to_many_queries": queries.shape[2] - self.config.detr_decoder_config.num_queries,
                "last_layer_only": last_layer_only,
            }
        logits = self.dot_product_scoring(
            decoder_hidden_states=queries, text_features=prompt.features, text_mask=prompt.mask, **selection
        ).squeeze(-1)  # (layers, rows, queries)
        return decoded, boxes_cxcywh, logits

    def calibrate(
        self, logits: torch.Tensor, presence_logits: torch.Tensor, routing: LevelRouting
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of queries `(rows, queries)` and of presence `(rows, 1)` as they are returned: calibrated, but for
        training."""
        if self.training:
            return logits, presence_logits
        return ScoreCalibration.of(self.adapter_settings)(logits, presence_logits, routing)
