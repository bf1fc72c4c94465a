# SPDX-License-Identifier: Apache-2.0
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine_faulty_models import FaultyModels
from engine_session import run_session
from PIL import Image
from scripted_chat import Answer, ScriptedChatServer

from sam3i.processing.atomic import FolderInUseError, folder_lock
from sam3i.processing.chat.client import ChatModel, ChatReply, ChatUnavailableError, ChatUsage, chat_message
from sam3i.processing.data_engine.calls import (
    Budget,
    BudgetExhaustedError,
    ChangedRequestError,
    EndpointSpec,
    PaidCalls,
)
from sam3i.processing.data_engine.engine import DataEngine
from sam3i.processing.data_engine.run import (
    EngineConfig,
    RunConfigError,
    RunDirectory,
    digest_of_image,
    merge_runs,
)
from sam3i.processing.data_engine.scene.sources import ShapesSource
from sam3i.processing.data_engine.store import RunStore, StoreError

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
                process.wait(rng.uniform(0, 0.5))
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
    counts = killed_run.store.call_counts()
    assert counts["answered"] == counts["calls"] == len(paid), "an answer that was paid for is not in the store"
    assert summary.accepted > 0
    return killed


def test_kill_9_loses_and_repeats_nothing(tmp_path):
    check_killing(tmp_path, num_scenes=3, kills=1)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kill_9_at_twenty_moments(tmp_path):
    assert check_killing(tmp_path, num_scenes=30, kills=20) == 20


def test_second_process_is_kept_out(tmp_path):
    run = RunDirectory(tmp_path, EngineConfig(source="shapes"))
    with folder_lock(tmp_path), pytest.raises(FolderInUseError, match="one writer"):
        DataEngine(ShapesSource(1), run).build(progress=False)
    assert DataEngine(ShapesSource(1), run).build(progress=False).pictures == 1


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


def test_no_budget_is_passed_and_the_run_goes_on_under_the_next(tmp_path):
    models = FaultyModels(3)
    budgets = (Budget(max_calls=4), Budget(max_tokens=6000), Budget(max_cost=0.05, prompt_price=9))
    with models.server:

        def session(budget=None):
            return run_session(tmp_path, models.server.base_url, 3, budget=budget, targets_per_image=2)

        for budget in budgets:
            before = sum(models.paid.values())
            run, engine, summary = session(budget)
            assert "raise the cap" in summary.stopped
            spent = engine.calls.spent
            assert sum(models.paid.values()) == spent["calls"] > before
            tokens = spent["prompt_tokens"] + spent["completion_tokens"]
            assert budget.max_calls is None or spent["calls"] <= budget.max_calls
            assert budget.max_tokens is None or tokens <= budget.max_tokens
            assert budget.max_cost is None or engine.calls.cost <= budget.max_cost
        _, _, again = session()
    assert again.stopped is None
    assert set(models.paid.values()) == {1}
    assert len(run.store.finished_ids()) == 3


class Paid(ChatModel):
    """A model that counts what it is asked."""

    num_parameters = None

    def __init__(self, answer=None):
        super().__init__("paid", max_tokens=100)
        self.asked, self.answer = 0, answer or (lambda number: '"yes"')

    def _generate(self, messages, json_schema):
        self.asked += 1
        return ChatReply(self.answer(self.asked), ChatUsage(1, 0, 10, 2))


def ask(calls, key):
    return calls.ask("writer", key, [chat_message("user", "?")], {"type": "string"})


def test_a_paid_answer_is_not_paid_again(tmp_path):
    store, model = RunStore(tmp_path), Paid()
    with PaidCalls(store, {"writer": model}) as calls:
        assert ask(calls, "a") == ask(calls, "a") == '"yes"'
        with pytest.raises(ChangedRequestError, match="other words"):
            calls.ask("writer", "a", [chat_message("user", "!")], {"type": "string"})
    with PaidCalls(RunStore(tmp_path), {"writer": model}, Budget(max_calls=1)) as calls:
        assert ask(calls, "a") == '"yes"' and model.asked == 1
        with pytest.raises(BudgetExhaustedError, match="raise the cap"):
            ask(calls, "b")


def test_a_call_without_an_outcome_stays_on_the_bill(tmp_path):
    store = RunStore(tmp_path)
    store.set_room_aside(True)
    store.note_sent("a", "?")  # and the process that made it was killed
    with PaidCalls(RunStore(tmp_path), {"writer": Paid()}) as calls:
        assert calls.spent["calls"] == 1 and store.call_counts()["in_doubt"] == 1
        ask(calls, "a")
        assert calls.spent == {"calls": 2, "prompt_tokens": 10, "completion_tokens": 2}
    assert store.call_counts() | {"in_doubt": 0, "calls": 2, "answered": 1} == store.call_counts()


def test_a_call_that_timed_out_counts_as_one_that_may_be_paid(tmp_path):
    with ScriptedChatServer(lambda request, index: Answer("late", delay=5)) as server:
        spec = EndpointSpec(server.base_url, "w", timeout=0.5)
        with PaidCalls(RunStore(tmp_path), {"writer": spec}, Budget(max_calls=1)) as calls:
            with pytest.raises(ChatUnavailableError, match="may be on the bill"):
                ask(calls, "a")
            with pytest.raises(BudgetExhaustedError, match="raise the cap"):
                ask(calls, "b")
        assert len(server.requests) == 1
    counts = RunStore(tmp_path).call_counts()
    assert (counts["answered"], counts["failed"], counts["in_doubt"], counts["maybe_paid"]) == (0, 1, 0, 1)


def test_a_full_disk_is_one_error_and_loses_no_answer(tmp_path):
    """The answer that is on its way is kept in the room set aside; no further call is made."""

    def fill_the_disk(number):
        store.room = store.pages()
        return '"' + "yes" * 20_000 + '"'

    class Disk(RunStore):
        room = None

        def pages(self):
            return self._db.execute("PRAGMA page_count").fetchone()[0]

        def _write(self, query, *values):
            if self.room is not None:  # a file has no more pages until the room that was set aside is given back
                most = self.room + (0 if self._reserve.exists() else 1000)
                self._db.execute(f"PRAGMA max_page_count={most}")
            super()._write(query, *values)

    store = Disk(tmp_path)
    model = Paid(fill_the_disk)
    with PaidCalls(store, {"writer": model}) as calls:
        assert len(ask(calls, "a")) > 50_000
        with pytest.raises(StoreError, match="free space and run again"):
            ask(calls, "b")
    assert model.asked == 1
    store = RunStore(tmp_path)
    with PaidCalls(store, {"writer": Paid()}) as calls:
        assert len(ask(calls, "a")) > 50_000 and ask(calls, "b") == '"yes"'
    assert store.call_counts()["answered"] == 2


def test_a_process_that_is_killed_with_its_calls_ends_the_session_in_words(tmp_path):
    with ScriptedChatServer(lambda request, index: Answer("late", delay=5)) as server:
        calls = PaidCalls(RunStore(tmp_path), {"writer": EndpointSpec(server.base_url, "w")})
        with calls, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, calls, "a")
            while not server.requests:
                time.sleep(0.02)
            calls._process.kill()
            with pytest.raises(ChatUnavailableError, match="has ended"):
                asked.result()
    assert RunStore(tmp_path).call_counts()["in_doubt"] == 1


def test_a_run_of_version_0_1_is_read_and_not_gone_on_with(tmp_path):
    run = RunDirectory(tmp_path / "new", EngineConfig(source="shapes"))
    DataEngine(ShapesSource(2), run).build(progress=False)
    old = tmp_path / "old"
    old.mkdir()
    config = {name: value for name, value in run.config.to_dict().items() if name != "fingerprint"}
    (old / "config.json").write_text(json.dumps({"format": 1, "config": config}))
    lines = [json.dumps(record) + "\n" for record in run.records()]
    (old / "records.jsonl").write_text("".join(lines) + '{"torn')
    spent = {"calls": 1, "retries": 0, "prompt_tokens": 5, "completion_tokens": 6, "seconds": 1.0}
    call = {"event": "answered", "key": "k", "request": "r", "text": "t", "time": 1.0} | spent
    sent = {"event": "sent", "key": "k", "request": "r", "model": "m", "time": 0.0}
    (old / "calls.jsonl").write_text(json.dumps(sent) + "\n" + json.dumps(call) + "\n")
    found = RunDirectory(old)
    assert list(found.records()) == list(run.records())
    assert found.store.call_counts()["completion_tokens"] == 6
    assert len(list(RunDirectory(old).records())) == 2
    with pytest.raises(RunConfigError, match=r"sam3i 0\.1.*choose a new folder"):
        RunDirectory(old, run.config)


def test_a_run_whose_data_or_images_changed_is_not_gone_on_with(tmp_path):
    RunDirectory(tmp_path / "run", EngineConfig(source="instances a.json", fingerprint="1"))
    with pytest.raises(RunConfigError, match="data of instances a.json have changed"):
        RunDirectory(tmp_path / "run", EngineConfig(source="instances a.json", fingerprint="2"))
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    run = RunDirectory(tmp_path / "other", EngineConfig(source="shapes"))
    record = {"image_id": "a", "order": 0, "image": str(image), "image_digest": digest_of_image(str(image))}
    run.store.add_picture(record, {})
    run.check_images()
    Image.new("RGB", (8, 8), "red").save(image)
    with pytest.raises(RunConfigError, match="not the image"):
        DataEngine(ShapesSource(1), run).build(progress=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_killed_shard_is_run_again_and_the_merged_run_equals_the_single_one(tmp_path, executor):
    """Four tasks of datatrove's executor, one of them killed at work; the same command again ends it."""
    pytest.importorskip("datatrove")
    pytest.importorskip("datatrove" if executor == "local" else "ray")
    command = [sys.executable, "-m", "sam3i", "data", "build"]
    scenes = ["--shapes", "80", "--targets", "20"]
    subprocess.run([*command, str(tmp_path / "single"), *scenes], check=True)
    run = tmp_path / "run"
    sharded = [*command, str(run), *scenes, "--executor", executor, "--tasks", "4"]
    process = subprocess.Popen(sharded)
    holder = run / "shards" / "00002" / ".lock-holder"
    while process.poll() is None and not (holder.exists() and holder.read_text()):
        time.sleep(0.05)
    os.kill(int(holder.read_text().split()[1]), signal.SIGKILL)
    assert process.wait() == 1 and not (run / "config.json").exists()
    subprocess.run(sharded, check=True)
    single, merged = RunDirectory(tmp_path / "single"), RunDirectory(run)
    assert merged.ordered_records() == single.ordered_records() and merged.config == single.config
    assert len(single.ordered_records()) == 80
