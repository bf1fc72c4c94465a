# SPDX-License-Identifier: Apache-2.0
"""Predictions held against targets: protocols, metrics, results."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "tables": ["format_results"],
        "result": ["LOWEST_SCORE"],
        "evaluate": ["evaluate_model", "evaluate_segmenter"],
        "stage_evaluation": ["ConceptCheck"],
    },
)
