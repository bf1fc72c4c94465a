# SPDX-License-Identifier: Apache-2.0
"""Settings shared by every test: no network, few threads, ground truth where it is present."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(min(2, os.cpu_count() or 1))

REFERENCE = Path(__file__).resolve().parents[1] / ".." / "shared" / "reference"


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder of numeric ground truth; tests that need it are skipped where it is absent."""
    if not REFERENCE.is_dir():
        pytest.skip("the numeric ground truth (../shared/reference) is not present beside this checkout")
    return REFERENCE.resolve()
