# SPDX-License-Identifier: Apache-2.0
"""Instructions on clips: the detector of a `Sam3VideoModel` follows them, its tracker keeps the identities.

The video model encodes a text once and hands the result to its detector in every frame. That result carries the level
of the instruction, so nothing else of the video model changes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Sam3VideoModel
from transformers.utils import ModelOutput

from .detector import Sam3IDetector
from .inputs import read_rows
from .peft.loading import load_instruction_adapter


@dataclass
class InstructionFeatures(ModelOutput):
    """
    An encoded instruction that knows its level.

    Args:
        pooler_output (`torch.Tensor` of shape `(rows, tokens, width)`): Projected tokens.
        instruction_levels (`torch.LongTensor` of shape `(rows,)`): Levels they were encoded at.
        word_embeds (`torch.Tensor` of shape `(rows, tokens, text_width)`): Token embeddings.
    """

    pooler_output: torch.Tensor | None = None
    instruction_levels: torch.Tensor | None = None
    word_embeds: torch.Tensor | None = None


def follow_instructions(video_model: Sam3VideoModel, source: Any) -> Sam3VideoModel:
    """Give the detector of a video model instruction adapters, in place.

    Args:
        video_model ([`Sam3VideoModel`]): The video model; its tracker stays as it is.
        source: A [`Sam3IForInstructionSegmentation`], which becomes the detector (it must be built on the same SAM3 as
            the video model), or an adapter repository, which is loaded onto the detector through PEFT.

    Returns:
        The video model.

    Raises:
        TypeError: when `video_model` is no video model.
        ValueError: when `source` is built on a SAM3 of other sizes.
        AdapterFileError, AdapterMismatchError: when the repository cannot be loaded.
    """
    if not isinstance(video_model, Sam3VideoModel):
        raise TypeError(
            f"Expected a Sam3VideoModel, found {type(video_model).__name__}. Load one with "
            "`Sam3VideoModel.from_pretrained`; a model for pictures follows instructions by itself."
        )
    if isinstance(source, Sam3IDetector):
        expected = {name: tensor.shape for name, tensor in video_model.detector_model.state_dict().items()}
        found = {name: tensor.shape for name, tensor in source.state_dict().items()}
        different = sorted(name for name, shape in expected.items() if found.get(name) != shape)
        if different:
            raise ValueError(
                f"Expected a SAM3-I on the SAM3 of the video model, found {len(different)} weights of other sizes, "
                f"{different[0]!r} among them. Convert or train adapters for this SAM3."
            )
        video_model.detector_model = source.eval()
    else:
        load_instruction_adapter(video_model.detector_model, source)
    return video_model


@torch.inference_mode()
def add_instructions(
    video_model: Sam3VideoModel,
    processor: Any,
    session: Any,
    text: str | Sequence[str],
    instruction_levels: Any = None,
) -> list[int]:
    """Add instructions to a session, as `Sam3VideoProcessor.add_text_prompt` adds concepts.

    Args:
        video_model ([`Sam3VideoModel`]): A video model after [`follow_instructions`].
        processor ([`Sam3IProcessor`]): Reads the instructions and, where none is given, their levels.
        session (`Sam3VideoInferenceSession`): The clip.
        text (`str` or `list[str]`): The instructions.
        instruction_levels: As for the processor: a level, one per instruction, or `"auto"`.

    Returns:
        `list[int]`: Ids of the prompts in the session.

    Raises:
        ValueError: when the video model does not follow instructions, or a text is there at another level.
    """
    detector = video_model.detector_model
    if not isinstance(detector, Sam3IDetector):
        raise ValueError("The video model knows concepts only: call `follow_instructions(video_model, source)` first.")
    texts = [text] if isinstance(text, str) else list(text)
    encoded = processor(text=texts, instruction_levels=instruction_levels, return_tensors="pt").to(detector.device)
    routing, _ = read_rows(encoded["instruction_levels"], len(texts), detector.device, may_be_open=True)
    routing, _ = detector.choose_levels(routing, encoded["input_ids"], encoded["attention_mask"])
    levels = routing.levels
    numbers = []
    for row, prompt in enumerate(texts):
        number, level = session.add_prompt(prompt), levels[row : row + 1]
        known = session.prompt_embeddings.get(number)
        if known is not None and getattr(known, "instruction_levels", None) != level:
            raise ValueError(f"The session has {prompt!r} at another level already. Use a session for each level.")
        ids, mask = encoded["input_ids"][row : row + 1], encoded["attention_mask"][row : row + 1]
        features = detector.get_text_features(
            input_ids=ids, attention_mask=mask, instruction_levels=level, return_dict=True
        )
        session.prompt_input_ids[number], session.prompt_attention_masks[number] = ids, mask
        session.prompt_embeddings[number] = InstructionFeatures(features.pooler_output, level, features.word_embeds)
        numbers.append(number)
    return numbers


def track_instructions(
    video_model: Sam3VideoModel,
    video_processor: Any,
    processor: Any,
    frames: Any,
    text: str | Sequence[str],
    instruction_levels: Any = None,
) -> Iterator[dict[str, Any]]:
    """Segment a clip by instructions, and keep the identities of what they denote.

    Args:
        video_model ([`Sam3VideoModel`]): A video model after [`follow_instructions`].
        video_processor (`Sam3VideoProcessor`): Prepares frames and finishes masks.
        processor ([`Sam3IProcessor`]): Reads the instructions.
        frames: The clip, as `video_processor` takes videos (a list of pictures, an array `(T, H, W, 3)`).
        text, instruction_levels: As for [`add_instructions`].

    Yields:
        `dict`: For each of the T frames what `Sam3VideoProcessor.postprocess_outputs` returns: `object_ids` `(K,)`,
        `scores` `(K,)`, `boxes` `(K, 4)` in pixels, `masks` bool `(K, H, W)`, `prompt_to_obj_ids`; and `frame`, its
        number.
    """
    session = video_processor.init_video_session(
        video=frames, inference_device=video_model.device, dtype=video_model.dtype
    )
    add_instructions(video_model, processor, session, text, instruction_levels)
    for output in video_model.propagate_in_video_iterator(session):
        yield {"frame": output.frame_idx} | video_processor.postprocess_outputs(session, output)
