# SPDX-License-Identifier: Apache-2.0
"""Where the pictures of a data file lie: one folder, or several shared between datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from PIL import ExifTags, Image
from transformers.utils import logging

logger = logging.get_logger(__name__)

ImageRoot = str | Path | Mapping[str, str | Path] | None


def picture_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of a picture as it is shown, that is with its EXIF orientation applied."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


class ImageRoots:
    """Turns the file names of a data file into paths.

    Args:
        root: a folder; or a mapping whose keys are dataset names ("refcoco") or leading folders of file names
            ("train2014"; the value then stands for that folder) with "" for all the rest; or None to look beside
            the data file.
        candidates: folders tried, in this order, when `root` is None.
    """

    def __init__(self, root: ImageRoot = None, candidates: Sequence[str | Path] = ()):
        self.roots = None if root is None else ({"": root} if isinstance(root, (str, Path)) else dict(root))
        self.candidates = [Path(folder) for folder in candidates]
        self._found: Path | None = None
        self._warned = False

    def path(self, file_name: str, dataset: str = "") -> str | None:
        """Path of a picture, or None where no folder is known; the file is not opened.

        Raises:
            KeyError: the mapping has no entry for the file name, the dataset or "".
        """
        if Path(file_name).is_absolute():
            return file_name
        if self.roots is not None:
            return str(self._from_roots(file_name, dataset))
        if self._found is None or not (self._found / file_name).exists():
            found = next((folder for folder in self.candidates if (folder / file_name).exists()), None)
            self._found = found or self._found
        if self._found is not None:
            return str(self._found / file_name)
        if not self._warned:
            looked = ", ".join(str(folder) for folder in self.candidates) or "nowhere"
            logger.warning(
                f"no picture {file_name!r} (looked in: {looked}); rows come without pixels. "
                "Pass image_root= to read them."
            )
            self._warned = True
        return None

    def _from_roots(self, file_name: str, dataset: str) -> Path:
        if dataset and dataset in self.roots:
            return Path(self.roots[dataset]) / file_name
        parts = PurePosixPath(file_name).parts
        for length in range(len(parts) - 1, -1, -1):
            prefix = "/".join(parts[:length])
            if prefix in self.roots:
                return Path(self.roots[prefix]).joinpath(*parts[length:])
        raise KeyError(
            f"no image root for {file_name!r} of dataset {dataset!r}: have {sorted(self.roots)}; "
            "add the dataset's name, the leading folder or ''"
        )
