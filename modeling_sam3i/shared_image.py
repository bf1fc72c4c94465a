# SPDX-License-Identifier: Apache-2.0
"""Many instructions on one image, without gradients: a few rows at a time, over features that exist once per image.

What does not depend on the instruction is computed once: the vision encoder, the self-attention of the first DETR
encoder layer (once per level, as adapters may update its projections).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..compat import box_cxcywh_to_xyxy, create_bidirectional_mask
from .adapters.routing import LevelRouting
from .detector import EncodedInstructions, Prompt, Sam3IDetector
from .outputs import Sam3IInstancesOutput, Sam3IInstructionSegmentationOutput, Sam3IQueriesOutput

_CPU_CHUNK_BYTES = 2**30
_ACCELERATOR_SHARE = 0.25
"""What the activations of the rows at work may take: a fixed amount, or a share of the accelerator's free memory."""


def rows_at_once(model: Sam3IDetector, fpn_states: list[torch.Tensor]) -> int:
    """How many rows to run at once, from the memory that one takes.

    Args:
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
    """What a few rows gave before their masks."""

    rows: list[int]  # which `c` rows of the call
    logits: torch.Tensor  # (c, queries): classification
    boxes: torch.Tensor  # (c, queries, 4): (cx, cy, w, h) in [0, 1]
    queries: torch.Tensor  # (c, queries, width): decoder output of the last layer
    presence_logits: torch.Tensor  # (c, 1)
    reference_boxes: torch.Tensor  # (layers, c, queries, 4)
    states: torch.Tensor  # (c, tokens, width): output of the DETR encoder
    prompt: Prompt


class SharedImages:
    """Runs rows through everything after the vision and text encoders.

    The host waits for an accelerator twice for each few rows that run at once: for the mask of their prompts, and
    where only some queries are wanted, for which.
    """

    def __init__(self, model: Sam3IDetector, inputs: EncodedInstructions):
        self.model = model
        self.inputs = inputs
        self.fpn_states, self.fpn_positions = inputs.fpn()
        coarsest, positions = self.fpn_states[-1], self.fpn_positions[-1]
        self.tokens = coarsest.flatten(2).transpose(1, 2).contiguous()  # (images, tokens, width)
        self.positions = positions.flatten(2).transpose(1, 2).contiguous()
        self.levels = inputs.routing.on_host
        self.images = list(range(len(self.levels))) if inputs.images is None else inputs.images
        self.attended: dict[tuple[int, int], torch.Tensor] = {}

    def decode(self, row_chunk_size: int | None = None, select: bool = True) -> Iterator[DecodedRows]:
        """All rows, a few at a time: image by image and level by level; `select` is whether the selector chooses."""
        order = sorted(range(len(self.images)), key=lambda row: (self.images[row], self.levels[row]))
        step = row_chunk_size or rows_at_once(self.model, self.fpn_states)
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            first = self.images[rows[0]]  # earlier images do not come again
            self.attended = {key: states for key, states in self.attended.items() if key[0] >= first}
            yield self._decode(rows, select)

    def masks(self, decoded: DecodedRows, wanted: list[slice | torch.Tensor]) -> Iterator[tuple]:
        """Masks of the queries wanted of each row, and of no others.

        Yields:
            Row by row their logits `(K, height, width)` and the semantic map `(1, height, width)`, `None` where no
            query is wanted.
        """
        decoder, prompt = self.model.mask_decoder, decoded.prompt
        embeddings = decoder.mask_embedder(decoded.queries, prompt.routing)
        for index, queries in enumerate(wanted):
            chosen = embeddings[index, queries]  # (K, width)
            if not len(chosen):
                yield chosen.new_empty(0, *self.fpn_states[0].shape[-2:]), None
                continue
            own, mask = slice(index, index + 1), prompt.attention_mask
            mask = None if mask is None else mask[own]
            states = decoder.read_prompt(decoded.states[own], prompt.features[own], mask)
            image = self.images[decoded.rows[index]]
            pixels = decoder.embed_pixels([level[image : image + 1] for level in self.fpn_states], states)
            masks = torch.einsum("kc,chw->khw", chosen, decoder.instance_projection(pixels)[0])
            yield masks, decoder.semantic_projection(pixels)[0]

    def _of_rows(self, features: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Features `(images, ...)` for each row: a view where the rows share one image."""
        images = [self.images[row] for row in rows]
        if len(set(images)) == 1:
            return features[images[0]].expand(len(images), *features.shape[1:])
        return features[images]

    def _decode(self, rows: list[int], select: bool) -> DecodedRows:
        model, inputs = self.model, self.inputs.take(rows)
        coarsest, positions = (self._of_rows(maps[-1], rows) for maps in (self.fpn_states, self.fpn_positions))
        prompt = model.make_prompt(inputs, [coarsest], [positions])
        positions = self._of_rows(self.positions, rows)
        states = self._encode(rows, prompt, positions)
        decoded, boxes, logits = model.decode_queries(
            states, positions, self.fpn_states[-1].shape[-2:], prompt, select=select
        )
        return DecodedRows(
            rows=rows,
            logits=logits[-1],
            boxes=boxes[-1],
            queries=decoded.intermediate_hidden_states[-1],
            presence_logits=decoded.presence_logits[-1],
            reference_boxes=decoded.reference_boxes,
            states=states,
            prompt=prompt,
        )

    def _encode(self, rows: list[int], prompt: Prompt, positions: torch.Tensor) -> torch.Tensor:
        """The DETR encoder, `(c, tokens, width)`."""
        encoder, routing = self.model.detr_encoder, prompt.routing
        keys = [(self.images[row], self.levels[row]) for row in rows]
        for image, level in dict.fromkeys(keys):
            if (image, level) not in self.attended:
                own, index = slice(image, image + 1), keys.index((image, level))
                level_routing = LevelRouting(routing.levels[index : index + 1], level)
                self.attended[image, level] = encoder.layers[0](
                    self.tokens[own], None, self.positions[own], level_routing=level_routing
                )
        attended = [self.attended[key] for key in keys]
        states = attended[0].expand(len(keys), -1, -1) if len(set(keys)) == 1 else torch.cat(attended)
        mask = prompt.attention_mask
        if mask is not None:
            mask = create_bidirectional_mask(
                config=encoder.config,
                inputs_embeds=states,
                attention_mask=mask,
                encoder_hidden_states=prompt.features,
            )
        for index, layer in enumerate(encoder.layers):
            if index:
                states = layer(states, None, positions, level_routing=routing)
            states = layer(states, prompt.features, None, mask, level_routing=routing)
        return states


@torch.no_grad()
def predict_rows(
    model: Sam3IDetector, inputs: EncodedInstructions, row_chunk_size: int | None
) -> Sam3IInstructionSegmentationOutput:
    """Everything that the model's forward pass returns, for all rows."""
    count = len(inputs.routing.levels)
    shared = SharedImages(model, inputs)
    masks: torch.Tensor | None = None
    semantic: torch.Tensor | None = None
    rows: list[int] = []
    chunks: list[tuple[torch.Tensor, ...]] = []
    for decoded in shared.decode(row_chunk_size):
        rows += decoded.rows
        logits, presence = model.calibrate(decoded.logits, decoded.presence_logits, decoded.prompt.routing)
        boxes = box_cxcywh_to_xyxy(decoded.boxes)
        chunks.append((logits, boxes, presence, decoded.reference_boxes.transpose(0, 1)))
        predictions = shared.masks(decoded, [slice(None)] * len(decoded.rows))
        for row, (row_masks, row_semantic) in zip(decoded.rows, predictions, strict=True):
            if masks is None or semantic is None:
                masks, semantic = (part.new_empty(count, *part.shape) for part in (row_masks, row_semantic))
            masks[row], semantic[row] = row_masks, row_semantic
    logits, boxes, presence, references = _in_order(rows, chunks)
    return Sam3IInstructionSegmentationOutput(
        pred_masks=masks,
        pred_boxes=boxes,
        pred_logits=logits,
        presence_logits=presence,
        semantic_seg=semantic,
        text_features=inputs.text_features,
        instruction_levels=inputs.routing.levels,
        level_logits=inputs.level_logits,
        decoder_reference_boxes=references.transpose(0, 1),
    )


@torch.no_grad()
def predict_instances(
    model: Sam3IDetector, inputs: EncodedInstructions, threshold: float, row_chunk_size: int | None
) -> Sam3IInstancesOutput:
    """Only the queries whose score exceeds a threshold; the masks of the others are never made."""
    shared = SharedImages(model, inputs)
    found: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}  # masks, boxes and logits of a row
    rows: list[int] = []
    presence: list[tuple[torch.Tensor, ...]] = []
    for decoded in shared.decode(row_chunk_size):
        rows += decoded.rows
        all_logits, chunk_presence = model.calibrate(decoded.logits, decoded.presence_logits, decoded.prompt.routing)
        all_boxes = box_cxcywh_to_xyxy(decoded.boxes)
        presence.append((chunk_presence,))
        scores = all_logits.float().sigmoid() * chunk_presence.float().sigmoid()
        # A score that is not a number is kept, for post-processing to complain about.
        kept = [row.nonzero()[:, 0].to(scores.device) for row in (~(scores <= threshold)).cpu()]
        for index, (row_masks, _) in enumerate(shared.masks(decoded, kept)):
            row, queries = decoded.rows[index], kept[index]
            found[row] = (row_masks, all_boxes[index, queries], all_logits[index, queries])
    (presence_logits,) = _in_order(rows, presence)
    masks, boxes, logits = zip(*(found[row] for row in sorted(found)), strict=True)
    return Sam3IInstancesOutput(
        pred_masks=list(masks),
        pred_boxes=list(boxes),
        pred_logits=list(logits),
        presence_logits=presence_logits,
        instruction_levels=inputs.routing.levels,
        level_logits=inputs.level_logits,
        threshold=threshold,
    )


@torch.no_grad()
def predict_queries(
    model: Sam3IDetector, inputs: EncodedInstructions, row_chunk_size: int | None
) -> Sam3IQueriesOutput:
    """What the decoder finds for all rows, before the selector; no masks are made."""
    rows: list[int] = []
    chunks: list[tuple[torch.Tensor, ...]] = []
    for decoded in SharedImages(model, inputs).decode(row_chunk_size, select=False):
        rows += decoded.rows
        chunks.append((decoded.logits, decoded.boxes, decoded.queries, decoded.presence_logits))
    logits, boxes, queries, presence = _in_order(rows, chunks)
    return Sam3IQueriesOutput(
        pred_logits=logits,
        pred_boxes=boxes,
        queries=queries,
        presence_logits=presence,
        words=inputs.words,
        text_mask=inputs.text_mask,
        instruction_levels=inputs.routing.levels,
        level_logits=inputs.level_logits,
    )


def _in_order(rows: list[int], chunks: list[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    """Tensors of a few rows each, joined in the order of the rows of the call."""
    back = sorted(range(len(rows)), key=rows.__getitem__)
    return [torch.cat(parts)[back] for parts in zip(*chunks, strict=True)]
