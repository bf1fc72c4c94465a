# SPDX-License-Identifier: Apache-2.0
"""A LoRA for a new domain on top of frozen SAM3-I, merged into the weights at the end (both in --output).

    python examples/finetune_lora.py
    python examples/finetune_lora.py --model org/sam3-i --data mine.jsonl --test-data mine_test.jsonl \\
        --old-data old.jsonl --old-test-data old_test.jsonl --device cuda --steps 2000

Every other batch is of the old domain: there the model learns to answer as it does without the LoRA, so those rows
need no labels. Scores before and after, on the new domain and on the old one.
"""

import tempfile
from pathlib import Path

import domain_common as domain
import torch
from peft import LoraConfig, get_peft_model

from sam3i import VisionFeatureCache

OUTPUTS = ("pred_masks", "pred_boxes", "pred_logits", "presence_logits", "semantic_seg")
# Where words meet pictures: the text encoder, every cross-attention, and the scores.
TARGETS = (
    r"text_encoder\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)|text_projection"
    r"|detr_(en|de)coder\..*cross_attn\.(q|k|v|o)_proj"
    r"|dot_product_scoring\.(text_proj|query_proj|text_mlp\.layer\d)|detr_decoder\.presence_head\.layer\d"
)


@torch.no_grad()
def answers(model, inputs) -> list[torch.Tensor]:
    outputs = model(**inputs)
    return [getattr(outputs, name) for name in OUTPUTS]


def main() -> None:
    parser = domain.domain_arguments(__doc__, steps=320)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--output", type=Path, default=Path("runs/finetune_lora"))
    options = parser.parse_args()
    model, processor = domain.load_model(options)
    data = domain.DomainData.load(options)
    before = data.score(model, processor, options.threshold)
    pictures = [data.new_test[row]["image"] for row in (0, -1)]
    inputs = processor(images=pictures, text="box", return_tensors="pt").to(options.device)  # a concept
    untouched = answers(model.eval(), inputs)

    torch.manual_seed(0)
    config = LoraConfig(r=options.rank, lora_alpha=4 * options.rank, target_modules=rf".*({TARGETS})")
    tuned = get_peft_model(model, config, adapter_name="domain")
    with tempfile.TemporaryDirectory() as folder:
        cache = VisionFeatureCache(folder, model, processor, limit_bytes=10**10)
        new = domain.LevelBatches(processor, cache, data.new_train, ("concept", "simple"))
        old = domain.LevelBatches(processor, cache, data.old_train, ("simple", "complex"))
        domain.tune(tuned, iter(new), iter(old), domain.without_adapter(tuned), options.steps, options.learning_rate)
    after = data.score(model, processor, options.threshold)
    domain.print_table({"SAM3-I": before, "SAM3-I + domain LoRA": after}, list(before))

    trained, everything = tuned.get_nb_trainable_parameters()
    with tuned.disable_adapter():
        same = all(map(torch.equal, answers(tuned, inputs), untouched))
    tuned.save_pretrained(options.output)
    unmerged = answers(tuned, inputs)
    merged = tuned.merge_and_unload()
    pairs = zip(answers(merged, inputs), unmerged, strict=True)
    difference = max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs)
    merged.save_pretrained(options.output / "merged")
    processor.save_pretrained(options.output / "merged")
    domain.report("new domain", after["new"] - before["new"], least=20, unit=" points")
    domain.report("old domain, loss", before["old"] - after["old"], most=8, unit=" points")
    domain.report("parameters trained", 100 * trained / everything, most=5, unit=" %")
    domain.report("merged, greatest relative difference", difference, most=1e-5)
    domain.report("concepts without the LoRA unchanged", float(same), least=1)


if __name__ == "__main__":
    main()
