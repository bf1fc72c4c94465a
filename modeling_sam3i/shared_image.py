# SPDX-License-Identifier: Apache-2.0
"""Many instructions on one image, without gradients: a few rows at a time, over features that exist once per image.

What does not depend on the instruction is computed once: the vision encoder, the self-attention of the first DETR
encoder layer (once per level, as adapters may update its projections) and the image's part of the pixel decoder.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..compat import box_cxcywh_to_xyxy, create_bidirectional_mask
from .adapters.routing import LevelRouting
from .instruction_encoding import InstructionRows
from .outputs import Sam3IInstancesOutput, Sam3IInstructionSegmentationOutput
from .pixel_decoder import ImagePixels, applies_to
from .pretrained import Sam3IPreTrainedModel

_CPU_CHUNK_BYTES = 2**30
_ACCELERATOR_SHARE = 0.25
"""What the activations of the rows at work may take: a fixed amount, or a share of the accelerator's free memory."""
_CPU_BLOCK_BYTES = 2**22
"""What the inner activations of an MLP may take, so that they stay in the processor's cache."""


def rows_at_once(model: Sam3IPreTrainedModel, fpn_states: list[torch.Tensor]) -> int:
    """How many rows to run at once, from the memory that one takes.

    Args:
        model: Whose widths are read.
        fpn_states (`list[torch.Tensor]`): FPN maps `(images, width, h_i, w_i)`, finest first.
    """
    config, finest, coarsest = model.config, fpn_states[0], fpn_states[-1]
    tokens, pixels = coarsest.shape[-2:].numel(), finest.shape[-2:].numel()
    width, decoder = finest.shape[1], config.detr_decoder_config
    values = tokens * (config.detr_encoder_config.intermediate_size + 6 * width)
    values += 3 * pixels * width  # maps of the pixel decoder
    values += decoder.num_queries * (pixels + 2 * decoder.num_attention_heads * tokens)  # masks, box bias
    budget = _CPU_CHUNK_BYTES
    if finest.device.type == "cuda":
        budget = int(_ACCELERATOR_SHARE * torch.cuda.mem_get_info(finest.device)[0])
    return max(1, budget // (values * finest.element_size()))


@dataclass
class DecodedRows:
    """What a few rows gave before their masks.

    Args:
        rows (`torch.LongTensor` of shape `(c,)`): Which rows of the call.
        logits (`torch.Tensor` of shape `(c, queries)`): Classification logits.
        boxes (`torch.Tensor` of shape `(c, queries, 4)`): (x1, y1, x2, y2) in [0, 1].
        presence_logits (`torch.Tensor` of shape `(c, 1)`): Presence logits.
        reference_boxes (`torch.Tensor` of shape `(layers, c, queries, 4)`): Reference boxes of the decoder layers.
        predict (`Callable`): Takes the queries wanted of each of the `c` rows and yields, row by row, their mask
            logits `(K, height, width)` and the semantic map `(1, height, width)`, `None` where no query is wanted.
    """

    rows: torch.LongTensor
    logits: torch.Tensor
    boxes: torch.Tensor
    presence_logits: torch.Tensor
    reference_boxes: torch.Tensor
    predict: Callable[[list], Iterator[tuple[torch.Tensor, torch.Tensor | None]]]


class SharedImages:
    """Runs rows through everything after the vision and text encoders.

    Args:
        model: The model.
        inputs ([`InstructionRows`]): All rows of a call and the features of their images.
    """

    def __init__(self, model: Sam3IPreTrainedModel, inputs: InstructionRows):
        self.model = model
        self.inputs = inputs
        self.fpn_states, self.fpn_positions = inputs.fpn()
        coarsest, positions = self.fpn_states[-1], self.fpn_positions[-1]
        self.tokens = coarsest.flatten(2).transpose(1, 2).contiguous()  # (images, tokens, width)
        self.positions = positions.flatten(2).transpose(1, 2).contiguous()
        images = inputs.image_ids
        if images is None:
            images = torch.arange(len(inputs.levels))
        self.images = images.tolist()
        self.levels = inputs.levels.tolist()
        self.attended: dict[tuple[int, int], torch.Tensor] = {}
        self.pixels: tuple[int, ImagePixels] | None = None
        self.shares_pixels = applies_to(model.mask_decoder, self.fpn_states)

    def decode(self, row_chunk_size: int | None = None) -> Iterator[DecodedRows]:
        """All rows, a few at a time: image by image and level by level."""
        order = sorted(range(len(self.images)), key=lambda row: (self.images[row], self.levels[row]))
        step = row_chunk_size or rows_at_once(self.model, self.fpn_states)
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            first = self.images[rows[0]]  # earlier images do not come again
            self.attended = {key: states for key, states in self.attended.items() if key[0] >= first}
            yield self._decode(torch.tensor(rows, device=self.tokens.device))

    def _of_rows(self, features: torch.Tensor, rows: torch.LongTensor) -> torch.Tensor:
        """Features `(images, ...)` for each row: a view where the rows share one image."""
        images = [self.images[row] for row in rows.tolist()]
        if len(set(images)) == 1:
            return features[images[0]].expand(len(images), *features.shape[1:])
        return features[images]

    def _decode(self, rows: torch.LongTensor) -> DecodedRows:
        model, inputs = self.model, self.inputs
        routing = LevelRouting(inputs.levels[rows])
        text, words, text_mask, boxes, box_labels = (
            None if tensor is None else tensor[rows]
            for tensor in (inputs.text_features, inputs.words, inputs.text_mask, inputs.boxes, inputs.box_labels)
        )
        coarsest = [self._of_rows(maps[-1], rows) for maps in (self.fpn_states, self.fpn_positions)]
        prompt, prompt_mask = model.append_geometry(text, text_mask, boxes, box_labels, coarsest[:1], coarsest[1:])
        positions = self._of_rows(self.positions, rows)
        states = self._encode(rows, prompt, prompt_mask, positions, routing)
        decoded, boxes, logits = model.decode_queries(
            states, positions, self.fpn_states[-1].shape[-2:], prompt, prompt_mask, (words, text_mask), routing
        )
        embeddings = model.mask_decoder.mask_embedder(decoded.intermediate_hidden_states[-1], routing)

        def predict(chosen: list) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
            for index, queries in enumerate(chosen):
                wanted = embeddings[index, queries]
                if not len(wanted):
                    yield wanted.new_empty(0, *self.fpn_states[0].shape[-2:]), None
                    continue
                one = slice(index, index + 1)
                mask = None if prompt_mask is None else prompt_mask[one]
                read = model.mask_decoder.read_prompt(states[one], prompt[one], mask)
                yield self._masks(self.images[int(rows[index])], read, wanted)

        return DecodedRows(
            rows,
            logits[-1],
            box_cxcywh_to_xyxy(boxes[-1]),
            decoded.presence_logits[-1],
            decoded.reference_boxes,
            predict,
        )

    def _encode(self, rows, prompt, prompt_mask, positions, routing: LevelRouting) -> torch.Tensor:
        """The DETR encoder, `(c, tokens, width)`."""
        layers = self.model.detr_encoder.layers
        keys = [(self.images[row], self.levels[row]) for row in rows.tolist()]
        for image, level in dict.fromkeys(keys):
            if (image, level) not in self.attended:
                own = slice(image, image + 1)
                level_routing = LevelRouting(torch.tensor([level], device=rows.device))
                self.attended[image, level] = layers[0](
                    self.tokens[own], None, self.positions[own], level_routing=level_routing
                )
        attended = [self.attended[key] for key in keys]
        states = attended[0].expand(len(keys), -1, -1) if len(set(keys)) == 1 else torch.cat(attended)
        mask = None
        if prompt_mask is not None:
            mask = create_bidirectional_mask(
                config=self.model.detr_encoder.config,
                inputs_embeds=states,
                attention_mask=prompt_mask,
                encoder_hidden_states=prompt,
            )
        for index, layer in enumerate(layers):
            if index:
                states = layer(states, None, positions, level_routing=routing)
            states = self._read_prompt(layer, states, prompt, mask, routing)
        return states

    def _read_prompt(self, layer, states, prompt, mask, routing: LevelRouting) -> torch.Tensor:
        """The rest of an encoder layer, which looks at each token by itself: on the processor piece by piece."""
        step = states.shape[1]
        if states.device.type == "cpu":
            values = len(states) * self.model.config.detr_encoder_config.intermediate_size
            step = max(1, _CPU_BLOCK_BYTES // (values * states.element_size()))
        pieces = []
        for start in range(0, states.shape[1], step):
            piece = slice(start, start + step)
            own_mask = mask if mask is None or mask.shape[-2] == 1 else mask[..., piece, :]
            pieces.append(layer(states[:, piece], prompt, None, own_mask, level_routing=routing))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def _masks(self, image: int, states: torch.Tensor, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of one row: `states` `(1, tokens, width)` and mask embeddings `(K, width)`."""
        decoder, own = self.model.mask_decoder, slice(image, image + 1)
        if self.shares_pixels:
            if self.pixels is None or self.pixels[0] != image:
                self.pixels = image, ImagePixels(decoder, [level[own] for level in self.fpn_states])
            return self.pixels[1].predict(states[0], embeddings)
        pixels = decoder.embed_pixels([level[own] for level in self.fpn_states], states)
        masks = torch.einsum("kc,chw->khw", embeddings, decoder.instance_projection(pixels)[0])
        return masks, decoder.semantic_projection(pixels)[0]


@torch.no_grad()
def predict_rows(
    model: Sam3IPreTrainedModel, inputs: InstructionRows, row_chunk_size: int | None
) -> Sam3IInstructionSegmentationOutput:
    """Everything that the model's forward pass returns, for all rows."""
    count = len(inputs.levels)
    masks = semantic = None
    rows, chunks = [], []
    every = slice(None)
    for decoded in SharedImages(model, inputs).decode(row_chunk_size):
        rows.append(decoded.rows)
        chunks.append(
            (decoded.logits, decoded.boxes, decoded.presence_logits, decoded.reference_boxes.transpose(0, 1))
        )
        predictions = decoded.predict([every] * len(decoded.rows))
        for row, (row_masks, row_semantic) in zip(decoded.rows.tolist(), predictions, strict=True):
            if masks is None:
                masks, semantic = (part.new_empty(count, *part.shape) for part in (row_masks, row_semantic))
            masks[row], semantic[row] = row_masks, row_semantic
    back = torch.cat(rows).argsort()
    logits, boxes, presence, references = (torch.cat(parts)[back] for parts in zip(*chunks, strict=True))
    return Sam3IInstructionSegmentationOutput(
        pred_masks=masks,
        pred_boxes=boxes,
        pred_logits=logits,
        presence_logits=presence,
        semantic_seg=semantic,
        text_features=inputs.text_features,
        instruction_levels=inputs.levels,
        level_logits=inputs.level_logits,
        decoder_reference_boxes=references.transpose(0, 1),
    )


@torch.no_grad()
def predict_instances(
    model: Sam3IPreTrainedModel, inputs: InstructionRows, threshold: float, row_chunk_size: int | None
) -> Sam3IInstancesOutput:
    """Only the queries whose score exceeds a threshold; the masks of the others are never made."""
    count = len(inputs.levels)
    masks, boxes, logits = ([None] * count for _ in range(3))
    presence = None
    for decoded in SharedImages(model, inputs).decode(row_chunk_size):
        if presence is None:
            presence = decoded.presence_logits.new_empty(count, 1)
        presence[decoded.rows] = decoded.presence_logits
        scores = decoded.logits.float().sigmoid() * decoded.presence_logits.float().sigmoid()
        # A score that is not a number is kept, for post-processing to complain about.
        kept = [row.nonzero()[:, 0] for row in ~(scores <= threshold)]
        for index, (row_masks, _) in enumerate(decoded.predict(kept)):
            row, queries = int(decoded.rows[index]), kept[index]
            masks[row], boxes[row], logits[row] = (
                row_masks,
                decoded.boxes[index, queries],
                decoded.logits[index, queries],
            )
    return Sam3IInstancesOutput(
        pred_masks=masks,
        pred_boxes=boxes,
        pred_logits=logits,
        presence_logits=presence,
        instruction_levels=inputs.levels,
        level_logits=inputs.level_logits,
        threshold=threshold,
    )
