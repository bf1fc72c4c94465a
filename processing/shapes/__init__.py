# SPDX-License-Identifier: Apache-2.0
"""The shapes world: deterministic scenes, exact masks, instructions of every level."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "clips": ["ShapesClip", "moving_clips"],
        "dataset": ["ShapesCase", "ShapesInstructionDataset", "shapes_rows", "world_rows", "write_official_json"],
        "domain": ["OUTDOORS", "ShapesDomain"],
        "lexicon": ["DESCRIPTORS", "LEXICON", "PLURALS", "WorldWords", "vocabulary"],
        "questions": ["families_of"],
        "rendering": ["COLORS", "IMAGE_SIZE", "NOUNS", "ShapeObject"],
        "tokenizer": ["MAX_TOKENS", "build_tokenizer"],
        "world": ["HELD_OUT_PAIRS", "Scene", "ShapesWorld"],
        "writer": ["UNHEARD", "InstructionWriter"],
    },
)
