# SPDX-License-Identifier: Apache-2.0
"""Model cards, written from what a training and an evaluation left behind."""
