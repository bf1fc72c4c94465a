# SPDX-License-Identifier: Apache-2.0
"""`python -m sam3i` is the `sam3i` command."""

from .cli import main

if __name__ == "__main__":
    main()
