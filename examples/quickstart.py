# SPDX-License-Identifier: Apache-2.0
"""Build a tiny SAM3 with RANDOM weights, load it as SAM3-I, and segment a photograph. Pictures go to quickstart/."""

from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

from sam3i.processing.predict_cli import predict

PHOTO = Path(__file__).parent / "assets" / "coffee.jpg"
OUTPUT = Path("quickstart")


def make_tiny_stock_sam3(folder: Path) -> None:
    """Save a stock-format SAM3 of 0.1 M random weights with its processor."""
    width = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_layers": 2}
    backbone = {"model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    backbone |= {"num_attention_heads": 2, "image_size": 112, "patch_size": 14, "window_size": 2}
    backbone |= {"global_attn_indexes": [1], "pretrain_image_size": 56}
    words = "the cup of coffee on left a spoon what one drinks from".split()
    vocab = {f"{word}</w>": index for index, word in enumerate(words, start=1)}
    vocab |= {letter: 20 + index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 32, "bos_token_id": 62, "eos_token_id": 63}
    config = Sam3Config(
        vision_config={"backbone_config": backbone, "fpn_hidden_size": 32},
        text_config=CLIPTextConfig(pad_token_id=63, **text),
        geometry_encoder_config=width,
        detr_encoder_config=width,
        detr_decoder_config=width | {"num_queries": 8},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4, "num_upsampling_stages": 2},
    )
    torch.manual_seed(0)
    Sam3Model(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab=vocab | {"<|startoftext|>": 62, "<|endoftext|>": 63}, merges=[])
    Sam3Processor(Sam3ImageProcessor(size={"height": 112, "width": 112}), tokenizer).save_pretrained(folder)


def main() -> None:
    make_tiny_stock_sam3(OUTPUT / "tiny_sam3")
    prediction = predict(
        str(OUTPUT / "tiny_sam3"),
        PHOTO,
        ["cup", "the cup on the left", "what one drinks coffee from"],
        output=OUTPUT,
        threshold=0.2,
        title="RANDOM weights: the masks mean nothing",
    )
    for instruction, level, count in prediction.found:
        print(f"{count} instances ({level}): {instruction}")
    print("The weights are RANDOM: this shows that everything runs, not what SAM3-I can do.")
    print(f"Look at {prediction.overlay}")


if __name__ == "__main__":
    main()
