# SPDX-License-Identifier: Apache-2.0
"""Lets the tests of this folder import the helpers beside them, and gives them the Hub's fixtures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from hub_server import hub_here, hub_server  # noqa: E402, F401
