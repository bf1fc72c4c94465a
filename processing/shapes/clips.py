# SPDX-License-Identifier: Apache-2.0
"""Short clips of the shapes world: scenes whose objects move, with each one's mask in every frame."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...modeling_sam3i.configuration_sam3i import InstructionLevel
from ..language.meaning import TARGET_KINDS
from .questions import denotation, families_of
from .rendering import IMAGE_SIZE, ShapeObject, render
from .world import ShapesWorld
from .writer import InstructionWriter, WrittenTarget

_TRIES = 40  # instructions drawn for a scene before the next scene is tried
_TARGETED = tuple(kind for kind in TARGET_KINDS if kind != "none")


@dataclass(frozen=True)
class ShapesClip:
    """A clip and an instruction whose answer is the same objects in all of its frames."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    # bool [T, N, H, W], the visible pixels of every object; the order of the N objects is their identity
    masks: np.ndarray
    text: str  # the instruction
    level: InstructionLevel  # its level
    targets: tuple[int, ...]  # indices of the denoted objects


def moving_clips(
    count: int,
    num_frames: int = 12,
    speed: float = 2.0,
    split: str = "test",
    seed: int = 0,
    level: str | InstructionLevel = InstructionLevel.SIMPLE,
) -> list[ShapesClip]:
    """The first clips of a split, a pure function of the arguments.

    Args:
        speed: greatest speed along each axis, pixels per frame; objects bounce off the borders and may pass before
            each other.
    """
    level = InstructionLevel.from_any(level)
    world, index = ShapesWorld(seed, split), 0
    clips: list[ShapesClip] = []
    writer = InstructionWriter(split, families_of(level), (level,))
    while len(clips) < count:
        rng = world.rng(index, stream=11)
        states = _move(world.layout(index), num_frames, speed, rng)
        target = _lasting_target(writer, states, rng)
        if target is not None:
            # The same generator in every frame: texture and tints stand still.
            rendered = [render(state, world.rng(index, stream=1)) for state in states]
            clips.append(
                ShapesClip(
                    frames=np.stack([frame for frame, _ in rendered]),
                    masks=np.stack([masks for _, masks in rendered]),
                    text=target.phrasings[level].text,
                    level=level,
                    targets=target.targets,
                )
            )
        index += 1
    return clips


def _move(
    objects: Sequence[ShapeObject], num_frames: int, speed: float, rng: np.random.Generator
) -> list[tuple[ShapeObject, ...]]:
    """The objects of every frame: straight lines at constant speed, reflected at the borders."""
    velocities = rng.uniform(-speed, speed, size=(len(objects), 2))
    states = [tuple(objects)]
    for _ in range(num_frames - 1):
        moved = []
        for number, item in enumerate(states[-1]):
            place = np.array((item.cx, item.cy))
            low, high = item.radius + 1, IMAGE_SIZE - item.radius - 1
            leaves = (place + velocities[number] < low) | (place + velocities[number] > high)
            velocities[number, leaves] *= -1
            cx, cy = (float(value) for value in place + velocities[number])
            moved.append(replace(item, cx=cx, cy=cy))
        states.append(tuple(moved))
    return states


def _lasting_target(
    writer: InstructionWriter, states: Sequence[tuple[ShapeObject, ...]], rng: np.random.Generator
) -> WrittenTarget | None:
    """An instruction that denotes the same objects, beyond doubt, in every frame."""
    for _ in range(_TRIES):
        target = writer.write(states[0], rng, _TARGETED)
        if target is None:
            return None
        if all(denotation(target.meaning, state) == frozenset(target.targets) for state in states[1:]):
            return target
    return None
