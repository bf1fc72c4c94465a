# SPDX-License-Identifier: Apache-2.0
"""What the shapes examples share: the tiny SAM3 (stock format), its processor, and scores on the shapes world."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Processor

from sam3i.processing.shapes.dataset import ShapesInstructionDataset
from sam3i.processing.shapes.rendering import IMAGE_SIZE
from sam3i.processing.shapes.tokenizer import MAX_TOKENS

WIDTH, HEADS, FEED_FORWARD = 64, 4, 192
QUERIES = 16  # a grid of 4 x 4
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 19))


def tiny_sam3_config(tokenizer: CLIPTokenizer) -> Sam3Config:
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
            "hidden_size": WIDTH,
            "intermediate_size": FEED_FORWARD,
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
    """Start every query at its own place of the picture.

    Stock starts all reference boxes in the centre, which a short training hardly leaves. Here they form a grid of
    boxes a quarter of the picture wide, the box head starts at "no change", and the box position bias starts as
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
    centres = (torch.arange(side) + 0.5) / side
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).reshape(-1, 2).flip(-1)
    boxes = torch.cat([grid, torch.full_like(grid, 1 / side)], dim=1)
    decoder.reference_points.weight.copy_(torch.logit(boxes))
    decoder.box_head.layer3.weight.zero_()
    slopes = torch.linspace(4.0, 14.0, HEADS)
    for bias in (decoder.box_rpb_embed_x, decoder.box_rpb_embed_y):
        bias.layer1.weight[:2] = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])  # beyond the first edge, beyond the second
        bias.layer2.weight.mul_(0.1)
        bias.layer2.weight[:, :2] = -slopes[:, None]


def pixel_values(images: Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 [H, W, 3] pictures as the processor would normalise them: float32 [I, 3, H, W] in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return stacked / 127.5 - 1


@torch.no_grad()
def mask_areas(
    model: nn.Module,
    tokenizer,
    dataset: ShapesInstructionDataset,
    levels: Sequence[int] | None = None,
    scenes_at_once: int = 16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels that the united masks share with the truth, and pixels in either, for every case and threshold.

    Args:
        levels: the level at which each case is asked, 0 to 2; its own if not given.

    Returns two tensors [cases, thresholds] in the order of the cases.
    """
    model.eval()
    if levels is None:
        levels = [case.level.index for case in dataset.cases]
    by_scene = defaultdict(list)
    for number, case in enumerate(dataset.cases):
        by_scene[case.scene_index].append(number)
    common, either = torch.zeros(2, len(dataset), len(THRESHOLDS), dtype=torch.long)
    scenes = list(by_scene)
    for start in range(0, len(scenes), scenes_at_once):
        chosen = scenes[start : start + scenes_at_once]
        numbers = [number for scene in chosen for number in by_scene[scene]]
        samples = [dataset[number] for number in numbers]
        text = tokenizer([s["text"] for s in samples], padding=True, return_tensors="pt")
        outputs = model(
            pixel_values=pixel_values([dataset.scene(scene).image for scene in chosen]),
            image_ids=torch.tensor([i for i, scene in enumerate(chosen) for _ in by_scene[scene]]),
            instruction_levels=torch.tensor([levels[number] for number in numbers]),
            **text,
        )
        scores = outputs.pred_logits.sigmoid() * outputs.presence_logits.sigmoid()  # [R, Q]
        masks = nn.functional.interpolate(outputs.pred_masks, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear") > 0
        best = torch.where(masks, scores[..., None, None], 0.0).amax(1)  # of the masks over each pixel: [R, H, W]
        truth = torch.stack([torch.from_numpy(s["masks"]).any(0) for s in samples])  # [R, H, W]
        for column, threshold in enumerate(THRESHOLDS):
            found = best > threshold
            common[numbers, column] = (found & truth).sum((1, 2))
            either[numbers, column] = (found | truth).sum((1, 2))
    return common, either


def ious_of_areas(common: torch.Tensor, either: torch.Tensor) -> torch.Tensor:
    """IoU of each entry; nothing found where nothing is denoted counts 1."""
    return torch.where(either == 0, 1.0, common / either.clamp(min=1))


def union_ious(model: nn.Module, tokenizer, dataset: ShapesInstructionDataset) -> torch.Tensor:
    """IoU of the united masks with the truth for every case of a dataset and every threshold: [cases, thresholds]."""
    return ious_of_areas(*mask_areas(model, tokenizer, dataset))


def scores_by_kind(ious: torch.Tensor, dataset: ShapesInstructionDataset) -> dict[str, dict[str, float]]:
    """gIoU (mean IoU) and P@0.5 for all cases and per target kind of one column of `union_ious`."""
    groups: dict[str, list[int]] = {"all": list(range(len(dataset)))}
    for number, case in enumerate(dataset.cases):
        groups.setdefault(case.target.kind, []).append(number)
        if case.target.held_out_pair:
            groups.setdefault("held-out pair", []).append(number)
    return {
        name: {
            "gIoU": ious[rows].mean().item(),
            "P@0.5": (ious[rows] > 0.5).float().mean().item(),
            "nothing": float(np.mean([dataset.cases[row].target.kind == "none" for row in rows])),
            "cases": len(rows),
        }
        for name, rows in groups.items()
    }
