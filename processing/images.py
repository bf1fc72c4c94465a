# SPDX-License-Identifier: Apache-2.0
"""The one reader of images: whatever people have becomes an upright 8-bit RGB image, or an error that names it.

Rules, the same for training, evaluation, prediction and data building:

* EXIF orientation is applied, once: what is returned lies as viewers show it.
* More than 8 bits are scaled, never cut off: integers by the smallest of 8, 12 and 16 bits that holds the largest
  value (cameras and scanners store 12 bits in 16-bit files), floats from [0, 1] or, when a value is above 1, from
  [0, 255]. Other ranges (negative values, 32-bit integers, NaN) are refused: only their owner knows what they mean.
* Transparent pixels are laid over white, as viewers do; gray, palette and CMYK become RGB.
* Of several frames or pages the first is read.
"""

import base64
import logging
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .limits import MAX_PIXELS

logger = logging.getLogger(__name__)

MAX_REMOTE_BYTES = 2**28
TIMEOUT = 30.0
"""Seconds to wait for a remote image."""

_WIDE_MODES = ("I", "F")
"""First letters of Pillow's modes with more than 8 bits (I, I;16, I;16B, I;16L, F)."""


class ImageError(ValueError):
    """An image that cannot be read; the message names it."""


def read_image(
    source: Any, *, allow_remote: bool = False, max_pixels: int = MAX_PIXELS, timeout: float = TIMEOUT
) -> Image.Image:
    """Read one image by the rules of this module.

    Args:
        source: A path, bytes of a file, a binary file object, `{"path": ..., "bytes": ...}`, base64 text or a data
            URL, a PIL image, an array or a tensor (height, width), (height, width, channels) or (channels, height,
            width).
        allow_remote (`bool`, *optional*): Whether `source` may be an http(s) address.
        max_pixels (`int`, *optional*): Larger images are refused before they are decoded.
        timeout (`float`, *optional*): Seconds to wait for a remote image.

    Returns:
        `PIL.Image.Image` of mode "RGB"; a PIL image that needs no change is returned itself.

    Raises:
        TypeError: `source` is of another type.
        ImageError: it cannot be read; the message says which and why.
    """
    try:
        found = _resolve(source, allow_remote, timeout)
        if isinstance(found, np.ndarray):
            return _to_rgb(Image.fromarray(_to_8_bit(_channels_last(found, prefer_first=_is_tensor(source)))))
        opened = found if isinstance(found, Image.Image) else Image.open(found)
        if opened.width * opened.height > max_pixels:
            raise ValueError(
                f"it has {opened.width} x {opened.height} pixels, more than {max_pixels:,}; make it smaller"
            )
        opened.load()
        return _to_rgb(_upright(opened))
    except (TypeError, MemoryError):
        raise
    except Exception as error:  # files, decoders and network libraries each raise their own
        reason = _reason(error, source)
        raise ImageError(f"Cannot read image {_name(source)}: {reason}") from error


def image_size(source: Any) -> tuple[int, int]:
    """(height, width) of an image file as it is shown, from its header.

    Args:
        source: A path, bytes, a binary file object, `{"path": ..., "bytes": ...}` or a PIL image.

    Raises:
        TypeError, ImageError: as [`read_image`].
    """
    try:
        found = _resolve(source, False, TIMEOUT)
        if isinstance(found, np.ndarray):
            return _channels_last(found, prefer_first=_is_tensor(source)).shape[:2]
        opened = found if isinstance(found, Image.Image) else Image.open(found)
        turned = _orientation(opened) in (5, 6, 7, 8)
        return (opened.width, opened.height) if turned else (opened.height, opened.width)
    except TypeError:
        raise
    except Exception as error:
        raise ImageError(f"Cannot read image {_name(source)}: {_reason(error, source)}") from error


def _resolve(source: Any, allow_remote: bool, timeout: float) -> np.ndarray | Image.Image | Path | BytesIO:
    """What Pillow can open, or an array."""
    if isinstance(source, dict) and source.keys() & {"bytes", "path"}:
        source = source["bytes"] if source.get("bytes") else source.get("path")
        if source is None:
            raise ValueError("the row has neither its bytes nor its path; read the data with its image folder")
    if isinstance(source, np.ndarray | Image.Image):
        return source
    if _is_tensor(source):
        tensor = source.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if isinstance(source, bytes | bytearray | memoryview):
        return BytesIO(source)
    if hasattr(source, "read"):
        content = source.read()
        if not isinstance(content, bytes):
            raise TypeError("Expected a file opened in binary mode ('rb'), found one opened as text.")
        return BytesIO(content)
    if hasattr(source, "__fspath__"):
        return Path(source)
    if not isinstance(source, str):
        raise TypeError(
            "Expected an image as path, URL, bytes, file object, PIL image, array or tensor, found "
            f"{type(source).__name__}."
        )
    return _resolve_text(source, allow_remote, timeout)


def data_url(content: bytes, kind: str) -> str:
    """An encoded image ("png", "jpeg", "svg+xml") as text that pages and chat models take in place of an address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _resolve_text(source: str, allow_remote: bool, timeout: float) -> Path | BytesIO:
    if re.match(r"https?://", source, re.IGNORECASE):
        if not allow_remote:
            raise ValueError("remote addresses are not read here; download it first")
        return BytesIO(_download(source, timeout))
    if header := re.match(r"data:image/[\w.+-]+;base64,", source[:100]):
        return BytesIO(base64.b64decode(source[header.end() :], validate=True))
    is_short = len(source) < 1024  # a path of the file system has at most about so many characters
    if (
        len(source) >= 64
        and re.fullmatch(r"[A-Za-z0-9+/\s]+=*\s*", source)
        and not (is_short and Path(source).exists())
    ):
        return BytesIO(base64.b64decode(source))
    return Path(source)


def _download(url: str, timeout: float) -> bytes:
    import httpx  # comes with huggingface_hub

    content = bytearray()
    with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > MAX_REMOTE_BYTES:
                raise ValueError(f"it has more than {MAX_REMOTE_BYTES:,} bytes")
    return bytes(content)


def _is_tensor(source: Any) -> bool:
    return hasattr(source, "detach") and hasattr(source, "cpu")  # without importing torch


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _upright(image: Image.Image) -> Image.Image:
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(_WIDE_MODES):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").histogram()[255] < layer.width * layer.height:
            return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        return layer.convert("RGB")
    return image.convert("RGB")


def _channels_last(array: np.ndarray, prefer_first: bool) -> np.ndarray:
    """(height, width) or (height, width, channels) with 3 or 4 channels."""
    if array.size == 0:
        raise ValueError(f"it has no pixels, found shape {array.shape}")
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 3), array.shape[2] in (1, 3, 4)
        if first and (prefer_first or not last):
            array = array.transpose(1, 2, 0)
        if array.shape[2] == 1:
            array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(f"expected (height, width) or (height, width, 1, 3 or 4), found shape {array.shape}")
    return array


def _to_8_bit(array: np.ndarray) -> np.ndarray:
    """Scale pixels to uint8 by the rule of this module."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"expected numbers as pixels, found {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError("it holds pixels that are NaN or infinite")
    low, high = float(array.min()), float(array.max())
    limits: tuple[float, ...] = (255.0, 4095.0, 65535.0)
    if np.issubdtype(array.dtype, np.floating):
        limits = (1.0, 255.0)
    full = next((limit for limit in limits if high <= limit), None)
    if low < 0 or full is None:
        raise ValueError(
            f"its pixels ({array.dtype}) reach from {low:g} to {high:g}; scale them to 0..{limits[-1]:g} first"
        )
    if array.dtype == np.uint16 and full < 65535:
        logger.info("A 16-bit image with no value above %g is read as one of %d bits.", full, np.log2(full + 1))
    return np.rint(array.astype(np.float32) * (255 / full)).astype(np.uint8)


def _name(source: Any) -> str:
    if isinstance(source, dict):
        source = source.get("path") or source.get("bytes")
    if isinstance(source, str):
        return repr(source)[:200]
    if hasattr(source, "__fspath__"):
        return repr(str(source))
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return repr(name) if isinstance(name, str) and name else f"<{type(source).__name__}>"


def _reason(error: Exception, source: Any) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"{text} Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
    if isinstance(error, UnidentifiedImageError):
        if _name(source).rstrip("'").lower().endswith((".heic", ".heif")):
            return "HEIC needs `pip install pillow-heif` and `pillow_heif.register_heif_opener()`"
        return "it is no image file that Pillow knows, or its start is broken"
    return text
