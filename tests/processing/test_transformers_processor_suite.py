# SPDX-License-Identifier: Apache-2.0
"""Transformers' own processor tests over our processor and over stock's: ours may fail nothing that stock passes."""

import sys
import unittest

import pytest
from transformers import Sam3Processor

from sam3i import Sam3IProcessor


def common_tests(processor, repository) -> type[unittest.TestCase]:
    """Transformers' common processor tests, bound to a processor class and a saved processor."""
    from transformers_tests.test_processing_common import ProcessorTesterMixin

    class CommonTest(ProcessorTesterMixin, unittest.TestCase):
        processor_class = processor
        model_id = str(repository)

    return CommonTest


def test_ours_fails_nothing_that_stock_passes(run_common_tests, tiny_stock_repos):
    ours = run_common_tests(common_tests(Sam3IProcessor, tiny_stock_repos["sam3"]))
    assert sum(outcome == "passed" for outcome, _ in ours.values()) > 10
    failed = {name for name, (outcome, _) in ours.items() if outcome == "failed"}
    stock = run_common_tests(common_tests(Sam3Processor, tiny_stock_repos["sam3"]), only=failed)
    worse = {name: ours[name][1][-1500:] for name in failed if stock[name][0] != "failed"}
    assert not worse, "\n\n".join(f"{name}: {why}" for name, why in worse.items())


@pytest.mark.slow
def test_table_of_outcomes(run_common_tests, tiny_stock_repos):
    """`pytest -s -m slow` prints the table of the README."""
    for label, processor in (("stock Sam3Processor", Sam3Processor), ("Sam3IProcessor", Sam3IProcessor)):
        found = [
            outcome for outcome, _ in run_common_tests(common_tests(processor, tiny_stock_repos["sam3"])).values()
        ]
        counts = {kind: found.count(kind) for kind in ("passed", "skipped", "failed")}
        sys.stdout.write(f"{label}: {counts}\n")
        assert sum(counts.values()) > 50
