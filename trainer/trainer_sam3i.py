# SPDX-License-Identifier: Apache-2.0
"""`Sam3ITrainer`: the curriculum of SAM3-I on the Trainer of Transformers."""

import copy
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, ProgressCallback, set_seed
from transformers.trainer_utils import TrainOutput
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
    read_manifest,
    seal_checkpoint,
    set_aside_later,
)
from .collator import InstructionCollator, named_parts, read_sampling
from .curriculum import TrainingStage, complex_is_fresh, freeze_for_stage, read_stages
from .evaluation.stage_evaluation import ConceptCheck
from .heads.calibration import calibrate_stage, set_calibration, split_validation
from .heads.router import STEPS as ROUTER_STEPS
from .heads.router import train_router
from .heads.selector import begin_stage, end_joint_stage, most_head_steps
from .plan import TrainingPlan, check_rows, make_plan
from .record import record_stage, shared_identity, stage_identity
from .stage.callbacks import RunProgress, StageCallback
from .stage.module import StageModule, copy_adapters, prepare_precision, read_model
from .stage.trainer import StageTrainer, refuse_ignored_keys
from .transforms import InstructionTransform

logger = logging.get_logger(__name__)

CONCEPT_CHECK_ROWS = 2


class Sam3ITrainer(StageTrainer):
    """
    Trains the instruction adapters of a model, stage by stage; SAM3 itself stays frozen.

    `train()` checks everything it will need (see [`make_plan`]) and runs the stages of `args.stages`. Each is a run of
    the Trainer of Transformers with a folder, an optimizer and a schedule of its own, and begins where the one before
    it ended: the selector of the level learns alone (`selector_steps`), then the adapters, after the joint stage both
    selectors once more; at last the scores are calibrated on `eval_dataset`, of which one half of the images chooses
    checkpoints, where that is asked for, and the other calibrates. A resumed run ends with the weights of one that was
    never interrupted. `save_model()` writes the adapters as a repository, `model.save_pretrained()` the whole model.

    Args:
        model: Stock SAM3 with fresh adapters, or with adapters to go on with.
        train_dataset: `datasets.Dataset` of rows (`schema.InstructionRow`); a stage takes the rows it can use.
        eval_dataset: Rows to evaluate on, all levels and kinds of target; or a dictionary of such data sets.
        processing_class: The processor of the model.
        transform (`InstructionTransform`, *optional*): Augmentation; not together with `feature_cache`.
        replay (`datasets.Dataset`, *optional*): Rows of an old domain, on which the model shall answer as it did;
            their labels are not read. One of `args.replay_every` steps is on them: steps of either kind are clipped
            to the same length, where a sum of both losses would let the longer gradient drown the other. No selector
            learns alone then.
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
        given = {"train_dataset": train_dataset, "replay": replay, **named_parts(eval_dataset, "eval_dataset")}
        for name, rows in given.items():
            if rows is not None:
                check_rows(name, rows)
        if transform is not None and args.feature_cache is not None:
            raise ValueError(
                "`transform` draws new views of an image and `feature_cache` keeps one: give the views rows of their "
                "own, or leave one of the two out."
            )
        self.curriculum_args = self._asked_args = args
        self.stages = read_stages(args.stages)
        self.stage = self.stages[0]
        self.all_rows, self.transform, self.replay = train_dataset, transform, replay
        self.own_collator = options.pop("data_collator", None)
        self._check_options(options)
        self.given_optimizers = options.pop("optimizers", (None, None))
        self.before: Sam3IForInstructionSegmentation | None = None
        self.plan: TrainingPlan | None = None
        self.calibration: dict[str, dict[str, Any]] = {}
        self.ended_by: str | None = None
        if model is not None:
            model = self.instruction_model = read_model(model)
        stage_args = args.for_stage(self.stage)
        stage_args.enable_jit_checkpoint = False  # that of Transformers saves within a step; `StageCallback` after it
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
        if not self.is_fsdp_enabled and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ValueError(
                "Accelerate shards weights (FSDP) over several GPUs or their like, and would train whole copies on "
                f"{self.args.world_size} process(es) of the device {self.args.device.type!r}: leave FSDP out here."
            )
        if self.is_fsdp_enabled and (eval_dataset is not None or len(self.stages) > 1 or replay is not None):
            raise ValueError(
                "Sharded weights stay sharded until the process ends: under FSDP run one stage at a time (`stages`), "
                "each with the model of the one before, without `replay`, and evaluate afterwards (no `eval_dataset`)."
            )
        self._split_validation()
        self.progress = RunProgress(self)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(self.progress)
        self.stage_callback = StageCallback(self)
        self.add_callback(self.stage_callback)

    def _split_validation(self) -> None:
        self.choosing_rows, self.calibrating_rows = split_validation(self.eval_dataset, self.curriculum_args)

    def _check_options(self, options: dict[str, Any]) -> None:
        for name, why in (
            ("compute_loss_func", "the loss is the model's own; set its weights in `loss_config`"),
            ("preprocess_logits_for_metrics", "`compute_metrics` gets instances, not logits"),
        ):
            if options.get(name) is not None:
                raise ValueError(f"`{name}` is not supported: {why}.")
        optimizer, schedule = options.get("optimizers") or (None, None)
        if optimizer is not None and len(self.stages) > 1:
            raise ValueError(
                "`optimizers` hold the parameters of one stage: run one stage (`stages`), or give "
                "`optimizer_cls_and_kwargs`, of which each stage makes its own."
            )
        if schedule is not None and optimizer is None:
            raise ValueError("Expected an optimizer beside the schedule in `optimizers`, found None.")
        own = getattr(self.own_collator, "sampling", None)
        for stage in self.stages:
            if isinstance(self.own_collator, InstructionCollator) and own != read_sampling(stage.sampling):
                raise ValueError(
                    f"Expected a `data_collator` that samples {stage.sampling!r} for stage {stage.value!r}, found one "
                    f"that samples {own!r}: leave it out, and each stage makes its own."
                )

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
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
        refuse_ignored_keys(ignore_keys_for_eval)
        if self.all_rows is None:
            raise ValueError("Expected `train_dataset` to train, found None.")
        if self.model_init is not None:
            self.model = self.model_wrapped = self.call_model_init(trial)
            if self.place_model_on_device:
                self._move_model_to_device(self.model, self.args.device)
        if trial is not None:
            self._use_trial(trial)
        prepare_precision(self.instruction_model, self.args)
        self._split_validation()
        self.plan = make_plan(self)
        self.say(str(self.plan))
        with ExitStack() as stack:
            if self.args.should_save:
                stack.enter_context(folder_lock(str(self.curriculum_args.output_dir)))
            stack.enter_context(self.stage_callback.listening())
            stack.callback(self.progress.close)
            return self._train_stages(resume_from_checkpoint)

    def _train_stages(self, resume: str | bool | None) -> TrainOutput:
        stages, output_dir = self.stages, str(self.curriculum_args.output_dir)
        checkpoint = checkpoint_to_resume(resume, output_dir, stages)
        self.accelerator.wait_for_everyone()  # all have looked
        if self.replay is not None:
            self.before = copy_adapters(self.instruction_model)
        shared = shared_identity(self)
        if checkpoint is not None:
            checkpoint = self._goes_on_from(checkpoint, shared, named=resume is not True)
        self._check_concepts()
        self.fill_cache()
        steps, loss, history = 0, 0.0, []
        metrics: dict[str, Any] = {}
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
        if stage not in self.stages:
            check_identity(checkpoint, shared, args.allow_changed)
            load_trained_weights(self.instruction_model, None, checkpoint.folder)
            self.say(f"Stage {self.stages[0].value} starts from the finished stage {stage.value}: {checkpoint.folder}")
            return checkpoint
        for earlier in (each for each in self.stages if each.index < stage.index):
            final = read_manifest(Path(str(args.output_dir)) / earlier.folder / FINAL_NAME)
            if final is not None:
                now = stage_identity(self, args.for_stage(earlier), shared)
                if check_identity(final, now, args.allow_changed):
                    logger.warning(f"Stage {earlier.value!r} is finished and stays as it was trained: {final.folder}")
        changed = check_identity(checkpoint, stage_identity(self, args.for_stage(stage), shared), args.allow_changed)
        if checkpoint.finished and {"max_steps", "num_train_epochs"} & set(changed):
            if self.plan is not None and self.plan.stage(stage).steps > (checkpoint.step or 0):
                last = [item for item in list_checkpoints(str(args.output_dir), [stage]) if not item.finished]
                if not last or last[-1].damage():
                    raise OtherTrainingError(
                        f"Stage {stage.value!r} is finished after {checkpoint.step} steps, and "
                        f"{checkpoint.folder.parent} keeps no whole checkpoint of a step from which it could take "
                        "more: start in another folder."
                    )
                checkpoint, named = last[-1], True
        if named and self.args.should_save:
            set_aside_later(str(args.output_dir), checkpoint)
        self.say(f"Training goes on from {checkpoint.folder}")
        return checkpoint

    def _train_stage(self, stage: TrainingStage, checkpoint: Path | None) -> TrainOutput:
        model, args = self.instruction_model, self.curriculum_args.for_stage(stage)
        args.save_total_limit = None  # checkpoints are rotated here, when they are sealed
        args.enable_jit_checkpoint = False
        self.stage, self.args, self.ended_by = stage, args, None
        self._loss_parts = {}
        self._train_batch_size = args.train_batch_size
        set_seed(args.seed + stage.index)
        module = StageModule(model, stage, self.before)
        if checkpoint is not None:
            load_trained_weights(model, module.projector, checkpoint)
        elif stage is TrainingStage.COMPLEX:
            self._start_complex(args.start_complex_from)
        trained = freeze_for_stage(model, stage)
        self.prepare_data(stage.sampling)
        heads = self.begin_heads() if checkpoint is None else {}
        if self.calibrating_rows is not None:
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
        self.check_optimizer(trained)
        self.model = self.model_wrapped = module
        model_init, self.model_init = self.model_init, None  # it has made the model of this training already
        try:
            self._in_stage = True
            output = super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            self.ended_by = self.how_it_ended()
            output.metrics["completed"] = float(self.ended_by is not None)
            if self.ended_by is not None:
                heads |= end_joint_stage(self)
                heads |= calibrate_stage(self)
                self._finish_stage()
            output.metrics.update(heads)
        finally:
            self._in_stage = False
            self.model = self.model_wrapped = self.callback_handler.model = model
            self.model_init = model_init
            if stopping:
                self.pop_callback(EarlyStoppingCallback)
        return output

    def _start_complex(self, start: str) -> None:
        fresh = complex_is_fresh(self.instruction_model)
        why = "as asked" if start != "auto" else "its adapters are fresh" if fresh else "it has been trained"
        if start == "simple" or (start == "auto" and fresh):
            self.instruction_model.start_complex_from_simple()
            self.say(f"The complex path starts as a copy of the simple path ({why}).")
        else:
            self.say(f"The complex path starts from its own weights ({why}); `start_complex_from='simple'` copies.")

    def begin_heads(self) -> dict[str, float]:
        """Train what a stage begins with: the selector of its level or, in the joint stage, the router."""
        if self.stage is not TrainingStage.JOINT or not self.instruction_model.config.router_dim:
            return begin_stage(self)
        steps, seed = min(ROUTER_STEPS, most_head_steps(self)), self.args.seed + self.stage.index
        rows, progress = self.all_rows, not self.args.disable_tqdm  # the stage's own lack what only one level asks
        share = train_router(self.instruction_model, self.processing_class, rows, steps, seed, progress)
        return {"router_accuracy": share}

    def _check_concepts(self) -> None:
        if self.concept_check is None and not self.is_fsdp_enabled:
            rows = next(iter(named_parts(self.eval_dataset).values()), self.all_rows)
            first = [rows[index] for index in range(min(CONCEPT_CHECK_ROWS, len(rows)))]
            self.concept_check = ConceptCheck.on_rows(self.instruction_model, self.processing_class, first)

    def _finish_stage(self) -> None:
        if self.stage is TrainingStage.JOINT and self.instruction_model.config.router_dim:
            self.processing_class.auto_levels = "router"  # it has been trained
        folder = Path(str(self.args.output_dir)) / FINAL_NAME
        self.save_model(str(folder), _internal_call=True)
        if self.args.should_save:
            record_stage(self)
            seal_checkpoint(folder, self.stage, True, self.state.global_step, self.identity)
        self.accelerator.wait_for_everyone()

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
        *others: Any,
        **options: Any,
    ) -> Any:
        """As in Transformers; by default the figure of `metric_for_best_model` is made as good as can be.

        Every trial has a folder `run-N` in `output_dir`; trials are not pruned.
        """
        metric = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
        direction = direction or ("maximize" if self.args.greater_is_better else "minimize")
        objective = compute_objective or (lambda metrics: metrics[metric])
        return super().hyperparameter_search(hp_space, objective, n_trials, direction, *others, **options)

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
        self.curriculum_args, self.stages = args, read_stages(args.stages)
        self.args = args.for_stage(self.stage)
