# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the authors' code as repositories, every tensor accounted for."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "official": ["convert_official_checkpoint"],
        "official_keys": ["ADAPTER_RULES", "STOCK_RULES", "TRANSFORMS", "Transform"],
    },
)
