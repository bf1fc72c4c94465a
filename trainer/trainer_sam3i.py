# SPDX-License-Identifier: Apache-2.0
"""`Sam3ITrainer`: the curriculum of SAM3-I on the Trainer of Transformers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from ..processing.processing_sam3i import Sam3IProcessor
from .arguments import Sam3ITrainingArguments
from .checkpoints import (
    FINAL_NAME,
    checkpoint_to_resume,
    discard_later_checkpoints,
    load_trained_weights,
    save_trained_weights,
    seal_checkpoint,
)
from .collator import InstructionCollator, select_rows
from .curriculum import StageSampler, TrainingStage, freeze_for_stage, parameter_groups
from .evaluation.stage_evaluation import ConceptCheck, evaluate_levels
from .feature_cache import VisionFeatureCache
from .heads.stage_heads import finish_selectors, train_heads
from .hub_upload import HubUploads
from .learner import InstructionLearner
from .record import record_stage
from .transforms import InstructionTransform

logger = logging.get_logger(__name__)

CONCEPT_CHECK_ROWS = 2


class _EpochCallback(TrainerCallback):
    """Tells sampler and collator which epoch begins."""

    def __init__(self, trainer: "Sam3ITrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.begin_epoch(int(state.epoch or 0))


class Sam3ITrainer(HubUploads, Trainer):
    """
    Trains the instruction adapters of a model, stage by stage; SAM3 itself stays frozen.

    `train()` runs the stages of `args.stages`. Each is a run of the Trainer of Transformers with a folder, an
    optimizer and a schedule of its own, and begins where the one before it ended. Checkpoints hold adapters, projector
    and the state of optimizer, schedule and random generators; a resumed run ends with the weights of one that was
    never interrupted. `save_model()` writes the adapters as a repository, `model.save_pretrained()` the whole model.

    Args:
        model: The model; weights of stock SAM3 with fresh adapters, or adapters to go on with.
        args: The arguments.
        train_dataset: `datasets.Dataset` of rows (`schema.InstructionRow`); a stage takes the rows it can use.
        eval_dataset: Rows to evaluate on, all levels and kinds of target.
        processing_class: The processor of the model.
        transform (`InstructionTransform`, *optional*): Augmentation; not together with `feature_cache`.
        callbacks: Further callbacks.

    Source: SAM3-I (arXiv 2512.04585).

    Raises:
        ValueError: when arguments do not fit each other.
    """

    def __init__(
        self,
        model: Sam3IForInstructionSegmentation,
        args: Sam3ITrainingArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Sam3IProcessor | None = None,
        transform: InstructionTransform | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        if not isinstance(args, Sam3ITrainingArguments):
            raise ValueError(f"Expected `args` as Sam3ITrainingArguments, found {type(args).__name__}.")
        if processing_class is None:
            raise ValueError("Expected the model's processor as `processing_class`, found None.")
        if train_dataset is not None and not hasattr(train_dataset, "select_columns"):
            raise ValueError(
                f"Expected `train_dataset` as a datasets.Dataset of instruction rows, found "
                f"{type(train_dataset).__name__}: see `load_instruction_dataset`, or `Dataset.from_list(rows, "
                "features=row_features())`."
            )
        if train_dataset is not None and not hasattr(train_dataset, "__len__"):
            raise ValueError("Expected `train_dataset` of known length, found a stream: load it without streaming.")
        if transform is not None and args.feature_cache is not None:
            raise ValueError(
                "`transform` draws new views of a picture and `feature_cache` keeps one: give the views rows of their "
                "own, or leave one of the two out."
            )
        self.curriculum_args = args
        self.stage = args.stages[0]
        self.transform = transform
        self.instruction_model = model
        self._loss_parts: dict[str, torch.Tensor] = {}
        self._summed_steps = 0
        super().__init__(
            model=model,
            args=args.for_stage(self.stage),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"Found {self.args.n_gpu} GPUs in one process. Start one process per GPU (`torchrun` or `accelerate "
                "launch`), or show the process one GPU (CUDA_VISIBLE_DEVICES)."
            )
        if self.is_fsdp_enabled and (eval_dataset is not None or len(args.stages) > 1):
            raise ValueError(
                "Sharded weights stay sharded until the process ends: under FSDP run one stage at a time (`stages`), "
                "each with the model of the one before, and evaluate afterwards (no `eval_dataset`)."
            )
        self.add_callback(_EpochCallback(self))
        self.all_rows = train_dataset
        self.concept_check: ConceptCheck | None = None
        self.vision_cache: VisionFeatureCache | None = None

    # The curriculum

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Run the stages.

        Args:
            resume_from_checkpoint: `True` goes on from the last complete checkpoint in `output_dir`, or starts when
                there is none yet; a path goes on from that checkpoint.

        Returns:
            [`TrainOutput`] with the steps of all stages, the mean loss, and the metrics of each stage by its name.

        Raises:
            CheckpointNotFoundError: when the path holds no complete checkpoint.
            ValueError: when no row can be used by a stage.
        """
        if self.all_rows is None:
            raise ValueError("Expected `train_dataset` to train, found None.")
        stages = self.curriculum_args.stages
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.curriculum_args.output_dir, stages)
        self.accelerator.wait_for_everyone()  # all have looked
        if self.args.should_save:
            discard_later_checkpoints(self.curriculum_args.output_dir, checkpoint)
        if self.concept_check is None and not self.is_fsdp_enabled:
            rows = self.eval_dataset if self.eval_dataset is not None else self.all_rows
            first = [rows[index] for index in range(min(CONCEPT_CHECK_ROWS, len(rows)))]
            self.concept_check = ConceptCheck.on_rows(self.instruction_model, self.processing_class, first)
        steps, loss, metrics, history = 0, 0.0, {}, []
        for stage in stages:
            if checkpoint is not None and stage.index < checkpoint.stage.index:
                continue
            resumed = checkpoint if checkpoint is not None and checkpoint.stage is stage else None
            if resumed is not None and resumed.finished:
                load_trained_weights(self.instruction_model, None, resumed.folder)
                continue
            output = self._train_stage(stage, None if resumed is None else resumed.folder)
            steps, loss = steps + output.global_step, loss + output.training_loss * output.global_step
            metrics[stage.value] = output.metrics
            history += self.state.log_history
        self.state.log_history = history
        return TrainOutput(steps, loss / max(1, steps), metrics)

    def _train_stage(self, stage: TrainingStage, checkpoint: Path | None) -> TrainOutput:
        model, args = self.instruction_model, self.curriculum_args.for_stage(stage)
        self.stage, self.args = stage, args
        self._train_batch_size = args.train_batch_size
        set_seed(args.seed + stage.index)
        learner = InstructionLearner(model, stage)
        if checkpoint is not None:
            load_trained_weights(model, learner.projector, checkpoint)
        elif stage is TrainingStage.COMPLEX and args.start_complex_from_simple:
            model.start_complex_from_simple()
        freeze_for_stage(model, stage)
        self.prepare_data(stage.sampling)
        right = train_heads(self) if checkpoint is None else {}
        stopping = []
        if args.early_stopping_patience is not None:
            stopping = [EarlyStoppingCallback(args.early_stopping_patience)]
            self.add_callback(stopping[0])
        for callback in self.callback_handler.callbacks:
            if type(callback).__name__ == "TensorBoardCallback":
                callback.logging_dir = None  # each stage has curves of its own
        self.optimizer = self.lr_scheduler = None
        self.model = self.model_wrapped = learner
        try:
            logger.info(f"Stage {stage.index + 1} of {len(TrainingStage)}: {stage.value}")
            output = super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            right |= finish_selectors(self)
            self._finish_stage()
            output.metrics.update(right)
        finally:
            self.model = self.model_wrapped = self.callback_handler.model = model
            if stopping:
                self.pop_callback(EarlyStoppingCallback)
        return output

    def prepare_data(self, sampling: str) -> None:
        """Rows and collator of a way of sampling, and the vision features of the pictures."""
        rows = select_rows(self.all_rows, sampling)
        if not len(rows):
            raise ValueError(
                f"None of the {len(self.all_rows)} rows has what stage {self.stage.value!r} trains: "
                f"{' and '.join(level.value for level in self.stage.levels)} instructions, with masks."
            )
        self.data_collator = InstructionCollator(
            self.processing_class,
            sampling,
            transform=self.transform,
            load_images=self.args.feature_cache is None,
            seed=self.args.seed + self.stage.index,
        )
        if self.args.feature_cache is not None:
            if self.vision_cache is None:
                self.vision_cache = VisionFeatureCache(
                    self.args.feature_cache,
                    self.instruction_model,
                    self.processing_class,
                    limit_bytes=int(self.args.feature_cache_limit_gb * 1e9),
                )
            self.vision_cache.fill(rows)
            rows = rows.remove_columns(["image"])
        self.train_dataset = rows

    def _finish_stage(self) -> None:
        if self.stage is TrainingStage.JOINT and self.instruction_model.config.router_dim:
            self.processing_class.auto_levels = "router"  # it has been trained
        folder = Path(self.args.output_dir) / FINAL_NAME
        self.save_model(str(folder), _internal_call=True)
        if self.args.should_save:
            record_stage(self)
            seal_checkpoint(folder, self.stage, finished=True)
        self.accelerator.wait_for_everyone()

    def begin_epoch(self, epoch: int) -> None:
        """All random choices of data in an epoch follow from (seed, stage, epoch, row)."""
        self._sampler.set_epoch(epoch)
        self.data_collator.set_epoch(epoch)

    # What the Trainer of Transformers asks for

    def _run_epoch(self, *args, **kwargs) -> None:
        """Nothing where a run goes on from the last step of a stage: Transformers would take one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> StageSampler:
        self._sampler = StageSampler(len(self.train_dataset), self.args.seed, self.stage)
        return self._sampler

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW (or `args.optim`) on text adapters and the rest, with weight decay on matrices only."""
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.instruction_model)
            groups = parameter_groups(
                self.model if model is None else model,
                self.args.learning_rate,
                self.args.text_learning_rate,
                self.args.weight_decay,
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _prepare_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(dict(inputs))
        if self.args.feature_cache is not None:
            inputs["vision_features"] = self.vision_cache.load(inputs["image_keys"])
        return inputs

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The learner's loss; its parts are summed for the next log entry."""
        outputs = model(**inputs)
        for name, value in outputs["loss_dict"].items():
            self._loss_parts[name] = self._loss_parts.get(name, 0.0) + value.detach().float()
        self._summed_steps += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the number of the stage (1, 2, 3) and, beside the loss, its final layer's parts, unweighted."""
        logs = {**logs, "stage": self.stage.index + 1}
        if "loss" in logs and self._summed_steps:
            names = sorted(name for name in self._loss_parts if not name.endswith("_o2m") and "_aux_" not in name)
            sums = torch.stack([self._loss_parts[name] for name in names]) / self._summed_steps
            means = self.accelerator.reduce(sums, reduction="mean").tolist()
            logs |= {name.removeprefix("loss_"): value for name, value in zip(names, means, strict=True)}
            self._loss_parts, self._summed_steps = {}, 0
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Figures by level and kind of target, and 1.0 for `concept_unchanged` while concepts are answered as before.

        Raises:
            ValueError: without data to evaluate on.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("Expected `eval_dataset` to evaluate, found None.")
        figures = evaluate_levels(
            self.instruction_model,
            self.processing_class,
            dataset,
            self.stage.levels,
            batch_size=self.args.per_device_eval_batch_size,
            threshold=self.args.eval_threshold,
            folder=Path(self.args.output_dir) / "evaluation.tmp",
        )
        if self.concept_check is not None:
            unchanged = self.concept_check.is_unchanged(self.instruction_model)
            figures["concept_unchanged"] = float(unchanged)
            if not unchanged:
                logger.error("The concept path has changed: training must only touch instruction adapters.")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapters and the processor as a repository, to `args.output_dir` if not told otherwise."""
        super().save_model(output_dir or self.curriculum_args.output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        projector = getattr(self.model, "projector", None)
        save_trained_weights(self.instruction_model, projector, folder, gathered=state_dict)
        self.processing_class.save_pretrained(folder)

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every process has written its random state
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            seal_checkpoint(folder, self.stage, finished=False)

    def _load_from_checkpoint(self, resume_from_checkpoint: str | os.PathLike, model=None) -> None:
        """Nothing: `_train_stage` has loaded adapters and projector before they were wrapped."""

    def _load_best_model(self) -> None:
        projector = getattr(self.model, "projector", None)
        load_trained_weights(self.instruction_model, projector, Path(self.state.best_model_checkpoint))


__all__ = ["Sam3ITrainer"]
