# SPDX-License-Identifier: Apache-2.0
"""The data engine: pictures of a source through writer and checks into a run folder, several at a time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm.auto import tqdm
from transformers.utils import logging

from ..chat.client import ChatModel, ChatUnavailableError
from ..language.nouns import NounForms
from .append_log import AppendLog, FolderLock
from .budget import Budget, BudgetExhaustedError
from .calls import CallLog
from .checks.checks import TokenCounter, estimate_tokens
from .checks.decision import ACCEPTED, REVIEW
from .checks.examination import PictureExamination, Toolbox
from .checks.model_checks import Grounder
from .courier import Courier, CourierModel
from .run import RunConfigError, RunDirectory
from .scene.record import scene_to_record
from .scene.scene import Scene
from .scene.sources import Wanted
from .writers.chat_writer import ChatChecker, ChatWriter
from .writers.prompts import Prompt, load_prompts

logger = logging.get_logger(__name__)

MAX_UNAVAILABLE = 3  # pictures in a row for which no endpoint answered, after which the session ends


class Source(Protocol):
    """What gives the engine its pictures, always in the same order."""

    nouns: tuple[str, ...]

    def scenes(self, wanted: Wanted | None = None) -> Iterator[Scene]: ...


@dataclass
class SessionSummary:
    """What one session did.

    Attributes:
        pictures: finished now.
        pairs, accepted, review: texts examined, accepted, and waiting for a person.
        seconds: wall time.
        stopped: why it ended early; None when the source was worked through.
        unavailable: pictures left for a later session because no endpoint answered.
    """

    pictures: int = 0
    pairs: int = 0
    accepted: int = 0
    review: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    unavailable: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """Count a finished picture."""
        outcomes = [pair["outcome"] for target in record["targets"] for pair in target["pairs"]]
        self.pictures += 1
        self.pairs += len(outcomes)
        self.accepted += outcomes.count(ACCEPTED)
        self.review += outcomes.count(REVIEW)


class DataEngine:
    """Builds instruction data.

    Args:
        source: the pictures.
        run: the folder, made with the configuration.
        writer: a chat model (`max_reasks=0`); None writes by template.
        checker: a second chat model.
        grounder: finds the masks of an instruction; see `model_checks.Grounder`.
        count_tokens: tokens of a text, ends included; an estimate if not given.
        prompts: see `load_prompts`; the package's own if not given.
        synonyms: further words for nouns.
        budget: caps over all sessions.
        concurrency: pictures at a time.
        courier: makes the calls of `writer` and `checker` where these are its models, and outlives a killed engine.
    """

    def __init__(
        self,
        source: Source,
        run: RunDirectory,
        *,
        writer: ChatModel | CourierModel | None = None,
        checker: ChatModel | CourierModel | None = None,
        grounder: Grounder | None = None,
        count_tokens: TokenCounter = estimate_tokens,
        prompts: dict[str, Prompt] | None = None,
        synonyms: dict[str, list[str]] | None = None,
        budget: Budget | None = None,
        concurrency: int = 1,
        courier: Courier | None = None,
    ):
        if concurrency < 1:
            raise ValueError(f"`concurrency` must be 1 or more, received {concurrency}.")
        names = {"writer": "templates" if writer is None else writer.name, "checker": checker and checker.name}
        names["grounder"] = grounder and getattr(grounder, "name", type(grounder).__name__)
        for role, name in names.items():
            if getattr(run.config, role) != name:
                raise RunConfigError(f"The run's {role} is {getattr(run.config, role)!r}, received {name!r}.")
        prompts = prompts or load_prompts()
        self.source = source
        self.run = run
        self.budget = budget
        self.concurrency = concurrency
        self.courier = courier
        self._unavailable_in_a_row = 0
        self.tools = Toolbox(
            nouns=tuple(source.nouns),
            count_tokens=count_tokens,
            forms=NounForms(synonyms),
            writer=None if writer is None else ChatWriter(writer, prompts),
            checker=None if checker is None else ChatChecker(checker, prompts),
            grounder=grounder,
        )

    def build(self, max_pictures: int | None = None, progress: bool = True) -> SessionSummary:
        """Work through the pictures that are not finished yet.

        A picture that fails for want of an endpoint, or because a cap is reached, is left for the next session; what
        has been paid for is in the call log and is not paid again.

        Args:
            max_pictures: stop after so many.
            progress: show a bar with yield and cost.

        Raises:
            RunBusyError: another process is at work in the folder.
            ChatRequestError: an endpoint refuses requests for good (a wrong key, model or address).
        """
        summary, started = SessionSummary(), time.monotonic()
        # The log is read after the courier of a killed session has written its last line.
        with FolderLock(self.run.path), self.courier or nullcontext():
            records, self.tools.calls = AppendLog(self.run.records_path), CallLog(self.run.calls_path, self.budget)
            try:
                self._work(records, summary, max_pictures, progress)
            finally:
                self.tools.calls.close()
                records.close()
        summary.seconds = time.monotonic() - started
        return summary

    def _work(self, records: AppendLog, summary: SessionSummary, max_pictures: int | None, progress: bool) -> None:
        pending: set[Future] = set()
        scenes = self._open_scenes(max_pictures)
        with (
            tqdm(desc=self.run.path.name, unit=" pictures", disable=not progress) as bar,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            try:
                while True:
                    while len(pending) < self.concurrency and summary.stopped is None:
                        scene = next(scenes, None)
                        if scene is None:
                            break
                        pending.add(pool.submit(self._picture, scene))
                    if not pending:
                        break
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._take(future, records, summary, bar)
            except BaseException:
                for future in pending:
                    future.cancel()
                raise

    def _open_scenes(self, max_pictures: int | None) -> Iterator[Scene]:
        finished, takes = self.run.finished_ids(), self.run.config.takes
        scenes = self.source.scenes(lambda image_id: takes(image_id) and image_id not in finished)
        return itertools.islice(scenes, max_pictures)

    def _take(self, future: Future, records: AppendLog, summary: SessionSummary, bar: tqdm) -> None:
        try:
            record = future.result()
        except BudgetExhaustedError as error:
            summary.stopped = str(error)
            return
        except ChatUnavailableError as error:
            summary.unavailable += 1
            self._unavailable_in_a_row += 1
            logger.warning("A picture is left for later: %s", error)
            if self._unavailable_in_a_row >= MAX_UNAVAILABLE:
                summary.stopped = f"No endpoint answered for {MAX_UNAVAILABLE} pictures in a row: {error}"
            return
        self._unavailable_in_a_row = 0
        records.append(record)
        summary.add(record)
        spent = self.tools.calls.spending.to_dict()
        bar.set_postfix(accepted=summary.accepted, review=summary.review, calls=spent["calls"], cost=spent["cost"])
        bar.update()

    def _picture(self, scene: Scene) -> dict[str, Any]:
        targets = PictureExamination(scene, self.run.config, self.tools).run()
        return {**scene_to_record(scene, self._image_path(scene)), "targets": targets}

    def _image_path(self, scene: Scene) -> str | None:
        """Where the picture lies; a picture that is no file is written into the run folder."""
        if scene.image is None or isinstance(scene.image, str):
            return scene.image
        folder = self.run.path / "images"
        folder.mkdir(exist_ok=True)
        path = folder / f"{scene.order:08d}.png"
        scene.open_image().save(path)
        return f"images/{path.name}"


def describe_prompts(prompts: dict[str, Prompt]) -> dict[str, str]:
    """Version and fingerprint of prompts, for a run's configuration."""
    return {name: f"{prompt.version} {prompt.sha256}" for name, prompt in prompts.items()}
