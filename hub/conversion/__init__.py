# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the authors' code as repositories, every tensor accounted for."""
