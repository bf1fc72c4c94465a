# SPDX-License-Identifier: Apache-2.0
"""The frames of a video file, one by one, as upright images."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .images import ImageError
from .limits import MAX_PIXELS

VIDEO_ENDINGS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


def is_video(source: str) -> bool:
    """Whether a path is that of a video, by its ending."""
    return "://" not in source and source.lower().endswith(VIDEO_ENDINGS)


def read_frames(path: str | Path, every: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """(number from 0, image) of every so many frames of a video; no more than one is held.

    Raises:
        ImportError: PyAV is not installed.
        ImageError: the file is no video, has no frame, breaks off, or its frames are too large.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("Reading videos needs PyAV: pip install av") from error
    number = -1
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no picture track")
            for number, frame in enumerate(container.decode(video=0)):
                if frame.width * frame.height > MAX_PIXELS:
                    raise ValueError(
                        f"its frames have {frame.width} x {frame.height} pixels, more than {MAX_PIXELS:,}"
                    )
                if number % every == 0:
                    image = frame.to_image()
                    yield number, image.rotate(frame.rotation, expand=True) if frame.rotation else image
    except (av.FFmpegError, OSError, ValueError) as error:
        where = f" after frame {number}" if number >= 0 else ""
        raise ImageError(f"Cannot read video {str(path)!r}{where}: {error}") from error
    if number < 0:
        raise ImageError(f"Cannot read video {str(path)!r}: it has no frame")
