# SPDX-License-Identifier: Apache-2.0
"""The picture of the architecture belongs to the code."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("architecture", EXAMPLES / "architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_picture_is_up_to_date(example):
    drawn = example.architecture()
    saved = (EXAMPLES / "assets" / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == saved, "run `python examples/architecture.py`"
    root = ElementTree.fromstring(drawn)
    words = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    frozen, cascade, _ = example.count_parameters("cascade")
    assert f"frozen SAM3: {example.size(frozen.total())}" in words and example.size(cascade.total()) in words
    assert 840e6 < frozen.total() < 841e6 and 313e6 < cascade.total() < 315e6
    assert not re.search(r"href|url\(|<script", drawn)


@pytest.mark.parametrize(("number", "words"), [(454_040_576, "454 M"), (9_470_000, "9.5 M"), (92_100, "92 k")])
def test_size(example, number, words):
    assert example.size(number) == words
