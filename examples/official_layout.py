# SPDX-License-Identifier: Apache-2.0
"""A tiny checkpoint as the authors' trainer saves them, with random weights: something to convert without theirs."""

import re
from pathlib import Path

import torch
from transformers import Sam3Config

from sam3i import Sam3IConfig, Sam3IForInstructionSegmentation
from sam3i.hub.conversion import ADAPTER_RULES, STOCK_RULES, TRANSFORMS, Transform


def tiny_config() -> Sam3Config:
    """A stock SAM3 of the released shape (four levels of the feature pyramid), in miniature."""
    detr = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "num_layers": 2}
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 112,
        "pretrain_image_size": 56,
        "patch_size": 14,
        "window_size": 4,
        "global_attn_indexes": [1],
    }
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": 64,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config=text | {"vocab_size": 509, "projection_dim": 64, "max_position_embeddings": 32},
        geometry_encoder_config=detr,
        detr_encoder_config=detr,
        detr_decoder_config=detr | {"num_queries": 16},
        mask_decoder_config={"hidden_size": 64, "num_attention_heads": 4},
    )


def official_names(native: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the authors' names and in their shapes (fused attention projections, a class position)."""
    weights = {}
    for official, template in STOCK_RULES + ADAPTER_RULES:
        pattern = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{p\}", "(?P<p>weight|bias)")
        for name, tensor in native.items():
            match = re.fullmatch(pattern.replace(r"\{qkv\}", "q"), name)
            key = official.format(**match.groupdict()) if match else None
            if key is None or (".convs.0." in key and "dconv_2x2." in key) or ".convs.1.dconv_2x2_0" in key:
                continue
            if "{qkv}" in template:
                tensor = torch.cat([native[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            elif TRANSFORMS.get(official) is Transform.TRANSPOSE:
                tensor = tensor.T.contiguous()
            elif TRANSFORMS.get(official) is Transform.DROP_CLS_POSITION:
                # not zero, so that a reader who keeps it is found out
                tensor = torch.cat([torch.full_like(tensor[:, :1], 7.0), tensor], dim=1)
            weights[key] = tensor
    return weights


def write_synthetic_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Write a checkpoint and return the weights in it under our names."""
    torch.manual_seed(0)
    settings = tiny_config().to_dict() | {"model_type": "sam3i", "adapter_design": "cascade"}
    settings |= {"adapter_dim": 16, "router_dim": 0}
    native = Sam3IForInstructionSegmentation(Sam3IConfig.from_dict(settings)).state_dict()
    native = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in native.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": official_names(native), "epoch": 4, "optimizer": {"state": {}, "param_groups": []}}, path)
    return native
