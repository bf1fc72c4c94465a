# SPDX-License-Identifier: Apache-2.0
"""A second world: ordinary named things, from a freely licensed set of pictograms."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "lexicon": ["KINDS", "NOUNS", "PICTOGRAM_WORDS"],
        "world": ["PictogramsInstructionDataset", "PictogramsWorld"],
    },
)
