# SPDX-License-Identifier: Apache-2.0
"""Where the images of a data file lie, and whether they are what the rows say.

An image is opened only inside the folders the user gave, or inside the folder of the data file: ".." and links that
lead out of them, and absolute paths or addresses whose end is found in none of them, are refused.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..images import ImageError, image_size, read_image
from .faults import DatasetFormatError, RecordFault, RecordReader, RowAccount
from .schema import InstructionRow, shown

ImageRoot = str | Path | Mapping[str, str | Path] | None
MAX_SHOWN = 200  # characters of a file name in a message
IMAGE_NOT_FOUND = "image not found"
SIZE_FROM_IMAGE = "size read from the image"
IMAGE_FAULT = "row whose image has a fault"
ABSOLUTE = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*://[^/]*|[A-Za-z]:)?/+|^[A-Za-z]:")  # address, drive, root


class OutsideRootsError(DatasetFormatError):
    """A file name that leads out of the folders of the data."""


class ImageRoots:
    """Turns the file names of a data file into paths inside the data's folders.

    Args:
        root: a folder; or a mapping whose keys are dataset names ("refcoco") or leading folders of file names
            ("train2014"; the value then stands for that folder) with "" for all the rest; or None to look beside
            the data file.
        candidates: folders tried, in this order, when `root` is None; the first is the data file's own, and those
            inside it that are links to elsewhere are not followed.
        notes: counts what was found elsewhere or not at all.
    """

    def __init__(
        self, root: ImageRoot = None, candidates: Sequence[str | Path] = (), notes: Counter[str] | None = None
    ):
        self.roots = None if root is None else ({"": root} if isinstance(root, (str, Path)) else dict(root))
        self.folders = [str(f) for f in (candidates if self.roots is None else self.roots.values())]
        if self.roots is None and candidates:
            base = os.path.realpath(candidates[0])
            self.homes = [os.path.normpath(os.path.join(base, os.path.relpath(f, candidates[0]))) for f in candidates]
        else:
            self.homes = [os.path.realpath(folder) for folder in self.folders]
        self.notes: Counter[str] = Counter() if notes is None else notes
        self._listings: dict[str, dict[str, bool]] = {}

    def path(self, file_name: str, dataset: str = "") -> str | None:
        """Path of an image, or None where there is no such file; the file is not opened.

        Raises:
            OutsideRootsError: the name leads out of the folders.
            DatasetFormatError: the mapping has no entry for the file name, the dataset or "".
        """
        name = file_name.replace("\\", "/")
        absolute = ABSOLUTE.match(name)
        parts = [part for part in name[absolute.end() if absolute else 0 :].split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name or not parts:
            raise OutsideRootsError(f"{file_name[:MAX_SHOWN]!r} leads out of the folders of the data")
        if not absolute:
            relative = "/".join(parts)
            if self.roots is not None:
                return self._inside([self._place(relative, dataset)], file_name)
            return self._inside([f"{folder}/{relative}" for folder in self.folders], file_name)
        if name.startswith("/") and self._is_home(os.path.dirname(name)):
            return self._inside([name], file_name)
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            found = self._inside([f"{folder}/{end}" for folder in self.folders], file_name)
            if found is not None:
                self.notes[f"path of another machine, found by its end under {_few(self.folders)}"] += 1
                return found
        raise OutsideRootsError(f"{file_name[:MAX_SHOWN]!r} lies outside, and no end of it is in {_few(self.folders)}")

    def _inside(self, places: Sequence[str], file_name: str) -> str | None:
        for place in places:
            folder, _, last = place.rpartition("/")
            if folder not in self._listings:
                self._listings[folder] = _list_files(folder)
            if last in self._listings[folder]:
                return self._checked(place, self._listings[folder][last], file_name)
        return None

    def _checked(self, place: str, is_link: bool, file_name: str) -> str:
        if not self._is_home(os.path.dirname(os.path.realpath(place) if is_link else place)):
            raise OutsideRootsError(f"{file_name[:MAX_SHOWN]!r} is a link out of {_few(self.homes)}")
        return os.path.join(os.getcwd(), place)  # rows are kept, and read from other folders later

    def _is_home(self, folder: str) -> bool:
        real = _real_folder(folder)
        return any(real == home or real.startswith(home.rstrip("/") + "/") for home in self.homes)

    def _place(self, name: str, dataset: str) -> str:
        assert self.roots is not None
        if dataset and dataset in self.roots:
            return f"{self.roots[dataset]}/{name}"
        parts = name.split("/")
        for length in range(len(parts) - 1, -1, -1):
            prefix = "/".join(parts[:length])
            if prefix in self.roots:
                return "/".join([str(self.roots[prefix]), *parts[length:]])
        raise DatasetFormatError(
            f"no image root for {name!r} of dataset {dataset!r}: have {', '.join(map(repr, sorted(self.roots)))}; "
            "add the dataset's name, the leading folder or '' (--image-root NAME=FOLDER)"
        )


def _few(folders: Sequence[str]) -> str:
    """Some folders in a message, which has to stay short."""
    return " or ".join(folders[:2]) + (f" or {len(folders) - 2} more" if len(folders) > 2 else "")


def _list_files(folder: str) -> dict[str, bool]:
    """Names of the files (no pipes, no devices) in a folder, and whether each is a link; one listing is cheaper than
    asking each."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


@dataclass
class ReadOptions:
    """How a data file is read."""

    image_root: ImageRoot = None  # where the images lie, see `ImageRoots`
    split: str | None = None  # only the rows of this split
    # "instance" takes an annotation marked `iscrowd` whose mask is one connected piece as an instance (some tools mark
    # every brushed mask so), "skip" leaves it a crowd; None as the format is meant: "instance" in COCO files, "skip"
    # in the authors' JSON
    crowd: str | None = None
    progress: bool = False  # show a bar
    account: RowAccount = field(default_factory=RowAccount)  # filled while the file is read
    _row_ids: dict[tuple[str | None, str], str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.crowd not in (None, "instance", "skip"):
            raise ValueError(f"Expected crowd 'instance' or 'skip', found {self.crowd!r}")

    def roots(self, *candidates: str | Path) -> ImageRoots:
        """The image roots, beside the data file where none were given; what they note goes to the account."""
        return ImageRoots(self.image_root, candidates, self.account.notes)

    def wants(self, split: Any) -> bool:
        """Whether rows of this split are asked for; the others are counted."""
        if self.split is None or split == self.split:
            return True
        self.account.left_out[f"not of split {self.split!r}"] += 1
        return False

    def once(self, record: RecordReader, row: InstructionRow | None) -> InstructionRow | None:
        """The row; None, and a fault of the record, where an earlier row of its split has its id."""
        if row is None:
            return None
        first = self._row_ids.setdefault((row["split"], row["row_id"]), record.record)
        if first == record.record:
            return row
        expected = f"an id used once per split ({first} has it)"
        record.fault("row_id", shown(row["row_id"]), expected, "give the row an id of its own")
        return None


def find_image(record: RecordReader, roots: ImageRoots, file_name: str, dataset: str = "") -> str | None:
    """Path of a record's image, or None; a name that leads elsewhere becomes a fault of the record."""
    if not file_name:
        return None
    try:
        image = roots.path(file_name, dataset)
        if image is None:
            roots.notes[IMAGE_NOT_FOUND] += 1
        return image
    except DatasetFormatError as error:
        fix = "put the image there and mend the name, or pass its folder (--image-root)"
        expected = f"a file in {_few(roots.folders) or 'an image root'}"
        record.fault("file_name", str(error), expected, fix)
        return None


class Picture(NamedTuple):
    """An image as a record names it, its path if it was found, and its size in pixels."""

    file_name: str
    image: str | None
    width: int
    height: int


def name_and_size(record: RecordReader, roots: ImageRoots, dataset: str = "") -> Picture:
    """The image of a COCO image record.

    LVIS v1 has no `file_name` but a `coco_url`, whose last folder belongs to the name (train2017/x.jpg). Where there
    are no sizes they are read from the image.
    """
    data = record.data
    url = data.get("coco_url")
    if "file_name" not in data and isinstance(url, str) and url.count("/") > 1:
        data["file_name"] = "/".join(url.split("/")[-2:])
    file_name = record.text("file_name")
    image = find_image(record, roots, file_name, dataset)
    if data.get("width") is None and data.get("height") is None and image is not None:
        try:
            data["height"], data["width"] = image_size(Path(image))
        except ImageError as error:
            record.fault("width", str(error), "a readable image", "restore the image, or write its size")
        roots.notes[SIZE_FROM_IMAGE] += 1
    width, height = record.size()
    return Picture(file_name, image, width, height)


class ImageChecks:
    """Says of each row whether its image is there and has its size; every file is opened once.

    Args:
        decode: decode every pixel; otherwise only headers are read.
    """

    def __init__(self, decode: bool):
        self.decode = decode
        self._sizes: dict[str, tuple[int, int] | str] = {}

    def faults(self, file: str, row: InstructionRow) -> Iterator[RecordFault]:
        """What is wrong with the image of a row; a row that names no image has none to be wrong."""
        record, image = f"row {row['row_id'][:80]}", row["image"]
        if image is None:
            if row["file_name"] is not None:
                fix = "put the image there, or pass its folder (--image-root)"
                missing = f"no file {row['file_name'][:MAX_SHOWN]!r}"
                yield RecordFault(file, record, "image", missing, "an image to be found", fix)
            return
        if isinstance(image, dict) and image.get("bytes") is None:
            image = image["path"]
        if isinstance(image, str):
            if image not in self._sizes:
                self._sizes[image] = self._open(Path(image))
            found = self._sizes[image]
        else:
            found = self._open(image)
        if isinstance(found, str):
            yield RecordFault(file, record, "image", found, "a readable image", "restore the image or mend the name")
        elif found != (row["height"], row["width"]):
            real = f"{found[1]} x {found[0]} pixels{self._stored(image, found)}"
            expected = f"{row['width']} x {row['height']} pixels as the row says"
            yield RecordFault(file, record, "image", real, expected, "mend the size, or name the right image")

    def _open(self, image: Any) -> tuple[int, int] | str:
        try:
            if not self.decode:
                return image_size(image)
            pixels = read_image(image)
            return pixels.height, pixels.width
        except (ImageError, TypeError) as error:
            return str(error)

    @staticmethod
    def _stored(image: Any, found: tuple[int, int]) -> str:
        if not isinstance(image, str):
            return ""
        with Image.open(image) as opened:
            stored = opened.size
        turned = stored != (found[1], found[0])
        return f" as shown ({stored[0]} x {stored[1]} as stored: its EXIF says it is turned)" if turned else ""
