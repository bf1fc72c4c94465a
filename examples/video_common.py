# SPDX-License-Identifier: Apache-2.0
"""What the video example needs around the tiny model: a tracker, a video model and a processor, and the scores."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    Sam2VideoVideoProcessor,
    Sam3Config,
    Sam3TrackerVideoConfig,
    Sam3VideoConfig,
    Sam3VideoModel,
    Sam3VideoProcessor,
)

from sam3i import contact_sheet, draw_instances

MATCH = 0.5  # IoU at which an answer covers an object


class StillTracker(nn.Module):
    """Stands where SAM3 has its trained tracker: it expects every mask where it was in the frame before.

    The tiny model was trained on pictures, so it has no tracker. This one keeps masks as memory; the video model does
    the rest as always: it matches them with the detections of a frame, gives new objects ids, and drops lost ones.
    """

    def __init__(self, grid: int):
        super().__init__()
        self.prompt_encoder = SimpleNamespace(image_embedding_size=(grid, grid))
        self.mask_decoder = SimpleNamespace(conv_s0=nn.Identity(), conv_s1=nn.Identity())

    def forward(self, inference_session, frame_idx, reverse=False, run_mem_encoder=True):
        """Masks `(objects, 1, h, w)` and scores `(objects, 1)`, in logits, of a frame."""
        masks = []
        for index in range(inference_session.get_obj_num()):
            outputs, given = inference_session.output_dict_per_obj[index], inference_session.mask_inputs_per_obj[index]
            if frame_idx in given:
                outputs["cond_frame_outputs"][frame_idx] = {"maskmem_features": given[frame_idx]}
                masks.append(given[frame_idx][0])
                continue
            memory = outputs["cond_frame_outputs"] | outputs["non_cond_frame_outputs"]
            masks.append(memory[frame_idx + (1 if reverse else -1)]["maskmem_features"][0])
            outputs["non_cond_frame_outputs"][frame_idx] = {"maskmem_features": masks[-1][None]}
        if run_mem_encoder:
            inference_session.obj_with_new_inputs = []
        logits = torch.stack(masks).float() * 20 - 10
        return SimpleNamespace(pred_masks=logits, object_score_logits=logits.amax((-1, -2)))

    def _encode_new_memory(self, current_vision_feats, pred_masks_high_res, object_score_logits, is_mask_from_pts):
        """The memory of a frame is its masks, `(1, objects, h, w)`."""
        masks = (pred_masks_high_res > 0).float().transpose(0, 1)
        return masks, masks


def video_model_of(model, threshold: float) -> Sam3VideoModel:
    """A `Sam3VideoModel` whose settings let the detections of every frame decide; its detector is yet untrained.

    Args:
        model: SAM3-I, for the sizes of its SAM3.
        threshold: score from which a detection counts.
    """
    stock = {key: value for key, value in model.config.to_dict().items() if key in Sam3Config().to_dict()}
    tiny = {"hidden_size": 16, "num_attention_heads": 1}
    config = Sam3VideoConfig(
        detector_config=Sam3Config(**stock | {"model_type": "sam3"}),
        tracker_config=Sam3TrackerVideoConfig(memory_attention_num_layers=1, mask_decoder_config=tiny),
        score_threshold_detection=threshold,
        new_det_thresh=threshold,
        high_conf_thresh=threshold,
        high_iou_thresh=0.1,
        recondition_every_nth_frame=1,  # a detection replaces the mask that the tracker expected
        recondition_on_trk_masks=False,
        hotstart_delay=3,
        hotstart_unmatch_thresh=2,  # what is seen once and never again was no object
        hotstart_dup_thresh=2,
        suppress_unmatched_only_within_hotstart=False,
        init_trk_keep_alive=1,  # frames that an object is shown for without being detected
        max_trk_keep_alive=2,
        det_nms_thresh=0.0,  # without the `kernels` package there is none
        fill_hole_area=0,
    )
    video_model = Sam3VideoModel(config)
    backbone = model.config.vision_config.backbone_config
    video_model.tracker_model = StillTracker(backbone.image_size // backbone.patch_size)
    return video_model.eval()


def video_processor_of(processor) -> Sam3VideoProcessor:
    """The processor of clips that treats frames as `processor` treats pictures."""
    images = processor.image_processor
    videos = Sam2VideoVideoProcessor(
        size=dict(images.size), image_mean=list(images.image_mean), image_std=list(images.image_std)
    )
    return Sam3VideoProcessor(images, videos, processor.tokenizer)


def clip_scores(answers: list[tuple[list[int], np.ndarray]], truth: np.ndarray) -> tuple[float, float]:
    """gIoU over the frames, and how often an object is covered by the id that covers it most often.

    Args:
        answers: for each of T frames the K ids and masks bool [K, H, W].
        truth: masks bool [T, N, H, W] of the objects asked for.
    """
    ious, covered_by = [], [Counter() for _ in range(truth.shape[1])]
    for (ids, masks), frame in zip(answers, truth, strict=True):
        found, wanted = masks.any(0), frame.any(0)
        union = (found | wanted).sum()
        ious.append(float((found & wanted).sum() / union) if union else 1.0)
        for number, mask in enumerate(frame):
            matches = [(mask & other).sum() / (mask | other).sum() for other in masks]
            if matches and max(matches) >= MATCH:
                covered_by[number][ids[int(np.argmax(matches))]] += 1
    kept = sum(counts.most_common(1)[0][1] for counts in covered_by if counts)
    return float(np.mean(ious)), kept / (truth.shape[0] * truth.shape[1])


@torch.inference_mode()
def frame_by_frame(model, processor, frames, text: str, level: str, threshold: float) -> list:
    """The answers of a model that sees every frame by itself; instances are numbered by their score."""
    inputs = processor(images=list(frames), text=[text] * len(frames), instruction_levels=level, return_tensors="pt")
    sizes = [frame.shape[:2] for frame in frames]
    found = processor.post_process_instruction_segmentation(model(**inputs), threshold, target_sizes=sizes)
    return [(list(range(len(item["scores"]))), item["masks"].numpy()) for item in found]


def draw(frames, answers: list[tuple[list[int], np.ndarray]], text: str, path: Path) -> None:
    """Write a contact sheet of six frames; every id keeps its color."""
    everyone = sorted({number for ids, _ in answers for number in ids})
    panels = []
    for frame, (ids, masks) in list(zip(frames, answers, strict=True))[:: max(1, len(frames) // 6)][:6]:
        rows = [[] for _ in everyone] or [[]]
        for number, mask in zip(ids, masks, strict=True):
            if not mask.any():  # kept, but out of sight in this frame
                continue
            ys, xs = np.nonzero(mask)
            box = {"xmin": int(xs.min()), "ymin": int(ys.min()), "xmax": int(xs.max()) + 1, "ymax": int(ys.max()) + 1}
            found = {"score": 1.0, "label": f"object {number}", "level": None, "box": box}
            rows[everyone.index(number)].append(found | {"mask": Image.fromarray(mask)})
        names = [f"object {number}" for number in everyone] or [text]
        panels.append(draw_instances(Image.fromarray(frame), rows, title=text, instructions=names, side=400))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(panels, 3).save(path)
    print(f"Look at {path}: {text!r}")
