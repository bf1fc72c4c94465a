# SPDX-License-Identifier: Apache-2.0
"""The metric as a script, for `evaluate.load(METRIC_FOLDER, "grefcoco")`; sam3i has to be installed."""

from sam3i.trainer.evaluation import metrics


class InstructionSegmentation(metrics.InstructionSegmentationMetric):
    """See [`InstructionSegmentationMetric`]."""
