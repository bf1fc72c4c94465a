# SPDX-License-Identifier: Apache-2.0
"""Runs `device_purity_cases.py` in a process of its own: PyTorch forgets no device that it has been told of."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("which", ["selective", pytest.param("", marks=pytest.mark.slow)])
def test_no_operation_mixes_devices_and_the_host_waits_as_often_as_with_stock(which):
    cases = Path(__file__).with_name("device_purity_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which, str(cases)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
