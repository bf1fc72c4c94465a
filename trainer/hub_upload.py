# SPDX-License-Identifier: Apache-2.0
"""Pushing from the trainer: the arguments and methods of Transformers' Trainer, for a run of several stages.

A run is one repository: adapters, processor, `training.json` and the model card. Checkpoints stay at home unless
`hub_strategy` asks for them.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import ADAPTER_CONFIG_NAME, logging

from ..compat import PushInProgress, hf_api

if TYPE_CHECKING:
    from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ..processing.processing_sam3i import Sam3IProcessor
    from .arguments import Sam3ITrainingArguments
    from .curriculum import TrainingStage

logger = logging.get_logger(__name__)

REPOSITORY_FILES = (
    *("config.json", "adapter_config.json", "processor_config.json", "preprocessor_config.json"),
    *("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "chat_template.jinja", "training.json", "evaluation.json", "README.md", "training_curves.png"),
)
"""What a repository consists of; nothing else leaves the machine."""
FOR_TRAINING_ONLY = ("projector.safetensors", "curriculum.json", "trainer_state.json", "training_args.bin")


def repository_files(folder: str | Path) -> dict[str, Path]:
    """The files of a saved model or training folder that make up its repository, by name.

    Files of other names stay, and so do links, which may lead anywhere; both are named in a warning.
    """
    found = [
        path for path in sorted(Path(folder).iterdir()) if path.is_file() and not path.name.startswith((".", "_"))
    ]
    files = {
        path.name: path
        for path in found
        if not path.is_symlink() and any(fnmatch(path.name, pattern) for pattern in REPOSITORY_FILES)
    }
    left_out = [path.name for path in found if path.name not in files and path.name not in FOR_TRAINING_ONLY]
    # code and what it requires are written anew
    left_out = [name for name in left_out if not name.endswith(".py") and name != "requirements.txt"]
    if left_out:
        logger.warning(f"Not pushed from {folder}, being links or no part of a repository: {', '.join(left_out)}")
    return files


class HubUploads(Trainer):
    """A Trainer that pushes a run of several stages; `Sam3ITrainer` is one."""

    args: Any  # of the stage, whose values are single
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    model: Any
    model_init: Any
    push_in_progress: Any
    curriculum_args: Sam3ITrainingArguments
    processing_class: Sam3IProcessor
    instruction_model: Sam3IForInstructionSegmentation
    stage: TrainingStage

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository `args.hub_model_id`; the name of the run's folder if not given."""
        stage_args, self.args = self.args, self.curriculum_args
        try:
            super().init_hf_repo(token, private)
        finally:
            self.args = stage_args

    def create_model_card(self, **kwargs: Any) -> None:  # type: ignore[override]  # its arguments, and no others
        """Write the card of the run into its folder; text that somebody edited stays.

        Of the arguments of `Trainer.create_model_card`, `license`, `finetuned_from` and `model_name` count; the rest
        is known from the run.
        """
        write = self.instruction_model.card_writer
        if self.is_world_process_zero() and write is not None:
            named = {"license": "license", "finetuned_from": "base_model", "model_name": "model_name"}
            given = {name: kwargs[key] for key, name in named.items() if kwargs.get(key) is not None}
            write(self.curriculum_args.output_dir, repo_id=self.hub_model_id, **given)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ):
        """Save the adapters, write the card (`kwargs`) and upload both with the processor to `args.hub_model_id`.

        Returns the commit, or a future of it with `blocking=False`; None in other processes than the first.
        """
        self.callback_handler.on_push_begin(self.curriculum_args, self.state, self.control)
        token = token or self.curriculum_args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        folder = str(self.curriculum_args.output_dir)
        base = json.loads(Path(folder, ADAPTER_CONFIG_NAME).read_text())["base_model_name_or_path"]
        if base is None or Path(base).exists():
            logger.warning(
                f"The adapters that are pushed to {self.hub_model_id} name {base!r} as the SAM3 they work on, which "
                "others do not have: push it, too, and name it: `sam3i push FOLDER ORG/NAME --base ORG/SAM3`."
            )
        self.create_model_card(**kwargs)
        self._finish_current_push()
        return self._commit_files(repository_files(folder), commit_message, token, revision, not blocking)

    def _commit_files(self, files: dict[str, Path], message, token, revision, run_as_future: bool):
        return hf_api().create_commit(  # type: ignore[call-overload]  # a bool it does not know
            repo_id=str(self.hub_model_id),
            operations=[CommitOperationAdd(name, str(path)) for name, path in files.items()],
            commit_message=message,
            token=token,
            revision=revision or self.curriculum_args.hub_revision,
            run_as_future=run_as_future,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload the adapters of a checkpoint in the background, as `hub_strategy` says."""
        args, running = self.args, self.push_in_progress
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if running is not None and not running.is_done() and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        by_steps = args.save_strategy == SaveStrategy.STEPS
        place = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch)}"
        message = f"Training in progress, stage {self.stage.value}, {place}"
        folder = Path(checkpoint_folder)
        jobs = [self._commit_files(repository_files(folder), message, args.hub_token, None, True)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = args.hub_strategy == HubStrategy.CHECKPOINT
            target = "last-checkpoint" if last else f"{self.stage.folder}/{folder.name}"
            files = {f"{target}/{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}
            jobs.append(self._commit_files(files, f"{message}, checkpoint", args.hub_token, None, True))
        jobs += [] if running is None else running.jobs
        self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]  # Transformers' own call
