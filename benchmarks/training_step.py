# SPDX-License-Identifier: Apache-2.0
"""The cost of a training step of the joint stage: with kept vision features, without, and with two whole passes.

A step reads the simple and the complex instruction of each picture. `cached` reads vision features from disk,
`one pass` encodes a picture once for all its instructions, `two passes` runs the whole model once per level, as the
plain way is. Losses of the first two are equal, which is checked. With several targets a picture, they share its
features; the plain way encodes the picture anew for each. Peak memory is that of a fresh process per case.
Run: `python benchmarks/training_step.py [--size tiny|middle|real] [--pictures 1] [--rounds 5] [--no-memory]`.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from kept import add_options, finish, ratios
from models import SIZES, build_model, instructions
from safetensors.torch import load_file, save_file
from timing import alternate, in_fresh_process, peak_mib, ratio, table

from sam3i.trainer.curriculum import TrainingStage, freeze_for_stage, parameter_groups
from sam3i.trainer.stage.module import StageModule

CASES = {
    "weights": "the model, loaded",
    "inference": "and a forward pass of one complex instruction",
    "cached": "a step from kept features",
    "cached, checkpointing": "the same, activations recomputed",
    "one pass": "a step from pixels",
    "one pass, checkpointing": "the same, activations recomputed",
}


class Step:
    """Training steps of one model on one batch of random pictures and instructions.

    Args:
        size (`str`): Of the model.
        design (`str`): Of its adapters.
        pictures (`int`): In a batch; each target has one object, a simple and a complex instruction.
        folder: Where kept features lie.
        targets (`int`): Of each picture.
    """

    def __init__(self, size: str, design: str, pictures: int, folder: Path, targets: int = 1):
        self.model = build_model(size, adapter_design=design)
        freeze_for_stage(self.model, TrainingStage.JOINT)
        self.module = StageModule(self.model, TrainingStage.JOINT).train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.module, 1e-4, 1e-4, 0.1))
        side = self.model.config.vision_config.backbone_config.image_size
        self.pixels = torch.randn(pictures, 3, side, side, generator=torch.Generator().manual_seed(1))
        self.file = folder / "features.safetensors"
        mask = torch.zeros(1, side, side, dtype=torch.bool)
        mask[:, side // 4 : side // 2, side // 4 : side // 2] = True
        label = {"masks": mask, "boxes": torch.tensor([[0.375, 0.375, 0.25, 0.25]])}
        pairs = pictures * targets
        concepts = instructions(self.model, pairs, seed=3)
        self.batch = instructions(self.model, 2 * pairs) | {
            "labels": [label] * (2 * pairs),
            "instruction_levels": torch.tensor([1, 2] * pairs),
            "image_ids": torch.arange(pictures).repeat_interleave(2 * targets),
            "concept_names": [f"thing {index // 2}" for index in range(2 * pairs)],
            "concept_input_ids": concepts["input_ids"],
            "concept_attention_mask": concepts["attention_mask"],
        }

    @torch.no_grad()
    def keep_features(self) -> None:
        """What the feature cache keeps of a picture: the output of the ViT."""
        states = [self.model.vision_encoder.backbone(picture[None]).last_hidden_state for picture in self.pixels]
        backbone = self.model.config.vision_config.backbone_config
        height = backbone.image_size // backbone.patch_size
        features = torch.cat(states)
        save_file({"features": features.reshape(len(features), height, -1, features.shape[-1])}, self.file)

    def cached(self) -> float:
        return self._update(self.module(**self.batch, vision_features=load_file(self.file)["features"])["loss"])

    def one_pass(self) -> float:
        return self._update(self.module(**self.batch, pixel_values=self.pixels)["loss"])

    def two_passes(self) -> float:
        """One whole forward pass per level, their losses added; the alignment losses are left out in its favour."""
        rows = ("input_ids", "attention_mask", "instruction_levels", "image_ids")
        loss = 0.0
        for level in (0, 1):
            inputs = {name: self.batch[name][level::2] for name in rows}
            with torch.no_grad():
                vision = self.model.get_vision_features(self.pixels)
            loss = loss + self.model(vision_embeds=vision, labels=self.batch["labels"][level::2], **inputs).loss
        return self._update(loss)

    def _update(self, loss: torch.Tensor) -> float:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def compare_targets(options: argparse.Namespace, folder: Path) -> None:
    """Steps and targets a second with 1, 2 and 4 targets a picture: sharing it, and each with a copy of its own."""
    rows = []
    for targets in (1, 2, 4):
        shared = Step(options.size, options.design, options.pictures, folder, targets)
        copies = Step(options.size, options.design, options.pictures * targets, folder)
        shared.keep_features()
        systems = {"copies": copies.one_pass, "shared": shared.one_pass, "shared, kept": shared.cached}
        timings = alternate(systems, options.rounds, options.warmup)
        for name, time in timings.items():
            steps = 1 / time.cpu_s
            gain = 1 / ratio(time, timings["copies"])
            rows.append([f"{targets}: {name}", steps, steps * targets * options.pictures, gain])
    table("targets a picture", ["targets: vision", "steps/cpu s", "targets/cpu s", "of copies"], rows)


def peak_of(case: str, step: Step) -> float:
    """Peak memory of this process after one case."""
    name, _, checkpointing = case.partition(", ")
    if checkpointing:
        step.module.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if name == "inference":
        with torch.no_grad():
            inputs = instructions(step.model, 1) | {"instruction_levels": torch.tensor([2])}
            step.model.eval()(pixel_values=step.pixels[:1], **inputs)
    elif name != "weights":
        step.cached() if name == "cached" else step.one_pass()
    return peak_mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--design", choices=("cascade", "selective"), default="selective")
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those that count")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    add_options(parser)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        step = Step(options.size, options.design, options.pictures, options.folder)
        print(json.dumps({"MiB": peak_of(options.case, step)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        step = Step(options.size, options.design, options.pictures, Path(folder))
        step.keep_features()
        losses = []
        for vision in ({"vision_features": load_file(step.file)["features"]}, {"pixel_values": step.pixels}):
            torch.manual_seed(0)  # of the dropout
            with torch.no_grad():
                losses.append(step.module(**step.batch, **vision)["loss"].item())
        print(f"loss from kept features {losses[0]}, from pixels {losses[1]}")
        if losses[0] != losses[1]:
            raise SystemExit("Kept features give another loss.")
        systems = {"two passes": step.two_passes, "one pass": step.one_pass, "cached": step.cached}
        timings = alternate(systems, options.rounds, options.warmup)
        base = timings["one pass"]
        rows = [[name, time.cpu_s, 1 / ratio(time, base)] for name, time in timings.items()]
        title = f"joint stage, {options.size} size, {options.design}, {options.pictures} picture(s) a step"
        table(title, ["step", "cpu s", "steps/s of one pass"], rows)
        finish("training_step", options.size, ratios(timings, "one pass"), options)
        del step, systems
        compare_targets(options, Path(folder))
        if options.no_memory:
            return
        arguments = ["--size", options.size, "--design", options.design, "--pictures", options.pictures]
        rows = []
        for case, meaning in CASES.items():
            found = in_fresh_process(__file__, *arguments, "--case", case, "--folder", folder)
            rows.append([case, found["MiB"], meaning])
        table("peak memory", ["case", "MiB", "what has run"], rows)


if __name__ == "__main__":
    main()
