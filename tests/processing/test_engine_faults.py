# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import pytest
from engine_faulty_models import FaultyModels
from engine_session import run_session

RATES = {
    "wrong noun": 0.06,
    "leak": 0.06,
    "ambiguous": 0.06,
    "false": 0.06,
    "malformed": 0.05,
    "HTTP 429": 0.05,
    "HTTP 500": 0.03,
    "time-out": 0.01,
}


def figures(tmp_path, num_scenes):
    """(pairs by fault, outcome and check; accepted pairs right and wrong) of a run against faulty models."""
    models = FaultyModels(num_scenes, RATES, checker_error=0.05, timeout=3.0)
    with models.server:
        run, _, summary = run_session(tmp_path, models.server.base_url, num_scenes, timeout=3.0, resend=True)
    assert summary.stopped is None and summary.unavailable == 0
    assert run.store.call_counts()["maybe_paid"] > 0  # requests that timed out and were sent again
    caught, accepted = Counter(), Counter()
    for record in run.records():
        for target in record["targets"]:
            for pair in target["pairs"]:
                if pair["level"] == "concept":
                    continue
                denoted, fault = models.truth.get((record["image_id"], pair["text"]), (None, "malformed"))
                checks = [item["check"] for item in pair["checks"] if item["verdict"] == "fail"]
                caught[fault, pair["outcome"], checks[0] if checks else None] += 1
                if pair["outcome"] == "accepted":
                    accepted[denoted == set(target["targets"])] += 1
    return caught, accepted


def check_figures(caught, accepted, least_pairs):
    pairs = caught.total()
    review = sum(count for (_, outcome, _), count in caught.items() if outcome == "review")
    assert pairs >= least_pairs
    assert accepted[True] / accepted.total() >= 0.99, accepted
    assert review / pairs <= 0.10, review
    for fault, check in (("leak", "level"), ("wrong noun", "level"), ("malformed", "form")):
        found = Counter({key: count for key, count in caught.items() if key[0] == fault})
        by_check = sum(count for key, count in found.items() if key[2] == check)
        assert by_check >= 0.8 * found.total() > 0, (fault, found)
    for fault in ("ambiguous", "false"):
        for check in ("denotation", "checker"):
            assert caught[fault, "dropped", check] > 0, (fault, check)


def test_faults_are_caught(tmp_path):
    check_figures(*figures(tmp_path, 14), least_pairs=200)


@pytest.mark.slow
def test_faults_are_caught_at_scale(tmp_path):
    caught, accepted = figures(tmp_path, 135)
    check_figures(caught, accepted, least_pairs=2000)
    for key, count in sorted(caught.items(), key=str):
        print(*key, count)  # noqa: T201
    print(dict(accepted))  # noqa: T201
