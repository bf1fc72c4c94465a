# SPDX-License-Identifier: Apache-2.0
"""A multimodal chat model as writer: it sees the target marked among its siblings and answers in a fixed form."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ....modeling_sam3i.instruction_levels import InstructionLevel
from ...chat.client import Message, chat_message, extract_json, one_line
from ...chat.prompts import VersionedPrompt, load_prompts
from ...drawing.instances import draw_masks, longest_side
from ...language.meaning import ALL, NONE, ONE
from ..scene.scene import AnnotatedScene
from .template_writer import TargetPlan

MAX_CHARACTERS = 300  # of an instruction: a bound for decoders that follow the schema
MAX_WORDS = 22  # 32 tokens of SAM3's context, ends and rare words allowed for


def engine_prompts(folder: str | Path | None = None) -> dict[str, VersionedPrompt]:
    """The prompts of writer and checker: files of `folder`, and the engine's own where it has none."""
    return load_prompts(Path(__file__).parent / "prompts", ("writer", "feedback", "checker"), folder)


class UnusableAnswerError(ValueError):
    """A model's answer does not have the form that was asked for."""


class ChatWriter:
    """Writes the instructions of a target.

    Args:
        greedy: its model gives the same answer to the same request.
    """

    def __init__(self, prompts: Mapping[str, VersionedPrompt], greedy: bool = True):
        self.prompts = prompts
        self.greedy = greedy

    def request(
        self,
        scene: AnnotatedScene,
        plan: TargetPlan,
        wanted: Mapping[InstructionLevel, int],
        rejected: Sequence[tuple[str, str]],
    ) -> tuple[list[Message], dict[str, Any]]:
        """(messages, JSON schema) that ask for texts."""
        feedback = ""
        if rejected:
            lines = "\n".join(f"- {text!r}: {reason}" for text, reason in rejected)
            feedback = self.prompts["feedback"].fill(rejected=lines)
        siblings = [
            item.annotation_id
            for item in scene.nouns.get(plan.noun or "", ())
            if item.annotation_id not in plan.targets
        ]
        text = self.prompts["writer"].fill(
            target_color=TARGET_COLOR[0],
            sibling_color=SIBLING_COLOR[0],
            # as prompt files of one's own may still name them
            **{"target_colour": TARGET_COLOR[0], "sibling_colour": SIBLING_COLOR[0]},
            noun=plan.noun,
            task=_task(plan, len(siblings)),
            levels="\n".join(f'- "{level.value}": {count}' for level, count in wanted.items()),
            max_words=MAX_WORDS,
            feedback=feedback,
        )
        plain = enlarge(scene.open_image())
        marked = mark_target(scene, plan.targets, siblings)
        return [chat_message("user", text, plain, marked)], _schema(wanted)

    @staticmethod
    def parse(text: str, wanted: Mapping[InstructionLevel, int]) -> list[tuple[InstructionLevel, str]]:
        """The texts of an answer, at most as many per level as were wanted.

        Raises:
            UnusableAnswerError: the answer is not of the form.
        """
        answer = _object(text)
        found = []
        for level, count in wanted.items():
            texts = answer.get(level.value)
            if not isinstance(texts, list) or any(not isinstance(item, str) for item in texts):
                raise UnusableAnswerError(f"expected a list of strings under {level.value!r}")
            found += [(level, _line(item)) for item in texts[:count]]
        return found


class ChatChecker:
    """Answers instructions from the picture alone: which of the numbered instances does each ask for?"""

    def __init__(self, prompts: Mapping[str, VersionedPrompt]):
        self.prompts = prompts

    def request(
        self, scene: AnnotatedScene, numbers: Mapping[int, int], texts: Sequence[str]
    ) -> tuple[list[Message], dict[str, Any]]:
        """(messages, JSON schema) for some instructions about one picture; `numbers` is annotation id -> number."""
        listed = "\n".join(f"{index}. {text}" for index, text in enumerate(texts, start=1))
        prompt = self.prompts["checker"].fill(instructions=listed)
        plain = enlarge(scene.open_image())
        answer = {
            "type": "object",
            "properties": {
                "instruction": {"type": "integer", "enum": list(range(1, len(texts) + 1))},
                "matches": {
                    "type": "array",
                    "items": {"type": "integer", "enum": sorted(numbers.values())},
                    "maxItems": len(numbers),
                },
            },
            "required": ["instruction", "matches"],
            "additionalProperties": False,
        }
        schema = {
            "type": "object",
            "properties": {
                "answers": {"type": "array", "items": answer, "minItems": len(texts), "maxItems": len(texts)}
            },
            "required": ["answers"],
            "additionalProperties": False,
        }
        return [chat_message("user", prompt, plain, mark_numbers(scene, numbers))], schema

    @staticmethod
    def parse(text: str, count: int) -> list[set[int]]:
        """The numbers that each of `count` instructions was found to ask for.

        Raises:
            UnusableAnswerError: the answer is not of the form, or lacks an instruction.
        """
        answers = _object(text).get("answers")
        found: dict[int, set[int]] = {}
        for item in answers if isinstance(answers, list) else ():
            matches = item.get("matches") if isinstance(item, dict) else None
            if not isinstance(matches, list) or any(
                type(value) is not int for value in (item.get("instruction"), *matches)
            ):
                raise UnusableAnswerError("expected the number of an instruction, and a list of numbers for it")
            found[item["instruction"]] = set(matches)
        if missing := set(range(1, count + 1)) - set(found):
            raise UnusableAnswerError(f"expected one answer per instruction, found none for {sorted(missing)}")
        return [found[index] for index in range(1, count + 1)]


def _line(text: str) -> str:
    """A text on one line, in characters that UTF-8 can hold (escapes of JSON may stand for halves of one)."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def _object(text: str) -> dict[str, Any]:
    try:
        answer = extract_json(text)
    except ValueError as error:
        raise UnusableAnswerError(f"expected JSON ({one_line(str(error))})") from error
    if not isinstance(answer, dict):
        raise UnusableAnswerError(f"expected a JSON object, found {type(answer).__name__}")
    return answer


def _schema(wanted: Mapping[InstructionLevel, int]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            level.value: {
                "type": "array",
                "items": {"type": "string", "maxLength": MAX_CHARACTERS},
                "minItems": count,
                "maxItems": count,
            }
            for level, count in wanted.items()
        },
        "required": [level.value for level in wanted],
        "additionalProperties": False,
    }


def _task(plan: TargetPlan, siblings: int) -> str:
    noun, count = plan.noun, len(plan.targets)
    if plan.kind == NONE:
        return (
            f'write instructions about "{noun}" that nothing in the picture answers, though they sound as if '
            "something did. No instance is marked as the target."
        )
    if plan.kind == ONE:
        return f'write instructions that denote the one marked "{noun}" and none of its {siblings} siblings.'
    if plan.kind == ALL:
        return f'write instructions that denote all {count} instances of "{noun}" in the picture.'
    return f'write instructions that denote the {count} marked instances of "{noun}" and none of the other {siblings}.'


TARGET_COLOR, SIBLING_COLOR = ("magenta", (255, 0, 255)), ("cyan", (0, 255, 255))
SHORTER_SIDE = 336  # pixels: smaller pictures are enlarged, so that outlines and numbers can be read


def enlarge(picture: Image.Image) -> Image.Image:
    """The picture, at least `SHORTER_SIDE` pixels high and wide."""
    return draw_masks(picture, (), side=longest_side(picture, SHORTER_SIDE))


def mark_target(scene: AnnotatedScene, targets: Iterable[int], siblings: Iterable[int]) -> Image.Image:
    """The picture with target and siblings (annotation ids) outlined in their colors."""
    colors = dict.fromkeys(targets, TARGET_COLOR[1]) | dict.fromkeys(siblings, SIBLING_COLOR[1])
    return _draw(scene, colors, colors=list(colors.values()))


def mark_numbers(scene: AnnotatedScene, numbers: Mapping[int, int]) -> Image.Image:
    """The picture with every instance of `numbers` (annotation id -> number) outlined, its number on it."""
    white, tags = [(255, 255, 255)] * len(numbers), [str(number) for number in numbers.values()]
    return _draw(scene, numbers, colors=white, tags=tags, tags_inside=True)


def _draw(scene: AnnotatedScene, ids: Iterable[int], **style: object) -> Image.Image:
    picture = scene.open_image()
    masks = [scene.by_id[number].pixels() for number in ids]
    return draw_masks(picture, masks, dim=False, side=longest_side(picture, SHORTER_SIDE), **style)  # type: ignore[arg-type]
