# SPDX-License-Identifier: Apache-2.0
"""Follow an instruction through a clip: instruction adapters on the detector of `Sam3VideoModel`, identities kept.

    python examples/video.py     # moving shapes, the shipped tiny model
    python examples/video.py --model org/sam3-i --video-model facebook/sam3 --frames FOLDER --text "the left dog"

Scores are means over the clips: gIoU of every frame, and the share of an object's frames in which the same id covers
it. Picture by picture there are no identities; instances are numbered by their score there.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Sam3VideoModel, Sam3VideoProcessor
from video_common import clip_scores, draw, frame_by_frame, video_model_of, video_processor_of

from sam3i import Sam3IForInstructionSegmentation, Sam3IProcessor, follow_instructions, track_instructions
from sam3i.processing.shapes import moving_clips


def track(video_model, video_processor, processor, frames, text: str, level: str | None):
    """The answers of the video model: ids and masks of every frame."""
    outputs = track_instructions(video_model, video_processor, processor, frames, text, level)
    return [(item["object_ids"].tolist(), item["masks"].numpy()) for item in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "shapes_tiny"))
    parser.add_argument("--video-model", help="a SAM3 video repository with its trained tracker")
    parser.add_argument("--frames", type=Path, help="a folder of pictures, in order of their names")
    parser.add_argument("--text")
    parser.add_argument("--level", help="concept, simple or complex; read from the text if not given")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/video.png"))
    options = parser.parse_args()
    model = Sam3IForInstructionSegmentation.from_pretrained(options.model, dtype=torch.float32).eval()
    processor = Sam3IProcessor.from_pretrained(options.model)
    if options.video_model:
        video_model = Sam3VideoModel.from_pretrained(options.video_model).eval()
        video_processor = Sam3VideoProcessor.from_pretrained(options.video_model)
    else:
        video_model, video_processor = video_model_of(model, options.threshold), video_processor_of(processor)
    follow_instructions(video_model, model)
    if options.frames:
        if not options.text:
            parser.error("--frames needs --text, the instruction to follow")
        pictures = [Image.open(path).convert("RGB") for path in sorted(options.frames.iterdir())]
        frames = [np.asarray(picture) for picture in pictures]
        answers = track(video_model, video_processor, processor, frames, options.text, options.level)
        return draw(frames, answers, options.text, options.output)
    scores = {"stock SAM3, frame by frame": [], "SAM3-I, frame by frame": [], "SAM3-I, video": []}
    for clip in moving_clips(options.clips):
        given = (clip.frames, clip.text)
        answers = [
            frame_by_frame(model, processor, *given, "concept", options.threshold),
            frame_by_frame(model, processor, *given, clip.level.value, options.threshold),
            track(video_model, video_processor, processor, *given, clip.level.value),
        ]
        for name, answer in zip(scores, answers, strict=True):
            scores[name].append(clip_scores(answer, clip.masks[:, list(clip.targets)]))
    print(f"{f'{options.clips} clips of {len(clip.frames)} frames':<30}{'gIoU':>8}{'identity':>10}")
    for name, values in scores.items():
        print(f"{name:<30}{np.mean(values, axis=0)[0]:>8.3f}{np.mean(values, axis=0)[1]:>10.3f}")
    draw(clip.frames, answers[-1], clip.text, options.output)


if __name__ == "__main__":
    main()
