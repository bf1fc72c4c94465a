# SPDX-License-Identifier: Apache-2.0
"""Are instructions made by the data engine as good to train on as the shapes world's own?

    python examples/engine_vs_generator.py --stock runs/shapes_stock --output runs/engine_vs_generator
    python examples/engine_vs_generator.py --steps 20 20 10 --scenes 100 --cases 8 --output runs/smoke  # 3 minutes

The same scenes, the same curriculum and the same steps, twice: (a) with instructions that the data engine's template
writer made from images and masks, checked, exported to parquet and read back; (b) with the instructions of the
generator. Both are scored on the generator's held-out set, at thresholds chosen on its validation split. Neither has
seen the held-out phrasings or pairs of color and noun. An arm that is finished is not trained again. With the
default steps it takes about as long as two runs of examples/shapes_curriculum.py.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import torch
from datasets import Dataset
from shapes_curriculum import RATES, load, training_arguments, training_rows
from shapes_tables import giou_by_kind, header, score_level, splits, system_line

from sam3i import (
    InstructionLevel,
    Sam3IForInstructionSegmentation,
    Sam3IProcessor,
    Sam3ITrainer,
    load_instruction_dataset,
)
from sam3i.processing.data_engine import DataEngine, EngineConfig, RunDirectory, ShapesSource, export_run
from sam3i.processing.datasets import TARGET_KINDS

ENGINE, GENERATOR = ARMS = ("engine", "generator")
INSTRUCTED = ("simple", "complex")
ALLOWED = 2.0  # points of gIoU by which engine-made data may be worse


def engine_rows(folder: Path, processor: Sam3IProcessor, options: argparse.Namespace) -> Dataset:
    """Rows that the engine wrote about the training scenes, through a run folder, parquet and the readers."""
    config = EngineConfig(
        source=f"shapes world, {options.scenes} scenes, split train, seed {options.world}",
        seed=options.seed,
        targets_per_image=options.targets,
    )
    run = RunDirectory(folder / "run", config)
    tokenizer = processor.tokenizer
    source = ShapesSource(options.scenes, "train", options.world)
    engine = DataEngine(source, run, count_tokens=lambda text: len(tokenizer(text)["input_ids"]))
    summary = engine.build(progress=False)
    if summary.pictures:
        rate = summary.accepted / summary.seconds
        print(
            f"engine: {summary.accepted} of {summary.pairs} instructions accepted, {rate:.0f} per second", flush=True
        )
    return load_instruction_dataset(export_run(run, folder / "data", "parquet"))


def keep_known_words(rows: Dataset, processor: Sam3IProcessor, arm: str) -> Dataset:
    """The rows without the instructions whose words the tokenizer has to spell; says how many there were.

    The tiny model has a fixed list of words and no pretraining beyond it: "the second circle from the left" is noise.
    """
    tokenizer = processor.tokenizer
    spelled: Counter = Counter()
    texts = words = unknown_texts = 0

    def is_known(text: str) -> bool:
        nonlocal texts, words, unknown_texts
        unknown = [word for word in text.split() if len(tokenizer.tokenize(word)) > 1]
        texts, words, unknown_texts = texts + 1, words + len(text.split()), unknown_texts + bool(unknown)
        spelled.update(unknown)
        return not unknown

    kept, places, totals = {level: [] for level in INSTRUCTED}, [], Counter()
    for place, row in enumerate(rows.select_columns([*INSTRUCTED, "target_kind"])):
        known = {level: [text for text in row[level] if is_known(text)] for level in INSTRUCTED}
        if any(known.values()):
            places.append(place)
            for level in INSTRUCTED:
                kept[level].append(known[level])
                totals[level, row["target_kind"]] += len(known[level])
    share, of_words = unknown_texts / max(1, texts), spelled.total() / max(1, words)
    print(
        f"{arm}: {texts} instructions, {share:.1%} with unknown words ({of_words:.2%} of the words: "
        f"{', '.join(word for word, _ in spelled.most_common(8)) or 'none'}), which are left out",
        flush=True,
    )
    for level in INSTRUCTED:
        counts = ", ".join(f"{kind} {totals[level, kind]}" for kind in TARGET_KINDS)
        print(f"{arm}: {level}: {counts}", flush=True)
    chosen = rows.select(places)
    columns = {level: kept[level] for level in INSTRUCTED}
    return chosen.map(lambda row, place: {level: columns[level][place] for level in INSTRUCTED}, with_indices=True)


def train_arm(arm: str, options: argparse.Namespace) -> Sam3IForInstructionSegmentation:
    """The model of one arm, trained from the stock weights with the common budget, or read back."""
    folder = options.output / arm
    if (folder / "model" / "config.json").is_file():
        print(f"{arm}: read from {folder / 'model'}", flush=True)
        return Sam3IForInstructionSegmentation.from_pretrained(folder / "model", dtype=torch.float32)
    torch.manual_seed(options.seed)
    model, processor = load(options.stock, options.design)
    if arm == ENGINE:
        rows = engine_rows(folder, processor, options)
    else:
        rows = training_rows(options.scenes, options.world, folder / "data")
    rows = keep_known_words(rows, processor, arm)
    print(f"{arm}: {len(rows)} targets in {options.scenes} scenes", flush=True)
    begin = time.time()
    shared = {"seed": options.seed, "feature_cache": str(options.output / "vision_features")}  # the same images
    arguments = training_arguments(options.design, options.steps, folder / "training", **shared)
    Sam3ITrainer(model, arguments, rows, processing_class=processor).train(
        resume_from_checkpoint=(folder / "training").is_dir()
    )
    print(f"{arm}: trained in {(time.time() - begin) / 60:.1f} minutes", flush=True)
    model.save_pretrained(folder / "model")
    return model


def compare(models: dict[str, Sam3IForInstructionSegmentation], processor, options: argparse.Namespace) -> dict:
    """Prints the table of every level; returns gIoU by arm, level and kind."""
    found: dict[str, dict[str, dict[str, float]]] = {arm: {} for arm in ARMS}
    for level in map(InstructionLevel.from_any, INSTRUCTED):
        validation, test = splits(level, options.cases, options.world)
        print(f"\n{level.value}: {len(test)} test cases, {len(validation)} validation cases")
        print(header("gIoU"))
        for arm, model in models.items():
            score = score_level(model, processor, level, options.cases, options.world)
            print(system_line(arm, score), flush=True)
            found[arm][level.value] = giou_by_kind(score)
        differences = [
            value - found[GENERATOR][level.value][kind] for kind, value in found[ENGINE][level.value].items()
        ]
        print(f"{'engine - generator':<38}" + "".join(f"{value:>+10.1f}" for value in differences), flush=True)
    for arm in ARMS:
        found[arm]["overall"] = {"all": sum(found[arm][level]["all"] for level in INSTRUCTED) / len(INSTRUCTED)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", default="runs/shapes_stock", help="repository of the tiny stock SAM3")
    parser.add_argument("--output", type=Path, default=Path("runs/engine_vs_generator"))
    parser.add_argument("--design", choices=tuple(RATES), default="selective", help="kind of adapters")
    parser.add_argument("--steps", type=int, nargs=3, default=(1000, 1000, 350), help="steps of each stage")
    parser.add_argument("--scenes", type=int, default=4000, help="training scenes, the same for both")
    parser.add_argument("--targets", type=int, default=5, help="targets that the engine tries per scene")
    parser.add_argument("--cases", type=int, default=125, help="test cases per level and kind of target")
    parser.add_argument("--seed", type=int, default=0, help="of engine and training")
    parser.add_argument("--world", type=int, default=0, help="seed of the world")
    options = parser.parse_args()

    begin = time.time()
    models = {arm: train_arm(arm, options).eval() for arm in ARMS}
    found = compare(models, Sam3IProcessor.from_pretrained(options.stock), options)
    difference = found[ENGINE]["overall"]["all"] - found[GENERATOR]["overall"]["all"]
    print(
        f"\noverall gIoU: engine {found[ENGINE]['overall']['all']:.1f}, generator "
        f"{found[GENERATOR]['overall']['all']:.1f}, difference {difference:+.1f} points "
        f"({'within' if difference >= -ALLOWED else 'beyond'} {ALLOWED:.0f}); {(time.time() - begin) / 60:.1f} minutes"
    )
    (options.output / "scores.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
