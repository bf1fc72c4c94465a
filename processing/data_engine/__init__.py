# SPDX-License-Identifier: Apache-2.0
"""The data engine: pictures with instances in, checked instructions out, resumable and accounted for."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".pipeline.loading": ["load_pipeline"],
        "engine": ["DataEngine"],
        "export": ["export_run"],
        "review.page": ["ReviewPage"],
        "review.desk": ["ReviewDesk"],
        "run": ["EngineConfig", "RunDirectory"],
        "scene.segmentation": ["PipelineGrounder"],
        "scene.sources": ["CocoSource", "RowSource", "ShapesSource"],
    },
)
