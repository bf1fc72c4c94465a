# SPDX-License-Identifier: Apache-2.0
"""Fine-tune the instruction adapters to a new domain: new shapes and words, simple instructions.

    python examples/finetune_domain.py        # minutes on a CPU
    python examples/finetune_domain.py --model org/sam3-i --data mine.jsonl --test-data mine_test.jsonl \\
        --old-data old.jsonl --old-test-data old_test.jsonl --steps 2000

Every other batch is of the old domain: there the model learns to answer as it did before. Concepts and complex
instructions run through other weights and stay as they are, bit for bit. Scores before and after, on both domains.
`Sam3ITrainer` (`sam3i train`) trains at scale, there with rows of the old domain among the new ones.
"""

import copy
import tempfile
from pathlib import Path

import torch
from domain_common import DomainData, LevelBatches, domain_arguments, load_model, print_table, report, tune

from sam3i import TrainingStage, VisionFeatureCache, save_adapter
from sam3i.trainer import freeze_for_stage, is_trained
from sam3i.trainer.evaluation import ConceptCheck


def main() -> None:
    parser = domain_arguments(__doc__, steps=260)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--output", type=Path, default=Path("runs/finetune_domain"))
    options = parser.parse_args()
    model, processor = load_model(options)
    data = DomainData.load(options, concepts=False)
    before = data.score(model, processor, options.threshold)
    concepts = ConceptCheck.on_rows(model, processor, [data.new_test[0], data.old_test[0]])
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    freeze_for_stage(model, TrainingStage.SIMPLE)
    with tempfile.TemporaryDirectory() as folder:
        cache = VisionFeatureCache(folder, model, processor, limit_bytes=10**10)
        new = LevelBatches(processor, cache, data.new_train, ["simple"])
        old = LevelBatches(processor, cache, data.old_train, ["simple"])
        tune(model, iter(new), iter(old), copy.deepcopy(model), options.steps, options.learning_rate)
    save_adapter(model, options.output)  # the adapters alone
    after = data.score(model, processor, options.threshold)
    columns = ["new simple", "old simple", "old complex"]
    print_table({"SAM3-I": before, "SAM3-I, fine-tuned adapters": after}, [*columns, "new nothing", "old nothing"])

    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])}
    strangers = {name for name in moved if ".sam3i_adapter.simple." not in name and ".s_adapter." not in name}
    trained = sum(p.numel() for name, p in model.named_parameters() if is_trained(name, TrainingStage.SIMPLE))
    print(f"{trained:,} of {model.num_parameters():,} parameters trained; adapters in {options.output}")
    report("new domain", after["new simple"] - before["new simple"], least=8, unit=" points")
    report("old domain, simple, loss", before["old simple"] - after["old simple"], most=10, unit=" points")
    report("weights changed outside of the simple path", len(strangers), most=0)
    report("concepts unchanged, bit for bit", float(concepts.is_unchanged(model)), least=1)


if __name__ == "__main__":
    main()
