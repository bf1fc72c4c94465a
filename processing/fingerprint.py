# SPDX-License-Identifier: Apache-2.0
"""Identity by content: SHA-256 (hex) of files, of plain values and of tensors, the same on every machine."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any


def fingerprint_files(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Fingerprint of files in the order given; a folder counts with the names and contents of all files below it.

    Where a file lies and when it was written does not matter; a file is read again only when its size or time changed.
    Raises OSError: a path is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            name = file.relative_to(path).as_posix() if file != path else ""
            stat = file.stat()
            content = _file_digest(str(file.resolve()), stat.st_size, stat.st_mtime_ns)
            digest.update(json.dumps([name, content]).encode())
        digest.update(b";")
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint_image(image: Any) -> str:
    """Fingerprint of an image by the bytes of its file, or by its pixels where it is open already.

    Args:
        image: a PIL image, a path, or `{"bytes", "path"}` as `datasets` keeps images undecoded. Of a path that is no
            file the text counts.

    Raises:
        ValueError: none of these.
    """
    if hasattr(image, "tobytes"):
        return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
    found = (image.get("bytes") or image.get("path")) if isinstance(image, Mapping) else image
    if isinstance(found, (str, os.PathLike)) and Path(found).is_file():
        stat = Path(found).stat()
        return _file_digest(str(Path(found).resolve()), stat.st_size, stat.st_mtime_ns)
    if not found:
        raise ValueError(f"Expected an image, found {type(image).__name__}; load the data with its image folder")
    return hashlib.sha256(found if isinstance(found, bytes) else str(found).encode()).hexdigest()


def fingerprint_processor(processor: Any) -> str:
    """Fingerprint of what a processor does to images and texts; how long the last texts were does not count."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    texts = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    texts = {key: value for key, value in texts.items() if key not in ("padding", "truncation")}
    return fingerprint_json([processor.image_processor.to_json_string(), texts])


def fingerprint_json(obj: Any) -> str:
    """Fingerprint of plain values: mappings in any order, sequences, dataclasses, enums, paths, sets and scalars.

    Raises:
        TypeError: a value has no plain form.
    """
    return hashlib.sha256(json.dumps(obj, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    raise TypeError(f"Expected plain values, found {type(value).__name__}; turn it into numbers, text, lists or dicts")


def fingerprint_tensors(state_dict: Mapping[str, Any]) -> str:
    """Fingerprint of named tensors: name, dtype, shape and bytes of each, in any order and on any device."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(memoryview(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
