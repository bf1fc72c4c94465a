# SPDX-License-Identifier: Apache-2.0
"""SAM3-I for Transformers: instruction-following segmentation on frozen SAM3."""

__version__ = "0.1.0"
