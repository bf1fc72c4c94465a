# SPDX-License-Identifier: Apache-2.0
"""What the fine-tuning examples share: data of a new and an old domain, batches with kept vision, a score table."""

import argparse
import io
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from sam3i import (
    InstructionCollator,
    Sam3IForInstructionSegmentation,
    Sam3IProcessor,
    VisionFeatureCache,
    evaluate_model,
    load_instruction_dataset,
)
from sam3i.processing.datasets import row_features
from sam3i.processing.shapes import OUTDOORS, shapes_rows
from sam3i.trainer import encode_vision, imitation_loss

# One-to-many queries double the cost of a step and matter in long trainings; with 16 queries instead of 200 the mean
# over queries must not drown the few that are right.
TINY_LOSS = {"one_to_many_weight": 0.0, "classification_min_queries": 50}


def domain_arguments(description: str, steps: int) -> argparse.ArgumentParser:
    """The flags of every fine-tuning example."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "shapes_tiny"))
    parser.add_argument("--data", help="rows of the new domain; a domain of new shapes and words if not given")
    parser.add_argument("--test-data", help="held-out rows of the new domain")
    parser.add_argument("--old-data", help="rows of what must not be forgotten; the shapes world if not given")
    parser.add_argument("--old-test-data", help="held-out rows of it")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--scenes", type=int, default=180, help="to train on, of each domain")
    parser.add_argument("--test-scenes", type=int, default=50, help="of each domain")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    return parser


def load_model(options: argparse.Namespace) -> tuple[Sam3IForInstructionSegmentation, Sam3IProcessor]:
    """The model, in float32, and its processor."""
    loss = {}
    if options.data is None:
        torch.set_num_threads(1)  # so the figures are the same on any number of cores
        loss = {"loss_config": TINY_LOSS}
    model = Sam3IForInstructionSegmentation.from_pretrained(options.model, dtype=torch.float32, **loss)
    return model.to(options.device), Sam3IProcessor.from_pretrained(options.model)


@dataclass
class DomainData:
    """Rows to train on and held-out rows, of the new domain and of the old one."""

    new_train: Dataset
    new_test: Dataset
    old_train: Dataset
    old_test: Dataset

    @classmethod
    def load(
        cls, options: argparse.Namespace, levels: Sequence[str] = ("concept", "simple", "complex")
    ) -> "DomainData":
        """Rows of the files that were given; else scenes, with instructions of the levels that are wanted."""
        new = [level for level in levels if level != "complex"]  # the new domain has none
        made = {
            "data": lambda: OUTDOORS.rows("train", options.scenes, levels=new),
            "test_data": lambda: OUTDOORS.rows("test", options.test_scenes, levels=new),
            "old_data": lambda: _with_levels(shapes_rows("train", options.scenes), levels),
            "old_test_data": lambda: _with_levels(shapes_rows("test", options.test_scenes), levels),
        }
        parts = []
        for name, make in made.items():
            path = getattr(options, name)
            parts.append(load_instruction_dataset(path) if path else _table(make()))
        return cls(*parts)

    def score(self, model, processor, threshold: float) -> dict[str, float | None]:
        """gIoU in percent on both domains, over all held-out instructions and per level; AP50 and exact answers."""
        figures = {}
        for name, rows in (("new", self.new_test), ("old", self.old_test)):
            result = evaluate_model(model, processor, rows, threshold=threshold, batch_size=32, progress=False)
            figures[name] = result.figures["gIoU"]
            for level, of_level in result.breakdown["level"].items():
                figures[f"{name} {level}"] = of_level["gIoU"]
            figures[f"{name} nothing"] = result.figures["gIoU-nothing"]
            figures |= {f"{name} {figure}": result.figures[figure] for figure in ("AP50", "exact")}
        return figures


def _with_levels(rows: Iterable[dict], levels: Sequence[str]) -> Iterator[dict]:
    """Rows without their instructions of other levels; rows that have no others are left out."""
    unwanted = {level: [] for level in ("simple", "complex") if level not in levels}
    kept = (row | unwanted for row in rows)
    return (row for row in kept if row["simple"] or row["complex"])


def _table(rows: Iterable[dict]) -> Dataset:
    """Rows as a data set; a picture is encoded once, however many rows it has."""
    pictures: dict[str, dict] = {}
    made = []
    for row in rows:
        if row["image_id"] not in pictures:
            row["image"].save(file := io.BytesIO(), "PNG")
            pictures[row["image_id"]] = {"bytes": file.getvalue(), "path": None}
        made.append(row | {"image": pictures[row["image_id"]]})
    return Dataset.from_list(made, features=row_features())


class LevelBatches:
    """Batches of one level each, with vision features that are computed once.

    Args:
        processor: of the model.
        cache: keeps the features.
        rows: to draw from.
        levels: drawn from in turn; a row without an instruction at a level is not drawn for it.
        size: rows of a batch.
    """

    def __init__(self, processor, cache: VisionFeatureCache, rows: Dataset, levels: Sequence[str], size: int = 16):
        cache.fill(rows)
        light = rows.remove_columns(["image"]).to_list()
        self.cache, self.size, self.levels = cache, size, list(levels)
        self.collators = {level: InstructionCollator(processor, level, load_images=False) for level in levels}
        # Where a row has instructions, its concept need not name all that the row denotes.
        self.rows = {
            level: [row for row in light if row[level] and (level != "concept" or not row["simple"] + row["complex"])]
            for level in levels
        }

    def __iter__(self) -> Iterator[dict]:
        """Inputs of the model, labels included, without end."""
        generator = random.Random(0)
        for step in itertools.count():
            level = self.levels[step % len(self.levels)]
            pool = self.rows[level]
            self.collators[level].set_epoch(step)  # which instruction of a row is asked
            batch = self.collators[level](generator.sample(pool, min(self.size, len(pool))))
            batch.pop("concept_names")
            with torch.no_grad():
                vision = encode_vision(self.cache.model, None, self.cache.load(batch.pop("image_keys")))
            yield batch | {"vision_embeds": vision}


def tune(
    model,
    new: Iterator[dict],
    old: Iterator[dict],
    before: Callable,
    steps: int,
    learning_rate: float,
    score_weight: float = 40.0,
) -> None:
    """Train what is trainable: on a batch of the new domain to learn, then on one of the old domain not to forget.

    AdamW, a linear rise over a tenth of the steps, then a cosine.

    Args:
        new: batches to learn from, labels included.
        old: batches on which the model shall answer as it did; their labels are not read.
        before: the model as it was.
        score_weight: of the old scores in the imitation; less of it leaves more room for what is new.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(20, steps), pct_start=0.1)
    model.train()
    for step in tqdm(range(steps), desc="Fine-tuning", unit="step", mininterval=5):
        batch = {name: _to(value, model.device) for name, value in next(old if step % 2 else new).items()}
        if step % 2:
            batch.pop("labels")
            with torch.no_grad():
                wanted = before(**batch)
            loss = imitation_loss(model(**batch), wanted, score_weight)
        else:
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def without_adapter(model) -> Callable:
    """A PEFT model as it answers without its active adapter."""

    def answer(**inputs):
        with model.disable_adapter():
            return model(**inputs)

    return answer


def _to(value, device):
    if isinstance(value, list):
        return [{name: tensor.to(device) for name, tensor in label.items()} for label in value]
    return value.to(device) if torch.is_tensor(value) else value


def print_table(lines: dict[str, dict[str, float | None]], columns: Sequence[str]) -> None:
    """Scores by system, in percent: gIoU where a column does not name another figure."""
    print(f"\n{'gIoU, held out':<34}" + "".join(f"{column:>14}" for column in columns))
    for name, figures in lines.items():
        cells = ("-" if figures[column] is None else f"{figures[column]:.1f}" for column in columns)
        print(f"{name:<34}" + "".join(f"{cell:>14}" for cell in cells))


def report(name: str, value: float, least: float | None = None, most: float | None = None, unit: str = "") -> None:
    """Print a figure beside its target."""
    wanted = f"at least {least:g}" if least is not None else f"at most {most:g}"
    met = value >= least if least is not None else value <= most
    print(f"{name}: {value:.3g}{unit} ({wanted}): {'met' if met else 'MISSED'}")
