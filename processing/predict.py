# SPDX-License-Identifier: Apache-2.0
"""`sam3i predict`: images, folders, globs and videos in; masks as JSON, pictures and the files of other tools out.

The JSON of an image is the record of its prediction: whatever else is written is made from it, and a run that was cut
off goes on with the images whose record is missing or was made with other settings, weights or pixels. Frames of a
video are images by themselves; `track_instructions` keeps identities through a clip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .predict_tasks import PredictionTask, file_stems, find_images, read_tasks

if TYPE_CHECKING:
    from PIL.Image import Image

    from .images import ImageError

FORMATS = ("json", "overlay", "png", "yolo", "coco", "label-studio")
HINT_SCORE = 0.05  # candidates with a lower score are not even hinted at


@dataclass(frozen=True)
class PredictionSettings:
    """What decides the instances of an image, beside the weights; see [`InstructionSegmentationPipeline`]."""

    threshold: float = 0.5
    mask_threshold: float = 0.5
    max_overlap: float | None = 0.8
    boxes: tuple[tuple[float, ...], ...] | None = None


@dataclass
class Found:
    """How many instances an instruction found, at which level, and the score of its best candidate."""

    text: str
    level: str
    count: int
    best_score: float

    def __str__(self) -> str:
        hint = f"; the best candidate has {self.best_score:.2f}" if not self.count and self.best_score else ""
        return f"{self.count} instance{'' if self.count == 1 else 's'} ({self.level}): {self.text}{hint}"


@dataclass
class Prediction:
    """The record of one image and the files made from it; `resumed` where the record was there before."""

    image: str
    record: Path
    found: list[Found]
    files: list[Path] = field(default_factory=list)
    resumed: bool = False


@dataclass
class PredictionRun:
    """What became of all images: predictions, errors by image, records made anew and their old files removed."""

    predictions: list[Prediction] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    replaced: int = 0
    removed: int = 0
    files: list[Path] = field(default_factory=list)


def predict_images(
    model: Any,
    tasks: Sequence[PredictionTask],
    output: str | Path = "predictions",
    settings: PredictionSettings | None = None,
    formats: Sequence[str] = ("json", "overlay"),
    device: str | None = None,
    every: int = 1,
    fast: bool = False,
) -> PredictionRun:
    """Segment images and write the results; each image is encoded once, whatever it is asked.

    Args:
        model: A folder or Hub name, or an [`InstructionSegmentationPipeline`] that is loaded already.
        output (*optional*): Folder, made if need be; one run writes there at a time.
        formats (*optional*): Any of "json" (always written), "overlay", "png" (a mask a file), "yolo", "coco" and
            "label-studio".
        device (`str`, *optional*): Where a model named by `model` runs; the first accelerator if not given.
        every (`int`, *optional*): Of videos each so many-th frame.
        fast (`bool`, *optional*): Run a model named by `model` in lower precision on a CPU, see the pipeline.

    Raises:
        TypeError, ValueError: as the pipeline does; an image that cannot be read is a fault of the run instead.
        FileExistsError: when `output` is a file.
    """
    from tqdm.auto import tqdm

    from .atomic import folder_lock
    from .frames import is_video
    from .images import ImageError, read_image
    from .pipeline.loading import load_pipeline
    from .post_processing import check_probability
    from .predict_files import remove_files, write_collections, write_files, write_text

    settings, output = settings or PredictionSettings(), Path(output)
    for name in ("threshold", "mask_threshold", "max_overlap"):
        if getattr(settings, name) is not None:
            check_probability(name, getattr(settings, name))
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise ValueError(f"Expected formats among {', '.join(FORMATS)}, found {', '.join(unknown)}.")
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"Expected a folder to write to, found the file {output}.")
    if len(tasks) == 1 and not is_video(tasks[0].image):
        read_image(tasks[0].image, allow_remote=True)  # a typo costs no loading of weights
    pipe = load_pipeline(model, device, fast) if isinstance(model, str | Path) else model
    run, identity = PredictionRun(), _identity(pipe)
    has_video = any(is_video(task.image) for task in tasks)
    documents = []
    with folder_lock(output):
        images = _open_images(tasks, every)
        total = None if has_video else len(tasks)
        for task, stem, image in tqdm(images, total=total, disable=total == 1, unit="image"):
            record = output / f"{stem}.json"
            if isinstance(image, ImageError):
                run.faults[task.image] = str(image)
                continue
            asked = {"texts": task.texts, "levels": task.levels, **asdict(settings), "model": identity}
            asked["pixels"] = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
            document, resumed = _read_record(record, asked), True
            if document is None:
                if record.exists():
                    run.replaced += 1
                    run.removed += remove_files(output, stem)
                document, resumed = _segment(pipe, task, image, settings, asked), False
                write_text(record, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
            found = [
                Found(row["text"], row["level"], len(row["instances"]), row["best_score"])
                for row in document["results"]
            ]
            files = write_files(document, image, output, stem, formats)
            run.predictions.append(Prediction(task.image, record, found, files, resumed))
            documents.append((stem, document))
        run.files = write_collections(documents, output, formats)
    return run


def _open_images(
    tasks: Sequence[PredictionTask], every: int
) -> Iterator[tuple[PredictionTask, str, Image | ImageError]]:
    """Each task, the stem of its files, and its image or why there is none; a video becomes a task for each frame."""
    from .frames import is_video, read_frames
    from .images import ImageError, read_image

    for task, stem in zip(tasks, file_stems([task.image for task in tasks]), strict=True):
        try:
            if not is_video(task.image):
                yield task, stem, read_image(task.image, allow_remote=True)
                continue
            for number, frame in read_frames(task.image, every):
                yield replace(task, image=f"{task.image}#{number}"), f"{stem}.{number:06d}", frame
        except ImageError as error:
            yield task, stem, error


def _identity(pipe: Any) -> str:
    """Weights and preprocessing, by content."""
    from .fingerprint import fingerprint_json, fingerprint_tensors

    return fingerprint_json([fingerprint_tensors(pipe.model.state_dict()), str(pipe.processor.to_dict())])


def _segment(
    pipe: Any, task: PredictionTask, image: Image, settings: PredictionSettings, asked: dict
) -> dict[str, Any]:
    """The record of one image."""
    from .fingerprint import fingerprint_json

    item = {"image": image, "text": list(task.texts), "level": list(task.levels)}
    if settings.boxes is not None:
        item["boxes"] = [list(box) for box in settings.boxes]
    rows = pipe.segment(
        item,
        threshold=settings.threshold,
        mask_threshold=settings.mask_threshold,
        max_overlap=settings.max_overlap,
        candidate_threshold=min(settings.threshold, HINT_SCORE),
    )
    source = pipe.model.adapter_source
    return {
        "image": task.image,
        "width": image.width,
        "height": image.height,
        "model": source.repo if source else pipe.model.name_or_path or None,
        "threshold": settings.threshold,
        "mask_threshold": settings.mask_threshold,
        "max_overlap": settings.max_overlap,
        "asked": fingerprint_json(asked),
        "results": [
            {
                "text": text,
                "level": row["level"],
                "best_score": row.best_score,
                "instances": row.to_instances().to_json(),
            }
            for text, row in zip(task.texts, rows, strict=True)
        ],
    }


def _read_record(path: Path, asked: dict) -> dict[str, Any] | None:
    """A record of the same image, weights and settings, if there is one."""
    from .fingerprint import fingerprint_json

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_same = isinstance(document, dict) and document.get("asked") == fingerprint_json(asked)
    return document if is_same else None


def predict(
    model: Annotated[str, typer.Option(help="SAM3-I or stock SAM3 repository or folder.")],
    image: Annotated[
        list[str] | None, typer.Option(help="Path (also of a video), folder, glob or URL; again for several.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="An instruction; give it again for several.")] = None,
    instructions: Annotated[
        Path | None,
        typer.Option(help="An instruction a line (.txt), or objects with text, image and level (.jsonl)."),
    ] = None,
    level: Annotated[str, typer.Option(help="concept, simple, complex, or auto to decide by the text.")] = "auto",
    output: Annotated[Path, typer.Option(help="Folder for the results; a run that was cut off goes on there.")] = Path(
        "predictions"
    ),
    format: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(FORMATS)}; again for several.", show_default="json, overlay")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Instances need a higher score.")] = 0.5,
    mask_threshold: Annotated[float, typer.Option(help="Mask pixels need a higher probability.")] = 0.5,
    duplicates: Annotated[
        float, typer.Option(help="Of masks with a larger IoU only the best is kept; 1 keeps all.")
    ] = 0.8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; the first accelerator if not given.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Of a video each so many-th frame.")] = 1,
    fast: Annotated[
        bool, typer.Option("--fast", help="On a CPU: the image encoder in lower precision, results differ slightly.")
    ] = False,
) -> None:
    """Segment pictures and videos by instructions.

    Writes masks as JSON, over the picture, and in the formats of other tools.
    """
    images, left_out = find_images(image or [], output)
    tasks = read_tasks(images, text or [], level, instructions)
    settings = PredictionSettings(threshold, mask_threshold, duplicates)
    run = predict_images(model, tasks, output, settings, format or ("json", "overlay"), device, every, fast)
    if left_out:
        counts = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
        typer.echo(f"left out, no images: {counts}", err=True)
    total = len(run.predictions) + len(run.faults)
    resumed = sum(done.resumed for done in run.predictions)
    if total == 1 and run.predictions:
        (done,) = run.predictions
        if resumed:
            typer.echo(f"done before with these settings, from {done.record}")
        for line in [*done.found, *done.files, done.record, *run.files]:
            typer.echo(str(line))
    if total > 1:
        found = [found for done in run.predictions for found in done.found]
        typer.echo(
            f"{len(run.predictions)} of {total} images ({resumed} were done before, {run.replaced} made anew): "
            f"{sum(item.count for item in found)} instances in {output}"
        )
        if hints := sum(not item.count and item.best_score > 0 for item in found):
            typer.echo(f"{hints} instructions found nothing above {threshold:g} but have a candidate (`best_score`)")
    if run.removed:
        typer.echo(f"removed {run.removed} files of earlier results that were made anew", err=True)
    for reason in run.faults.values():
        typer.echo(reason, err=True)
    if run.faults:
        typer.echo(f"{len(run.faults)} of {total} images could not be read", err=True)
        raise typer.Exit(code=1)
