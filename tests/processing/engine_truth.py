# SPDX-License-Identifier: Apache-2.0
"""What an engine-made question denotes by the shapes generator's own objects: no masks, no pixels, no margins."""

import math
from collections import Counter

from sam3i.processing.language.meaning import Meaning


def denoted_by_objects(meaning: Meaning, objects) -> set[int]:
    """Indices of the objects that a meaning denotes."""
    members = [i for i, item in enumerate(objects) if meaning.noun in (None, item.noun)]
    nouns, colors = Counter(item.noun for item in objects), Counter(item.color for item in objects)

    def along(item, side):
        return {"left": -item.cx, "right": item.cx, "top": -item.cy, "bottom": item.cy}[side]

    def only(noun):
        found = [item for item in objects if item.noun == noun]
        assert len(found) < 2, f"two possible references: {noun}"
        return found[0] if found else None

    def inside(inner, outer):
        return math.hypot(inner.cx - outer.cx, inner.cy - outer.cy) + inner.radius < outer.radius

    for condition in meaning.filters:
        kind, value = condition.kind, condition.value
        anchor = only(condition.reference) if condition.reference and kind != "not_noun" else None
        if condition.reference and kind != "not_noun" and anchor is None:
            return set()
        tests = {
            "color": lambda o, value=value: o.color == value,
            "not_color": lambda o, value=value: o.color != value,
            "size": lambda o, value=value: o.size == value,
            "region": lambda o, value=value: along(o, value) > {"left": -56, "top": -56}.get(value, 56),
            "side": lambda o, value=value, anchor=anchor: along(o, value) > along(anchor, value),
            "same_color": lambda o, anchor=anchor: o.color == anchor.color,
            "inside": lambda o, anchor=anchor: inside(o, anchor),
            "containing": lambda o, anchor=anchor: inside(anchor, o),
            "not_noun": lambda o, noun=condition.reference: o.noun != noun,
            "noun_shared": lambda o: nouns[o.noun] > 1,
            "noun_alone": lambda o: nouns[o.noun] == 1,
            "color_shared": lambda o: colors[o.color] > 1,
            "color_alone": lambda o: colors[o.color] == 1,
        }
        if kind == "count":
            assert len(members) in (0, int(value))  # "the two cups" where there is no cup
            continue
        members = [i for i in members if tests[kind](objects[i])]
    selector = meaning.selector
    if selector is None:
        return set(members)
    if selector.kind in ("distance", "beside"):
        anchor = only(selector.reference)
        if anchor is None:
            return set()
        if selector.kind == "beside":
            members = [i for i in members if along(objects[i], selector.value) > along(anchor, selector.value)]
        sign = 1 if selector.value == "far" else -1
        ranked = sorted(
            members,
            key=lambda i: sign * math.hypot(objects[i].cx - anchor.cx, objects[i].cy - anchor.cy),
            reverse=True,
        )
    elif selector.kind == "size":
        sign = 1 if selector.value == "large" else -1
        ranked = sorted(members, key=lambda i: sign * objects[i].radius, reverse=True)
    else:
        ranked = sorted(members, key=lambda i: along(objects[i], selector.value), reverse=True)
    if selector.kind == "ordinal":
        return set(ranked[selector.count - 1 : selector.count])
    chosen = ranked[: selector.count]
    return set(members) - set(chosen) if selector.excluded else set(chosen)
