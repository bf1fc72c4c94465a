# SPDX-License-Identifier: Apache-2.0
"""SAM3-I: frozen SAM3 that follows instructions at three levels in one forward pass."""

from collections.abc import Sequence

import torch
from transformers import CLIPTextConfig
from transformers.utils import logging

from ..compat import (
    Sam3LiteTextTextModel,
    Sam3VisionEncoderOutput,
    box_cxcywh_to_xyxy,
    can_return_tuple,
    text_embeddings,
)
from .adapters.calibration import ScoreCalibration
from .adapters.cascade import adapter_sites, build_adapter
from .adapters.router import LevelRouter
from .adapters.sites import adopt
from .configuration_sam3i import Sam3IConfig
from .detector import Sam3IDetector
from .inputs import PASSED_OVER, ModelInputs
from .losses.loss import Sam3ICriterion
from .losses.targets import labels_of_rows
from .outputs import (
    Sam3IInstancesOutput,
    Sam3IInstructionSegmentationOutput,
    Sam3IQueriesOutput,
    predictions_for_loss,
)
from .pretrained import Sam3IPreTrainedModel
from .shared_image import predict_instances, predict_queries, predict_rows

logger = logging.get_logger(__name__)


class Sam3IModel(Sam3IDetector):
    """SAM3 that follows instructions: its calls, wherever the adapters come from."""

    criterion: Sam3ICriterion

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_embeds: Sam3VisionEncoderOutput | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        input_boxes: torch.Tensor | None = None,
        instruction_levels: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | torch.Tensor | None = None,
        row_chunk_size: int | None = None,
        **kwargs,
    ) -> Sam3IInstructionSegmentationOutput:
        r"""
        Segment `I` images by `R` instructions; image features are computed once per image.

        Without gradients, rows that share images run a few at a time. The masks of all queries of all rows are then
        what takes memory; [`segment`] keeps only those of instances.

        Args:
            pixel_values (`torch.Tensor` of shape `(I, 3, height, width)`): Images, as the processor returns them.
            vision_embeds ([`Sam3VisionEncoderOutput`]): Output of `get_vision_features`, instead of `pixel_values`.
            input_ids (`torch.LongTensor` of shape `(R, L)`): Token ids of the instructions.
            attention_mask (`torch.Tensor` of shape `(R, L)`, *optional*): 1 for tokens, 0 for padding.
            text_embeds (Output of `get_text_features`, or `torch.Tensor` of shape `(R, L, D)`): Encoded
                instructions, instead of `input_ids`; encode them at the level given here. A tensor alone does where
                there is no selector to read the words.
            input_boxes (`torch.Tensor` of shape `(R, N, 4)`, *optional*): Box exemplars (cx, cy, w, h) in [0, 1].
            instruction_levels (`torch.LongTensor` of shape `(R,)`, *optional*): 0 concept, 1 simple, 2 complex, -1
                as the level router finds; concept if not given.
            image_ids (`torch.LongTensor` of shape `(R,)`, *optional*): The image of each row; row i uses image i if
                not given.
            labels (`list[dict]` of length `R`, *optional*): Targets of each row: `"masks"` (`torch.BoolTensor` of
                shape `(N, H, W)`) and `"boxes"` (`torch.FloatTensor` of shape `(N, 4)`, (cx, cy, w, h) in [0, 1]); `N`
                may be 0. Or what the processor makes of `segmentation_maps` (`torch.LongTensor` of shape
                `(I or R, H, W)`): each positive value is one object that the row's instruction denotes.
            row_chunk_size (`int`, *optional*): Rows to run at once where rows share images; chosen from memory if not
                given.
            kwargs: `input_boxes_labels` (`torch.LongTensor` of shape `(R, N)`): 1 positive, 0 negative, -10 padding.
                It has no place in the signature, where `Trainer` takes every name with "label" in it for a target.
                What the processor and the collator return for others (`original_sizes`, `concept_names`,
                `image_keys`, ...) is passed over, and what Transformers passes to every model goes to the layers.

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
        given = ModelInputs(
            pixel_values=pixel_values,
            vision_embeds=vision_embeds,
            input_ids=input_ids,
            attention_mask=attention_mask,
            text_embeds=text_embeds,
            input_boxes=input_boxes,
            input_boxes_labels=kwargs.pop("input_boxes_labels", None),
            instruction_levels=instruction_levels,
            image_ids=image_ids,
            row_chunk_size=row_chunk_size,
        )
        # PEFT's task models pass on arguments of text models that nobody gave.
        if labels is not None and kwargs.get("concept_input_ids") is not None:
            logger.warning_once(
                "The pairs of a joint batch count as rows here: only `Sam3ITrainer` has the losses that align them."
            )
        kwargs = {name: value for name, value in kwargs.items() if value is not None and name not in PASSED_OVER}
        inputs = self.read_inputs(given, kwargs)
        if inputs.images is not None and labels is None and self._may_share_images(kwargs):
            return predict_rows(self, inputs, row_chunk_size)
        fpn_states, fpn_positions = inputs.fpn()
        if inputs.images is not None:
            index = image_ids
            if index is None or index.device != fpn_states[0].device:
                index = torch.tensor(inputs.images, device=fpn_states[0].device)
            fpn_states = [level[index] for level in fpn_states]
            fpn_positions = [level[index] for level in fpn_positions]
        routing, prompt = inputs.routing, self.make_prompt(inputs, fpn_states, fpn_positions)
        encoded = self.detr_encoder(
            vision_features=[fpn_states[-1]],
            text_features=prompt.features,
            vision_pos_embeds=[fpn_positions[-1]],
            text_mask=prompt.attention_mask,
            level_routing=routing,
            **kwargs,
        )
        supervised = self.training and labels is not None
        decoded, boxes_cxcywh, logits = self.decode_queries(
            encoded.last_hidden_state,
            encoded.pos_embeds_flattened,
            fpn_states[-1].shape[-2:],
            prompt,
            one_to_many=supervised and self.criterion.config.one_to_many_weight > 0,
            last_layer_only=labels is None,
            **kwargs,
        )
        num_queries = self.config.detr_decoder_config.num_queries
        mask_outputs = self.mask_decoder(
            decoder_queries=decoded.intermediate_hidden_states[-1],
            backbone_features=fpn_states,
            encoder_hidden_states=encoded.last_hidden_state,
            prompt_features=prompt.features,
            prompt_mask=prompt.attention_mask,
            level_routing=routing,
            predict_all_masks=not supervised,
            **kwargs,
        )
        loss = loss_dict = None
        if labels is not None:
            predictions = predictions_for_loss(
                logits, boxes_cxcywh, decoded.presence_logits, mask_outputs, num_queries
            )
            loss, loss_dict = self.criterion(predictions, labels_of_rows(labels, inputs.images))
        pred_logits, presence_logits = self.calibrate(
            logits[-1][:, :num_queries], decoded.presence_logits[-1], routing
        )
        return Sam3IInstructionSegmentationOutput(
            loss=loss,
            loss_dict=loss_dict,
            pred_masks=None if supervised else mask_outputs.pred_masks,
            pred_boxes=box_cxcywh_to_xyxy(boxes_cxcywh[-1])[:, :num_queries],
            pred_logits=pred_logits,
            presence_logits=presence_logits,
            semantic_seg=mask_outputs.semantic_seg,
            text_features=inputs.text_features,
            instruction_levels=routing.levels,
            level_logits=inputs.level_logits,
            decoder_hidden_states=decoded.hidden_states,
            decoder_reference_boxes=decoded.reference_boxes,
            encoder_hidden_states=encoded.hidden_states,
            vision_hidden_states=inputs.vision.hidden_states,
            vision_attentions=inputs.vision.attentions,
            detr_encoder_attentions=encoded.attentions,
            detr_decoder_attentions=decoded.attentions,
            mask_decoder_attentions=mask_outputs.attentions,
        )

    def segment(self, threshold: float = 0.5, row_chunk_size: int | None = None, **inputs) -> Sam3IInstancesOutput:
        """
        Segment `I` images by `R` instructions and keep only the queries that are instances.

        For many instructions on one image: rows run a few at a time, and the masks of other queries are never made.
        Instances are those of the forward pass up to rounding.

        Args:
            threshold (`float`, defaults to 0.5): Instances need a higher score; post-process with this or a higher
                one.
            row_chunk_size (`int`, *optional*): Rows to run at once; chosen from memory if not given.
            inputs: As in the forward pass, without `labels`.

        Returns:
            [`Sam3IInstancesOutput`], for the processor's `post_process_instruction_segmentation`.

        Raises:
            ValueError: when inputs are missing, given twice, or do not fit each other.

        Example:

        ```python
        >>> inputs = processor(images=image, text=[["the dog on the left", "the brown dog", "cat"]])
        >>> instances = model.segment(**inputs)
        >>> results = processor.post_process_instruction_segmentation(instances, target_sizes=[image.size[::-1]])
        ```
        """
        given = ModelInputs.take_from(inputs, row_chunk_size)
        with torch.no_grad():
            rows = self.read_inputs(given, inputs, drop_padding=True)
            return predict_instances(self, rows, threshold, row_chunk_size)

    @torch.no_grad()
    def instruction_queries(self, row_chunk_size: int | None = None, **inputs) -> Sam3IQueriesOutput:
        """
        What the decoder finds for each instruction before the selector chooses; no masks are made.

        Returns:
            [`Sam3IQueriesOutput`], its rows in the order of the instructions.

        Raises:
            ValueError: when inputs are missing, given twice, or do not fit each other.
        """
        given = ModelInputs.take_from(inputs, row_chunk_size)
        return predict_queries(self, self.read_inputs(given, inputs), row_chunk_size)

    def _may_share_images(self, options: dict) -> bool:
        """Whether nobody needs gradients, or states and attentions of all rows at once."""
        recorded = ("output_attentions", "output_hidden_states")
        return not (
            torch.is_grad_enabled()
            or self.training
            or torch.compiler.is_compiling()
            or any(options.get(name) or getattr(self.config, name, False) for name in recorded)
        )


class Sam3IForInstructionSegmentation(Sam3IModel, Sam3IPreTrainedModel):
    """
    Stock [`Sam3Model`] with instruction adapters in its text encoder, DETR encoder, DETR decoder and mask decoder.

    Weights of stock SAM3 (layout `sam3` or `sam3_video`) load as they are; adapters that no file provides start as
    the identity. Rows at the concept level compute exactly what stock computes, whatever the adapters learned.

    Source: SAM3-I (arXiv 2512.04585).
    """

    config_class = Sam3IConfig
    config: Sam3IConfig

    def __init__(self, config: Sam3IConfig):
        config.check_adapters()
        ScoreCalibration.of(config)  # says what is wrong with it before anything is loaded
        text_config = config.text_config
        if not config.has_causal_text:  # stock's constructor knows CLIP only; what it builds is replaced below
            config.text_config = CLIPTextConfig(
                vocab_size=text_config.vocab_size, hidden_size=text_config.hidden_size, num_hidden_layers=1
            )
        super().__init__(config)
        config.text_config = text_config
        # Stock sub-models become ours; the weights keep their names.
        adopt(self.detr_decoder)
        adopt(self.mask_decoder)
        if config.has_causal_text:
            embeddings = adopt(text_embeddings(self.text_encoder))
            if config.max_instruction_length > config.text_config.max_position_embeddings:
                embeddings.extend(config.max_instruction_length)
        else:  # its positions are interpolated to any length
            self.text_encoder = Sam3LiteTextTextModel(text_config)  # type: ignore[assignment, arg-type]
        for _, site in adapter_sites(self):
            adapter = build_adapter(site, config, config.text_config.hidden_size)
            if not isinstance(adapter, LevelRouter):  # the router is asked, it takes no part in its site's forward
                adopt(site)
            site.sam3i_adapter = adapter
        self.criterion = Sam3ICriterion(config.loss_config)
        self.post_init()

    @property
    def adapter_settings(self) -> Sam3IConfig:
        """The settings of the adapters: those of the model."""
        return self.config

    def calibrate_scores(self, values: dict[str, Sequence[float]] | None) -> None:
        """Set what becomes of logits at inference, `{"simple": [scale, bias, presence_bias], ...}`; `None` nothing.

        The numbers are saved in `config.json`, and in `adapter_config.json` beside adapters. The loss does not see
        them.

        Raises:
            ValueError: for another level than simple and complex, or numbers that are no scale and biases.
        """
        self.config.score_calibration = ScoreCalibration(values).to_dict()
