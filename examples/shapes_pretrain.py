# SPDX-License-Identifier: Apache-2.0
"""Pretrain a tiny SAM3 in the stock format on concepts of the shapes world, from scratch on a CPU.

    python examples/shapes_pretrain.py --output runs/shapes_stock

The result is a stock SAM3 repository (`Sam3Model`, `Sam3Processor`): it knows what a circle is and follows no
instruction. What stands for the broad pretraining of real SAM3, all of it for training only:

- the text encoder also learns to predict the next word of instruction sentences and of short definitions ("what would
  roll down a hill is a circle"): text alone, no pictures;
- heads that are thrown away afterwards make the vision features tell shapes, colours and boxes, and make every query
  tell the object it covers, asked for or not.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from shapes_common import (
    THRESHOLDS,
    WIDTH,
    pixel_values,
    scores_by_kind,
    start_local,
    tiny_processor,
    tiny_sam3_config,
    union_ious,
)
from torch import nn
from torchvision.ops import generalized_box_iou_loss
from transformers import Sam3Model

from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel, Sam3IConfig
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from sam3i.processing.datasets import shapes_lexicon as lexicon
from sam3i.processing.datasets.shapes_dataset import ShapesInstructionDataset
from sam3i.processing.datasets.shapes_rendering import COLOURS, NOUNS
from sam3i.processing.datasets.shapes_tokenizer import build_tokenizer
from sam3i.processing.datasets.shapes_world import Scene, ShapesWorld
from sam3i.processing.datasets.shapes_writer import InstructionWriter

IMAGES, ABSENT_SHARE, EVERYTHING_SHARE = 9, 0.85, 0.12
SHOWN = ("loss_bbox", "loss_dice", "loss_mask", "loss_ce", "presence_accuracy", "ce_f1")
LOSS = {"scale_by_rows": False, "classification_min_queries": 50}


def concept_batch(world: ShapesWorld, step: int, rng: np.random.Generator):
    """Scenes never seen before, half of them mirrored, and the concepts asked of them.

    Returns the scenes and a list of (scene number, text, indices of the denoted objects).
    """
    scenes, rows = [], []
    for number in range(IMAGES):
        scene = world.scene(step * IMAGES + number)
        scenes.append(scene.mirror() if rng.random() < 0.5 else scene)
        present = sorted({item.noun for item in scene.objects})
        asked = [str(noun) for noun in rng.permutation(present)[:3]]
        if rng.random() < ABSENT_SHARE:
            asked.append(str(rng.choice([noun for noun in NOUNS if noun not in present])))
        for noun in asked:
            rows.append((number, noun, [i for i, item in enumerate(scene.objects) if item.noun == noun]))
        if rng.random() < EVERYTHING_SHARE:
            rows.append((number, str(rng.choice(lexicon.THINGS)), list(range(len(scene.objects)))))
    return scenes, rows


def jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random brightness and contrast."""
    values = (image.astype(np.float32) - 128) * rng.uniform(0.8, 1.15) + 128 + rng.uniform(-20, 20)
    return np.clip(values, 0, 255).astype(np.uint8)


class DenseHead(nn.Module):
    """Tells shape, colour and box of the object under every cell of the feature map; training only."""

    def __init__(self):
        super().__init__()
        self.predict = nn.Conv2d(WIDTH, len(NOUNS) + 1 + len(COLOURS) + 4, 1)

    def forward(self, features: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
        """`features` [I, C, h, w]; the loss, a scalar."""
        _, _, height, width = features.shape
        nouns, colours, boxes = zip(*(self._targets(scene, height, width) for scene in scenes), strict=True)
        noun_target, colour_target, box_target = torch.stack(nouns), torch.stack(colours), torch.stack(boxes)
        noun, colour, box = self.predict(features).split([len(NOUNS) + 1, len(COLOURS), 4], dim=1)
        inside = colour_target >= 0
        box_error = (box - box_target).abs().sum(1)[inside].mean()
        return F.cross_entropy(noun, noun_target) + F.cross_entropy(colour, colour_target, ignore_index=-1) + box_error

    @staticmethod
    def _targets(scene: Scene, height: int, width: int):
        """Per cell: the noun's number (or "nothing"), the colour's (or -1), the box relative to the cell."""
        masks = torch.from_numpy(scene.masks).float()
        cover, owner = F.adaptive_avg_pool2d(masks, (height, width)).max(0)
        inside = cover > 0.4
        nouns = torch.tensor([NOUNS.index(item.noun) for item in scene.objects])
        colours = torch.tensor([list(COLOURS).index(item.colour) for item in scene.objects])
        cells = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flip(0)
        centres = (cells + 0.5) / torch.tensor([width, height])[:, None, None]
        box = torch.from_numpy(scene.boxes)[owner].permute(2, 0, 1).clone()  # [4, h, w]
        box[:2] = (box[:2] - centres) * 4
        box[2:] = box[2:] * 4
        return nouns[owner].masked_fill(~inside, len(NOUNS)), colours[owner].masked_fill(~inside, -1), box


class QueryHead(nn.Module):
    """Tells which object each query covers, whether it was asked for or not; training only."""

    def __init__(self):
        super().__init__()
        self.predict = nn.Linear(WIDTH, len(NOUNS) + 1 + len(COLOURS))

    def forward(self, queries: torch.Tensor, boxes: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
        """`queries` [layers, R, Q, C], `boxes` [layers, R, Q, 4] cxcywh, the scene of each row; a scalar."""
        noun, colour = self.predict(queries).split([len(NOUNS) + 1, len(COLOURS)], dim=-1)
        wanted = [torch.from_numpy(scene.boxes) for scene in scenes]
        found = boxes.detach()
        where, which = [], []
        for layer in range(len(boxes)):
            for row, target in enumerate(wanted):
                cost = torch.cdist(found[layer, row], target, p=1)
                query, item = linear_sum_assignment(cost.numpy())
                where += [(layer, row, q) for q in query]
                which += [(row, i) for i in item]
        layer, row, query = torch.tensor(where).T
        items = [scenes[r].objects[i] for r, i in which]
        noun_target = torch.full(noun.shape[:-1], len(NOUNS))
        noun_target[layer, row, query] = torch.tensor([NOUNS.index(item.noun) for item in items])
        colour_target = torch.tensor([list(COLOURS).index(item.colour) for item in items])
        weight = torch.ones(len(NOUNS) + 1)
        weight[-1] = 0.2
        target = torch.stack([wanted[r][i] for r, i in which])
        box = boxes[layer, row, query]
        return (
            F.cross_entropy(noun.flatten(0, 2), noun_target.flatten(), weight=weight)
            + F.cross_entropy(colour[layer, row, query], colour_target)
            + 5 * (box - target).abs().sum(1).mean()
            + 2 * generalized_box_iou_loss(corners(box), corners(target), reduction="mean")
        )


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """(cx, cy, w, h) to (x0, y0, x1, y1)."""
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


class SentenceStream:
    """Instruction sentences of the training split and definitions of the world's words, as text without pictures."""

    def __init__(self, world: ShapesWorld, scenes: int = 600):
        writer = InstructionWriter("train")
        self.sentences = []
        for index in range(scenes):
            objects, rng = world.layout(index), world.rng(index, stream=9)
            targets = [writer.write(objects, rng) for _ in range(4)]
            self.sentences += [phrasing.text for t in targets if t for phrasing in t.phrasings.values()]
        self.definitions = [f"what {d} is a {noun}" for noun, clauses in lexicon.DESCRIPTORS.items() for d in clauses]
        self.definitions += [f"a {noun} is what {d}" for noun, clauses in lexicon.DESCRIPTORS.items() for d in clauses]
        for colour, references in lexicon.COLOUR_REFERENCES.items():
            self.definitions += [f"the color of {thing} is {colour}" for thing in references]
            self.definitions += [f"{colour} is the color of {thing}" for thing in references]

    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        """Two sentences for each definition."""
        return [
            str(rng.choice(self.definitions)) if i % 3 == 0 else self.sentences[int(rng.integers(len(self.sentences)))]
            for i in range(count)
        ]


class Pretraining(nn.Module):
    """The tiny model with the heads that are only there for training."""

    def __init__(self, tokenizer):
        super().__init__()
        config = Sam3IConfig(
            **tiny_sam3_config(tokenizer).to_dict() | {"model_type": "sam3i"}, adapter_dim=4, loss_config=LOSS
        )
        self.model = Sam3IForInstructionSegmentation(config)
        start_local(self.model)
        for parameter in self.model.adapter_parameters().values():
            parameter.requires_grad_(False)  # concepts bypass the adapters
        self.dense, self.query = DenseHead(), QueryHead()
        self.tokenizer = tokenizer
        self.model.detr_decoder.register_forward_hook(self._keep)
        self._decoded = None

    def _keep(self, module, inputs, output):
        self._decoded = output

    def stock_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights of SAM3 alone."""
        return {k: v for k, v in self.model.state_dict().items() if ".sam3i_adapter." not in k}

    def forward(self, scenes, rows, images, sentences) -> tuple[torch.Tensor, dict[str, float]]:
        text = self.tokenizer([text for _, text, _ in rows], padding=True, return_tensors="pt")
        vision = self.model.get_vision_features(images)
        labels = [
            {
                "masks": torch.from_numpy(scenes[number].masks[chosen]),
                "boxes": torch.from_numpy(scenes[number].boxes[chosen]),
            }
            for number, _, chosen in rows
        ]
        image_ids = torch.tensor([number for number, _, _ in rows])
        outputs = self.model(vision_embeds=vision, image_ids=image_ids, labels=labels, **text)
        decoded = self._decoded
        queries = decoded.intermediate_hidden_states[:, :, : self.model.config.detr_decoder_config.num_queries]
        boxes = torch.logit(decoded.reference_boxes[:, :, : queries.shape[2]], eps=1e-3)
        boxes = (boxes + self.model.detr_decoder.box_head(queries)).sigmoid()
        dense = self.dense(vision.fpn_hidden_states[1], scenes)
        query = self.query(queries, boxes, [scenes[number] for number, _, _ in rows])
        language = self.next_word_loss(sentences)
        figures = {
            name: outputs.loss_dict[name].item() for name in ("loss_bbox", "loss_dice", "presence_accuracy", "ce_f1")
        }
        figures |= {"find": outputs.loss.item(), "dense": dense.item(), "query": query.item(), "lm": language.item()}
        return outputs.loss + 2 * dense + 2 * query + language, figures

    def next_word_loss(self, sentences: list[str]) -> torch.Tensor:
        """Cross-entropy of the next token, with the token embeddings as output weights."""
        text = self.tokenizer(sentences, padding=True, return_tensors="pt")
        states = self.model.text_encoder(**text).last_hidden_state[:, :-1]
        logits = states @ self.model.text_encoder.get_input_embeddings().weight.T
        target = text.input_ids[:, 1:].masked_fill(text.attention_mask[:, 1:] == 0, -100)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)


class Average:
    """Exponential moving average of weights; its memory grows with the number of steps up to `horizon`."""

    def __init__(self, state: dict[str, torch.Tensor], horizon: float = 300.0):
        self.state = {name: value.clone() for name, value in state.items()}
        self.horizon, self.steps = horizon, 0

    @torch.no_grad()
    def update(self, state: dict[str, torch.Tensor]) -> None:
        self.steps += 1
        rate = max(1 / self.horizon, 1 / (1 + 0.1 * self.steps))
        for name, value in state.items():
            if value.is_floating_point():
                self.state[name].lerp_(value, rate)


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 40) -> float:
    """Short warm-up, constant for half of the way, then a cosine down to zero: stopping early loses little."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    rest = max(0.0, (step / steps - 0.4) / 0.6)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))


def parameter_groups(module: nn.Module) -> list[dict]:
    """Weight decay on matrices only."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def evaluate(
    training: Pretraining, state: dict[str, torch.Tensor], split: str, cases: int, threshold: float | None = None
):
    """Concept scores of a state; the threshold is chosen here if none is given. Returns scores and threshold."""
    own = {k: v.clone() for k, v in training.stock_state_dict().items()}
    training.model.load_state_dict(state, strict=False)
    dataset = ShapesInstructionDataset.evaluation(split, cases, levels=(InstructionLevel.CONCEPT,))
    ious = union_ious(training.model, training.tokenizer, dataset)
    training.model.load_state_dict(own, strict=False)
    training.model.train()
    column = int(ious.mean(0).argmax()) if threshold is None else THRESHOLDS.index(threshold)
    return scores_by_kind(ious[:, column], dataset), THRESHOLDS[column]


def save(training: Pretraining, state: dict[str, torch.Tensor], directory: Path) -> None:
    """Write a stock repository, weights in half precision."""
    stock = Sam3Model(tiny_sam3_config(training.tokenizer))
    stock.load_state_dict(state)
    stock.half().save_pretrained(directory)
    tiny_processor(training.tokenizer).save_pretrained(directory)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/shapes_stock"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints and evaluations")
    parser.add_argument("--resume", type=Path, help="training state to go on from (training.pt of an earlier run)")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    world = ShapesWorld(options.seed, "train")
    training = Pretraining(build_tokenizer())
    stream = SentenceStream(world)
    optimizer = torch.optim.AdamW(parameter_groups(training), lr=options.learning_rate, betas=(0.9, 0.98))
    average = Average(training.stock_state_dict())
    parameters = sum(p.numel() for p in training.stock_state_dict().values())
    print(f"{parameters:,} parameters, {len(training.tokenizer)} tokens", flush=True)
    training.train()
    begin, shown, seen = time.time(), {}, 0
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.learning_rate)
        scenes, rows = concept_batch(world, step, rng)
        images = pixel_values([jitter(scene.image, rng) for scene in scenes])
        loss, figures = training(scenes, rows, images, stream.draw(rng, 24))
        optimizer.zero_grad()
        loss.backward()
        figures["norm"] = nn.utils.clip_grad_norm_(training.parameters(), 5.0).item()
        optimizer.step()
        average.update(training.stock_state_dict())
        seen += len(rows)
        for name, value in figures.items():
            shown[name] = shown.get(name, value) * 0.95 + value * 0.05
        if (step + 1) % 25 == 0:
            line = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(f"step {step + 1} {time.time() - begin:.0f}s prompts {seen} {line}", flush=True)
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            save(training, average.state, options.output)
            scores, threshold = evaluate(training, average.state, "validation", 60)
            print(f"step {step + 1} validation, threshold {threshold}: {show(scores)}", flush=True)
    scores, threshold = evaluate(training, average.state, "validation", 150)
    scores, _ = evaluate(training, average.state, "test", 150, threshold)
    print(f"test, threshold {threshold} fixed on validation: {show(scores)}", flush=True)
    print(f"{(time.time() - begin) / 60:.1f} minutes, saved to {options.output}", flush=True)


def show(scores: dict[str, dict[str, float]]) -> str:
    """One line of scores: gIoU / P@0.5 per target kind, beside the gIoU of predicting nothing."""
    return "; ".join(
        f"{kind} gIoU {s['gIoU']:.3f} P@0.5 {s['P@0.5']:.3f} (nothing {s['nothing']:.3f}, {s['cases']} cases)"
        for kind, s in scores.items()
    )


if __name__ == "__main__":
    main()
