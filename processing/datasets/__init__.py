# SPDX-License-Identifier: Apache-2.0

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "loading": ["load_instruction_dataset"],
        "schema": ["TARGET_KINDS", "InstructionRow", "make_row", "row_features", "validate_row"],
    },
)
