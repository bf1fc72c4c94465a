# SPDX-License-Identifier: Apache-2.0
"""Repositories for others: push, remote code, ONNX."""
