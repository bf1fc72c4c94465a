# SPDX-License-Identifier: Apache-2.0
"""The shapes world: deterministic scenes, exact masks, instructions of every level."""
