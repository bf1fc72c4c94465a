# SPDX-License-Identifier: Apache-2.0
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_faulty_models import FaultyModels
from engine_session import run_session

from sam3i.processing.data_engine.append_log import AppendLog, FolderLock, RunBusyError, read_log
from sam3i.processing.data_engine.budget import Budget
from sam3i.processing.data_engine.engine import DataEngine
from sam3i.processing.data_engine.run import EngineConfig, RunConfigError, RunDirectory, merge_runs
from sam3i.processing.data_engine.scene.sources import ShapesSource

FOLDER = Path(__file__).parent
RATES = {"wrong noun": 0.1, "leak": 0.1, "malformed": 0.1, "HTTP 429": 0.05}


def kill_and_resume(folder, models, num_scenes, kills, rng):
    """Runs sessions, killing the first `kills` of them at random moments; returns how many were killed at work."""
    killed = 0
    command = [sys.executable, str(FOLDER / "engine_session.py"), str(folder), models.server.base_url, str(num_scenes)]
    for session in range(kills * 4):
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if killed < kills:
            before = sum(models.paid.values())
            while sum(models.paid.values()) <= before and process.poll() is None:
                time.sleep(0.01)  # starting takes seconds, in which nothing can be lost
            try:
                process.wait(rng.uniform(0, 1.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
        if process.wait() == 0:
            return killed, session + 1
    raise AssertionError("the run did not finish")


def check_killing(tmp_path, num_scenes, kills):
    models = FaultyModels(num_scenes, RATES, delay=0.2)
    with models.server:
        killed, _ = kill_and_resume(tmp_path / "killed", models, num_scenes, kills, random.Random(kills))
        assert killed >= kills // 2 + 1
        paid = dict(models.paid)
        # An undisturbed run asks the same questions.
        run, _, summary = run_session(tmp_path / "whole", models.server.base_url, num_scenes, targets_per_image=3)
    assert set(paid.values()) == {1}, "a request was paid twice"
    killed_run = RunDirectory(tmp_path / "killed")
    assert killed_run.ordered_records() == run.ordered_records()
    answers = [line["key"] for line in read_log(killed_run.calls_path) if line["event"] == "answered"]
    assert len(answers) == len(set(answers)) == len(paid), "an answer that was paid for is not in the log"
    assert summary.accepted > 0
    return killed


def test_kill_9_loses_and_repeats_nothing(tmp_path):
    check_killing(tmp_path, num_scenes=3, kills=2)


@pytest.mark.slow
def test_kill_9_at_twenty_moments(tmp_path):
    assert check_killing(tmp_path, num_scenes=30, kills=20) == 20


def test_torn_line_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": 3, "b')
    assert [record["a"] for record in read_log(path)] == [1, 2]
    log = AppendLog(path)
    log.append({"a": 4})
    log.close()
    assert [record["a"] for record in read_log(path)] == [1, 2, 4]


def test_second_process_is_kept_out(tmp_path):
    with FolderLock(tmp_path), pytest.raises(RunBusyError, match="another process"), FolderLock(tmp_path):
        pass
    with FolderLock(tmp_path):
        pass


def test_template_run_goes_on_where_it_stopped(tmp_path):
    source = ShapesSource(6)
    config = EngineConfig(source="shapes")
    whole = RunDirectory(tmp_path / "whole", config)
    DataEngine(source, whole).build(progress=False)
    parts = RunDirectory(tmp_path / "parts", config)
    for _ in range(3):
        assert DataEngine(source, parts).build(max_pictures=2, progress=False).pictures == 2
    assert DataEngine(source, parts).build(progress=False).pictures == 0
    assert list(parts.records()) == list(whole.records())


def test_shards_merge_to_the_whole(tmp_path):
    source, folders = ShapesSource(9), []
    for shard in range(3):
        folders.append(tmp_path / f"shard{shard}")
        run = RunDirectory(folders[-1], EngineConfig(source="shapes", shard=shard, num_shards=3))
        assert DataEngine(source, run).build(progress=False).pictures < 9
    whole = RunDirectory(tmp_path / "whole", EngineConfig(source="shapes"))
    DataEngine(source, whole).build(progress=False)
    merged = merge_runs(folders, tmp_path / "merged")
    assert merged.ordered_records() == whole.ordered_records()
    assert merged.config == whole.config
    assert len(list((tmp_path / "merged" / "images").iterdir())) == 9
    with pytest.raises(RunConfigError, match="once each"):
        merge_runs([folders[0], folders[0], folders[1]], tmp_path / "again")
    with pytest.raises(RunConfigError, match="different configurations"):
        merge_runs([folders[0], tmp_path / "whole"], tmp_path / "again")


def test_folder_of_another_run_is_refused(tmp_path):
    RunDirectory(tmp_path, EngineConfig(source="shapes", seed=1))
    with pytest.raises(RunConfigError, match="seed 1 -> 2"):
        RunDirectory(tmp_path, EngineConfig(source="shapes", seed=2))
    with pytest.raises(RunConfigError, match="no run"):
        RunDirectory(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "budget", [Budget(max_calls=9), Budget(max_tokens=5500), Budget(max_cost=0.04, prompt_price=9)]
)
def test_budget_is_never_passed_and_the_run_goes_on(tmp_path, budget):
    models = FaultyModels(3)
    with models.server:
        run, engine, summary = run_session(tmp_path, models.server.base_url, 3, budget=budget, targets_per_image=2)
        assert "raise the cap" in summary.stopped
        spent = engine.tools.calls.spending
        assert sum(models.paid.values()) == spent.calls > 0
        assert budget.max_calls is None or spent.calls <= budget.max_calls
        assert budget.max_tokens is None or spent.prompt_tokens + spent.completion_tokens <= budget.max_tokens
        assert budget.max_cost is None or spent.to_dict()["cost"] <= budget.max_cost
        _, _, again = run_session(tmp_path, models.server.base_url, 3, targets_per_image=2)
    assert again.stopped is None
    assert set(models.paid.values()) == {1}
    assert len(run.finished_ids()) == 3
