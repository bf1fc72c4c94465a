# SPDX-License-Identifier: Apache-2.0
"""Fine-tune the instruction adapters to a new domain with `Sam3ITrainer`: new shapes and words, simple instructions.

    python examples/finetune_domain.py        # minutes on a CPU
    python examples/finetune_domain.py --model org/sam3-i --data mine.jsonl --test-data mine_test.jsonl \\
        --old-data old.jsonl --old-test-data old_test.jsonl --steps 2000

Rows of the old domain are mixed in, so that it is rehearsed. Concepts and complex instructions run through other
weights and stay as they are, bit for bit. Scores before and after, on the new domain and on the old one.
"""

import tempfile
from pathlib import Path

import torch
from datasets import concatenate_datasets
from domain_common import DomainData, domain_arguments, load_model, print_table, report

from sam3i import Sam3ITrainer, Sam3ITrainingArguments
from sam3i.trainer.curriculum import is_trained
from sam3i.trainer.stage_evaluation import ConceptCheck


def main() -> None:
    parser = domain_arguments(__doc__, steps=250)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--output", type=Path, default=Path("runs/finetune_domain"))
    options = parser.parse_args()
    model, processor = load_model(options)
    data = DomainData.load(options, concepts=False)
    before = data.score(model, processor, options.threshold)
    concepts = ConceptCheck.on_rows(model, processor, [data.new_test[0], data.old_test[0]])
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    rows = concatenate_datasets([data.new_train, data.old_train])
    with tempfile.TemporaryDirectory() as folder:
        arguments = Sam3ITrainingArguments(
            output_dir=f"{folder}/run",
            stages="simple",
            max_steps=options.steps,
            per_device_train_batch_size=16,
            learning_rate=options.learning_rate,
            text_learning_rate=options.learning_rate,
            weight_decay=0.01,
            max_grad_norm=5.0,
            feature_cache=f"{folder}/vision",  # every picture is encoded once
            save_strategy="no",
            logging_strategy="no",
            use_cpu=options.device == "cpu",
        )
        trainer = Sam3ITrainer(model, arguments, rows, processing_class=processor)
        trainer.train()
        trainer.save_model(str(options.output))  # the adapters alone
    model.eval()
    after = data.score(model, processor, options.threshold)
    columns = ["new simple", "old simple", "old complex"]
    print_table({"SAM3-I": before, "SAM3-I, fine-tuned adapters": after}, [*columns, "new nothing", "old nothing"])

    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])}
    strangers = {name for name in moved if ".sam3i_adapter.simple." not in name and ".s_adapter." not in name}
    trained = sum(p.numel() for name, p in model.named_parameters() if is_trained(name, trainer.stage))
    print(f"{trained:,} of {model.num_parameters():,} parameters trained; adapters in {options.output}")
    report("new domain", after["new simple"] - before["new simple"], least=8, unit=" points")
    report("old domain, simple, loss", before["old simple"] - after["old simple"], most=5, unit=" points")
    report("weights changed outside of the simple path", len(strangers), most=0)
    report("concepts unchanged, bit for bit", float(concepts.is_unchanged(model)), least=1)


if __name__ == "__main__":
    main()
