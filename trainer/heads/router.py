# SPDX-License-Identifier: Apache-2.0
"""How the level router learns: from the texts of the rows alone, at the beginning of the joint stage.

It reads the frozen text encoder at the concept level, and nothing reads it but a row whose level is open. So it needs
neither images nor company. Every text counts once, however many rows share it: phrasings that few rows use would
otherwise be taken for the level of more frequent ones that resemble them.
"""

import random
from collections import deque
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup
from transformers.utils import logging

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ...processing.processing_sam3i import Sam3IProcessor
from ..processes import process_state

logger = logging.get_logger(__name__)

STEPS = 800
TEXTS_PER_LEVEL = 8  # in a step
LEARNING_RATE = 3e-3
SHOWN = 20


def texts_by_level(rows: Any) -> dict[InstructionLevel, list[str]]:
    """The different texts of each level in a `datasets.Dataset` of instruction rows, sorted."""
    found: dict[InstructionLevel, set[str]] = {level: set() for level in InstructionLevel}
    for batch in rows.select_columns([level.value for level in InstructionLevel]).iter(1000):
        for level, texts in found.items():
            texts.update(text for of_row in batch[level.value] for text in of_row or () if text)
    return {level: sorted(texts) for level, texts in found.items()}


def train_router(
    model: Any, processor: Sam3IProcessor, rows: Any, steps: int, seed: int, progress: bool = True
) -> float:
    """Train the router of a model, and nothing else; no random state but its own is touched.

    Each step sees `TEXTS_PER_LEVEL` texts of every level. Returns the share of the texts of the last `SHOWN` steps
    whose level it found. Source: ours; in SAM3-I (arXiv 2512.04585) the user names the level.
    """
    texts = {level: found for level, found in texts_by_level(rows).items() if found}
    draws = random.Random(seed)
    router, device = model.text_encoder.sam3i_adapter, model.device
    parameters = [parameter.requires_grad_(True) for parameter in router.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    levels = torch.tensor([level.index for level in texts], device=device).repeat_interleave(TEXTS_PER_LEVEL)
    correct: deque[float] = deque(maxlen=SHOWN)
    training = model.training
    model.eval()
    progress = progress and process_state().is_main_process
    for _ in tqdm(range(steps), desc="level router", leave=False, disable=not progress):
        drawn = [draws.choice(found) for found in texts.values() for _ in range(TEXTS_PER_LEVEL)]
        tokens = processor(text=drawn, return_tensors="pt").to(device)
        logits = model.predict_levels(tokens["input_ids"], tokens["attention_mask"]).float()
        nn.functional.cross_entropy(logits, levels).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        correct.append((logits.argmax(-1) == levels).float().mean().item())
    model.train(training)
    for parameter in parameters:
        parameter.requires_grad_(False)
    share = sum(correct) / len(correct)
    logger.info(f"Level router: {share:.0%} of the last texts correct")
    return share
