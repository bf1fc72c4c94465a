# SPDX-License-Identifier: Apache-2.0
"""The data engine: pictures of a source through writer and checks into a run folder, several at a time."""

import itertools
import logging
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm.auto import tqdm

from ..atomic import folder_lock
from ..chat.client import ChatModel, ChatRequestError, ChatUnavailableError
from ..chat.endpoint import EndpointSpec
from ..chat.prompts import VersionedPrompt
from ..language.nouns import NounForms
from .calls import Budget, BudgetExhaustedError, PaidCalls
from .checks import ACCEPTED, REVIEW, Grounder, TokenCounter, estimate_tokens
from .instruction_loop import InstructionLoop, Toolbox
from .run import RunConfigError, RunDirectory, digest_of_image
from .scene.scene import AnnotatedScene, LeftOut, scene_to_record
from .scene.sources import Wanted
from .writers.chat_writer import ChatChecker, ChatWriter, engine_prompts

logger = logging.getLogger(__name__)

MAX_UNAVAILABLE = 3  # pictures in a row for which no endpoint answered, after which the session ends
REFUSED_FOR_GOOD = (401, 403, 404, 405)  # key, model or address: no other request would fare better


class Source(Protocol):
    """What gives the engine its pictures, always in the same order."""

    @property
    def nouns(self) -> tuple[str, ...]:
        """Every noun, for questions about what is absent."""
        ...

    @property
    def left_out(self) -> LeftOut:
        """What cannot be used and belongs to no picture, and why."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Of the data, by content; None where the run's description says all."""
        ...

    def scenes(self, wanted: Wanted | None = None) -> Iterator[AnnotatedScene]:
        """Every wanted picture, those without a usable instance included."""
        ...


class UnusableImageError(ValueError):
    """The image of a picture is missing, broken, or of another size than its annotations say; `reason` says which."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass
class SessionSummary:
    """What one session did."""

    pictures: int = 0  # finished now
    pairs: int = 0  # texts examined
    accepted: int = 0
    review: int = 0  # waiting for a person
    levels: dict[str, int] = field(default_factory=dict)  # accepted texts by level
    seconds: float = 0.0  # wall time
    stopped: str | None = None  # why it ended early; None when the source was worked through
    unavailable: int = 0  # pictures left for a later session because no endpoint answered
    why_unavailable: str = ""  # the last reason

    def add(self, record: dict[str, Any]) -> None:
        """Count a finished picture."""
        pairs = [pair for target in record["targets"] for pair in target["pairs"]]
        self.pictures += 1
        self.pairs += len(pairs)
        self.review += sum(pair["outcome"] == REVIEW for pair in pairs)
        for pair in pairs:
            if pair["outcome"] == ACCEPTED:
                self.accepted += 1
                self.levels[pair["level"]] = self.levels.get(pair["level"], 0) + 1


class DataEngine:
    """Builds instruction data.

    Args:
        writer: a chat model or an endpoint; None writes by template.
        grounder: finds the masks of an instruction; see `checks.Grounder`.
        count_tokens: tokens of a text, ends included; an estimate if not given.
        prompts: see `engine_prompts`; the package's own if not given.
    """

    def __init__(
        self,
        source: Source,
        run: RunDirectory,
        *,
        writer: ChatModel | EndpointSpec | None = None,
        checker: ChatModel | EndpointSpec | None = None,
        grounder: Grounder | None = None,
        count_tokens: TokenCounter = estimate_tokens,
        prompts: dict[str, VersionedPrompt] | None = None,
        synonyms: dict[str, list[str]] | None = None,
        budget: Budget | None = None,
        concurrency: int = 1,
    ):
        if concurrency < 1:
            raise ValueError(f"`concurrency` must be 1 or more, received {concurrency}.")
        names: dict[str, Any] = {
            "writer": "templates" if writer is None else writer.name,
            "checker": checker and checker.name,
        }
        names["grounder"] = grounder and getattr(grounder, "name", type(grounder).__name__)
        for role, name in names.items():
            if getattr(run.config, role) != name:
                raise RunConfigError(f"The run's {role} is {getattr(run.config, role)!r}, received {name!r}.")
        prompts = prompts or engine_prompts()
        models = {role: model for role, model in (("writer", writer), ("checker", checker)) if model is not None}
        self.source = source
        self.run = run
        self.concurrency = concurrency
        self.calls = PaidCalls(run.store, models, budget, concurrency)
        self._unavailable_in_a_row = 0
        self.tools = Toolbox(
            nouns=tuple(source.nouns),
            count_tokens=count_tokens,
            forms=NounForms(synonyms),
            calls=self.calls,
            writer=None if writer is None else ChatWriter(prompts, greedy=writer.temperature == 0),
            checker=None if checker is None else ChatChecker(prompts),
            grounder=grounder,
        )

    def build(self, max_pictures: int | None = None, progress: bool = True) -> SessionSummary:
        """Work through the pictures that are not finished yet.

        A picture that fails for want of an endpoint, or because a cap is reached, is left for the next session; what
        has been paid for is in the store and is not paid again. A picture that cannot be read, or has no usable
        instance, is counted in `run.store.left_out()` and tried again in the next session.

        Raises:
            FolderInUseError: another process is at work in the folder.
            ChatRequestError: an endpoint refuses requests for good (a wrong key, model or address).
            RunConfigError: the images of finished pictures have changed.
            StoreError: the disk is full.
        """
        summary, started = SessionSummary(), time.monotonic()
        with folder_lock(self.run.path):
            self.run.check_images()
            with self.calls:
                self._work(summary, max_pictures, progress)
            self.run.store.note_left_out("", self.source.left_out)
        summary.seconds = time.monotonic() - started
        return summary

    def _work(self, summary: SessionSummary, max_pictures: int | None, progress: bool) -> None:
        pending: dict[Future, AnnotatedScene] = {}
        scenes = itertools.islice(self._open_scenes(), max_pictures)
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
                        pending[pool.submit(self._picture, scene)] = scene
                    if not pending:
                        break
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        self._take(future, pending.pop(future), summary)
                        bar.set_postfix(
                            accepted=summary.accepted,
                            review=summary.review,
                            calls=self.calls.spent["calls"],
                            cost=self.calls.cost,
                        )
                        bar.update()
            except BaseException:
                for future in pending:
                    future.cancel()
                raise

    def _open_scenes(self) -> Iterator[AnnotatedScene]:
        """Scenes that are not finished and have something to write about; the others are counted."""
        finished, takes = self.run.store.finished_ids(), self.run.config.takes
        for scene in self.source.scenes(lambda image_id: takes(image_id) and image_id not in finished):
            if scene.instances:
                yield scene
            else:
                scene.left_out.add("picture without a usable instance", scene.image_id)
                self.run.store.note_left_out(scene.image_id, scene.left_out)

    def _take(self, future: Future, scene: AnnotatedScene, summary: SessionSummary) -> None:
        try:
            record = future.result()
        except BudgetExhaustedError as error:
            summary.stopped = str(error)
            return
        except UnusableImageError as error:
            scene.left_out.add(error.reason, str(error))
            self.run.store.note_left_out(scene.image_id, scene.left_out)
            return
        except (ChatUnavailableError, ChatRequestError) as error:
            if isinstance(error, ChatRequestError) and error.status in REFUSED_FOR_GOOD:
                raise
            summary.unavailable, summary.why_unavailable = summary.unavailable + 1, str(error)
            self._unavailable_in_a_row += 1
            logger.warning("Picture %s is left for later: %s", scene.image_id, error)
            if self._unavailable_in_a_row >= MAX_UNAVAILABLE:
                summary.stopped = f"No endpoint answered for {MAX_UNAVAILABLE} pictures in a row: {error}"
            return
        self._unavailable_in_a_row = 0
        self.run.store.add_picture(record, scene.left_out)
        summary.add(record)

    def _picture(self, scene: AnnotatedScene) -> dict[str, Any]:
        try:
            size = scene.open_image().size
        except (OSError, ValueError) as error:
            gone = isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError)
            reason = "image that was not found" if gone else "image that cannot be read"
            raise UnusableImageError(reason, f"{scene.image_id}: {error}") from error
        if size != (scene.width, scene.height):
            raise UnusableImageError(
                "image of another size than its annotations say",
                f"{scene.image_id}: expected {scene.width} x {scene.height}, found {size[0]} x {size[1]} as shown",
            )
        targets = InstructionLoop(scene, self.run.config, self.tools).run()
        if not targets:
            scene.left_out.add("picture about which nothing certain could be said", scene.image_id)
        record = {**scene_to_record(scene, self._image_path(scene)), "targets": targets}
        if isinstance(scene.image, str):
            record["image_digest"] = digest_of_image(scene.image)
        return record

    def _image_path(self, scene: AnnotatedScene) -> str | None:
        """Where the image lies; an image that is no file is written into the run folder."""
        if scene.image is None or isinstance(scene.image, str):
            return scene.image
        folder = self.run.path / "images"
        folder.mkdir(exist_ok=True)
        path = folder / f"{scene.order:08d}.png"
        scene.open_image().save(path)
        return f"images/{path.name}"


def describe_prompts(prompts: dict[str, VersionedPrompt]) -> dict[str, str]:
    """Version and fingerprint of prompts, for a run's configuration."""
    return {name: f"{prompt.version} {prompt.sha256}" for name, prompt in prompts.items()}
