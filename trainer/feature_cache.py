# SPDX-License-Identifier: Apache-2.0
"""The output of the frozen ViT on disk, so that an image is encoded once for all epochs, stages and runs.

Vision is nine tenths of a training step and never changes: what is kept is the output of `vision_encoder.backbone`;
the small FPN neck runs in every step. A file is found by the fingerprint of the image's content, of the preprocessing
and of the vision weights, so a changed image, processor or model never meets old features.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers.utils import logging

from ..processing.fingerprint import fingerprint_image, fingerprint_json, fingerprint_tensors
from .collator import image_key
from .processes import process_state

if TYPE_CHECKING:
    from ..modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from ..processing.processing_sam3i import Sam3IProcessor

logger = logging.get_logger(__name__)

_FREE_SPACE_TO_LEAVE = 10**9
_FILE_OVERHEAD = 4096


class FeatureCacheFullError(OSError):
    """The features would not fit: on the disk, or into the limit that was set for them."""


def vision_fingerprint(model: "Sam3IForInstructionSegmentation", processor: "Sam3IProcessor") -> str:
    """Of everything but the image that decides its features: weights, their type, and the preprocessing."""
    backbone = model.vision_encoder.backbone
    settings = [backbone.config.to_json_string(), processor.image_processor.to_json_string()]
    return fingerprint_json([fingerprint_tensors(backbone.state_dict()), settings])


class VisionFeatureCache:
    """ViT outputs of the images of a dataset, one memory-mapped file for each.

    Images are cached as inference sees them. An augmented view is another image: give it rows of its own (with its own
    `image_id`). A transform that draws views at random cannot be cached, and [`Sam3ITrainer`] refuses one.

    Args:
        directory: Folder of the files; may be shared by runs and processes.
        model, processor: What computes the features.
        limit_bytes (`int`): Most bytes in the folder.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        model: "Sam3IForInstructionSegmentation",
        processor: "Sam3IProcessor",
        limit_bytes: int,
    ):
        self.model, self.processor, self.limit_bytes = model, processor, limit_bytes
        self.root = Path(directory)
        self.folder = self.root / vision_fingerprint(model, processor)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._content: dict[str, str] = {}  # image key in this run -> fingerprint of the content

    def fill(self, dataset: Any, batch_size: int = 8, prefix: str = "") -> int:
        """Encode the images of a dataset that are not there yet; the processes of a run share the work.

        Args:
            prefix: Of the keys of these images, where other data may name its images alike.

        Returns:
            `int`: How many images this process encoded.

        Raises:
            FeatureCacheFullError: before anything is encoded, when the features would not fit.
        """
        import datasets
        from accelerate.utils import gather_object

        state = process_state()
        places: dict[str, int] = {}  # first row of each image that is new to this run
        for place, row in enumerate(dataset.select_columns(["dataset", "split", "image_id"])):
            key = prefix + image_key(row)
            if key not in self._content:
                places.setdefault(key, place)
        mine = list(places.items())[state.process_index :: state.num_processes]
        undecoded = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        found = {key: fingerprint_image(undecoded[place]["image"]) for key, place in mine}
        # every process learns what all images hold
        everything = gather_object([found]) if state.num_processes > 1 else [found]
        missing = {found[key]: place for key, place in mine if not self._path(found[key]).is_file()}
        self._check_space(len({c for part in everything for c in part.values() if not self._path(c).is_file()}))
        self._encode(dataset, list(missing.items()), batch_size, state.is_main_process)
        self._content.update({key: content for part in everything for key, content in part.items()})
        state.wait_for_everyone()
        return len(missing)

    def load(self, image_keys: Sequence[str]) -> torch.Tensor:
        """The kept features of images, `(I, h, w, C)`, on the model's device.

        Raises:
            KeyError: for an image of no dataset that the cache was filled with.
            OSError: for a file that is gone or damaged.
        """
        features = []
        for key in image_keys:
            if key not in self._content:
                raise KeyError(f"Image {key!r} is not in the feature cache: fill it with the dataset first.")
            path = self._path(self._content[key])
            try:
                features.append(load_file(path)["features"])
            except (SafetensorError, OSError) as error:
                raise OSError(f"{path} cannot be read ({error}): delete it and start again.") from error
        return torch.stack(features).to(self.model.device)

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """ViT outputs `(I, h, w, C)` of images, computed now."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.model.device, self.model.dtype)
        patch = self.model.config.vision_config.backbone_config.patch_size  # type: ignore[union-attr]
        height, width = (side // patch for side in pixels.shape[-2:])
        training = self.model.vision_encoder.training
        self.model.vision_encoder.eval()
        with torch.no_grad():
            states = self.model.vision_encoder.backbone(pixels).last_hidden_state  # (I, h * w, C)
        self.model.vision_encoder.train(training)
        return states.unflatten(1, (height, width))

    def _encode(self, dataset: Any, missing: list[tuple[str, int]], batch_size: int, progress: bool) -> None:
        images = dataset.select_columns(["image"])
        shown = progress and len(missing) > 0
        with tqdm(
            total=len(missing), desc="Encoding images once", unit="image", leave=False, disable=not shown
        ) as bar:
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                features = self.encode([images[place]["image"].convert("RGB") for _, place in batch])
                for (content, _), tensor in zip(batch, features, strict=True):
                    self._write(self._path(content), tensor)
                bar.update(len(batch))

    @staticmethod
    def _write(path: Path, tensor: torch.Tensor) -> None:
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
        save_file({"features": tensor.cpu().contiguous()}, unfinished)
        unfinished.replace(path)  # whole or not at all, whoever else writes it

    def _path(self, content: str) -> Path:
        return self.folder / content[:2] / f"{content}.safetensors"

    def bytes_per_image(self) -> int:
        """Disk space of one image's features."""
        config: Any = self.model.config.vision_config.backbone_config  # type: ignore[union-attr]
        size = self.processor.image_processor.size
        tokens = (size["height"] // config.patch_size) * (size["width"] // config.patch_size)
        return tokens * config.hidden_size * self.model.dtype.itemsize + _FILE_OVERHEAD

    def _check_space(self, images: int) -> None:
        needed = images * self.bytes_per_image()
        used = sum(path.stat().st_size for path in self.root.rglob("*.safetensors"))
        free = shutil.disk_usage(self.root).free
        advice = "Train on fewer images, give the cache another folder, or train without it."
        if used + needed > self.limit_bytes:
            raise FeatureCacheFullError(
                f"The vision features of {images} more images need {needed / 1e9:.2f} GB; {self.root} holds "
                f"{used / 1e9:.2f} GB of at most {self.limit_bytes / 1e9:.2f} GB (`feature_cache_limit_gb`). {advice}"
            )
        if needed > free - _FREE_SPACE_TO_LEAVE:
            raise FeatureCacheFullError(
                f"The vision features of {images} more images need {needed / 1e9:.2f} GB; the disk of {self.root} has "
                f"{free / 1e9:.2f} GB left, of which 1 GB stays free. {advice}"
            )
