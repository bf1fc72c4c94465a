# SPDX-License-Identifier: Apache-2.0
"""Pretrain a tiny SAM3 in the stock format on concepts of the shapes world, from scratch on a CPU.

    python examples/shapes_pretrain.py --output runs/shapes_stock
    python examples/shapes_pretrain.py --output runs/shapes_stock_long --start runs/shapes_stock --seed 1 --steps 3000

The last steps (`--single-steps`) teach to find every object once; at the end 0.5 is made the threshold of all scores.
The result is a stock SAM3 repository (`Sam3Model`, `Sam3Processor`): it knows what a circle is and follows no
instruction. What stands for the broad pretraining of real SAM3, all of it for training only:

- the text encoder also learns to predict the next word of instruction sentences and of short definitions ("what would
  roll down a hill is a circle"): text alone, no pictures;
- with `--caption-weight`, it also learns from images: to tell which picture of the batch a caption is of;
- heads that are thrown away afterwards make the vision features tell shapes, colors and boxes, and make every query
  tell the object it covers, asked for or not.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from shapes_common import WIDTH, WORLDS, pixel_values, start_local, tiny_processor, tiny_sam3_config
from shapes_pretrain_data import CaptionWriter, ScenePool, SentenceStream, concept_rows, exemplars, jitter
from shapes_pretrain_heads import CaptionHead, QueryHead, VisionHead
from shapes_tables import evaluate_cases
from torch import nn
from transformers import Sam3Model

from sam3i import (
    InstructionLevel,
    Sam3IConfig,
    Sam3IForInstructionSegmentation,
    Sam3IProcessor,
)
from sam3i.processing.shapes import IMAGE_SIZE, build_tokenizer

SHIFT_BATCHES = 40
FLAT = 0.5  # points of gIoU: thresholds hardly differ by it, but a higher one finds fewer objects twice
BOX_EVERY = 6  # one step in six shows an object as a box
CELLS = (IMAGE_SIZE // 8) ** 2  # of the feature map that heads for training read
IMAGES = 9  # pictures in a batch, about 30 prompts
SHOWN = ("loss_bbox", "loss_dice", "loss_mask", "loss_ce", "presence_accuracy", "ce_f1")
LOSS = {"scale_by_rows": False, "classification_min_queries": 50}
# The paper's weights of the classification (10 and 2) forgive a second query on the same object, and its one-to-many
# queries, which share all weights with the others, ask for one. They learn faster, so most of the training keeps them;
# the last part, at a lower rate, pays for every object once, and keeps an object with the query that already has it.
SINGLE_LOSS = LOSS | {
    "classification_weight": 40.0,
    "classification_positive_weight": 2.0,
    "classification_gamma": 0.5,
    "one_to_many_weight": 0.0,
    "match_class_cost": 5.0,
}
SINGLE_SHARE = 2.0  # factor on that loss, which has lost its one-to-many part, beside those of the heads for training
SINGLE_RATE = 0.7  # peak of the last part, as a share


class Pretraining(nn.Module):
    """The tiny model with the heads that are only there for training."""

    def __init__(self, world: str, text_width: int = WIDTH, caption_weight: float = 0.0):
        super().__init__()
        self.dataset_type = WORLDS[world]
        self.words = self.dataset_type.world_type.words
        tokenizer = build_tokenizer(self.words.vocabulary())
        config = Sam3IConfig(
            **tiny_sam3_config(tokenizer, text_width).to_dict() | {"model_type": "sam3i"},
            adapter_dim=4,
            loss_config=LOSS,
        )
        self.model = Sam3IForInstructionSegmentation(config)
        start_local(self.model)
        for parameter in self.model.adapter_parameters().values():
            parameter.requires_grad_(False)  # concepts bypass the adapters
        self.vision_head, self.query_head = VisionHead(self.words.nouns), QueryHead(self.words.nouns)
        self.caption_head = CaptionHead(text_width, CELLS) if caption_weight else None
        self.captions, self.caption_weight = CaptionWriter(self.words), caption_weight
        self.tokenizer, self.text_width = tokenizer, text_width
        self.model.detr_decoder.register_forward_hook(self._keep)
        self.model.dot_product_scoring.register_forward_hook(self._keep_logits)
        self._decoded = self._logits = None
        self.find_weight = 1.0

    def expect_singles(self) -> None:
        """From now on the loss makes a second query on the same object expensive."""
        self.model.criterion = type(self.model.criterion)(SINGLE_LOSS)
        self.find_weight = SINGLE_SHARE

    def _keep(self, module, inputs, output):
        self._decoded = output

    def _keep_logits(self, module, inputs, output):
        self._logits = output

    def stock_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights of SAM3 alone."""
        return {k: v for k, v in self.model.state_dict().items() if ".sam3i_adapter." not in k}

    def load_stock(self, state: dict[str, torch.Tensor]) -> None:
        """Put in the weights of SAM3, all of them and nothing else."""
        if state.keys() != self.stock_state_dict().keys():
            raise ValueError(f"Expected the weights of this SAM3, found other keys: {sorted(state)[:3]}...")
        self.model.load_state_dict(state, strict=False)

    def forward(
        self, scenes, rows, images, sentences, captions=None, **boxes
    ) -> tuple[torch.Tensor, dict[str, float]]:
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
        outputs = self.model(vision_embeds=vision, image_ids=image_ids, labels=labels, **text, **boxes)
        decoded = self._decoded
        queries = decoded.intermediate_hidden_states[:, :, : self.model.config.detr_decoder_config.num_queries]
        boxes = torch.logit(decoded.reference_boxes[:, :, : queries.shape[2]], eps=1e-3)
        boxes = (boxes + self.model.detr_decoder.box_head(queries)).sigmoid()
        dense, accuracy = self.vision_head(vision.fpn_hidden_states[1], scenes)
        scores = self._logits[:, :, : queries.shape[2], 0].detach().sigmoid()
        query = self.query_head(queries, boxes, scores, [scenes[number] for number, _, _ in rows])
        language = self.next_word_loss(sentences)
        figures = {name: outputs.loss_dict[name].item() for name in SHOWN} | accuracy
        for name, value in (("find", outputs.loss), ("dense", dense), ("query", query), ("lm", language)):
            figures[name] = value.item()
        loss = self.find_weight * outputs.loss + 4 * dense + 3 * query + language
        if captions is not None:
            own, figures["captions"] = self.caption_loss(*captions, vision.fpn_hidden_states[1])
            loss = loss + self.caption_weight * own
        return loss, figures

    def vision_only(self, scenes, images) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of the first, short part of the training: the vision encoder alone."""
        features = self.model.get_vision_features(images).fpn_hidden_states[1]
        loss, accuracy = self.vision_head(features, scenes)
        return loss, {"dense": loss.item(), **accuracy}

    def caption_loss(self, captions: list[str], fits: torch.Tensor, features: torch.Tensor):
        """How badly captions find their pictures, and how often they do."""
        text = self.tokenizer(captions, padding=True, return_tensors="pt")
        states = self.model.text_encoder(**text).last_hidden_state
        return self.caption_head(states[range(len(captions)), text.attention_mask.sum(1) - 1], features, fits)

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
    """Concept scores of a state, and the threshold: if none is given, the highest that costs no more than `FLAT`."""
    own = {k: v.clone() for k, v in training.stock_state_dict().items()}
    training.load_stock(state)
    dataset_type = training.dataset_type
    dataset = dataset_type.evaluation(split, cases, levels=(InstructionLevel.CONCEPT,))
    held_out = dataset_type(split, cases=[case for case in dataset.cases if case.target.held_out_pair])
    stock = tiny_processor(training.tokenizer)
    processor = Sam3IProcessor(stock.image_processor, stock.tokenizer)
    if threshold is None:
        curve = evaluate_cases(training.model, processor, dataset).thresholds["concept"]["curve"]
        threshold = max(each for each, giou in curve.items() if giou >= max(curve.values()) - FLAT)
    result = evaluate_cases(training.model, processor, dataset, threshold)
    scores = {"all": result.figures, **result.breakdown["kind"]}
    if held_out.cases:
        scores["held-out pair"] = evaluate_cases(training.model, processor, held_out, threshold).figures
    training.load_stock(own)
    training.model.train()
    return scores, threshold


@torch.no_grad()
def shift_scores(training: Pretraining, state: dict[str, torch.Tensor], pool: ScenePool, threshold: float) -> None:
    """Change a state so that what scored `threshold` scores 0.5: the same number is added to every logit.

    Stock has no parameter for that alone. But a logit is a product of a projected query and the projected prompt, so
    what is added to the bias of the first adds its product with the second: here with the vector whose product with
    prompts, of words, boxes or both, is nearest to 1.
    """
    own = {k: v.clone() for k, v in training.stock_state_dict().items()}
    training.load_stock(state)
    training.eval()
    scoring, prompts, rng = training.model.dot_product_scoring, [], np.random.default_rng(0)
    hook = scoring.text_proj.register_forward_hook(lambda _, inputs, output: prompts.append(output.flatten(0, -2)))
    for number in range(SHIFT_BATCHES):
        scenes = pool.draw(rng, IMAGES)
        rows, boxes = concept_rows(scenes, training.words, rng), {}
        if number % 4 == 0:
            rows, input_boxes, box_labels = exemplars(scenes, rows, rng)
            boxes = {"input_boxes": input_boxes, "input_boxes_labels": box_labels}
        text = training.tokenizer([text for _, text, _ in rows], padding=True, return_tensors="pt")
        vision = training.model.get_vision_features(pixel_values([scene.image for scene in scenes]))
        image_ids = torch.tensor([number for number, _, _ in rows])
        training.model(vision_embeds=vision, image_ids=image_ids, **text, **boxes)
    hook.remove()
    seen = torch.cat(prompts).double()
    ridge = 1e-3 * len(seen) * torch.eye(seen.shape[1]).double()
    ones = torch.linalg.solve(seen.T @ seen + ridge, seen.sum(0)[:, None]) / scoring.scale
    error = (seen @ ones * scoring.scale - 1).abs()
    shift = -torch.logit(torch.tensor(threshold)).double()
    state["dot_product_scoring.query_proj.bias"] += (shift * ones[:, 0]).float()
    training.load_stock(own)
    training.train()
    print(f"logits {shift:+.2f}, within {(error.mean() * shift.abs()):.3f} in the mean", flush=True)


def save(training: Pretraining, state: dict[str, torch.Tensor], directory: Path) -> None:
    """Write a stock repository."""
    stock = Sam3Model(tiny_sam3_config(training.tokenizer, training.text_width))
    stock.load_state_dict(state)
    stock.save_pretrained(directory)
    tiny_processor(training.tokenizer).save_pretrained(directory)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/shapes_stock"))
    parser.add_argument("--world", choices=WORLDS, default="shapes", help="what scenes show: shapes, or named things")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--single-steps", type=int, default=500, help="steps at the end that teach: every object once")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--caption-weight", type=float, default=0.0, help="of telling captions of pictures apart")
    parser.add_argument("--text-width", type=int, default=WIDTH, help="of the text encoder")
    parser.add_argument("--seed", type=int, default=0, help="of everything but the world, whose test scenes stay")
    parser.add_argument("--start", type=Path, help="go on from this stock repository; give another --seed")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints and evaluations")
    parser.add_argument("--vision-steps", type=int, default=700, help="steps of the vision encoder alone, before")
    parser.add_argument("--pool", type=int, default=2500, help="training scenes kept in memory")
    parser.add_argument("--cases", type=int, default=150, help="evaluation cases per target kind")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    training = Pretraining(options.world, options.text_width, options.caption_weight)
    world = training.dataset_type.world_type(0, "train")
    if options.start is not None:
        start = Sam3Model.from_pretrained(options.start, dtype=torch.float32)
        training.load_stock(start.state_dict())
        options.vision_steps = 0
    stream = SentenceStream(world)
    optimizer = torch.optim.AdamW(parameter_groups(training), lr=options.learning_rate, betas=(0.9, 0.98))
    average = Average(training.stock_state_dict())
    parameters = sum(p.numel() for p in training.stock_state_dict().values())
    print(f"{parameters:,} parameters, {len(training.tokenizer)} tokens", flush=True)
    training.train()
    begin, shown, prompts = time.time(), {}, 0
    pool = ScenePool(world, options.pool, first=options.seed * 100_000)
    steps = options.steps + options.single_steps
    for step in range(options.vision_steps + steps):
        number = step - options.vision_steps  # below zero: vision alone
        if number == options.steps:
            training.expect_singles()
            average = Average(training.stock_state_dict())
        if number < 0:
            rate = options.learning_rate * min(1.0, (step + 1) / 40)
        elif number < options.steps:
            rate = learning_rate(number, options.steps, options.learning_rate)
        else:
            peak = SINGLE_RATE * options.learning_rate
            rate = learning_rate(number - options.steps, options.single_steps, peak)
        for group in optimizer.param_groups:
            group["lr"] = rate
        captioned = options.caption_weight > 0 and number >= 0
        scenes = pool.draw(rng, IMAGES if number >= 0 else IMAGES + 3, pairs=captioned)
        images = pixel_values([jitter(scene.image, rng) for scene in scenes])
        optimizer.zero_grad()
        if number < 0:
            loss, figures = training.vision_only(scenes, images)
        else:
            rows = concept_rows(scenes, training.words, rng)
            prompts += len(rows)
            boxes = {}
            if number % BOX_EVERY == 0:
                rows, input_boxes, box_labels = exemplars(scenes, rows, rng)
                boxes = {"input_boxes": input_boxes, "input_boxes_labels": box_labels}
            captions = training.captions.write(scenes, rng) if captioned else None
            loss, figures = training(scenes, rows, images, stream.draw(rng, 24), captions, **boxes)
        loss.backward()
        figures["norm"] = nn.utils.clip_grad_norm_(training.parameters(), 5.0).item()
        optimizer.step()
        if number >= 0:
            average.update(training.stock_state_dict())
        for name, value in figures.items():
            shown[name] = shown.get(name, value) * 0.95 + value * 0.05
        if (step + 1) % 25 == 0:
            line = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(f"step {number + 1} {time.time() - begin:.0f}s prompts {prompts} {line}", flush=True)
        if number >= 0 and ((number + 1) % options.save_every == 0 or number + 1 == steps):
            save(training, average.state, options.output)
            scores, threshold = evaluate(training, average.state, "validation", options.cases // 2)
            print(f"step {number + 1} validation, threshold {threshold}: {show(scores)}", flush=True)
    _, threshold = evaluate(training, average.state, "validation", options.cases)
    shift_scores(training, average.state, pool, threshold)
    save(training, average.state, options.output)
    scores, _ = evaluate(training, average.state, "test", options.cases, 0.5)
    print(f"test, threshold 0.5, {threshold} before, fixed on validation: {show(scores)}", flush=True)
    print(f"{(time.time() - begin) / 60:.1f} minutes, saved to {options.output}", flush=True)


def show(scores: dict[str, dict[str, float]]) -> str:
    """One line of scores in percent: gIoU and AP50 per target kind, beside the gIoU of predicting nothing."""
    return "; ".join(
        f"{kind} gIoU {s['gIoU']:.1f} AP50 {_shown(s['AP50'])} (nothing {s['gIoU-nothing']:.1f}, {s['n']} cases)"
        for kind, s in scores.items()
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
