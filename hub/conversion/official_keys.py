# SPDX-License-Identifier: Apache-2.0
"""The names of the authors' checkpoints and what they are called here, as data.

A rule pairs an official name with a native one. In both, `{i}` is a layer number and `{p}` is `weight` or `bias`;
`{qkv}` in a native name says that the official tensor stacks query, key and value along its first dimension.
The native names of stock SAM3 are those of `transformers`' `Sam3Model`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import torch

RELEASED_ADAPTER_HEADS = 4
"""Heads of the released text adapters. No shape tells them; the authors' training configuration (`base.yaml`,
`adapter_config`) and the default of their model builder (`AdapterConfig`) both say 4, in public copies of the code."""

RELEASED_ADAPTER_SCALE = 1.0  # factor on the DETR adapters, from the same two places

DETECTOR_PREFIX = "detector."
"""What the layout of the SAM3 release, detector and tracker in one file, puts before every name of the detector."""

NESTED_STATE = "model"  # the entry of a checkpoint that holds the weights

TRAINER_ENTRIES = frozenset(
    "optimizer epoch loss steps time_elapsed best_meter_values adapter_config model_has_adapter strict_freeze "
    "frozen_params_count trainable_params_count inst_stage scaler train_dataset".split()
)
"""What the authors' trainer saves beside the weights."""


class Transform(str, Enum):
    """What happens to a tensor on its way."""

    COPY = "copy"
    SPLIT_QKV = "split into query, key, value"
    TRANSPOSE = "transpose"
    DROP_CLS_POSITION = "drop the position of the class token"

    def apply(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The native tensors, in the order of [`Target.names`].

        Raises:
            ValueError: when the tensor's shape does not allow it.
        """
        if self is Transform.SPLIT_QKV:
            if tensor.ndim == 0 or tensor.shape[0] % 3:
                raise ValueError(f"Expected a first dimension divisible by 3, found shape {tuple(tensor.shape)}.")
            return [part.clone() for part in tensor.chunk(3)]
        if self is Transform.TRANSPOSE:
            if tensor.ndim != 2:
                raise ValueError(f"Expected a matrix, found shape {tuple(tensor.shape)}.")
            return [tensor.T.contiguous()]
        if self is Transform.DROP_CLS_POSITION:
            if tensor.ndim != 3 or tensor.shape[1] < 2:
                raise ValueError(f"Expected shape (1, 1 + positions, width), found {tuple(tensor.shape)}.")
            return [tensor[:, 1:].contiguous()]
        return [tensor]


@dataclass(frozen=True)
class Target:
    """Where an official tensor goes: native names (several after a split) and the transform."""

    names: tuple[str, ...]
    transform: Transform


def _attention(official: str, native: str, out: str = "o_proj") -> list[tuple[str, str]]:
    return [
        (f"{official}.in_proj_{{p}}", f"{native}.{{qkv}}_proj.{{p}}"),
        (f"{official}.out_proj.{{p}}", f"{native}.{out}.{{p}}"),
    ]


def _leaves(official: str, native: str, **leaves: str) -> list[tuple[str, str]]:
    return [(f"{official}.{old}.{{p}}", f"{native}.{new}.{{p}}") for old, new in leaves.items()]


def _mlp(official: str, native: str, layers: int) -> list[tuple[str, str]]:
    return [(f"{official}.layers.{n}.{{p}}", f"{native}.layer{n + 1}.{{p}}") for n in range(layers)]


VIT, VIT_NATIVE = "backbone.vision_backbone.trunk", "vision_encoder.backbone"
FPN, FPN_NATIVE = "backbone.vision_backbone.convs.{i}", "vision_encoder.neck.fpn_layers.{i}"
TEXT, TEXT_NATIVE = "backbone.language_backbone.encoder", "text_encoder.text_model"
TEXT_LAYER, TEXT_LAYER_NATIVE = f"{TEXT}.transformer.resblocks.{{i}}", f"{TEXT_NATIVE}.encoder.layers.{{i}}"
GEOMETRY_LAYER, GEOMETRY_LAYER_NATIVE = "geometry_encoder.encode.{i}", "geometry_encoder.layers.{i}"
ENCODER_LAYER, ENCODER_LAYER_NATIVE = "transformer.encoder.layers.{i}", "detr_encoder.layers.{i}"
DECODER, DECODER_NATIVE = "transformer.decoder", "detr_decoder"
DECODER_LAYER, DECODER_LAYER_NATIVE = f"{DECODER}.layers.{{i}}", f"{DECODER_NATIVE}.layers.{{i}}"
MASKS, MASKS_NATIVE = "segmentation_head", "mask_decoder"

STOCK_RULES: list[tuple[str, str]] = [
    # image encoder
    (f"{VIT}.pos_embed", f"{VIT_NATIVE}.embeddings.position_embeddings"),
    (f"{VIT}.patch_embed.proj.weight", f"{VIT_NATIVE}.embeddings.patch_embeddings.projection.weight"),
    (f"{VIT}.ln_pre.{{p}}", f"{VIT_NATIVE}.layer_norm.{{p}}"),
    (f"{VIT}.blocks.{{i}}.attn.qkv.{{p}}", f"{VIT_NATIVE}.layers.{{i}}.attention.{{qkv}}_proj.{{p}}"),
    (f"{VIT}.blocks.{{i}}.attn.proj.{{p}}", f"{VIT_NATIVE}.layers.{{i}}.attention.o_proj.{{p}}"),
    *_leaves(f"{VIT}.blocks.{{i}}", f"{VIT_NATIVE}.layers.{{i}}", norm1="layer_norm1", norm2="layer_norm2"),
    *_leaves(f"{VIT}.blocks.{{i}}.mlp", f"{VIT_NATIVE}.layers.{{i}}.mlp", fc1="fc1", fc2="fc2"),
    *_leaves(FPN, FPN_NATIVE, dconv_2x2="scale_layers.0", dconv_2x2_0="scale_layers.0", dconv_2x2_1="scale_layers.2"),
    *_leaves(FPN, FPN_NATIVE, conv_1x1="proj1", conv_3x3="proj2"),
    # text encoder
    (f"{TEXT}.positional_embedding", f"{TEXT_NATIVE}.embeddings.position_embedding.weight"),
    (f"{TEXT}.token_embedding.weight", f"{TEXT_NATIVE}.embeddings.token_embedding.weight"),
    (f"{TEXT}.text_projection", "text_encoder.text_projection.weight"),
    (f"{TEXT}.ln_final.{{p}}", f"{TEXT_NATIVE}.final_layer_norm.{{p}}"),
    ("backbone.language_backbone.resizer.{p}", "text_projection.{p}"),
    *_attention(f"{TEXT_LAYER}.attn", f"{TEXT_LAYER_NATIVE}.self_attn", out="out_proj"),
    *_leaves(TEXT_LAYER, TEXT_LAYER_NATIVE, ln_1="layer_norm1", ln_2="layer_norm2"),
    *_leaves(f"{TEXT_LAYER}.mlp", f"{TEXT_LAYER_NATIVE}.mlp", c_fc="fc1", c_proj="fc2"),
    # geometry encoder
    *[(f"geometry_encoder.{name}.weight",) * 2 for name in ("label_embed", "cls_embed")],
    *[
        (f"geometry_encoder.{name}.{{p}}",) * 2
        for name in ("boxes_direct_project", "boxes_pool_project", "boxes_pos_enc_project", "final_proj")
    ],
    *_leaves("geometry_encoder", "geometry_encoder", norm="prompt_layer_norm", img_pre_norm="vision_layer_norm"),
    *_leaves("geometry_encoder", "geometry_encoder", encode_norm="output_layer_norm"),
    # layers of the geometry encoder and of the DETR encoder
    *[
        rule
        for official, native in (
            (GEOMETRY_LAYER, GEOMETRY_LAYER_NATIVE),
            (ENCODER_LAYER, ENCODER_LAYER_NATIVE),
        )
        for rule in (
            *_attention(f"{official}.self_attn", f"{native}.self_attn"),
            *_attention(f"{official}.cross_attn_image", f"{native}.cross_attn"),
            *_leaves(official, native, linear1="mlp.fc1", linear2="mlp.fc2"),
            *_leaves(official, native, norm1="layer_norm1", norm2="layer_norm2", norm3="layer_norm3"),
        )
    ],
    # DETR decoder
    *_attention(f"{DECODER_LAYER}.self_attn", f"{DECODER_LAYER_NATIVE}.self_attn"),
    *_attention(f"{DECODER_LAYER}.ca_text", f"{DECODER_LAYER_NATIVE}.text_cross_attn"),
    *_attention(f"{DECODER_LAYER}.cross_attn", f"{DECODER_LAYER_NATIVE}.vision_cross_attn"),
    *_leaves(
        DECODER_LAYER,
        DECODER_LAYER_NATIVE,
        norm1="vision_cross_attn_layer_norm",
        norm2="self_attn_layer_norm",
        norm3="mlp_layer_norm",
        catext_norm="text_cross_attn_layer_norm",
        linear1="mlp.fc1",
        linear2="mlp.fc2",
    ),
    *_leaves(DECODER, DECODER_NATIVE, norm="output_layer_norm", presence_token_out_norm="presence_layer_norm"),
    *[
        (f"{DECODER}.{name}.weight", f"{DECODER_NATIVE}.{name}.weight")
        for name in ("query_embed", "reference_points", "presence_token")
    ],
    *_mlp(f"{DECODER}.bbox_embed", f"{DECODER_NATIVE}.box_head", 3),
    *_mlp(f"{DECODER}.presence_token_head", f"{DECODER_NATIVE}.presence_head", 3),
    *_mlp(f"{DECODER}.ref_point_head", f"{DECODER_NATIVE}.ref_point_head", 2),
    *_mlp(f"{DECODER}.boxRPB_embed_x", f"{DECODER_NATIVE}.box_rpb_embed_x", 2),
    *_mlp(f"{DECODER}.boxRPB_embed_y", f"{DECODER_NATIVE}.box_rpb_embed_y", 2),
    # mask head and scoring
    *[
        (f"{MASKS}.pixel_decoder.{name}.{{i}}.{{p}}", f"{MASKS_NATIVE}.pixel_decoder.{name}.{{i}}.{{p}}")
        for name in ("conv_layers", "norms")
    ],
    (f"{MASKS}.mask_predictor.mask_embed.layers.{{i}}.{{p}}", f"{MASKS_NATIVE}.mask_embedder.layers.{{i}}.{{p}}"),
    *_attention(f"{MASKS}.cross_attend_prompt", f"{MASKS_NATIVE}.prompt_cross_attn"),
    *_leaves(MASKS, MASKS_NATIVE, cross_attn_norm="prompt_cross_attn_norm"),
    *_leaves(MASKS, MASKS_NATIVE, semantic_seg_head="semantic_projection", instance_seg_head="instance_projection"),
    *_mlp("dot_prod_scoring.prompt_mlp", "dot_product_scoring.text_mlp", 2),
    ("dot_prod_scoring.prompt_mlp.out_norm.{p}", "dot_product_scoring.text_mlp_out_norm.{p}"),
    *_leaves("dot_prod_scoring", "dot_product_scoring", prompt_proj="text_proj", hs_proj="query_proj"),
]

CASCADE_MEMBERS = {"adapter1": "s_adapter", "adapter12": "cascade_s_adapter", "adapter2": "c_adapter"}
MASK_LEVELS = {"mask_predictor_adapter1": "simple", "mask_predictor_adapter2": "complex"}

ADAPTER_RULES: list[tuple[str, str]] = [
    *[
        rule
        for old, new in CASCADE_MEMBERS.items()
        for rule in (
            (
                f"{TEXT_LAYER}.{old}.mha_adapter.in_proj_{{p}}",
                f"{TEXT_LAYER_NATIVE}.sam3i_adapter.{new}.qkv_proj.{{p}}",
            ),
            *_leaves(
                f"{TEXT_LAYER}.{old}",
                f"{TEXT_LAYER_NATIVE}.sam3i_adapter.{new}",
                **{"mha_adapter.out_proj": "attn_proj", "norm1": "attention_norm", "norm2": "bottleneck_norm"},
                down_proj="down_proj",
                up_proj="up_proj",
            ),
        )
    ],
    *[
        rule
        for official, native in ((ENCODER_LAYER, ENCODER_LAYER_NATIVE), (DECODER_LAYER, DECODER_LAYER_NATIVE))
        for old, new in CASCADE_MEMBERS.items()
        for rule in _leaves(
            f"{official}.{old}",
            f"{native}.sam3i_adapter.{new}",
            down_proj="down_proj",
            norm="norm",
            up_proj="up_proj",
        )
    ],
    *[
        (
            f"{MASKS}.{old}.mask_embed.layers.{{i}}.{{p}}",
            f"{MASKS_NATIVE}.mask_embedder.sam3i_adapter.{new}.layers.{{i}}.{{p}}",
        )
        for old, new in MASK_LEVELS.items()
    ],
]

TRANSFORMS = {
    f"{VIT}.pos_embed": Transform.DROP_CLS_POSITION,
    f"{TEXT}.text_projection": Transform.TRANSPOSE,
}
"""The rules that neither copy nor split."""

DROPPED: dict[str, str] = {
    r"tracker\..+": "belongs to the video tracker, which is not part of the detector",
    r"backbone\.vision_backbone\.sam2_convs\..+": "second image neck, used by the video tracker only",
    r"backbone\.vision_backbone\.interactive_convs\..+": "second image neck of SAM 3.1, used by clicks only",
    r"backbone\.vision_backbone\.propagation_convs\..+": "third image neck of SAM 3.1, used by the tracker only",
    r"backbone\.vision_backbone\.trunk\.blocks\.\d+\.attn\.freqs_cis(_real|_imag)?": "table of rotary positions, "
    "computed anew",
    r"geometry_encoder\.points_(direct|pool|pos_enc)_project\.(weight|bias)": "point prompts, which stock Sam3Model "
    "does not have",
    r"backbone\.text\..+": "second text encoder that the authors' trainer registers and never uses",
    r"(simple_query_proj|complex_query_proj|concept_proj)\.\d+\.(weight|bias)": "projector of the alignment losses, "
    "used in training only",
}
"""Official names (regular expressions, without the `detector.` prefix) that have no native one, and why."""

FOREIGN: dict[str, str] = {
    r"(detector\.)?backbone\.vision_backbone\.trunk\.model\..+": "EfficientSAM3, whose image encoder is a "
    "convolutional student (EfficientViT, RepViT or TinyViT with a projecting head). No class of Transformers "
    "computes it; SAM 3, SAM 3.1 and SAM3-LiteText work",
    r"(detector\.)?backbone\.language_backbone\.(projector|embed_proj)\..+": "SAM3-LiteText or EfficientSAM3 in "
    "their authors' own layout, with a MobileCLIP text encoder. Name the SAM3-LiteText repository in the layout of "
    "Transformers; it needs no conversion",
    r"(image_encoder|sam_mask_decoder|sam_prompt_encoder|prompt_encoder|memory_attention)\..+": "SAM 1 or SAM 2, "
    "which are pointed at what they shall segment and read no text. Take a checkpoint of SAM 3",
}
"""Names that tell another family of models, and what to say about it."""


def _compile(rules: list[tuple[str, str]]) -> list[tuple[re.Pattern, str, Transform]]:
    compiled = []
    for official, native in rules:
        pattern = re.escape(official).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{p\}", "(?P<p>weight|bias)")
        transform = Transform.SPLIT_QKV if "{qkv}" in native else TRANSFORMS.get(official, Transform.COPY)
        compiled.append((re.compile(pattern), native, transform))
    return compiled


_RULES = _compile(STOCK_RULES + ADAPTER_RULES)
_FPN_LEVEL = re.compile(r"vision_encoder\.neck\.fpn_layers\.(\d+)\.")
_DROPPED = [(re.compile(pattern), reason) for pattern, reason in DROPPED.items()]


def strip_prefix(name: str) -> str:
    """The official name without the prefix of the release layout."""
    return name.removeprefix(DETECTOR_PREFIX)


def last_level_of(expected: set[str], found: set[str]) -> set[str]:
    """The weights of the coarsest FPN level where they are all that a file lacks of the image neck, as in SAM 3.1.

    Stock drops the last level of those that it computes, so a model of the three scales 4, 2 and 1 would read the
    wrong maps: it needs a fourth that nothing reads.
    """
    levels: dict[int, set[str]] = {}
    for name in expected:
        if match := _FPN_LEVEL.match(name):
            levels.setdefault(int(match[1]), set()).add(name)
    last = levels[max(levels)] if levels else set()
    return last if levels and not last & found else set()


def find_target(name: str) -> Target | None:
    """Where the official tensor `name` (without prefix) goes; `None` when no rule knows it."""
    for pattern, native, transform in _RULES:
        match = pattern.fullmatch(name)
        if match:
            parts = "qkv" if transform is Transform.SPLIT_QKV else "-"
            return Target(tuple(native.format(qkv=part, **match.groupdict()) for part in parts), transform)
    return None


def find_drop_reason(name: str) -> str | None:
    """Why the official tensor `name` (without prefix) is left out; `None` when nothing says it may be."""
    return next((reason for pattern, reason in _DROPPED if pattern.fullmatch(name)), None)


def find_family(names: Iterable[str]) -> str | None:
    """Which other family of models a checkpoint is of, and what to do; `None` where no name tells."""
    known = [str(name) for name in names]
    return next((told for pattern, told in FOREIGN.items() if any(re.fullmatch(pattern, n) for n in known)), None)
