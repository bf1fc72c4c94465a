# SPDX-License-Identifier: Apache-2.0
"""Outputs appear whole or not at all; fingerprints know content."""

import os
from pathlib import Path

import pytest
import torch

from sam3i.processing.atomic import FolderInUseError, folder_lock, refuse_same, write_whole
from sam3i.processing.fingerprint import fingerprint_files, fingerprint_json, fingerprint_tensors


def test_an_output_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "rows.jsonl"
    with write_whole(target) as partial:
        partial.write_text("all")
        assert not target.exists() and partial.suffix == ".jsonl"
    assert target.read_text() == "all"
    with pytest.raises(RuntimeError), write_whole(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "all" and os.listdir(target.parent) == ["rows.jsonl"]


def test_a_folder_appears_whole_too(tmp_path):
    with write_whole(tmp_path / "out") as partial:
        partial.mkdir()
        (partial / "a").write_text("a")
    assert (tmp_path / "out" / "a").read_text() == "a"


def test_a_source_is_never_its_own_target(tmp_path):
    source, link = tmp_path / "a.jsonl", tmp_path / "link.jsonl"
    source.write_text("rows")
    link.symlink_to(source)
    for target in (source, link, tmp_path / "x" / ".." / "a.jsonl"):
        with pytest.raises(ValueError, match="other than the source"):
            refuse_same(source, target)
    with pytest.raises(ValueError, match="other than the source"):
        refuse_same(tmp_path, source)
    refuse_same(source, tmp_path / "b.jsonl")
    refuse_same("owner/name", source)


def test_one_writer_per_folder(tmp_path):
    with folder_lock(tmp_path / "run"):
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()}"), folder_lock(tmp_path / "run"):
            pass
    with folder_lock(tmp_path / "run"):
        pass


def test_files_are_known_by_content_not_by_place_or_time(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in "ab":
        (tmp_path / folder / "x.json").write_text("1")
    first = fingerprint_files([tmp_path / "a" / "x.json"])
    assert fingerprint_files([tmp_path / "b" / "x.json"]) == first
    assert fingerprint_files([tmp_path / "a"]) == fingerprint_files([tmp_path / "b"])
    (tmp_path / "b" / "x.json").write_text("2")
    os.utime(tmp_path / "b" / "x.json", ns=(1, 1))
    assert fingerprint_files([tmp_path / "b" / "x.json"]) != first
    with pytest.raises(OSError):
        fingerprint_files([tmp_path / "absent"])


def test_values_and_tensors_are_known_by_content():
    assert fingerprint_json({"a": 1, "b": (1, Path("x"))}) == fingerprint_json({"b": [1, "x"], "a": 1})
    assert fingerprint_json({"a": 1}) != fingerprint_json({"a": 1.5})
    with pytest.raises(TypeError):
        fingerprint_json(object())
    state = {"w": torch.arange(6.0).reshape(2, 3), "s": torch.tensor(1, dtype=torch.bfloat16)}
    same = fingerprint_tensors(dict(reversed(state.items())))
    assert fingerprint_tensors(state) == same
    for other in (torch.arange(6.0).reshape(3, 2), torch.arange(6).reshape(2, 3), torch.zeros(2, 3)):
        assert fingerprint_tensors({**state, "w": other}) != same
