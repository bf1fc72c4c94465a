# SPDX-License-Identifier: Apache-2.0
"""The tiny SAM3 (stock format) of the shapes examples and its processor, and the worlds that it can be trained on.

shapes_tables.py scores it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Processor

from sam3i import ShapesInstructionDataset
from sam3i.processing.pictograms import PictogramsInstructionDataset
from sam3i.processing.shapes import IMAGE_SIZE, MAX_TOKENS

WORLDS = {"shapes": ShapesInstructionDataset, "pictograms": PictogramsInstructionDataset}
WIDTH, HEADS, FEED_FORWARD = 64, 4, 192
QUERIES = 16  # a grid of 4 x 4


def tiny_sam3_config(tokenizer: CLIPTokenizer, text_width: int = WIDTH) -> Sam3Config:
    """A stock SAM3 configuration of about a million parameters for 112-pixel images and the words of the tokenizer."""
    common = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": FEED_FORWARD, "dropout": 0.0}
    return Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": IMAGE_SIZE,
                "pretrain_image_size": IMAGE_SIZE,
                "patch_size": 8,
                "window_size": 7,
                "global_attn_indexes": [1, 3],
            },
            "fpn_hidden_size": WIDTH,
            "scale_factors": [2.0, 1.0, 0.5],  # SAM3 drops the last level: masks have a stride of 4 pixels
            "backbone_feature_sizes": [[28, 28], [14, 14], [7, 7]],
        },
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": len(tokenizer),
            "hidden_size": text_width,
            "intermediate_size": 3 * text_width,
            "projection_dim": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "max_position_embeddings": MAX_TOKENS,
            "hidden_act": "gelu",
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        geometry_encoder_config=common | {"num_layers": 1, "roi_size": 3},
        detr_encoder_config=common | {"num_layers": 2},
        detr_decoder_config=common | {"num_layers": 3, "num_queries": QUERIES},
        mask_decoder_config={"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_upsampling_stages": 1},
    )


def tiny_processor(tokenizer: CLIPTokenizer) -> Sam3Processor:
    """The stock processor for 112-pixel images."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return Sam3Processor(Sam3ImageProcessor(size=size, mask_size=size), tokenizer)


@torch.no_grad()
def start_local(model: nn.Module) -> None:
    """Start every query at its own place of the image.

    Stock starts all reference boxes in the center, which a short training hardly leaves. Here they form a grid of
    boxes a quarter of the image wide, the box head starts at "no change", and the box position bias starts as
    attention inside the own box (one hidden unit per box edge, growing outside of it). Masks start almost flat.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                module.bias.zero_()
    for last in (model.mask_decoder.mask_embedder.layers[-1], model.mask_decoder.semantic_projection):
        last.weight.mul_(0.1)
    decoder = model.detr_decoder
    side = math.isqrt(QUERIES)
    centers = (torch.arange(side) + 0.5) / side
    grid = torch.stack(torch.meshgrid(centers, centers, indexing="ij"), dim=-1).reshape(-1, 2).flip(-1)
    boxes = torch.cat([grid, torch.full_like(grid, 1 / side)], dim=1)
    decoder.reference_points.weight.copy_(torch.logit(boxes))
    decoder.box_head.layer3.weight.zero_()
    slopes = torch.linspace(4.0, 14.0, HEADS)
    for bias in (decoder.box_rpb_embed_x, decoder.box_rpb_embed_y):
        bias.layer1.weight[:2] = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])  # beyond the first edge, beyond the second
        bias.layer2.weight.mul_(0.1)
        bias.layer2.weight[:, :2] = -slopes[:, None]


def pixel_values(images: Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 [H, W, 3] images as the processor would normalize them: float32 [I, 3, H, W] in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return stacked / 127.5 - 1
