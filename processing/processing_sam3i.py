# SPDX-License-Identifier: Apache-2.0
"""The processor of SAM3-I: images, instructions, levels and boxes in, tensors out; raw outputs in, instances out."""

from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError
from PIL import Image
from torchvision.transforms.v2.functional import InterpolationMode, resize
from transformers import BatchEncoding, Sam3ImageProcessor, Sam3Processor
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file, logging

from ..modeling_sam3i.adapter_io import (
    DOWNLOAD_ARGUMENTS,
    BaseModelNotFoundError,
    find_instruction_adapter,
    read_adapter_config,
)
from .images import ImageError, read_image
from .post_processing import check_probability, row_target_sizes, segment_rows
from .results import InstructionResult
from .row_layout import VISUAL_PROMPT, read_boxes, read_levels, read_texts

logger = logging.get_logger(__name__)

STOCK_INSTRUCTION_LENGTH = 32  # tokens to which stock SAM3 pads every prompt; batches of short instructions keep it


def _read_images(images: Any, is_scaled: bool) -> list:
    """The images as a list, whatever they came in; arrays and tensors that the image processor reads right stay."""
    if isinstance(images, list | tuple):
        if len(images) == 0:
            raise ValueError("Expected at least one image, found an empty list.")
        read = []
        for index, image in enumerate(images):
            try:
                read += _read_images(image, is_scaled)
            except ImageError as error:
                raise ImageError(f"Image {index}: {error}") from error
        return read
    if torch.is_tensor(images) or isinstance(images, np.ndarray):
        if images.ndim == 4:
            return _read_images(list(images), is_scaled)
        has_colors = images.ndim == 3 and 3 in (images.shape[0], images.shape[-1]) and 0 not in images.shape
        if has_colors and (is_scaled or images.dtype in (torch.uint8, np.uint8)):
            return [images]
    return [read_image(images, allow_remote=True)]


def _prepare_pixels(images: list, stock: Any) -> torch.Tensor | None:
    """What stock's image processor makes of RGB images, to the last bit, in a third of the time; None where unsure.

    The resizing of uint8 is fast where the channels of a pixel lie together, as they do in PIL images; stock copies
    them apart first. The arithmetic is fast in floats that lie in order.
    """
    as_usual = type(stock) is Sam3ImageProcessor and stock.resample == Image.Resampling.BILINEAR
    steps = ("do_resize", "do_rescale", "do_normalize")
    if not as_usual or not all(getattr(stock, name) is True for name in steps) or stock.do_pad:
        return None
    if not all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images):
        return None
    size = [int(stock.size["height"]), int(stock.size["width"])]
    mean, std = (
        (torch.tensor(values) * (1.0 / stock.rescale_factor)).view(3, 1, 1)
        for values in (stock.image_mean, stock.image_std)
    )
    batch = torch.empty(len(images), 3, *size)  # (I, 3, H, W)
    for image, pixels in zip(images, batch, strict=True):
        channels_last = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, height, width)
        resized = resize(channels_last, size, interpolation=InterpolationMode.BILINEAR, antialias=True)[0]
        pixels.copy_(resized).sub_(mean).div_(std)
    return batch


_NO_TOKENIZER = (
    "Expected a tokenizer with its vocabulary, found none in {}: its files are not there. Copy tokenizer.json and "
    "tokenizer_config.json from the base model."
)


def _check_vocabulary(tokenizer: Any) -> None:
    """Refuse what Transformers makes of a repository without tokenizer files: every text would be unknown tokens."""
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not words:
        raise ValueError(_NO_TOKENIZER.format(tokenizer.name_or_path or "the repository"))


class Sam3IProcessor(Sam3Processor):
    r"""
    Prepares images and instructions for [`Sam3IForInstructionSegmentation`] and turns its outputs into instances.

    A stock SAM3 processor repository loads as it is. The tokenizer pads with whatever id it was saved with.

    Args:
        image_processor ([`Sam3ImageProcessor`]): Prepares the images.
        tokenizer ([`CLIPTokenizer`]): Prepares the instructions.
        target_size (`int`, *optional*): As in [`Sam3Processor`].
        point_pad_value (`int`, *optional*, defaults to -10): As in [`Sam3Processor`].
        max_instruction_length (`int`, *optional*, defaults to 32): Longest instruction in tokens, the two special
            ones included; the rest is dropped with a warning that names it.
        auto_levels (`str`, *optional*, defaults to `"rules"`): Who resolves the level `"auto"`: `"rules"` classifies
            the text (`sam3i.processing.levels`), `"router"` leaves the row to the model's learned router.

    Raises:
        ValueError: when `max_instruction_length` is below 3 or `auto_levels` is unknown.
    """

    def __init__(
        self,
        image_processor,
        tokenizer,
        target_size: int | None = None,
        point_pad_value: int = -10,
        max_instruction_length: int = STOCK_INSTRUCTION_LENGTH,
        auto_levels: str = "rules",
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, target_size, point_pad_value, **kwargs)
        _check_vocabulary(tokenizer)
        if isinstance(max_instruction_length, bool) or not isinstance(max_instruction_length, int):
            raise TypeError(f"Expected `max_instruction_length` as an int, found {max_instruction_length!r}.")
        if max_instruction_length < 3:
            raise ValueError(f"Expected `max_instruction_length` of at least 3, found {max_instruction_length}.")
        if auto_levels not in ("rules", "router"):
            raise ValueError(f"Expected `auto_levels` 'rules' or 'router', found {auto_levels!r}.")
        self.max_instruction_length = max_instruction_length
        self.auto_levels = auto_levels

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path, *, base_model_name_or_path: str | None = None, **kwargs
    ) -> "Sam3IProcessor":
        """Load a processor as every Transformers processor; adapters saved without one have that of their base model.

        Args:
            pretrained_model_name_or_path: A repository of SAM3-I (a whole model, or adapters alone) or stock SAM3.
            base_model_name_or_path (`str`, *optional*): For adapters saved without processor: where SAM3 is, instead
                of where the adapters say.
            kwargs: As for every Transformers processor; and settings of this one.

        Raises:
            AdapterFileError: when the adapters' configuration cannot be read.
            BaseModelNotFoundError: when the adapters have no processor and that of their base model cannot be loaded.
            OSError: when there is no processor.
        """
        repo = pretrained_model_name_or_path
        download = {name: kwargs[name] for name in DOWNLOAD_ARGUMENTS if kwargs.get(name) is not None}
        quiet = {f"_raise_exceptions_for_{kind}": False for kind in ("missing_entries", "connection_errors")}
        if any(cached_file(repo, name, **quiet, **download) for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)):
            try:
                return super().from_pretrained(repo, **kwargs)
            except ValueError as error:
                if any(cached_file(repo, name, **quiet, **download) for name in ("tokenizer.json", "vocab.json")):
                    raise
                raise OSError(_NO_TOKENIZER.format(repo)) from error
        if find_instruction_adapter(repo, kwargs) is None:
            return super().from_pretrained(repo, **kwargs)  # it says what is missing
        adapter = read_adapter_config(repo, **download)
        base = base_model_name_or_path or adapter.base_model_name_or_path
        if not base:
            raise BaseModelNotFoundError(
                f"The adapter in {repo} has no processor and names no base model. Pass `base_model_name_or_path` with "
                "a repository of SAM3."
            )
        kwargs = {"max_instruction_length": adapter.max_instruction_length} | kwargs
        kwargs["revision"] = adapter.revision or "main"  # the one in `kwargs` is the adapter repository's
        kwargs.pop("subfolder", None)
        logger.warning_once(f"The adapter in {repo} has no processor of its own: that of its base {base} is used.")
        try:
            return super().from_pretrained(base, **kwargs)
        except (OSError, HFValidationError) as error:
            raise BaseModelNotFoundError(
                f"The adapter in {repo} has no processor, and that of its base {base} cannot be loaded: {error}\n"
                "If it is gated, ask for access and log in; if it lies elsewhere, pass `base_model_name_or_path`."
            ) from error

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors returned for images with instructions."""
        return super().model_input_names + ["original_sizes", "instruction_levels", "image_ids"]

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | list[list[str]] | None = None,
        instruction_levels: Any = None,
        input_boxes: Any = None,
        input_boxes_labels: Any = None,
        segmentation_maps: Any = None,
        original_sizes: Any = None,
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchEncoding:
        r"""
        Prepare `I` images and `R` instructions ("rows").

        Args:
            images: One image or a list, in any form that [`read_image`] reads. Integers of more than 8 bits and floats
                are scaled to 8 bits by its rule, unless `do_rescale=False` says that they are scaled already.
            text: `str`: the same instruction for every image. `list[str]`: one per image, or all for the only image.
                `list[list[str]]`: the instructions of each image. `None` in place of a text means "by boxes alone".
            instruction_levels: `None` or `"auto"`, a level for all rows, or a list with one level per row, flat or
                nested like `text`; a level is `"concept"`, `"simple"`, `"complex"`, its index, or `"auto"`.
            input_boxes: Box exemplars (x1, y1, x2, y2) in pixels of the original image, nested `[row, box, 4]`,
                `[image, box, 4]` (for all rows of an image) or `[image, row, box, 4]`; `None` for a row without.
            input_boxes_labels: 1 (like this) or 0 (not like this) for each box; all 1 if not given.
            segmentation_maps: Resized to the model's mask size and returned as `labels`, as in [`Sam3Processor`].
            original_sizes: (height, width) of each image, for boxes without images.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; lists if not given.
            kwargs: Passed to the image processor.

        Returns:
            [`BatchEncoding`] with `pixel_values` `(I, 3, H, W)`, `original_sizes` `(I, 2)`, `input_ids` and
            `attention_mask` `(R, L)`, `instruction_levels` `(R,)`, `image_ids` `(R,)`, `input_boxes` `(R, N, 4)` in
            (cx, cy, w, h) in [0, 1] and `input_boxes_labels` `(R, N)`, as far as their sources are given.

        Raises:
            TypeError: for inputs or keyword arguments of another type.
            ValueError: for nesting, counts or values that do not fit; the message says what was expected.
        """
        if images is None and text is None and original_sizes is None:
            raise ValueError("Give at least `images` or `text`.")
        tokenizer_options = sorted({"padding", "truncation", "max_length", "text_kwargs"} & kwargs.keys())
        if tokenizer_options:
            raise TypeError(
                f"{', '.join(tokenizer_options)}: the processor pads and truncates instructions itself; set "
                "`max_instruction_length` when loading it."
            )
        encoding, sizes = self._encode_images(images, segmentation_maps, original_sizes, return_tensors, kwargs)
        if text is None and input_boxes is None:
            if instruction_levels is not None:
                raise ValueError("`instruction_levels` need `text`.")
            return encoding
        if input_boxes is not None and sizes is None:
            raise ValueError("`input_boxes` need `images` or `original_sizes`.")
        if input_boxes is None and input_boxes_labels is not None:
            raise ValueError("`input_boxes_labels` need `input_boxes`.")
        texts, counts = read_texts(
            text, None if sizes is None else len(sizes), None if input_boxes is None else len(input_boxes)
        )
        levels = read_levels(instruction_levels, texts, counts, self.auto_levels)
        rows = self._encode_texts([VISUAL_PROMPT if item is None else item for item in texts], return_tensors)
        encoding.update(rows)
        layout = {"instruction_levels": levels}
        if counts is not None:
            layout["image_ids"] = [image for image, count in enumerate(counts) for _ in range(count)]
        encoding.update(BatchEncoding(layout, tensor_type=return_tensors))
        if input_boxes is not None:
            row_sizes = [sizes[image] for image in layout["image_ids"]]
            boxes, labels = read_boxes(input_boxes, input_boxes_labels, counts, row_sizes, self.point_pad_value)
            for row, item in enumerate(texts):
                if item is None and bool((labels[row] == self.point_pad_value).all()):
                    raise ValueError(f"Instruction {row} has neither a text nor a box.")
            encoding.update({"input_boxes": boxes, "input_boxes_labels": labels})
        return encoding

    def _encode_images(self, images, segmentation_maps, original_sizes, return_tensors, kwargs):
        """Pixel values and the (height, width) of every image, from the images or from given sizes."""
        if images is None:
            if segmentation_maps is not None:
                raise ValueError("`segmentation_maps` need `images`.")
            if kwargs:
                raise TypeError(f"Unexpected keyword arguments without images: {', '.join(sorted(kwargs))}.")
            if original_sizes is None:
                return BatchEncoding(), None
            given = original_sizes.tolist() if torch.is_tensor(original_sizes) else list(original_sizes)
            if not all(len(size) == 2 and min(size) > 0 for size in given):
                raise ValueError(f"Expected `original_sizes` as (height, width) of each image, found {given}.")
            return BatchEncoding({"original_sizes": given}, tensor_type=return_tensors), [tuple(s) for s in given]
        if original_sizes is not None:
            raise ValueError("Give `images` or `original_sizes`, not both: images bring their sizes.")
        read = _read_images(images, is_scaled=not kwargs.get("do_rescale", True))
        if segmentation_maps is None and not kwargs and return_tensors == "pt":
            pixel_values = _prepare_pixels(read, self.image_processor)
            if pixel_values is not None:
                sizes = [(image.height, image.width) for image in read]
                return BatchEncoding({"pixel_values": pixel_values, "original_sizes": torch.tensor(sizes)}), sizes
        encoding = self.image_processor(
            read,
            segmentation_maps=segmentation_maps,
            return_tensors=return_tensors,
            **kwargs,
        )
        for index, pixels in enumerate(encoding["pixel_values"]):
            if not bool(torch.isfinite(torch.as_tensor(pixels)).all()):
                raise ValueError(f"Image {index} holds pixels that are NaN or infinite.")
        return encoding, [tuple(int(value) for value in size) for size in encoding["original_sizes"]]

    def measure_instructions(self, texts: list[str]) -> list[tuple[int, str]]:
        """The number of tokens of each instruction, and its words beyond `max_instruction_length` ("" for none)."""
        return self._measure(texts, self._tokenize(texts))

    def _tokenize(self, texts: list[str]) -> BatchEncoding:
        """Tokens of whole instructions.

        A fast tokenizer remembers the padding and truncation of its last call. Asked for neither, always, it may serve
        several threads.
        """
        return self.tokenizer(texts, return_offsets_mapping=self.tokenizer.is_fast, verbose=False)

    def _measure(self, texts: list[str], whole: BatchEncoding) -> list[tuple[int, str]]:
        limit, measured = self.max_instruction_length, []
        for row, ids in enumerate(whole["input_ids"]):
            if len(ids) <= limit:
                lost = ""
            elif self.tokenizer.is_fast:
                start = whole["offset_mapping"][row][limit - 1][0]
                while start > 0 and not texts[row][start - 1].isspace():
                    start -= 1  # name the word that was cut, whole
                lost = texts[row][start:]
            else:
                lost = self.tokenizer.decode(ids[limit - 1 : -1])
            measured.append((len(ids), lost))
        return measured

    def _encode_texts(self, texts: list[str], return_tensors: str | None) -> BatchEncoding:
        """Token ids padded to stock's 32, or to `max_instruction_length` when an instruction is longer than that."""
        limit = self.max_instruction_length
        whole = self._tokenize(texts)
        measured = self._measure(texts, whole)
        dropped = [
            f"instruction {row} ({length} tokens) loses {lost!r}"
            for row, (length, lost) in enumerate(measured)
            if length > limit
        ]
        if dropped:
            logger.warning(
                f"Instructions are cut to {limit} tokens (`max_instruction_length`): {'; '.join(dropped)}. Shorten "
                "them, or raise `max_instruction_length` of the model and the processor."
            )
        longest = max(length for length, _ in measured)
        padded = min(limit, STOCK_INSTRUCTION_LENGTH if longest <= STOCK_INSTRUCTION_LENGTH else limit)
        ids = [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in whole["input_ids"]]
        return self.tokenizer.pad(
            {"input_ids": ids}, padding="max_length", max_length=padded, return_tensors=return_tensors, verbose=False
        )

    def post_process_instruction_segmentation(
        self,
        outputs,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        image_ids: list[int] | torch.Tensor | None = None,
        max_overlap: float | None = None,
    ) -> list[InstructionResult]:
        r"""
        Turn raw outputs into instances, sorted by score.

        Scores and boxes equal [`Sam3Processor.post_process_instance_segmentation`]. Masks are resized as logits and
        then thresholded, as Meta and the authors do it, where stock resizes probabilities; for kept queries only, a
        few at a time, so that large images fit in memory.

        Args:
            outputs ([`Sam3IInstructionSegmentationOutput`]): Of the model; stock SAM3's work too.
            threshold (`float`, *optional*, defaults to 0.5): Instances need a higher score.
            mask_threshold (`float`, *optional*, defaults to 0.5): Mask pixels need a higher probability.
            target_sizes (`list[tuple[int, int]]`, *optional*): (height, width) in pixels for each image (with
                `image_ids`), for each row, or one for all. Without, boxes stay in [0, 1] and masks at their own size.
            image_ids (`torch.LongTensor` of shape `(R,)`, *optional*): The image of each row, from the processor.
            max_overlap (`float`, *optional*): Of instances of one row whose masks have a larger IoU only the one with
                the best score is kept; all are kept if not given.

        Returns:
            `list` of [`InstructionResult`], `R` dicts: `"scores"` `(K,)`, `"boxes"` `(K, 4)` (x1, y1, x2, y2),
            `"masks"` bool `(K, H, W)`, `"labels"` `(K,)` zeros and `"level"`, the name of the level the row followed.

        Raises:
            TypeError, ValueError: for thresholds outside [0, 1], sizes that do not fit, or outputs without masks.
        """
        threshold = check_probability("threshold", threshold)
        mask_threshold = check_probability("mask_threshold", mask_threshold)
        if max_overlap is not None:
            max_overlap = check_probability("max_overlap", max_overlap)
        if not hasattr(outputs, "pred_logits"):
            raise TypeError(f"Expected the outputs of the model, found {type(outputs).__name__}.")
        sizes = row_target_sizes(target_sizes, image_ids, len(outputs.pred_logits))
        return segment_rows(outputs, threshold, mask_threshold, sizes, max_overlap)
