# SPDX-License-Identifier: Apache-2.0
"""Two adapters on one stock SAM3: a domain LoRA that learned new things by name, and the instruction adapter.

    python examples/combine_adapters.py
    python examples/combine_adapters.py --base facebook/sam3 --adapter org/sam3-i-adapter --data mine.jsonl \\
        --test-data mine_test.jsonl --old-test-data old_test.jsonl --old-data old.jsonl --device cuda

Of the new domain the LoRA learns names only ("box"), never an instruction ("the box on the left"). Whether both
together follow instructions there better than either alone depends on the model: the table says it.
"""

import itertools
import tempfile
from pathlib import Path

import domain_common as domain
import torch
from finetune_lora import TARGETS
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Sam3Config, Sam3Model

from sam3i import Sam3IForInstructionSegmentation, VisionFeatureCache, save_adapter


def take_apart(model: Sam3IForInstructionSegmentation, folder: Path) -> tuple[str, str]:
    """A stock SAM3 repository and an adapter repository from a whole SAM3-I, as the real ones are kept."""
    names = Sam3Config().to_dict().keys()
    settings = {name: value for name, value in model.config.to_dict().items() if name in names}
    stock = Sam3Model(Sam3Config(**settings | {"model_type": "sam3"}))
    stock.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in stock.state_dict()})
    stock.save_pretrained(folder / "stock")
    save_adapter(model, folder / "instruction", base_model_name_or_path=str(folder / "stock"))
    return str(folder / "stock"), str(folder / "instruction")


def main() -> None:
    parser = domain.domain_arguments(__doc__, steps=200)
    parser.add_argument("--base", help="stock SAM3 repository; taken from --model if not given")
    parser.add_argument("--adapter", help="repository of an instruction adapter; taken from --model if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, processor = domain.load_model(options)
        base, adapter = take_apart(model, Path(folder))
        base, adapter = options.base or base, options.adapter or adapter

        data = domain.DomainData.load(options, ["concept", "simple"])
        # New things by name, asked as concept and as instruction.
        named = data.new_train.filter(lambda row: not row["simple"])
        asked = named.map(lambda row: {"simple": row["concept"]})
        torch.manual_seed(0)
        tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules=rf".*({TARGETS})"), "domain")
        cache = VisionFeatureCache(f"{folder}/vision", model, processor, limit_bytes=10**10)
        ways = [domain.LevelBatches(processor, cache, *way) for way in ((named, ["concept"]), (asked, ["simple"]))]
        new = itertools.chain.from_iterable(zip(*ways, strict=True))
        old = iter(domain.LevelBatches(processor, cache, data.old_train, ["simple"], size=8))
        domain.tune(tuned, new, old, domain.without_adapter(tuned), options.steps, 4e-3, score_weight=3.0)
        tuned.save_pretrained(folder)

        # Four systems of one stock repository: it alone (fresh adapters change nothing), with either, and with both.
        lines = {}
        for repository, alone, with_lora in (
            (base, "stock SAM3", "domain LoRA"),
            (adapter, "instruction adapter", "both"),
        ):
            system = Sam3IForInstructionSegmentation.from_pretrained(repository, dtype=torch.float32)
            system = system.to(options.device).eval()
            lines[alone] = data.score(system, processor, options.threshold)
            PeftModel.from_pretrained(system, f"{folder}/domain", adapter_name="domain")  # puts the LoRA into `system`
            lines[with_lora] = data.score(system, processor, options.threshold)
        domain.print_table(lines, ("new concept", "new simple", "old simple", "new nothing", "old nothing"))
        better = max(lines["instruction adapter"]["new simple"], lines["domain LoRA"]["new simple"])
        gain = lines["both"]["new simple"] - better
        print(f"both, above the better one: {gain:.3g} points (no target)")


if __name__ == "__main__":
    main()
