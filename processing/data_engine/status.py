# SPDX-License-Identifier: Apache-2.0
"""What a run has come to: counts per level, kind and granularity, what each check found, cost, reviewers."""

from collections import Counter
from typing import Any

from .checks import ACCEPTED
from .review.desk import ReviewDesk
from .run import RunDirectory


def run_status(run: RunDirectory) -> dict[str, Any]:
    """Counts of a run, as plain values; a run at work may be asked, too.

    `outcomes` holds what the machines said and `settled` what stands after people's decisions; `accepted` counts by
    "level/kind/granularity", `left_out` what was not used by reason, `failures` by check, `calls` what the
    chat models took.
    """
    desk = ReviewDesk(run)
    pictures = targets = 0
    for record in run.records():
        pictures += 1
        targets += len(record["targets"])
    machine, settled, cells, failures, by_level = (Counter[str]() for _ in range(5))
    for pair, target, _, outcome, _ in desk.settled():
        machine[pair["outcome"]] += 1
        settled[outcome] += 1
        by_level[pair["level"]] += 1
        failures.update(item["check"] for item in pair["checks"] if item["verdict"] == "fail")
        if outcome == ACCEPTED:
            cells[f"{pair['level']}/{target['kind']}/{target['granularity']}"] += 1
    return {
        "pictures": pictures,
        "left_out": {reason: count for reason, (count, _) in run.store.left_out().items()},
        "targets": targets,
        "instructions": sum(machine.values()),
        "outcomes": dict(sorted(machine.items())),
        "settled": dict(sorted(settled.items())),
        "acceptance_rate": round(settled[ACCEPTED] / sum(settled.values()), 4) if settled else None,
        "accepted": dict(sorted(cells.items())),
        "written": dict(sorted(by_level.items())),
        "failures": dict(sorted(failures.items())),
        "calls": run.store.call_counts(),
        "reviewers": dict(sorted(desk.authors().items())),
        "agreement": desk.agreement(),
        "waiting": len(desk.queue()),
        "config": run.config.to_dict(),
    }


def status_lines(status: dict[str, Any]) -> list[str]:
    """What `run_status` counted, for people: a line each, and words where there is no figure."""
    return [f"{name:<16} {_in_words(name, value)}" for name, value in status.items()]


def _in_words(name: str, value: Any) -> str:
    if name == "acceptance_rate" and value is None:
        return "no instruction yet"
    if name == "agreement":
        if not value["pairs"]:
            return "not known: no instruction has decisions of two reviewers"
        kappa = value["kappa"]
        chance = "kappa says nothing where all decisions are the same" if kappa is None else f"kappa {kappa}"
        return f"{value['observed']} on {value['pairs']} instructions with several decisions, {chance}"
    if isinstance(value, dict):
        shown = (f"{key} {'not set' if item is None else item}" for key, item in value.items())
        return ", ".join(shown) or "none"
    return str(value)
