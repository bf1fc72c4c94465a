# SPDX-License-Identifier: Apache-2.0
"""What is too large to be an image, for readers and checks of rows alike; the latter do not need Pillow for it."""

MAX_PIXELS = 178_956_970
"""Pixels of the largest image that is decoded: where Pillow itself suspects a decompression bomb."""
