# SPDX-License-Identifier: Apache-2.0
"""`sam3i predict`: images, folders, globs and videos in; masks as JSON, pictures and the files of other tools out.

The JSON of an image is the record of its prediction: whatever else is written is made from it, and a run that was cut
off goes on with the images whose record is missing or was made with other settings, weights or pixels. Frames of a
video are images by themselves; `track_instructions` keeps identities through a clip.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:
    from PIL.Image import Image

    from .images import ImageError

FORMATS = ("json", "overlay", "png", "yolo", "coco", "label-studio")
HINT_SCORE = 0.05
"""Candidates with a lower score are not even hinted at."""


@dataclass(frozen=True)
class PredictionTask:
    """One image and what to find in it; `levels` has one for each of `texts`."""

    image: str
    texts: tuple[str, ...]
    levels: tuple[str, ...]


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
    """What became of all images: predictions, errors by image, and how many records were replaced."""

    predictions: list[Prediction] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    replaced: int = 0
    files: list[Path] = field(default_factory=list)


def find_images(sources: Iterable[str | Path]) -> tuple[list[str], Counter[str]]:
    """The images and videos behind paths, folders, globs and addresses, in order; what else they hold, by ending.

    Raises:
        ValueError: a source holds no image.
    """
    from PIL import Image

    from .frames import VIDEO_ENDINGS

    Image.init()
    found: dict[str, None] = {}
    left_out: Counter[str] = Counter()
    for source in map(str, sources):
        path = Path(source)
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
        elif any(character in source for character in "*?[") and "://" not in source and not path.exists():
            files = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()]
        else:
            found[source] = None
            continue
        images = [file for file in files if file.suffix.lower() in (*Image.EXTENSION, *VIDEO_ENDINGS)]
        left_out.update(file.suffix.lower() or "(no ending)" for file in files if file not in set(images))
        if not images:
            raise ValueError(f"Expected images in {source}, found {len(files)} files and none of them an image.")
        found |= {str(image): None for image in images}
    return list(found), left_out


def read_tasks(
    images: Sequence[str], texts: Sequence[str], level: str = "auto", instructions: str | Path | None = None
) -> list[PredictionTask]:
    """What to find in which image.

    Args:
        images: Paths or addresses.
        texts: Instructions for every image.
        level (`str`, *optional*): Of all instructions that name none.
        instructions (*optional*): A file with further instructions: one a line (`.txt`), for every image; or one
            object a line (`.jsonl`) with "text" (one or a list), and, if need be, "level" and "image" (a file name or
            path): without images given, those images, beside the file.

    Raises:
        ValueError: a line that is no such object, an image without instructions, or none at all.
    """
    shared = [(text, level) for text in texts]
    own: dict[str, list[tuple[str, str]]] = {}
    if instructions is not None:
        path = Path(instructions)
        lines = enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1)
        for number, line in ((number, line.strip()) for number, line in lines if line.strip()):
            if path.suffix != ".jsonl":
                shared.append((line, level))
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: expected a JSON object, found {line[:80]!r}") from error
            text = entry.get("text") if isinstance(entry, dict) else None
            given = [text] if isinstance(text, str) else text
            if not isinstance(given, list) or not given or not all(isinstance(item, str) for item in given):
                raise ValueError(f'{path}, line {number}: expected "text" as a string or a list, found {text!r}')
            pairs = [(item, entry.get("level") or level) for item in given]
            if entry.get("image") is None:
                shared += pairs
            else:
                own.setdefault(str(entry["image"]), []).extend(pairs)
        if not images:
            images = [name if "://" in name else str(path.parent / name) for name in own]
    left = dict(own)
    tasks = []
    for image in images:
        names = [name for name in own if Path(image).parts[-len(Path(name).parts) :] == Path(name).parts]
        pairs = shared + [pair for name in names for pair in own[name]]
        for name in names:
            left.pop(name, None)
        if not pairs:
            raise ValueError(f"Expected an instruction for {image}, found none; give --text or --instructions.")
        tasks.append(PredictionTask(image, tuple(text for text, _ in pairs), tuple(name for _, name in pairs)))
    if left:
        raise ValueError(f"{instructions}: expected images that are given, found {', '.join(sorted(left)[:5])}.")
    if not tasks:
        raise ValueError("Expected at least one image, found none; give --image.")
    return tasks


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
        tasks: The images and instructions.
        output (*optional*): Folder, made if need be; one run writes there at a time.
        settings ([`PredictionSettings`], *optional*): Thresholds and boxes.
        formats (*optional*): Any of "json" (always written), "overlay", "png" (a mask a file), "yolo", "coco" and
            "label-studio".
        device (`str`, *optional*): Where a model named by `model` runs; the first accelerator if not given.
        every (`int`, *optional*): Of videos each so many-th frame.
        fast (`bool`, *optional*): Run a model named by `model` in 8 bits on a CPU, see the pipeline.

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
                run.replaced += record.exists()
                document, resumed = _segment(pipe, task, image, settings, asked), False
                _write_text(record, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
            found = [
                Found(row["text"], row["level"], len(row["instances"]), row["best_score"])
                for row in document["results"]
            ]
            files = _write_files(document, image, output, stem, formats)
            run.predictions.append(Prediction(task.image, record, found, files, resumed))
            documents.append((stem, document))
        run.files = _write_collections(documents, output, formats)
    return run


def _open_images(
    tasks: Sequence[PredictionTask], every: int
) -> Iterator[tuple[PredictionTask, str, Image | ImageError]]:
    """Each task, the stem of its files, and its image or why there is none; a video becomes a task for each frame."""
    from .frames import is_video, read_frames
    from .images import ImageError, read_image

    for task, stem in zip(tasks, _stems([task.image for task in tasks]), strict=True):
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


def _stems(images: Sequence[str]) -> list[str]:
    """A file name for each image, made from its path or address; told apart where two are alike."""
    stems = []
    for image in images:
        name = Path(urlsplit(image).path if "://" in image else image).stem
        stems.append(re.sub(r"[^\w.-]+", "_", name).strip("._") or "image")
    counts = Counter(stem.lower() for stem in stems)
    return [
        stem if counts[stem.lower()] == 1 else f"{stem}-{hashlib.sha256(image.encode()).hexdigest()[:8]}"
        for stem, image in zip(stems, images, strict=True)
    ]


def _write_text(path: Path, text: str) -> Path:
    from .atomic import write_whole

    with write_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _write_files(document: dict, image: Image, output: Path, stem: str, formats: Sequence[str]) -> list[Path]:
    """The files of one image that are made from its record."""
    from . import result_formats
    from .atomic import write_whole
    from .drawing.instances import draw_instances

    rows = [result_formats.from_json(row["instances"]) for row in document["results"]]
    files = []
    if "overlay" in formats:
        texts = [row["text"] for row in document["results"]]
        levels = [row["level"] for row in document["results"]]
        notes = [
            f"nothing above {document['threshold']:g}, best {row['best_score']:.2f}"
            if not row["instances"] and row["best_score"]
            else None
            for row in document["results"]
        ]
        files.append(output / f"{stem}.overlay.png")
        with write_whole(files[-1]) as partial:
            draw_instances(image, rows, instructions=texts, levels=levels, notes=notes).save(partial)
    if "png" in formats:
        for number, row in enumerate(rows, start=1):
            for place, instance in enumerate(row, start=1):
                files.append(output / f"{stem}.{number:02d}_{place:02d}.png")
                with write_whole(files[-1]) as partial:
                    instance["mask"].save(partial)
    return files


def _write_collections(documents: list[tuple[str, dict]], output: Path, formats: Sequence[str]) -> list[Path]:
    """The files that need all images: classes and categories are the instructions, in the order they were given."""
    from . import result_formats

    classes: dict[str, int] = {}
    for _, document in documents:
        for row in document["results"]:
            classes.setdefault(row["text"], len(classes))
    files, coco, tasks = [], [], []
    for number, (stem, document) in enumerate(documents, start=1):
        labels, regions = "", []
        for row in document["results"]:
            found = result_formats.from_json(row["instances"])
            labels += found.to_yolo(classes[row["text"]]) if "yolo" in formats else ""
            coco += found.to_coco(number, classes[row["text"]] + 1) if "coco" in formats else []
            if "label-studio" in formats:
                regions += found.to_label_studio(document["image"])["predictions"][0]["result"]
        if "yolo" in formats:
            files.append(_write_text(output / f"{stem}.txt", labels))
        for place, region in enumerate(regions, start=1):
            region["id"] = str(place)
        tasks.append(
            {
                "data": {"image": document["image"]},
                "predictions": [{"model_version": "sam3i", "result": regions}],
            }
        )
    if "yolo" in formats:
        files.append(_write_text(output / "classes.txt", "".join(f"{name}\n" for name in classes)))
    if "coco" in formats:
        images = [
            {"id": number, "file_name": document["image"], "width": document["width"], "height": document["height"]}
            for number, (_, document) in enumerate(documents, start=1)
        ]
        categories = [{"id": number + 1, "name": name} for name, number in classes.items()]
        index = {"info": {}, "images": images, "categories": categories, "annotations": []}
        files.append(_write_text(output / "coco_images.json", json.dumps(index, ensure_ascii=False)))
        files.append(_write_text(output / "coco_results.json", json.dumps(coco)))
    if "label-studio" in formats:
        files.append(_write_text(output / "label_studio.json", json.dumps(tasks, ensure_ascii=False)))
        config = result_formats.label_studio_config(list(classes))
        files.append(_write_text(output / "label_studio.xml", config))
    return files


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
        bool, typer.Option("--fast", help="On a CPU: the image encoder in 8 bits, results differ slightly.")
    ] = False,
) -> None:
    """Segment pictures and videos by instructions.

    Writes masks as JSON, over the picture, and in the formats of other tools.
    """
    images, left_out = find_images(image or [])
    tasks = read_tasks(images, text or [], level, instructions)
    settings = PredictionSettings(threshold, mask_threshold, duplicates)
    run = predict_images(model, tasks, output, settings, format or ("json", "overlay"), device, every, fast)
    if left_out:
        typer.echo(
            f"left out, no images: {', '.join(f'{count} {name}' for name, count in left_out.items())}", err=True
        )
    total = len(run.predictions) + len(run.faults)
    if total == 1 and run.predictions:
        for found in run.predictions[0].found:
            typer.echo(str(found))
        for file in [*run.predictions[0].files, run.predictions[0].record, *run.files]:
            typer.echo(str(file))
    if total > 1:
        resumed = sum(done.resumed for done in run.predictions)
        count = sum(found.count for done in run.predictions for found in done.found)
        hints = sum(not found.count and found.best_score > 0 for done in run.predictions for found in done.found)
        typer.echo(
            f"{len(run.predictions)} of {total} images ({resumed} were done before, {run.replaced} made anew): "
            f"{count} instances in {output}"
        )
        if hints:
            typer.echo(f"{hints} instructions found nothing above {threshold:g} but have a candidate (`best_score`)")
    for reason in run.faults.values():
        typer.echo(reason, err=True)
    if run.faults:
        typer.echo(f"{len(run.faults)} of {total} images could not be read", err=True)
        raise typer.Exit(code=1)
