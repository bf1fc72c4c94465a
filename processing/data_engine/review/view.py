# SPDX-License-Identifier: Apache-2.0
"""What the review page shows of a pair, as pieces of HTML in which text from outside is nothing but text."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from html import escape
from typing import Any

from ..checks.checks import FAIL, PASS, CheckResult
from .review import QueuedPair

MAX_SHOWN = 600  # characters of a text; what is longer is cut, and says so
KINDS = {
    "1-to-1": "one of them",
    "1-to-N": "some of them",
    "1-to-all": "all of them",
    "none": "none: nothing fits",
}
_TITLES = {
    "length": "Length",
    "level": "Level",
    "duplicate": "Duplicates",
    "denotation": "Reading",
    "checker": "Second model",
    "grounding": "Segmenter",
    "form": "Form",
}
_MARKS = {PASS: "✓", FAIL: "✗"}


def visible(text: str) -> str:
    """A text without characters that cannot be seen or that turn its direction: their code points stand for them."""
    shown = "".join(f"⟨U+{ord(sign):04X}⟩" if _is_hidden(sign) else sign for sign in text)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]} … ({len(text)} characters)"


def without_hidden(text: str) -> str:
    """A text for a field in which it is edited: what cannot be seen is left out."""
    return "".join(sign for sign in text if not _is_hidden(sign))


def _is_hidden(sign: str) -> bool:
    """Control and format characters; the joiners of scripts and emoji are part of words."""
    return sign not in "\u200c\u200d" and unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def as_text(value: Any) -> str:
    """Any value as HTML that shows it letter by letter; braces and dollars mean something to templates, so they go."""
    shown = escape(visible(str(value)), quote=True)
    for sign in "${}`\\":
        shown = shown.replace(sign, f"&#{ord(sign)};")
    return f"<bdi>{shown}</bdi>"


def header(run: str, progress: Mapping[str, int], agreement: Mapping[str, Any], reviewer: str | None) -> str:
    """The line on top: the run, how far it is, agreement, who is at work."""
    total = progress["done"] + progress["left"]
    share = progress["done"] / total if total else 1.0
    kept = f"{progress['kept'] / progress['done']:.0%}" if progress["done"] else "–"
    facts = [("done", progress["done"]), ("left", progress["left"]), ("kept", kept)]
    if agreement["pairs"]:
        kappa = "" if agreement["kappa"] is None else f" · κ {agreement['kappa']:.2f}"
        facts.append(("agreement", f"{agreement['observed']:.0%} of {agreement['pairs']}{kappa}"))
    numbers = "".join(f'<span class="fact" id="fact-{name}"><b>{value}</b> {name}</span>' for name, value in facts)
    who = "" if reviewer is None else f'<span class="who" title="reviewer">{as_text(reviewer)}</span>'
    return (
        f'<div class="head"><div class="title"><h1>Review</h1><span class="run">{as_text(run)}</span></div>'
        f'<div class="bar" role="progressbar" aria-valuenow="{100 * share:.0f}"><i style="width:{100 * share:.1f}%">'
        f'</i></div><div class="facts">{numbers}</div>{who}</div>'
    )


def question(item: QueuedPair) -> str:
    """What the instruction is to be: level, kind, granularity, category; and why a person is asked."""
    level, target = item.pair["level"], item.target
    count = len(target["targets"])
    pills = [f'<span class="pill level-{level}">{as_text(level)}</span>']
    pills.append(f'<span class="pill" title="target kind"><b>{as_text(target["kind"])}</b></span>')
    pills.append(f'<span class="pill" title="granularity">{as_text(target["granularity"])}</span>')
    noun = "anything" if target["noun"] is None else target["noun"]
    targets = "no target" if not count else f"{count} target{'s' * (count > 1)}"
    wanted = f"{KINDS.get(target['kind'], '')}"
    return (
        f'<div class="question">{"".join(pills)}<span class="wanted">{as_text(noun)} · {wanted} · {targets}</span>'
        f'</div><p class="why">{as_text(item.pair["reason"])}</p>'
    )


def evidence(item: QueuedPair, numbers: Mapping[int, int]) -> str:
    """The verdict of each check with what it rests on.

    Args:
        item: the pair.
        numbers: number in the picture by annotation id.
    """
    rows = []
    for check in item.pair["checks"]:
        details = _details(check, numbers)
        reason = f'<span class="reason">{as_text(check["reason"])}</span>' if check["reason"] else ""
        rows.append(
            f'<li class="check {_class(check["verdict"])}"><span class="mark">{_mark(check["verdict"])}</span>'
            f'<span class="name">{as_text(_TITLES.get(check["check"], check["check"]))}</span>'
            f'<span class="found">{reason}<span class="details">{details}</span></span></li>'
        )
    return f'<ul class="checks">{"".join(rows)}</ul>'


def edit_report(results: list[CheckResult], may_insist: bool) -> str:
    """What the checks say against an edited instruction."""
    failed = [item for item in results if item.verdict == FAIL]
    rows = "".join(
        f"<li><b>{as_text(_TITLES.get(item.check, item.check))}</b> {as_text(item.reason)}</li>" for item in failed
    )
    advice = "Save it again to keep it all the same, or change it." if may_insist else "Change it, then save it again."
    return notice(f"<p>The new words were not saved:</p><ul>{rows}</ul><p>{advice}</p>", "error")


def notice(content: str, kind: str = "info") -> str:
    """A message; `content` is HTML whose outside text has been through [`as_text`]."""
    return (
        f'<div class="notice {kind}" role="{"alert" if kind == "error" else "status"}">{content}</div>'
        if content
        else ""
    )


def finished(progress: Mapping[str, int], waiting: int) -> str:
    """What stands in the place of a picture when nothing is left for a reviewer."""
    lines = [f"You decided on {progress['decided']}."]
    if progress["skipped"]:
        lines.append(f"{progress['skipped']} skipped.")
    if waiting:
        lines.append(f"{waiting} wait for other reviewers.")
    return f'<div class="finished" id="finished"><h2>Nothing is left for you</h2><p>{" ".join(lines)}</p></div>'


def _details(check: Mapping[str, Any], numbers: Mapping[int, int]) -> str:
    """The evidence of a check as a phrase."""
    seen = check["evidence"]
    known = {
        "length": ("tokens", "max_tokens"),
        "level": ("noun", "named_by", "reads_as"),
        "duplicate": ("other", "overlap", "same_target"),
        "denotation": ("family", "denotes", "target", "understood"),
        "checker": ("found", "target", "unknown_numbers", "answer"),
        "grounding": ("iou", "instances", "min_iou"),
    }.get(check["check"], ())
    parts = []
    if "tokens" in seen:
        parts.append(f"{as_text(seen['tokens'])} of {as_text(seen.get('max_tokens'))} tokens")
    if seen.get("named_by"):
        parts.append(f"names it: “{as_text(seen['named_by'])}”")
    elif "named_by" in seen and seen.get("noun"):
        parts.append(f"does not name “{as_text(seen['noun'])}”")
    if "reads_as" in seen:
        parts.append(f"reads as {as_text(seen['reads_as'])}")
    if "other" in seen:
        parts.append(f"beside “{as_text(seen['other'])}”")
    if "family" in seen:
        parts.append(as_text(str(seen["family"]).replace("_", " ").replace("+", ", ")))
    for name, verb in (("denotes", "fits"), ("found", "picked")):
        if name in seen:
            target = seen.get("target", [])
            exactly = ", exactly the target" if target and sorted(seen[name]) == sorted(target) else ""
            parts.append(f"{verb} {_instances(seen[name], target, numbers)}{exactly}")
    if "iou" in seen:
        parts.append(f"IoU {as_text(seen['iou'])}, at least {as_text(seen.get('min_iou'))} wanted")
    if "answer" in seen:
        parts.append(f"answered “{as_text(seen['answer'])}”")
    parts += [f"{as_text(name)}: {as_text(value)}" for name, value in seen.items() if name not in known]
    return " · ".join(parts)


def _instances(ids: list[int], target: list[int], numbers: Mapping[int, int]) -> str:
    """The numbers that instances have in the picture, in the colours they have there."""
    if not ids:
        return "nothing"
    shown = sorted((numbers.get(i, i), i in target) for i in ids)
    return " ".join(f'<span class="number{" target" * is_target}">{number}</span>' for number, is_target in shown)


def _mark(verdict: str) -> str:
    return _MARKS.get(verdict, "?")


def _class(verdict: str) -> str:
    return verdict if verdict in (PASS, FAIL) else "unsure"
