# SPDX-License-Identifier: Apache-2.0
"""Systems to evaluate: SAM3-I, stock SAM3, and SAM3 with a chat model as agent."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "agent.agent": ["AgentSegmenter"],
        "agent.oracle": ["OracleAgent"],
        "segmenters": ["PhraseDetector", "Sam3ISegmenter", "StockSam3Segmenter"],
    },
)
