# SPDX-License-Identifier: Apache-2.0
"""Repositories for others: push, remote code, graphs for ONNX, OpenVINO and torch.export."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "exported": ["ExportReport", "ExportedModel", "export_graphs", "export_onnx"],
        "graphs": ["OUTPUTS"],
    },
)
