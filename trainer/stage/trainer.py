# SPDX-License-Identifier: Apache-2.0
"""`StageTrainer`: one stage as a run of the Trainer of Transformers, with rows, logs and checkpoints of its own."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput, SaveStrategy
from transformers.utils import logging

from ..checkpoints import load_trained_weights, rotate_checkpoints, save_trained_weights, seal_checkpoint
from ..collator import InstructionCollator, RowsWithReplay, WithReplay, named_parts, select_rows, usable_rows
from ..curriculum import StageSampler, TrainingStage, parameter_groups
from ..evaluation.stage_evaluation import ConceptCheck, evaluate_levels
from ..feature_cache import VisionFeatureCache
from ..hub_upload import HubUploads
from ..transforms import InstructionTransform
from .callbacks import patience_is_over

logger = logging.get_logger(__name__)

REPLAY_KEY = "replay:"


class StageTrainer(HubUploads):
    """What [`Sam3ITrainer`] does within a stage: it knows `stage`, the stage's `args`, and nothing of other stages."""

    stages: tuple[TrainingStage, ...]
    all_rows: Any
    replay: Any
    transform: InstructionTransform | None
    own_collator: Any
    concept_check: ConceptCheck | None = None
    vision_cache: VisionFeatureCache | None = None
    choosing_rows: Any = None
    calibrating_rows: Any = None
    identity: dict[str, Any]

    def __init__(self, **options: Any):
        self.identity = {}
        self._loss_parts: dict[str, list[torch.Tensor]] = {}
        self._sealed: Path | None = None
        self._prepared = ""
        self._in_stage = False
        super().__init__(**options)

    def say(self, text: str) -> None:
        """Tell the user: above the progress bar, or in the log where there is none."""
        if self.args.disable_tqdm:
            logger.info(text)
        elif self.is_world_process_zero():
            tqdm.write(text)

    # Rows and batches

    def prepare_data(self, sampling: str) -> None:
        """Rows and collator of a way of sampling, and the vision features of the images."""
        rows = select_rows(self.all_rows, sampling)
        cached = self.args.feature_cache is not None
        self.data_collator = self.own_collator or InstructionCollator(
            self.processing_class,
            sampling,
            transform=self.transform,
            load_images=not cached,
            seed=self.args.seed + self.stage.index,
        )
        if self.replay is not None:
            levels = {level.value: 1.0 for level in self.stage.levels}
            replay = select_rows(self.replay, levels, labels=False)
            collator = InstructionCollator(
                self.processing_class, levels, load_images=not cached, labels=False, seed=self.args.seed
            )
            self._replay_rows = replay.remove_columns(["image"]) if cached else replay
            self.data_collator = WithReplay(self.data_collator, collator)
        self.train_dataset = rows.remove_columns(["image"]) if cached and self.own_collator is None else rows
        self.fill_cache()
        self._prepared = sampling

    def fill_cache(self) -> None:
        """Encode every image that any stage uses; nothing to do where that is done."""
        if self.args.feature_cache is None or self.vision_cache is not None:
            return
        limit = int(self.args.feature_cache_limit_gb * 1e9)
        model, processor = self.instruction_model, self.processing_class
        self.vision_cache = VisionFeatureCache(self.args.feature_cache, model, processor, limit_bytes=limit)
        # The selectors of the joint stage learn from rows of one level, too.
        samplings = {stage.sampling for stage in self.stages}
        samplings |= {level.value for stage in self.stages for level in stage.levels}
        used = {index for sampling in samplings for index in usable_rows(self.all_rows, sampling).indices}
        self.vision_cache.fill(self.all_rows.select(sorted(used)))
        if self.replay is not None:
            self.vision_cache.fill(self.replay, prefix=REPLAY_KEY)

    def selector_batch(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The inputs of some rows, for a selector to learn from."""
        return self._prepare_inputs(self.data_collator(rows))

    def begin_epoch(self, epoch: int) -> None:
        """All random choices of data in an epoch follow from (seed, stage, epoch, row)."""
        self._sampler.set_epoch(epoch)
        if hasattr(self.data_collator, "set_epoch"):
            self.data_collator.set_epoch(epoch)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the current stage; of the first one before `train()`."""
        if not self._prepared:
            self.prepare_data(self.stage.sampling)
        own = self.train_dataset
        if self.replay is not None:
            self.train_dataset = RowsWithReplay(own, self._replay_rows)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = own

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of the rows of `eval_dataset` that the current stage can use, with labels."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        if rows is None or isinstance(rows, dict):
            raise ValueError(f"Expected one `eval_dataset`, or the name of one, found {type(rows).__name__}.")
        return self._evaluation_loader(rows, super().get_eval_dataloader)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Batches of the rows that the current stage can use, with labels."""
        return self._evaluation_loader(test_dataset, super().get_test_dataloader)

    def _evaluation_loader(self, rows: Any, make: Callable[[Any], DataLoader]) -> DataLoader:
        training, sampling = self.data_collator, self.stage.sampling
        self.data_collator = self.own_collator or InstructionCollator(self.processing_class, sampling)
        try:
            return make(select_rows(rows, sampling))
        finally:
            self.data_collator = training

    def _get_train_sampler(self, train_dataset: Any = None) -> StageSampler:
        rows, args = self.train_dataset, self.args
        replay = len(rows.replay) if isinstance(rows, RowsWithReplay) else 0
        step = self._train_batch_size * args.world_size * args.gradient_accumulation_steps
        self._sampler = StageSampler(len(rows) - replay, args.seed, self.stage, replay, step, args.replay_every)
        return self._sampler

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = dict(super()._prepare_inputs(dict(inputs)))
        if self.vision_cache is not None:
            prefix = REPLAY_KEY if "replay" in batch else ""
            batch.pop("pixel_values", None)
            batch["vision_features"] = self.vision_cache.load([prefix + key for key in batch["image_keys"]])
        return batch

    # Steps

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW (or `args.optim`) on text adapters and the rest, with weight decay on matrices only."""
        if self.optimizer is None:
            given, args = self.optimizer_cls_and_kwargs, self.args
            optimizer_class, options = given or self.get_optimizer_cls_and_kwargs(args, self.instruction_model)
            rates = (args.learning_rate, args.text_learning_rate)
            groups = parameter_groups(self.model if model is None else model, *rates, args.weight_decay)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def check_optimizer(self, trained: Sequence[str]) -> None:
        """Name what an optimizer that was given leaves untrained."""
        if self.optimizer is None:
            return
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        missing = [name for name in trained if id(self.instruction_model.get_parameter(name)) not in held]
        if missing:
            logger.warning(f"The optimizer in `optimizers` lacks {len(missing)} parameters, such as {missing[0]}.")

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None):
        """The loss of the stage's module; its parts are kept for the next log entry."""
        outputs = model(**inputs)
        for name, value in outputs["loss_dict"].items():
            self._loss_parts.setdefault(name, []).append(value.detach().float())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the number of the stage (1, 2, 3) and, beside the loss, its final layer's parts, unweighted, and
        the learning rate of each group."""
        logs = {**logs, "stage": self.stage.index + 1}
        if "loss" in logs and self._loss_parts:
            names = sorted(name for name in self._loss_parts if not name.endswith("_o2m") and "_aux_" not in name)
            means = torch.stack([torch.stack(self._loss_parts[name]).mean() for name in names])
            means = self.accelerator.reduce(means, reduction="mean").tolist()
            logs |= {name.removeprefix("loss_"): value for name, value in zip(names, means, strict=True)}
            self._loss_parts = {}
        if "learning_rate" in logs and self.optimizer is not None:
            # Transformers logs the rate of the first group; all follow one schedule from their own peaks.
            groups = self.optimizer.param_groups
            share = logs["learning_rate"] / (groups[0].get("initial_lr") or 1.0)
            for group in groups:
                if "name" in group:
                    name = "" if group["name"] == "adapters" else f"{group['name']}_"
                    logs[f"{name}learning_rate"] = share * group["initial_lr"]
        super().log(logs, start_time)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing where a run goes on from the last step of a stage: Transformers would take one more."""
        over = patience_is_over(self.callback_handler.callbacks)
        if self.state.global_step < self.state.max_steps and not over:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """A run that is stopped before its end saves where it is."""
        stopped = self.control.should_training_stop and self.state.global_step < self.state.max_steps
        if stopped and self.args.save_strategy != SaveStrategy.NO:
            self.control.should_save = not patience_is_over(self.callback_handler.callbacks)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def how_it_ended(self) -> str | None:
        """By "steps" or "patience" a stage is completed; None when it was stopped before."""
        if self.state.global_step >= self.state.max_steps:
            return "steps"
        if patience_is_over(self.callback_handler.callbacks):
            self.say(
                f"Stage {self.stage.value} ends at step {self.state.global_step} of {self.state.max_steps}: no better "
                f"{self.args.metric_for_best_model} within the patience."
            )
            return "patience"
        saved = "--resume goes on from there" if self._sealed is not None else "nothing was saved (`save_strategy`)"
        logger.warning(
            f"Stage {self.stage.value} was stopped at step {self.state.global_step} of {self.state.max_steps} and is "
            f"not finished: {saved}."
        )
        return None

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Figures by level and kind of target, and 1.0 for `concept_unchanged` while concepts are answered as before.

        Of several data sets (a dictionary) each has its name in the names of its figures; the figures of the stage,
        by which checkpoints are chosen, are there as means over the sets, too.
        """
        own = self.choosing_rows if self._in_stage else self.eval_dataset
        rows = own if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        if rows is None:
            raise ValueError("Expected `eval_dataset` to evaluate, found None.")
        figures: dict[str, float] = {}
        for name, part in named_parts(rows).items():
            found, _ = self._answers(part, ignore_keys)
            figures |= {f"{name}_{key}" if name else key: value for key, value in found.items()}
            for key in ("stage_gIoU", "stage_best_gIoU") if name else ():
                figures[key] = figures.get(key, 0.0) + found[key] / len(rows)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Answer all instructions of some rows: `predictions` are the instances found for each (compressed RLE and
        score), `label_ids` its target, `metrics` the figures of `evaluate`."""
        figures, answers = self._answers(test_dataset, ignore_keys)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return PredictionOutput(answers.predictions, answers.label_ids, metrics)

    def _answers(self, rows: Any, ignore_keys: list[str] | None) -> tuple[dict[str, float], EvalPrediction]:
        refuse_ignored_keys(ignore_keys)
        records: list[dict[str, Any]] = []
        figures = evaluate_levels(
            self.instruction_model,
            self.processing_class,
            rows,
            self.stage.levels,
            batch_size=self.args.per_device_eval_batch_size,
            threshold=self.args.eval_threshold,
            folder=Path(str(self.args.output_dir)) / "evaluation.tmp",
            keep_records=records.append,
        )
        found: Any = [record["predictions"] for record in records]
        targets: Any = [record["target"] for record in records]
        answers = EvalPrediction(found, targets)
        if self.compute_metrics is not None:
            figures = figures | self.compute_metrics(answers)
        if self.concept_check is not None:
            unchanged = self.concept_check.is_unchanged(self.instruction_model)
            figures["concept_unchanged"] = float(unchanged)
            if not unchanged:
                logger.error("The concept path has changed: training must only touch instruction adapters.")
        return figures, answers

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapters and the processor as a repository, to `args.output_dir` if not told otherwise."""
        super().save_model(output_dir or str(self.curriculum_args.output_dir), _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        projector = getattr(self.model, "projector", None)
        save_trained_weights(self.instruction_model, projector, folder, gathered=state_dict)
        self.processing_class.save_pretrained(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self._sealed == folder:
            return  # a stop at the end of an epoch asks twice
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every process has written its random state
        self._sealed = folder
        if self.args.should_save:
            seal_checkpoint(folder, self.stage, False, self.state.global_step, self.identity)
            rotate_checkpoints(folder.parent, self.curriculum_args.save_total_limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str | os.PathLike, model: Any = None) -> None:
        """Nothing: adapters and projector have been loaded before they were wrapped."""

    def _load_best_model(self) -> None:
        projector = getattr(self.model, "projector", None)
        load_trained_weights(self.instruction_model, projector, Path(str(self.state.best_model_checkpoint)))


def refuse_ignored_keys(names: list[str] | None) -> None:
    """Refuse an argument of the Trainer of Transformers that would have no effect."""
    if names:
        raise ValueError("`ignore_keys` is not supported: figures are made of instances, not of model outputs.")
