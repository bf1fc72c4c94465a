# SPDX-License-Identifier: Apache-2.0
"""The loop over one picture: targets are planned, instructions written, checked, decided on, written again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from ...modeling_sam3i.instruction_levels import InstructionLevel
from ..chat.client import Message, chat_message
from ..language.meaning import Meaning, denote
from ..language.nouns import NounForms
from .calls import PaidCalls
from .checks import (
    DROPPED,
    FAIL,
    UNSURE,
    Candidate,
    CheckResult,
    DuplicateCheck,
    Grounder,
    TokenCounter,
    check_denotation,
    check_length,
    check_level,
    checker_result,
    decide,
    grounding_result,
    number_instances,
)
from .run import EngineConfig
from .scene.facts import Facts
from .scene.scene import AnnotatedScene
from .writers.chat_writer import ChatChecker, ChatWriter, UnusableAnswerError
from .writers.template_writer import TargetPlan, TemplateWriter

CONCEPT, SIMPLE, COMPLEX = InstructionLevel
MAX_REJECTED = 8  # rejected texts that a writer is reminded of


@dataclass
class Toolbox:
    """What the engine works with; the models are optional."""

    nouns: tuple[str, ...]
    count_tokens: TokenCounter
    forms: NounForms = field(default_factory=NounForms)
    calls: PaidCalls | None = None
    writer: ChatWriter | None = None
    checker: ChatChecker | None = None
    grounder: Grounder | None = None


class InstructionLoop:
    """Works through one picture; the result depends on the seed, the picture and the models' answers alone."""

    def __init__(self, scene: AnnotatedScene, config: EngineConfig, tools: Toolbox):
        self.scene = scene
        self.config = config
        self.tools = tools
        self.facts = Facts(scene)
        self.rng = Random(f"{config.seed}/{scene.image_id}")
        self.duplicates = DuplicateCheck()
        self.levels = tuple(InstructionLevel.from_any(level) for level in config.levels)
        self.planner = TemplateWriter(tools.nouns, self.levels)

    def run(self) -> list[dict[str, Any]]:
        """One record per target, with every text that was written for it."""
        records, seen = [], set()
        for number, plan in enumerate(self._plans()):
            # Two questions about one target share a record's row, so a question is what counts here.
            identity = (plan.targets, plan.kind, plan.noun, plan.meaning if self.tools.writer is None else None)
            if identity in seen:
                continue
            seen.add(identity)
            pairs = self._by_template(plan, number) if self.tools.writer is None else self._by_chat(plan, number)
            if pairs:
                records.append(self._record(plan, pairs))
        return records

    def _plans(self) -> Iterator[TargetPlan]:
        """What to write about: for a chat model the rows' own targets where the rows do not hold all of a category."""
        most = self.config.targets_per_image
        for target in self.scene.row_targets:
            if target.noun in self.scene.partial_nouns and target.kind in self.config.kinds:
                if self.tools.writer is None:
                    reason = "row whose category is not annotated in full (--writer can take it, templates cannot)"
                    self.scene.left_out.add(reason, f"row {target.row_id}: {target.noun}")
                elif most:
                    most -= 1
                    yield TargetPlan(target.targets, target.kind, target.noun)
        for _ in range(most):
            plan = self.planner.draw(self.facts, self.config.kinds, self.rng)
            if plan is not None:
                yield plan

    def _record(self, plan: TargetPlan, pairs: list[dict[str, Any]]) -> dict[str, Any]:
        meaning = plan.meaning.to_dict() if plan.meaning is not None and self.tools.writer is None else None
        return {
            "targets": list(plan.targets),
            "kind": plan.kind,
            "noun": plan.noun,
            "granularity": plan.granularity,
            "meaning": meaning,
            "pairs": pairs,
        }

    def _by_template(self, plan: TargetPlan, number: int) -> list[dict[str, Any]]:
        candidates = [Candidate(level, text, plan) for level, text in self.planner.write(plan, self.facts, self.rng)]
        return self._check(candidates, f"{number}/0")

    def _by_chat(self, plan: TargetPlan, number: int) -> list[dict[str, Any]]:
        """Asks the writer until every wanted text is kept or the retries are used up."""
        writer = self.tools.writer
        if writer is None or plan.noun is None:
            return []
        plan = TargetPlan(plan.targets, plan.kind, plan.noun, plan.granularity)
        counts = {SIMPLE: self.config.simple_texts, COMPLEX: self.config.complex_texts}
        wanted = {level: count for level, count in counts.items() if count and level in self.levels}
        pairs = self._concept(plan, number)
        rejected: list[tuple[str, str]] = []
        answers: set[str] = set()
        for attempt in range(self.config.max_retries + 1):
            if not wanted:
                break
            name = f"{number}/{attempt}"
            messages, schema = writer.request(self.scene, plan, wanted, rejected)
            answer = self._ask("writer", name, messages, schema)
            if writer.greedy and answer in answers:
                break  # a model without randomness that repeats itself will do so again, and be paid for it
            answers.add(answer)
            try:
                written = writer.parse(answer, wanted)
            except UnusableAnswerError as error:
                form = CheckResult("form", FAIL, f"The answer was not in the form asked for: {error}.")
                pairs.append(self._pair(f"{name}/answer", None, answer[:500], [form], DROPPED, form.reason))
                rejected = [*rejected, (answer[:80], form.reason)][-MAX_REJECTED:]
                continue
            found = self._check([Candidate(level, text, plan) for level, text in written], name)
            pairs += found
            for pair in found:
                if pair["outcome"] == DROPPED:
                    rejected.append((pair["text"], pair["reason"]))
                else:
                    level = InstructionLevel.from_any(pair["level"])
                    wanted[level] -= 1
            wanted = {level: count for level, count in wanted.items() if count > 0}
            rejected = rejected[-MAX_REJECTED:]
        return pairs

    def _concept(self, plan: TargetPlan, number: int) -> list[dict[str, Any]]:
        """The noun itself, where it denotes the target; no model needs to be asked for it."""
        found = denote(Meaning(plan.noun), self.facts) if CONCEPT in self.levels else None
        if (
            found is None
            or plan.noun is None
            or plan.targets != tuple(sorted(self.scene.instances[i].annotation_id for i in found))
        ):
            return []
        return self._check([Candidate(CONCEPT, plan.noun, plan)], f"{number}/noun")

    def _check(self, candidates: Sequence[Candidate], name: str) -> list[dict[str, Any]]:
        """Checks candidates, the cheap checks first; the models see only what has passed those."""
        results: list[list[CheckResult]] = []
        alive: list[int] = []
        for index, candidate in enumerate(candidates):
            found = self._cheap(candidate)
            results.append(found)
            if all(item.verdict != FAIL for item in found):
                alive.append(index)
                self.duplicates.keep(candidate)
        if alive and (checker := self.tools.checker) is not None:
            for index, result in zip(alive, self._asked(checker, [candidates[i] for i in alive], name), strict=True):
                results[index].append(result)
        if alive and self.tools.grounder is not None:
            texts = [candidates[i].text for i in alive]
            levels = [candidates[i].level.value for i in alive]
            masks = self.tools.grounder(self.scene.open_image(), texts, levels)
            for index, mask in zip(alive, masks, strict=True):
                minimum = self.config.min_grounding_iou
                results[index].append(grounding_result(candidates[index], self.facts, mask, minimum))
        pairs = []
        for index, (candidate, found) in enumerate(zip(candidates, results, strict=True)):
            outcome, reason = decide(found)
            if index not in alive and outcome != DROPPED:  # a cheap check failed, so no model was asked
                outcome, reason = DROPPED, next(item.reason for item in found if item.verdict == FAIL)
            pairs.append(self._pair(f"{name}/{index}", candidate.level, candidate.text, found, outcome, reason))
        return pairs

    def _cheap(self, candidate: Candidate) -> list[CheckResult]:
        tools = self.tools
        steps: tuple[Callable[[], CheckResult], ...] = (
            lambda: check_length(candidate, tools.count_tokens, self.config.max_tokens),
            lambda: check_level(candidate, tools.forms),
            lambda: self.duplicates(candidate),
            lambda: check_denotation(candidate, self.facts, tools.nouns, tools.forms),
        )
        found = []
        for step in steps:
            found.append(step())
            if found[-1].verdict == FAIL:
                break
        return found

    def _asked(self, checker: ChatChecker, candidates: Sequence[Candidate], name: str) -> list[CheckResult]:
        """The checker's answers; an answer of no use is asked for once more, then it is "unsure"."""
        numbers = number_instances(self.facts, candidates[0].plan.noun, self.rng)
        messages, schema = checker.request(self.scene, numbers, [item.text for item in candidates])
        for attempt in range(2):
            answer = self._ask("checker", f"{name}/{attempt}", messages, schema)
            try:
                found = checker.parse(answer, len(candidates))
            except UnusableAnswerError as error:
                reason = f"The checker's answer cannot be used: {error}."
                correction = f"That answer cannot be used: {error}. Answer again with the JSON value alone."
                messages = [*messages, chat_message("assistant", answer), chat_message("user", correction)]
                continue
            return [checker_result(item, numbers, answer) for item, answer in zip(candidates, found, strict=True)]
        return [CheckResult("checker", UNSURE, reason, {"answer": answer[:500]}) for _ in candidates]

    def _ask(self, role: str, name: str, messages: list[Message], schema: dict[str, Any]) -> str:
        if self.tools.calls is None:
            raise ValueError("A chat model needs `calls`: its answers are paid for, and kept.")
        return self.tools.calls.ask(role, f"{self.scene.image_id}/{name}/{role}", messages, schema)

    def _pair(
        self,
        name: str,
        level: InstructionLevel | None,
        text: str,
        results: Sequence[CheckResult],
        outcome: str,
        reason: str,
    ) -> dict[str, Any]:
        return {
            "pair_id": f"{self.scene.image_id}/{name}",
            "level": None if level is None else level.value,
            "text": text,
            "outcome": outcome,
            "reason": reason,
            "checks": [asdict(item) for item in results],
        }
