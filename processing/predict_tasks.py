# SPDX-License-Identifier: Apache-2.0
"""What `sam3i predict` is asked: the images behind its sources, and the instructions for each."""

import glob
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class PredictionTask:
    """One image and what to find in it; `levels` has one for each of `texts`."""

    image: str
    texts: tuple[str, ...]
    levels: tuple[str, ...]


def find_images(sources: Iterable[str | Path], output: str | Path | None = None) -> tuple[list[str], Counter[str]]:
    """The images and videos behind paths, folders, globs and addresses, in order; what else they hold, by ending.

    Args:
        output (*optional*): Where results are written; pictures that a folder or glob holds there are no sources.

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
        results = [file for file in files if output is not None and Path(output).resolve() in file.resolve().parents]
        files = [file for file in files if file not in set(results)]
        images = [file for file in files if file.suffix.lower() in (*Image.EXTENSION, *VIDEO_ENDINGS)]
        left_out.update(file.suffix.lower() or "(no ending)" for file in files if file not in set(images))
        left_out.update({f"in {output}, where results are written": len(results)} if results else {})
        if not images:
            where = f" outside {output}, where results are written," if results else ""
            raise ValueError(
                f"Expected images in {source}, found {len(files)} files{where} and none of them an image."
            )
        found |= {str(image): None for image in images}
    return list(found), left_out


def read_tasks(
    images: Sequence[str], texts: Sequence[str], level: str = "auto", instructions: str | Path | None = None
) -> list[PredictionTask]:
    """What to find in which image.

    Args:
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
        try:
            lines = enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Expected instructions as text in UTF-8 in {path}, found other bytes: {error}"
            ) from error
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


def file_stems(images: Sequence[str]) -> list[str]:
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
