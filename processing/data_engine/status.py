# SPDX-License-Identifier: Apache-2.0
"""What a run has come to: counts per level, kind and granularity, what each check found, cost, reviewers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .append_log import read_log
from .checks.decision import ACCEPTED
from .review.review import ReviewDesk
from .run import RunDirectory


def run_status(run: RunDirectory) -> dict[str, Any]:
    """Counts of a run, as plain values; a run at work may be asked, too.

    `outcomes` holds what the machines said and `settled` what stands after people's decisions; `accepted` counts by
    "level/kind/granularity", `failures` by check, `calls` what the chat models took.
    """
    desk = ReviewDesk(run)
    pictures = targets = 0
    for record in run.records():
        pictures += 1
        targets += len(record["targets"])
    machine, settled, cells, failures, by_level = Counter(), Counter(), Counter(), Counter(), Counter()
    for pair, target, _, outcome, _ in desk.settled():
        machine[pair["outcome"]] += 1
        settled[outcome] += 1
        by_level[pair["level"]] += 1
        failures.update(item["check"] for item in pair["checks"] if item["verdict"] == "fail")
        if outcome == ACCEPTED:
            cells[f"{pair['level']}/{target['kind']}/{target['granularity']}"] += 1
    return {
        "pictures": pictures,
        "targets": targets,
        "instructions": sum(machine.values()),
        "outcomes": dict(sorted(machine.items())),
        "settled": dict(sorted(settled.items())),
        "acceptance_rate": round(settled[ACCEPTED] / sum(settled.values()), 4) if settled else None,
        "accepted": dict(sorted(cells.items())),
        "written": dict(sorted(by_level.items())),
        "failures": dict(sorted(failures.items())),
        "calls": _calls(run),
        "reviewers": dict(sorted(desk.authors().items())),
        "agreement": desk.agreement(),
        "waiting": len(desk.queue()),
        "config": run.config.to_dict(),
    }


def _calls(run: RunDirectory) -> dict[str, int]:
    """Answered calls and their tokens; `in_doubt` were on their way when a process died, and have no outcome."""
    counts, open_keys = Counter(), set()
    for line in read_log(run.calls_path):
        if line["event"] == "sent":
            open_keys.add(line["key"])
            continue
        open_keys.discard(line["key"])
        counts["failed"] += line["event"] == "failed"
        counts["answered"] += line["event"] == "answered"
        counts["prompt_tokens"] += line["prompt_tokens"]
        counts["completion_tokens"] += line["completion_tokens"]
    names = ("answered", "failed", "prompt_tokens", "completion_tokens")
    return {name: counts[name] for name in names} | {"in_doubt": len(open_keys)}
