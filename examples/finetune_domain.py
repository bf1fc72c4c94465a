# SPDX-License-Identifier: Apache-2.0
"""Fine-tune the instruction adapters to a new domain: new shapes and words, simple instructions.

    python examples/finetune_domain.py        # minutes on a CPU
    python examples/finetune_domain.py --model org/sam3-i --data mine.jsonl --test-data mine_test.jsonl \\
        --old-data old.jsonl --old-test-data old_test.jsonl --steps 2000

Every other step is on rows of the old domain (`replay`): there the model learns to answer as it did before. A fifth of
the rows of both is held back, and calibrates the scores at the end, so that .5 is the best threshold. Concepts and
complex instructions run through other weights and stay as they are, bit for bit. Scores before and after, on both
domains.
"""

import time
from pathlib import Path

import torch
from datasets import concatenate_datasets
from domain_common import DomainData, domain_arguments, load_model, print_table, report

from sam3i import Sam3ITrainer, Sam3ITrainingArguments, TrainingStage
from sam3i.trainer import is_trained


def main() -> None:
    parser = domain_arguments(__doc__, steps=260)
    parser.add_argument("--learning-rate", type=float, default=6e-3)
    folder = Path("runs", time.strftime("finetune_domain_%Y%m%d_%H%M%S"))  # a new one: no training is overwritten
    parser.add_argument("--output", type=Path, default=folder)
    options = parser.parse_args()
    model, processor = load_model(options)
    data = DomainData.load(options, ["simple", "complex"])
    new, new_held = data.new_train.train_test_split(0.2, shuffle=False).values()
    old, old_held = data.old_train.train_test_split(0.2, shuffle=False).values()
    before = data.score(model, processor, options.threshold)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    args = Sam3ITrainingArguments(
        output_dir=str(options.output),
        stages=["simple"],
        max_steps=options.steps,
        per_device_train_batch_size=12,
        learning_rate=options.learning_rate,
        text_learning_rate=options.learning_rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        max_grad_norm=5.0,
        feature_cache=str(options.output / "features"),
        save_strategy="no",
        report_to="none",
        use_cpu=options.device == "cpu",
    )
    held = concatenate_datasets([new_held, old_held])  # calibrates the scores
    trainer = Sam3ITrainer(model, args, new, eval_dataset=held, processing_class=processor, replay=old)
    trainer.train()
    trainer.save_model()  # the adapters alone

    after = data.score(model, processor, options.threshold)
    columns = ["new simple", "new AP50", "new exact", "old simple", "old exact", "old complex"]
    columns += ["new nothing", "old nothing"]
    print_table({"SAM3-I": before, "SAM3-I, fine-tuned adapters": after}, columns)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])}
    trained = sum(p.numel() for name, p in model.named_parameters() if is_trained(name, TrainingStage.SIMPLE))
    print(f"{trained:,} of {model.num_parameters():,} parameters trained; adapters in {options.output}")
    strangers = [name for name in moved if not is_trained(name, TrainingStage.SIMPLE)]
    report("new domain", after["new simple"] - before["new simple"], least=5, unit=" points")
    report("old domain, simple, loss", before["old simple"] - after["old simple"], most=10, unit=" points")
    report("weights changed outside of the simple path", len(strangers), most=0)
    report("concepts unchanged, bit for bit", float(trainer.concept_check.is_unchanged(model)), least=1)


if __name__ == "__main__":
    main()
