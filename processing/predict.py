# SPDX-License-Identifier: Apache-2.0
"""`sam3i predict` and `sam3i info`: what they do, apart from reading the command line."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..hub.repo_info import RepoInfo, repo_info


@dataclass
class Prediction:
    """The files of one image and how many instances each instruction found.

    Args:
        overlay (`Path`): The picture with masks, boxes, scores and a legend.
        results (`Path`): The instances as JSON, masks as COCO run-length encodings.
        found (`list[tuple[str, str, int]]`): Instruction, the level it followed, number of instances.
    """

    overlay: Path
    results: Path
    found: list[tuple[str, str, int]]


def _stem(image: str) -> str:
    """A file name made from a path or a URL."""
    name = Path(urlsplit(image).path if "://" in image else image).stem
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "image"


def predict(
    model: Any,
    image: str | Path,
    text: str | Sequence[str],
    level: str | Sequence[str] = "auto",
    output: str | Path = "predictions",
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    boxes: Sequence[Sequence[float]] | None = None,
    max_overlap: float | None = 0.8,
    device: str | None = None,
    title: str | None = None,
) -> Prediction:
    """Segment one image by one or several instructions and write an overlay PNG and a JSON file.

    Args:
        model: A folder or Hub name, or an [`InstructionSegmentationPipeline`] that is loaded already.
        image (`str` or `Path`): Path or URL of the image.
        text (`str` or `list[str]`): The instructions.
        level (`str` or `list[str]`, *optional*, defaults to `"auto"`): One for all, or one for each instruction.
        output (`str` or `Path`, *optional*, defaults to `"predictions"`): Folder, made if need be. Nothing is written
            unless the prediction succeeds.
        threshold (`float`, *optional*, defaults to 0.5): Instances need a higher score.
        mask_threshold (`float`, *optional*, defaults to 0.5): Mask pixels need a higher probability.
        boxes (*optional*): Box exemplars (x1, y1, x2, y2) in pixels, for all instructions.
        device (`str`, *optional*): Where a model named by `model` runs; the first accelerator if not given.
        title (`str`, *optional*): A line above the legend.

    Raises:
        TypeError, ValueError: as the pipeline does.
        FileExistsError: when `output` is a file.
    """
    import torch

    from ..modeling_sam3i.configuration_sam3i import InstructionLevel
    from .drawing.instances import draw_instances
    from .images import read_image
    from .post_processing import check_probability
    from .result_formats import results_to_json

    output = Path(output)
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"Expected a folder to write to, found the file {output}.")
    thresholds = {
        "threshold": check_probability("threshold", threshold),
        "mask_threshold": check_probability("mask_threshold", mask_threshold),
    }
    if device is not None:
        try:
            torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"Expected `device` as cpu, cuda, mps or their like, found {device!r}.") from error
    texts = [text] if isinstance(text, str) else list(text)
    levels = [level] * len(texts) if isinstance(level, str) else list(level)
    picture = read_image(image, allow_remote=True)
    if isinstance(model, str | Path):
        from transformers import pipeline

        from .pipeline.registration import TASK, register_pipeline

        register_pipeline()
        model = pipeline(TASK, model=str(model), device=device)
    item = {"image": picture, "text": texts, "level": levels}
    batch = model.preprocess([item | ({} if boxes is None else {"boxes": boxes})])
    batch = model.forward(batch, threshold=thresholds["threshold"])
    (rows,) = model.postprocess(batch, max_overlap=max_overlap, **thresholds)
    followed = [InstructionLevel.from_any(index).value for index in batch["outputs"]["instruction_levels"].tolist()]
    overlay = draw_instances(picture, rows, title=title, instructions=texts, levels=followed)
    document = {
        "image": str(image),
        "width": picture.width,
        "height": picture.height,
        "model": model.model.adapter_source.repo if model.model.adapter_source else model.model.name_or_path or None,
        **thresholds,
        "results": [
            {"text": instruction, "level": row_level, "instances": instances}
            for instruction, row_level, instances in zip(texts, followed, results_to_json(rows), strict=True)
        ],
    }
    output.mkdir(parents=True, exist_ok=True)
    stem = _stem(str(image))
    prediction = Prediction(
        overlay=output / f"{stem}.overlay.png",
        results=output / f"{stem}.json",
        found=[(name, row_level, len(row)) for name, row_level, row in zip(texts, followed, rows, strict=True)],
    )
    overlay.save(prediction.overlay)
    prediction.results.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return prediction


__all__ = ["Prediction", "RepoInfo", "predict", "repo_info"]
