# SPDX-License-Identifier: Apache-2.0
"""Predictions as files, logs and pairs to compare."""
