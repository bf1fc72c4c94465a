# SPDX-License-Identifier: Apache-2.0
"""The models that the benchmarks run: random weights at three sizes, and stock SAM3 on the very same tensors."""

import torch
from transformers import Sam3Model
from transformers.initialization import no_init_weights

from sam3i import Sam3IConfig, Sam3IForInstructionSegmentation

SIZES = ("tiny", "middle", "real")
"""`tiny` is the shapes world's (112 px), `middle` has real widths but a quarter of the layers and pixels."""


def build_config(size: str, **changes) -> Sam3IConfig:
    """The configuration of a size; `changes` are fields of [`Sam3IConfig`], e.g. `adapter_design="selective"`."""
    if size == "real":
        return Sam3IConfig(**changes)
    if size == "middle":
        backbone = {
            "model_type": "sam3_vit_model",
            "num_hidden_layers": 8,
            "image_size": 504,
            "window_size": 12,
            "global_attn_indexes": [3, 7],
        }
        vision = {"backbone_config": backbone, "backbone_feature_sizes": [[144, 144], [72, 72], [36, 36]]}
        return Sam3IConfig(vision_config=vision, text_config={"num_hidden_layers": 6}, **changes)
    if size != "tiny":
        raise ValueError(f"Expected a size of {', '.join(SIZES)}, found {size!r}.")
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 112,
        "window_size": 4,
        "global_attn_indexes": [1, 3],
        "pretrain_image_size": 56,
    }
    sizes = [[32, 32], [16, 16], [8, 8]]
    detr = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_layers": 3}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2}
    return Sam3IConfig(
        vision_config={"backbone_config": backbone, "fpn_hidden_size": 64, "backbone_feature_sizes": sizes},
        text_config=text | {"projection_dim": 32},
        geometry_encoder_config=detr,
        detr_encoder_config=detr,
        detr_decoder_config=detr | {"num_queries": 24},
        mask_decoder_config={"hidden_size": 64, "num_attention_heads": 4},
        **changes,
    )


def build_model(size: str, seed: int = 0, **changes) -> Sam3IForInstructionSegmentation:
    """A model of random weights in evaluation mode; its adapters are those of a model that has been trained a bit."""
    torch.manual_seed(seed)
    model = Sam3IForInstructionSegmentation(build_config(size, **changes)).eval()
    with torch.no_grad():
        for parameter in model.adapter_parameters().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model


def stock_twin(model: Sam3IForInstructionSegmentation) -> Sam3Model:
    """Stock SAM3 on the very same tensors: no second copy in memory."""
    with no_init_weights(), torch.device("meta"):
        stock = Sam3Model(model.config)
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if "sam3i" not in k}, assign=True)
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(stock.get_submodule(owner), leaf, buffer)
    return stock.eval()


def image(model: Sam3IForInstructionSegmentation, seed: int = 1) -> torch.Tensor:
    """Random pixels `(1, 3, height, width)` as the processor would return them."""
    side = model.config.vision_config.backbone_config.image_size
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def instructions(model: Sam3IForInstructionSegmentation, rows: int, seed: int = 2) -> dict[str, torch.Tensor]:
    """Random token ids and their mask, padded to the context: 6 to 20 tokens each, as instructions have."""
    generator = torch.Generator().manual_seed(seed)
    tokens = model.config.text_config.max_position_embeddings
    input_ids = torch.randint(1, model.config.text_config.vocab_size, (rows, tokens), generator=generator)
    lengths = torch.randint(6, 21, (rows, 1), generator=generator)
    return {"input_ids": input_ids, "attention_mask": (torch.arange(tokens) < lengths).long()}
