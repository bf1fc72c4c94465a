# SPDX-License-Identifier: Apache-2.0
"""Repositories for others: push, remote code, ONNX."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "onnx": ["OUTPUTS", "OnnxInstructionModel", "export_onnx"],
    },
)
