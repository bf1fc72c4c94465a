# SPDX-License-Identifier: Apache-2.0
"""Lets the tests of this folder import the helpers beside them (pytest's importlib mode does not)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "processing"))  # its scripted chat endpoint
