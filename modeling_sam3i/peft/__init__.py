# SPDX-License-Identifier: Apache-2.0
"""The same adapters as a PEFT method on a stock SAM3."""
