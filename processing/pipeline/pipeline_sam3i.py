# SPDX-License-Identifier: Apache-2.0
"""The pipeline "instruction-segmentation": images and instructions in, masks out."""

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...modeling_sam3i.fast_vision import make_vision_fast
from ..images import TIMEOUT, read_image
from ..post_processing import MAX_OVERLAP, check_probability
from ..processing_sam3i import Sam3IProcessor
from ..results import InstanceList, InstructionResult
from ..row_layout import VISUAL_PROMPT, to_lists

_ITEM_KEYS = ("text", "level", "boxes", "box_labels")
_NOT_GIVEN = object()


class InstructionSegmentationPipeline(Pipeline):
    """
    Segments what an instruction denotes, with [`Sam3IForInstructionSegmentation`].

    Stock SAM3 repositories work, too; they follow the concept level until adapters are trained.

    Example:

    ```python
    >>> import sam3i
    >>> from transformers import pipeline

    >>> pipe = pipeline("instruction-segmentation", model="org/sam3-i")
    >>> pipe("dogs.jpg", text="the dog on the left")
    [{'score': 0.93, 'label': 'the dog on the left', 'level': 'simple', 'box': {...}, 'mask': <PIL.Image.Image>}]
    >>> left, right = pipe("dogs.jpg", text=["the dog on the left", "the dog on the right"])
    ```

    Args:
        args, kwargs: As of every Transformers pipeline.
        fast (`bool`, *optional*, defaults to `False`): On a CPU, run the image encoder in lower precision (8 bits, and
            bfloat16 where the processor multiplies it). Results then differ slightly from the model's own, and those
            of the concept level from stock SAM3's; benchmarks/README.md says how much.

    Raises:
        TypeError: for a model of another family.
        ValueError: for `fast` on an accelerator, or where PyTorch has no 8-bit products.
    """

    model: Any
    processor: Any

    # Transformers declares these as None
    _load_processor = True  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args, fast: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        model_type = getattr(self.model.config, "model_type", None)
        if model_type != "sam3i":
            raise TypeError(
                f"Expected a Sam3IForInstructionSegmentation, found {type(self.model).__name__} (model type "
                f"{model_type!r}). Sam3IForInstructionSegmentation.from_pretrained tells why."
            )
        if not hasattr(self.processor, "post_process_instruction_segmentation"):
            self.processor = self._own_processor()
        self.fast = fast
        if fast:
            make_vision_fast(self.model)

    def _own_processor(self) -> Sam3IProcessor:
        """Ours in place of the stock processor that comes with a stock repository."""
        image_processor = getattr(self.processor, "image_processor", self.image_processor)
        tokenizer = getattr(self.processor, "tokenizer", self.tokenizer)
        adapters, base = self.model.adapter_source, self.model.name_or_path
        if adapters is not None and getattr(tokenizer, "name_or_path", base) == base:
            # What came with the base model gives way to what the adapters were trained with.
            return Sam3IProcessor.from_pretrained(adapters.repo, base_model_name_or_path=base, **adapters.download)
        if image_processor is None or tokenizer is None:
            raise ValueError("Give the pipeline a `processor`, or a model name that has one.")
        return Sam3IProcessor(
            image_processor, tokenizer, max_instruction_length=self.model.config.max_instruction_length
        )

    def _sanitize_parameters(
        self,
        text=None,
        level=None,
        boxes=None,
        box_labels=None,
        threshold=None,
        mask_threshold=None,
        max_overlap=_NOT_GIVEN,
        row_chunk_size=None,
        timeout=None,
        **unknown,
    ):
        if unknown:
            raise TypeError(f"Unexpected arguments: {', '.join(sorted(unknown))}.")
        preprocess = {"text": text, "level": level, "boxes": boxes, "box_labels": box_labels, "timeout": timeout}
        forward = {"threshold": threshold, "row_chunk_size": row_chunk_size}
        postprocess = {"threshold": threshold, "mask_threshold": mask_threshold}
        if max_overlap is not _NOT_GIVEN:
            postprocess["max_overlap"] = 1.0 if max_overlap is None else max_overlap  # no IoU is larger than 1
        for name, value in postprocess.items():
            if value is not None:
                check_probability(name, value)
        if isinstance(level, str) and level.lower() != "auto":
            InstructionLevel.from_any(level)
        return tuple(
            {name: value for name, value in step.items() if value is not None}
            for step in (preprocess, forward, postprocess)
        )

    def __call__(  # type: ignore[override]
        self, image: Any = None, text: str | list[str] | list[list[str]] | None = None, **kwargs: Any
    ):
        r"""
        Segment images by instructions.

        Args:
            image: A path, URL, bytes, file object, PIL image, array or tensor; a dict `{"image": ..., "text": ...}`
                that may also hold `"level"`, `"boxes"` and `"box_labels"`; or a list, generator or dataset of those.
            text: `str`: one instruction. `list[str]`: several for one image; with a list of images one for each
                image, with a generator or dataset several for each. `list[list[str]]`: several for each of a list.
            level (`str`, *optional*, defaults to `"auto"`): `"concept"`, `"simple"`, `"complex"` or `"auto"`; a list
                where `text` is one.
            boxes (*optional*): Box exemplars (x1, y1, x2, y2) in pixels: a list of boxes for all instructions of an
                image, or a list of such lists, one for each instruction.
            box_labels (*optional*): 1 (like this) or 0 (not like this) for each box, nested likewise.
            threshold (`float`, *optional*, defaults to 0.5): Instances need a higher score.
            mask_threshold (`float`, *optional*, defaults to 0.5): Mask pixels need a higher probability.
            max_overlap (`float`, *optional*, defaults to 0.8): Of instances whose masks have a larger IoU only the one
                with the best score is kept; `None` keeps all.
            row_chunk_size (`int`, *optional*): Instructions to run at once; chosen from memory if not given.
            timeout (`float`, *optional*, defaults to 30): Seconds to wait for a URL.
            batch_size (`int`, *optional*, defaults to 1): Images in one forward pass; each is encoded once, however
                many instructions it has.

        Returns:
            For one image and one instruction a list of instances, sorted by score: `"score"`, `"label"` (the
            instruction), `"level"` (the level it followed), `"box"` (`xmin`, `ymin`, `xmax`, `ymax` in pixels) and
            `"mask"` (a PIL image of mode "L" and the size of the image: 255 inside, 0 outside). For several
            instructions a list of those, for a list of images a list of results, for a generator or dataset an
            iterator.

        Raises:
            TypeError, ValueError: for an image that cannot be read, an empty instruction, an unknown level, a
                threshold outside [0, 1], or lists that do not fit each other.
        """
        inputs = kwargs.pop("images", kwargs.pop("inputs", image)) if image is None else image
        if inputs is None:
            raise ValueError("Give an image: pipe(image, text='the dog on the left').")
        if isinstance(inputs, list | tuple):
            if len(inputs) == 0:
                return []
            settings = {"text": text} | {name: kwargs.pop(name) for name in _ITEM_KEYS[1:] if name in kwargs}
            inputs = self._pair(list(inputs), settings, kwargs)
            return super().__call__(inputs, **kwargs)
        one = str | bytes | bytearray | memoryview | dict | Image.Image | np.ndarray | torch.Tensor
        is_item = isinstance(inputs, one) or hasattr(inputs, "__fspath__") or hasattr(inputs, "read")
        if not is_item and not isinstance(inputs, torch.utils.data.Dataset) and hasattr(inputs, "__iter__"):
            inputs = (item for item in inputs)  # e.g. a `datasets.Dataset`: stream it
        return super().__call__(inputs, text=text, **kwargs)

    @staticmethod
    def _pair(images: list, settings: dict[str, Any], shared: dict[str, Any]) -> list:
        """Give every image of a list its share of the settings that are lists themselves."""
        items = [dict(image) if isinstance(image, dict) else {"image": image} for image in images]
        for name, value in settings.items():
            if value is None:
                continue
            if not isinstance(value, list | tuple):
                shared[name] = value
                continue
            if len(images) == 1 and len(value) != 1:
                value = [value]
            if len(value) != len(images):
                raise ValueError(
                    f"Expected `{name}` for each of {len(images)} images, found {len(value)}. For several "
                    'instructions per image nest them: [["a", "b"], ["c"]].'
                )
            for item, own in zip(items, value, strict=True):
                item.setdefault(name, own)
        return items

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ):
        batches = (SizedBatches if isinstance(inputs, Sized) else Batches)(inputs, batch_size)
        results = super().get_iterator(batches, num_workers, 1, preprocess_params, forward_params, postprocess_params)
        return Results(results, inputs)

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        model_inputs = self.preprocess([inputs], **preprocess_params)
        return self.postprocess(self.forward(model_inputs, **forward_params), **postprocess_params)[0]

    def preprocess(self, batch: list, timeout: float = TIMEOUT, **shared: Any) -> dict[str, Any]:  # type: ignore[override]
        """Read the images of a batch and lay out their instructions."""
        images, texts, levels, boxes, box_labels, several = [], [], [], [], [], []
        for item in batch:
            own = item if isinstance(item, dict) else {"image": item}
            if "image" not in own:
                raise ValueError(f"Expected the key 'image' in an input, found {sorted(own)}.")
            given: list[Any] = [own.get(name, shared.get(name)) for name in _ITEM_KEYS]
            text, level, item_boxes, item_labels = given
            if text is None and item_boxes is None:
                raise ValueError("Give an instruction: pipe(image, text='the dog on the left').")
            images.append(read_image(own["image"], allow_remote=True, timeout=timeout))
            several.append(isinstance(text, list | tuple))
            rows = list(text) if several[-1] else [text]
            texts.append(rows)
            levels.append(list(level) if isinstance(level, list | tuple) else [level] * len(rows))
            boxes.append(self._per_row(item_boxes, len(rows), depth=2))
            box_labels.append(self._per_row(item_labels, len(rows), depth=1))
        with_boxes = any(row is not None for rows in boxes for row in rows)
        with_labels = any(row is not None for rows in box_labels for row in rows)
        if with_labels:
            box_labels = [
                [labels if labels is not None else [1] * len(own or []) for labels, own in zip(*rows, strict=True)]
                for rows in zip(box_labels, boxes, strict=True)
            ]
        inputs = self.processor(
            images=images,
            text=texts,
            instruction_levels=levels,
            input_boxes=boxes if with_boxes else None,
            input_boxes_labels=box_labels if with_labels else None,
            return_tensors="pt",
        )
        for name in ("pixel_values", "input_boxes"):
            if name in inputs:
                inputs[name] = inputs[name].to(self.dtype)
        sizes = inputs.pop("original_sizes").tolist()
        return {"model_inputs": dict(inputs), "sizes": sizes, "texts": texts, "several": several}

    @staticmethod
    def _per_row(value: Any, rows: int, depth: int) -> list:
        """A setting of one image for each of its rows: the same for all, or already one for each."""
        value = to_lists(value)
        if not value:
            return [None] * rows
        found, inner = 0, value
        while isinstance(inner, list | tuple):
            found += 1
            inner = next((item for item in inner if item is not None), None)
        if found < depth:
            raise ValueError(
                f"Expected a list of boxes (x1, y1, x2, y2), or a list of labels of boxes, found {value!r}."
            )
        if found == depth:
            return [value] * rows
        if len(value) != rows:
            raise ValueError(f"Expected boxes and their labels for each of {rows} instructions, found {len(value)}.")
        return list(value)

    def _forward(  # type: ignore[override]
        self, batch: dict[str, Any], threshold: float = 0.5, row_chunk_size: int | None = None
    ) -> dict[str, Any]:
        outputs = self.model.segment(**batch["model_inputs"], threshold=threshold, row_chunk_size=row_chunk_size)
        described = {name: value for name, value in batch.items() if name != "model_inputs"}
        return described | {"image_ids": batch["model_inputs"]["image_ids"], "outputs": dict(outputs)}

    def postprocess(  # type: ignore[override]
        self,
        batch: dict[str, Any],
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        max_overlap: float | None = MAX_OVERLAP,
    ) -> list[InstanceList | list[InstanceList]]:
        """The results of every image of a batch."""
        rows = self._post_process(batch, threshold, mask_threshold, max_overlap)
        results = []
        for texts, several in zip(batch["texts"], batch["several"], strict=True):
            instances = [next(rows).to_instances() for _ in texts]
            results.append(instances if several else instances[0])
        return results

    def segment(
        self,
        item: dict[str, Any],
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        max_overlap: float | None = MAX_OVERLAP,
        candidate_threshold: float | None = None,
    ) -> list[InstructionResult]:
        """One image and its instructions as tensors, with the score of the best candidate above a lower threshold.

        Args:
            item: `"image"`, `"text"` and, if need be, `"level"`, `"boxes"` and `"box_labels"`.
            threshold, mask_threshold, max_overlap (*optional*): As in [`__call__`].
            candidate_threshold (`float`, *optional*): Candidates above it count for `best_score`.
        """
        lowest = threshold if candidate_threshold is None else min(threshold, candidate_threshold)
        batch = self.forward(self.preprocess([item]), threshold=lowest)
        return list(self._post_process(batch, threshold, mask_threshold, max_overlap))

    def _post_process(
        self, batch: dict[str, Any], threshold: float, mask_threshold: float, max_overlap: float | None
    ) -> Iterator[InstructionResult]:
        rows = self.processor.post_process_instruction_segmentation(
            SimpleNamespace(**batch["outputs"]),
            threshold=threshold,
            mask_threshold=mask_threshold,
            target_sizes=batch["sizes"],
            image_ids=batch["image_ids"],
            max_overlap=max_overlap,
        )
        texts = [text for image in batch["texts"] for text in image]
        for row, text in zip(rows, texts, strict=True):
            row.text = text or VISUAL_PROMPT
            yield row

    def save_pretrained(self, save_directory, **kwargs):
        """Save the model and its processor.

        Raises:
            ValueError: for a fast pipeline, whose image encoder has been rounded.
        """
        if self.fast:
            raise ValueError(
                "Expected a pipeline without fast=True to save, found one whose weights have been rounded."
            )
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


class Batches:
    """The inputs in lists of `batch_size`, with a length and items where the inputs have them."""

    def __init__(self, inputs: Any, batch_size: int):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"Expected `batch_size` of at least 1, found {batch_size!r}.")
        self.inputs = inputs
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list]:
        items = iter(self.inputs)
        while batch := list(islice(items, self.batch_size)):
            yield batch


class SizedBatches(Batches):
    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __getitem__(self, index: int) -> list:
        stop = min((index + 1) * self.batch_size, len(self.inputs))
        return [self.inputs[item] for item in range(index * self.batch_size, stop)]


class Results:
    """Results one by one from an iterator over batches of them."""

    def __init__(self, batches: Iterable[list], inputs: Any):
        self.batches = batches
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator:
        for batch in self.batches:
            yield from batch
