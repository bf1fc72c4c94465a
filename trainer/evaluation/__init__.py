# SPDX-License-Identifier: Apache-2.0
"""Predictions held against targets: protocols, metrics, results."""
