# SPDX-License-Identifier: Apache-2.0
"""`Sam3ITrainer`: the curriculum of SAM3-I on the Trainer of Transformers."""

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, set_seed
from transformers.trainer_utils import PredictionOutput, SaveStrategy, TrainOutput
from transformers.utils import logging

from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from ..processing.atomic import folder_lock
from ..processing.processing_sam3i import Sam3IProcessor
from .arguments import Sam3ITrainingArguments
from .checkpoints import (
    FINAL_NAME,
    OtherTrainingError,
    StageCheckpoint,
    check_identity,
    checkpoint_to_resume,
    list_checkpoints,
    load_trained_weights,
    rotate_checkpoints,
    save_trained_weights,
    seal_checkpoint,
    set_aside_later,
)
from .collator import InstructionCollator, WithReplay, read_sampling, select_rows, usable_rows
from .curriculum import StageSampler, TrainingStage, complex_is_fresh, freeze_for_stage, parameter_groups
from .evaluation.stage_evaluation import ConceptCheck, evaluate_levels
from .feature_cache import VisionFeatureCache
from .heads.calibration import MOST_ROWS, calibrate_level, set_calibration
from .heads.router import STEPS as ROUTER_STEPS
from .heads.router import train_router
from .heads.selector import begin_stage, end_joint_stage, most_head_steps
from .hub_upload import HubUploads
from .plan import TrainingPlan, make_plan
from .record import record_stage, shared_identity, stage_identity
from .stage_callbacks import StageCallback, StopOnSignal, patience_is_over
from .stage_module import StageModule, copy_adapters
from .transforms import InstructionTransform

logger = logging.get_logger(__name__)

CONCEPT_CHECK_ROWS = 2
REPLAY_KEY = "replay:"


class Sam3ITrainer(HubUploads):
    """
    Trains the instruction adapters of a model, stage by stage; SAM3 itself stays frozen.

    `train()` checks everything it will need (see [`make_plan`]) and runs the stages of `args.stages`. Each is a run of
    the Trainer of Transformers with a folder, an optimizer and a schedule of its own, and begins where the one before
    it ended: the selector of the level learns alone (`selector_steps`), then the adapters, after the joint stage both
    selectors once more; at last the scores are calibrated on `eval_dataset`. Checkpoints hold adapters, projector and
    the state of optimizer, schedule and random generators; a resumed run ends with the weights of one that was never
    interrupted. `save_model()` writes the adapters as a repository, `model.save_pretrained()` the whole model.

    Args:
        model: The model; weights of stock SAM3 with fresh adapters, or adapters to go on with.
        args: The arguments.
        train_dataset: `datasets.Dataset` of rows (`schema.InstructionRow`); a stage takes the rows it can use.
        eval_dataset: Rows to evaluate on, all levels and kinds of target; or a dictionary of such data sets.
        processing_class: The processor of the model.
        transform (`InstructionTransform`, *optional*): Augmentation; not together with `feature_cache`.
        replay (`datasets.Dataset`, *optional*): Rows of an old domain, on which the model shall answer as it did;
            their labels are not read.
        options: As for the Trainer of Transformers. `data_collator` makes the batches of every stage,
            `compute_metrics` gets the instances found for each instruction, and its target, as `EvalPrediction`,
            `optimizers` hold the parameters of one stage; `model_init`, `callbacks` and `optimizer_cls_and_kwargs` are
            as usual.

    Source: SAM3-I (arXiv 2512.04585).

    Raises:
        ValueError: when arguments do not fit each other.
        TypeError: when the model is not a native SAM3-I model.
    """

    def __init__(
        self,
        model: Sam3IForInstructionSegmentation | None = None,
        args: Sam3ITrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Sam3IProcessor | None = None,
        *,
        transform: InstructionTransform | None = None,
        replay: Any = None,
        **options: Any,
    ):
        if not isinstance(args, Sam3ITrainingArguments):
            raise ValueError(f"Expected `args` as Sam3ITrainingArguments, found {type(args).__name__}.")
        if processing_class is None:
            raise ValueError("Expected the model's processor as `processing_class`, found None.")
        for name, rows in (("train_dataset", train_dataset), ("replay", replay)):
            _check_rows(name, rows)
        if transform is not None and args.feature_cache is not None:
            raise ValueError(
                "`transform` draws new views of an image and `feature_cache` keeps one: give the views rows of their "
                "own, or leave one of the two out."
            )
        self.curriculum_args = self._asked_args = args
        self.stage = TrainingStage(args.stages[0])
        self.transform, self.replay = transform, replay
        self.own_collator = options.pop("data_collator", None)
        self._check_options(options, args)
        self.given_optimizers = options.pop("optimizers", (None, None))
        self.concept_check: ConceptCheck | None = None
        self.vision_cache: VisionFeatureCache | None = None
        self.before: Sam3IForInstructionSegmentation | None = None
        self.plan: TrainingPlan | None = None
        self.identity: dict[str, Any] = {}
        self.ended_by: str | None = None
        self._loss_parts: dict[str, torch.Tensor] = {}
        self._summed_steps = 0
        self._sealed: Path | None = None
        self._prepared = ""
        if model is not None:
            model = self.instruction_model = read_model(model)
        stage_args = args.for_stage(self.stage)
        self.stop = StopOnSignal(args.enable_jit_checkpoint)
        stage_args.enable_jit_checkpoint = False  # that of Transformers saves within a step; `self.stop` after it
        super().__init__(
            model=model,
            args=stage_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **options,
        )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"Found {self.args.n_gpu} GPUs in one process. Start one process per GPU (`torchrun` or `accelerate "
                "launch`), or show the process one GPU (CUDA_VISIBLE_DEVICES)."
            )
        if self.is_fsdp_enabled and (eval_dataset is not None or len(args.stages) > 1 or replay is not None):
            raise ValueError(
                "Sharded weights stay sharded until the process ends: under FSDP run one stage at a time (`stages`), "
                "each with the model of the one before, without `replay`, and evaluate afterwards (no `eval_dataset`)."
            )
        self.add_callback(StageCallback(self))
        self.add_callback(self.stop)
        self.all_rows = train_dataset

    def _check_options(self, options: dict[str, Any], args: Sam3ITrainingArguments) -> None:
        for name, why in (
            ("compute_loss_func", "the loss is the model's own; set its weights in `loss_config`"),
            ("preprocess_logits_for_metrics", "`compute_metrics` gets instances, not logits"),
        ):
            if options.get(name) is not None:
                raise ValueError(f"`{name}` is not supported: {why}.")
        optimizer, schedule = options.get("optimizers") or (None, None)
        if optimizer is not None and len(args.stages) > 1:
            raise ValueError(
                "`optimizers` hold the parameters of one stage: run one stage (`stages`), or give "
                "`optimizer_cls_and_kwargs`, of which each stage makes its own."
            )
        if schedule is not None and optimizer is None:
            raise ValueError("Expected an optimizer beside the schedule in `optimizers`, found None.")
        own = getattr(self.own_collator, "sampling", None)
        for stage in args.stages:
            if isinstance(self.own_collator, InstructionCollator) and own != read_sampling(stage.sampling):
                raise ValueError(
                    f"Expected a `data_collator` that samples {stage.sampling!r} for stage {stage.value!r}, found one "
                    f"that samples {own!r}: leave it out, and each stage makes its own."
                )

    # The curriculum

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, **kwargs: Any) -> TrainOutput:
        """Run the stages.

        Args:
            resume_from_checkpoint: `True` goes on from the last complete checkpoint in `output_dir`, or starts when
                there is none yet; a path goes on from that checkpoint.
            trial: Of a hyperparameter search.

        Returns:
            [`TrainOutput`] with the steps of all stages, the mean loss, and the metrics of each stage by its name. A
            stage that was stopped before its end (a signal, a callback) has `completed` 0.0 and no stage follows.

        Raises:
            CheckpointNotFoundError: when the path holds no complete checkpoint.
            OtherTrainingError: when `output_dir` holds another training.
            FolderInUseError: when another process trains there.
            PlanError: when the training could not be run to its end.
        """
        if self.all_rows is None:
            raise ValueError("Expected `train_dataset` to train, found None.")
        if self.model_init is not None:
            self.model = self.model_wrapped = self.call_model_init(trial)
            if self.place_model_on_device:
                self._move_model_to_device(self.model, self.args.device)
        if trial is not None:
            self._use_trial(trial)
        self.plan = make_plan(self)
        self.say(str(self.plan))
        with ExitStack() as stack:
            if self.args.should_save:
                stack.enter_context(folder_lock(str(self.curriculum_args.output_dir)))
            stack.enter_context(self.stop.listening())
            return self._train_stages(resume_from_checkpoint)

    def _train_stages(self, resume: str | bool | None) -> TrainOutput:
        stages, output_dir = self.curriculum_args.stages, str(self.curriculum_args.output_dir)
        checkpoint = checkpoint_to_resume(resume, output_dir, stages)
        self.accelerator.wait_for_everyone()  # all have looked
        if self.replay is not None:
            self.before = copy_adapters(self.instruction_model)
        shared = shared_identity(self)
        if checkpoint is not None:
            checkpoint = self._goes_on_from(checkpoint, shared, named=resume is not True)
        self._check_concepts()
        self._fill_cache()
        steps, loss, metrics, history = 0, 0.0, {}, []
        for stage in stages:
            if checkpoint is not None and stage.index < checkpoint.stage.index:
                continue
            resumed = checkpoint if checkpoint is not None and checkpoint.stage is stage else None
            if resumed is not None and resumed.finished:
                load_trained_weights(self.instruction_model, None, resumed.folder)
                self.say(f"Stage {stage.value} is finished: {resumed.folder}")
                continue
            self.identity = stage_identity(self, self.curriculum_args.for_stage(stage), shared)
            output = self._train_stage(stage, None if resumed is None else resumed.folder)
            steps, loss = steps + output.global_step, loss + output.training_loss * output.global_step
            metrics[stage.value] = output.metrics
            history += self.state.log_history
            if self.ended_by is None:
                break
        self.state.log_history = history
        return TrainOutput(steps, loss / max(1, steps), metrics)

    def _goes_on_from(self, checkpoint: StageCheckpoint, shared: dict[str, str], named: bool) -> StageCheckpoint:
        """The checkpoint to go on from, once it is known that it belongs to this training."""
        args, stage = self.curriculum_args, checkpoint.stage
        if stage not in args.stages:
            check_identity(checkpoint, shared, args.allow_changed)
            load_trained_weights(self.instruction_model, None, checkpoint.folder)
            self.say(f"Stage {args.stages[0].value} starts from the finished stage {stage.value}: {checkpoint.folder}")
            return checkpoint
        changed = check_identity(checkpoint, stage_identity(self, args.for_stage(stage), shared), args.allow_changed)
        if checkpoint.finished and {"max_steps", "num_train_epochs"} & set(changed):
            planned = cast(TrainingPlan, self.plan).stage(stage).steps
            if planned > (checkpoint.step or 0):
                last = [item for item in list_checkpoints(args.output_dir, [stage]) if not item.finished]
                if not last or last[-1].damage():
                    raise OtherTrainingError(
                        f"Stage {stage.value!r} is finished after {checkpoint.step} steps, and "
                        f"{checkpoint.folder.parent} keeps no whole checkpoint of a step from which it could take "
                        "more: start in another folder."
                    )
                checkpoint, named = last[-1], True
        if named and self.args.should_save:
            set_aside_later(args.output_dir, checkpoint)
        self.say(f"Training goes on from {checkpoint.folder}")
        return checkpoint

    def _train_stage(self, stage: TrainingStage, checkpoint: Path | None) -> TrainOutput:
        model, args = self.instruction_model, self.curriculum_args.for_stage(stage)
        args.save_total_limit = None  # checkpoints are rotated here, when they are sealed
        args.enable_jit_checkpoint = False
        self.stage, self.args, self.ended_by = stage, args, None
        self._train_batch_size = args.train_batch_size
        set_seed(args.seed + stage.index)
        module = StageModule(model, stage, self.before, args.replay_weight)
        if checkpoint is not None:
            load_trained_weights(model, module.projector, checkpoint)
        elif stage is TrainingStage.COMPLEX:
            self._start_complex(args.start_complex_from)
        trained = freeze_for_stage(model, stage)
        self.prepare_data(stage.sampling)
        heads = self.begin_heads() if checkpoint is None else {}
        if self._calibrates():
            for level in stage.levels:
                set_calibration(model, level, None)  # that of another model
        stopping = []
        if args.early_stopping_patience is not None:
            stopping = [EarlyStoppingCallback(args.early_stopping_patience)]
            self.add_callback(stopping[0])
        for callback in self.callback_handler.callbacks:
            if type(callback).__name__ == "TensorBoardCallback":
                callback.logging_dir = None  # each stage has curves of its own
        self.optimizer, self.lr_scheduler = self.given_optimizers
        self._check_optimizer(model, trained)
        self.model = self.model_wrapped = module
        model_init, self.model_init = self.model_init, None  # it has made the model of this training already
        try:
            output = super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            self.ended_by = self._how_it_ended()
            output.metrics["completed"] = float(self.ended_by is not None)
            if self.ended_by is not None:
                heads |= end_joint_stage(self)
                heads |= self.calibrate()
                self._finish_stage()
            output.metrics.update(heads)
        finally:
            self.model = self.model_wrapped = self.callback_handler.model = model
            self.model_init = model_init
            if stopping:
                self.pop_callback(EarlyStoppingCallback)
        return output

    def _start_complex(self, start: str) -> None:
        fresh = complex_is_fresh(self.instruction_model)
        if start == "simple" or (start == "auto" and fresh):
            self.instruction_model.start_complex_from_simple()
            why = "its adapters are fresh" if start == "auto" else "as asked"
            self.say(f"The complex path starts as a copy of the simple path ({why}).")
        else:
            why = "it has been trained" if start == "auto" else "as asked"
            self.say(f"The complex path starts from its own weights ({why}); `start_complex_from='simple'` copies.")

    def begin_heads(self) -> dict[str, float]:
        """Train what a stage begins with: the selector of its level or, in the joint stage, the router."""
        if self.stage is not TrainingStage.JOINT or not self.instruction_model.config.router_dim:
            return begin_stage(self)
        steps, seed = min(ROUTER_STEPS, most_head_steps(self)), self.args.seed + self.stage.index
        rows, progress = self.all_rows, not self.args.disable_tqdm  # the stage's own lack what only one level asks
        share = train_router(self.instruction_model, self.processing_class, rows, steps, seed, progress)
        return {"router_accuracy": share}

    def _calibrates(self) -> bool:
        return bool(self.args.calibrate) and self.eval_dataset is not None

    def calibrate(self) -> dict[str, float]:
        """Calibrate the scores of the stage's levels on `eval_dataset`, so that 0.5 is the best threshold of each."""
        if not self._calibrates():
            return {}
        parts = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        figures: dict[str, float] = {}
        for level in self.stage.levels:
            collator = InstructionCollator(self.processing_class, level.value, seed=self.args.seed)
            rows = [(part, index) for part in parts for index in usable_rows(part, level.value).indices]
            rows = rows[:: max(1, math.ceil(len(rows) / MOST_ROWS))]
            size = self.args.per_device_eval_batch_size
            batches = (rows[start : start + size] for start in range(0, len(rows), size))
            inputs = (Trainer._prepare_inputs(self, collator([part[i] for part, i in some])) for some in batches)
            found = calibrate_level(self.instruction_model, level, inputs)
            figures |= {f"calibration_{level.value}_{name}": value for name, value in found.items()}
            if found:
                self.say(
                    f"Scores of {level.value} instructions are calibrated on {len(rows)} rows: gIoU at 0.5 "
                    f"{found['gIoU_before']:.1f} -> {found['gIoU_after']:.1f}"
                )
        return figures

    def _how_it_ended(self) -> str | None:
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

    def _check_optimizer(self, model: torch.nn.Module, trained: Sequence[str]) -> None:
        if self.optimizer is None:
            return
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        missing = [name for name in trained if id(model.get_parameter(name)) not in held]
        if missing:
            logger.warning(f"The optimizer in `optimizers` lacks {len(missing)} parameters, such as {missing[0]}.")

    def _check_concepts(self) -> None:
        if self.concept_check is None and not self.is_fsdp_enabled:
            rows = self.eval_dataset if self.eval_dataset is not None else self.all_rows
            rows = next(iter(rows.values())) if isinstance(rows, dict) else rows
            first = [rows[index] for index in range(min(CONCEPT_CHECK_ROWS, len(rows)))]
            self.concept_check = ConceptCheck.on_rows(self.instruction_model, self.processing_class, first)

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
            replay = replay.remove_columns(["image"]) if cached else replay
            self.data_collator = WithReplay(self.data_collator, replay, collator)
        self.train_dataset = rows.remove_columns(["image"]) if cached and self.own_collator is None else rows
        self._fill_cache()
        self._prepared = sampling

    def _fill_cache(self) -> None:
        """Encode every image that any stage uses; nothing to do where that is done."""
        if self.args.feature_cache is None or self.vision_cache is not None:
            return
        limit = int(self.args.feature_cache_limit_gb * 1e9)
        model, processor = self.instruction_model, self.processing_class
        self.vision_cache = VisionFeatureCache(self.args.feature_cache, model, processor, limit_bytes=limit)
        stages = [TrainingStage(stage) for stage in self.curriculum_args.stages]
        # The selectors of the joint stage learn from rows of one level, too.
        samplings = {stage.sampling for stage in stages} | {level.value for stage in stages for level in stage.levels}
        used = {index for sampling in samplings for index in usable_rows(self.all_rows, sampling).indices}
        self.vision_cache.fill(self.all_rows.select(sorted(used)))
        if self.replay is not None:
            self.vision_cache.fill(self.replay, prefix=REPLAY_KEY)

    def selector_batch(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The inputs of some rows, for a selector to learn from: without replay."""
        collator = self.data_collator.collator if isinstance(self.data_collator, WithReplay) else self.data_collator
        return self._prepare_inputs(collator(rows))

    def _finish_stage(self) -> None:
        if self.stage is TrainingStage.JOINT and self.instruction_model.config.router_dim:
            self.processing_class.auto_levels = "router"  # it has been trained
        folder = Path(str(self.args.output_dir)) / FINAL_NAME
        self.save_model(str(folder), _internal_call=True)
        if self.args.should_save:
            record_stage(self)
            seal_checkpoint(folder, self.stage, True, self.state.global_step, self.identity)
        self.accelerator.wait_for_everyone()

    def say(self, text: str) -> None:
        """Tell the user: above the progress bars, or in the log where there are none."""
        if self.args.disable_tqdm:
            logger.info(text)
        elif self.is_world_process_zero():
            tqdm.write(text)

    # A search for hyperparameters

    def call_model_init(self, trial: Any = None) -> Sam3IForInstructionSegmentation:
        """A fresh model for a training."""
        self.instruction_model = read_model(super().call_model_init(trial))
        self.concept_check = self.vision_cache = self.before = None
        return self.instruction_model

    def hyperparameter_search(
        self,
        hp_space: Callable | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers; by default the figure of `metric_for_best_model` is made as good as can be.

        Every trial has a folder `run-N` in `output_dir`; trials are not pruned.
        """
        metric = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
        direction = direction or ("maximize" if self.args.greater_is_better else "minimize")
        objective = compute_objective or (lambda metrics: metrics[metric])
        return super().hyperparameter_search(hp_space, objective, n_trials, direction, **kwargs)

    def _use_trial(self, trial: Any) -> None:
        values = self.hp_space(trial) if hasattr(trial, "number") else dict(trial)
        args = copy.copy(self._asked_args)
        for name, value in values.items():
            if not hasattr(args, name):
                raise ValueError(f"Expected a training argument in the search space, found {name!r}.")
            setattr(args, name, value)
        args.check()
        name = self.hp_name(trial) if self.hp_name is not None else f"run-{getattr(trial, 'number', id(trial))}"
        args.output_dir = os.path.join(str(args.output_dir), name)
        self.curriculum_args = args
        self.args = args.for_stage(self.stage)

    # What the Trainer of Transformers asks for

    def _run_epoch(self, *args, **kwargs) -> None:
        """Nothing where a run goes on from the last step of a stage: Transformers would take one more."""
        over = patience_is_over(self.callback_handler.callbacks)
        if self.state.global_step < self.state.max_steps and not over:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        """A run that is stopped before its end saves where it is."""
        stopped = self.control.should_training_stop and self.state.global_step < self.state.max_steps
        if stopped and self.args.save_strategy != SaveStrategy.NO:
            self.control.should_save = not patience_is_over(self.callback_handler.callbacks)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> StageSampler:
        self._sampler = StageSampler(len(self.train_dataset), self.args.seed, self.stage)
        return self._sampler

    def begin_epoch(self, epoch: int) -> None:
        """All random choices of data in an epoch follow from (seed, stage, epoch, row)."""
        self._sampler.set_epoch(epoch)
        if hasattr(self.data_collator, "set_epoch"):
            self.data_collator.set_epoch(epoch)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the current stage; of the first one before `train()`."""
        if not self._prepared:
            self.prepare_data(self.stage.sampling)
        return super().get_train_dataloader()

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

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW (or `args.optim`) on text adapters and the rest, with weight decay on matrices only."""
        if self.optimizer is None:
            given = self.optimizer_cls_and_kwargs
            optimizer_class, options = given or self.get_optimizer_cls_and_kwargs(self.args, self.instruction_model)
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
        if self.vision_cache is not None:
            parts = [("", inputs)] + ([(REPLAY_KEY, inputs["replay"])] if "replay" in inputs else [])
            for prefix, part in parts:
                part.pop("pixel_values", None)
                part["vision_features"] = self.vision_cache.load([prefix + key for key in part["image_keys"]])
        return inputs

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The loss of the stage's module; its parts are summed for the next log entry."""
        outputs = model(**inputs)
        for name, value in outputs["loss_dict"].items():
            self._loss_parts[name] = self._loss_parts.get(name, 0.0) + value.detach().float()
        self._summed_steps += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the number of the stage (1, 2, 3) and, beside the loss, its final layer's parts, unweighted, and
        the learning rate of each group."""
        logs = {**logs, "stage": self.stage.index + 1}
        if "loss" in logs and self._summed_steps:
            names = sorted(name for name in self._loss_parts if not name.endswith("_o2m") and "_aux_" not in name)
            sums = torch.stack([self._loss_parts[name] for name in names]) / self._summed_steps
            means = self.accelerator.reduce(sums, reduction="mean").tolist()
            logs |= {name.removeprefix("loss_"): value for name, value in zip(names, means, strict=True)}
            self._loss_parts, self._summed_steps = {}, 0
        if "learning_rate" in logs and self.optimizer is not None:
            # Transformers logs the rate of the first group; all follow one schedule from their own peaks.
            groups = self.optimizer.param_groups
            share = logs["learning_rate"] / (groups[0].get("initial_lr") or 1.0)
            for group in groups:
                if "name" in group:
                    name = "" if group["name"] == "adapters" else f"{group['name']}_"
                    logs[f"{name}learning_rate"] = share * group["initial_lr"]
        super().log(logs, start_time)

    # Evaluation

    def evaluate(self, eval_dataset: Any = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Figures by level and kind of target, and 1.0 for `concept_unchanged` while concepts are answered as before.

        Of several data sets (a dictionary) each has its name in the names of its figures.

        Raises:
            ValueError: without data to evaluate on.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        if dataset is None:
            raise ValueError("Expected `eval_dataset` to evaluate, found None.")
        parts = dataset if isinstance(dataset, dict) else {"": dataset}
        figures: dict[str, float] = {}
        for name, rows in parts.items():
            found, _ = self._answers(rows)
            figures |= {f"{name}_{key}" if name else key: value for key, value in found.items()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, test_dataset: Any, ignore_keys=None, metric_key_prefix: str = "test") -> PredictionOutput:
        """Answer all instructions of some rows: `predictions` are the instances found for each (compressed RLE and
        score), `label_ids` its target, `metrics` the figures of `evaluate`."""
        figures, answers = self._answers(test_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return PredictionOutput(answers.predictions, answers.label_ids, metrics)

    def _answers(self, rows: Any) -> tuple[dict[str, float], EvalPrediction]:
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
        predictions, targets = [record["predictions"] for record in records], [record["target"] for record in records]
        answers = EvalPrediction(predictions, targets)
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

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self._sealed == folder:
            return  # a stop at the end of an epoch asks twice
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every process has written its random state
        self._sealed = folder
        if self.args.should_save:
            seal_checkpoint(folder, self.stage, False, self.state.global_step, self.identity)
            rotate_checkpoints(folder.parent, self.curriculum_args.save_total_limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str | os.PathLike, model=None) -> None:
        """Nothing: `_train_stage` has loaded adapters and projector before they were wrapped."""

    def _load_best_model(self) -> None:
        projector = getattr(self.model, "projector", None)
        load_trained_weights(self.instruction_model, projector, Path(str(self.state.best_model_checkpoint)))


def read_model(model: Any) -> Sam3IForInstructionSegmentation:
    """The native model to train; PEFT adapters on it (LoRA) stay as they are, which is said.

    Raises:
        TypeError: when there is no native model in it.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, Sam3IForInstructionSegmentation):
        raise TypeError(
            f"Expected a Sam3IForInstructionSegmentation to train, found {type(inner).__name__}: load it with "
            "`Sam3IForInstructionSegmentation.from_pretrained`, which takes stock SAM3 and adapters alike."
        )
    others = getattr(model, "peft_config", None) or getattr(inner, "peft_config", None) or {}
    if others:
        kinds = ", ".join(f"{name!r} ({getattr(c.peft_type, 'value', c.peft_type)})" for name, c in others.items())
        logger.warning(
            f"The PEFT adapter {kinds} stays as it is: `Sam3ITrainer` trains instruction adapters alone. Train the "
            "other with `transformers.Trainer` and `InstructionCollator`."
        )
    return inner


def _check_rows(name: str, rows: Any) -> None:
    if rows is not None and not hasattr(rows, "select_columns"):
        raise ValueError(
            f"Expected `{name}` as a datasets.Dataset of instruction rows, found {type(rows).__name__}: see "
            "`load_instruction_dataset`, or `Dataset.from_list(rows, features=row_features())`."
        )
    if rows is not None and not hasattr(rows, "__len__"):
        raise ValueError(f"Expected `{name}` of known length, found a stream: load it without streaming.")


__all__ = ["Sam3ITrainer"]
