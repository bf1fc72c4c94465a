# SPDX-License-Identifier: Apache-2.0
"""What training compares: targets, matching, criteria and the alignment between levels."""
