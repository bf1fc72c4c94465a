# SPDX-License-Identifier: Apache-2.0
"""Predictions held against targets: protocols, metrics, results."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "evaluate": ["evaluate_model", "evaluate_segmenter"],
        "mask_scores": ["encode_prediction", "encode_reference", "match_instances", "sweep_masks"],
        "metrics": ["InstructionSegmentationMetric"],
        "protocols": ["get_protocol"],
        "result": [
            "LOWEST_SCORE",
            "THRESHOLDS",
            "EvaluationResult",
            "calibration_error",
            "choose_threshold",
            "run_samples",
        ],
        "stage_evaluation": ["ConceptCheck"],
        "tables": ["format_results"],
    },
)
