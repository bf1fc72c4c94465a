# SPDX-License-Identifier: Apache-2.0
"""The instruction adapters: both designs (cascade, low rank with selector), routing by level, and where they sit."""
