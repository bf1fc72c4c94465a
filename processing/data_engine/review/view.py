# SPDX-License-Identifier: Apache-2.0
"""What the review page shows of a pair: pieces of `page.html`, in which text from outside is nothing but text."""

import io
import unicodedata
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ...drawing.instances import draw_masks
from ...drawing.style import LEVEL_COLORS, PALETTE, Color
from ...images import data_url
from ...masks import decode_mask
from ..checks import FAIL, PASS, CheckResult
from ..scene.scene import image_of_record, open_image
from .desk import QueuedPair

MAX_SHOWN = 600  # characters of a text; what is longer is cut, and says so
SIDE = 1200  # pixels of the longest side of a picture on the page
TARGET, SIBLING, SEGMENTED = PALETTE[1], PALETTE[0], PALETTE[3]
KEYS = {"a": "accept", "e": "edit", "r": "reject", "s": "skip", "b": "back"}
KINDS = {"1-to-1": "one of them", "1-to-N": "some of them", "1-to-all": "all of them", "none": "none: nothing fits"}
TITLES = {
    "length": "Length",
    "level": "Level",
    "duplicate": "Duplicates",
    "denotation": "Reading",
    "checker": "Second model",
    "grounding": "Segmenter",
    "form": "Form",
}


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
    return Markup(f"<bdi>{shown}</bdi>")


@cache
def environment() -> Environment:
    """Jinja's environment for the page's files; names that a file does not get are errors."""
    found = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    found.filters["shown"] = as_text
    return found


def style_and_script() -> tuple[str, str]:
    """(CSS, an HTML script element): fonts of the system only, nothing is fetched."""
    plain = Environment(loader=FileSystemLoader(Path(__file__).parent))  # noqa: S701 (no text from outside comes here)
    colors = {"target": TARGET, "sibling": SIBLING}
    css = plain.get_template("page.css").render(levels=LEVEL_COLORS, keys={**KEYS, "m": "masks"}, colors=colors)
    return css, f"<script>{plain.get_template('page.js').render(keys=KEYS)}</script>"


def piece(name: str, *values: Any) -> str:
    """A macro of `page.html`, filled."""
    return str(getattr(environment().get_template("page.html").module, name)(*values))


def legend() -> str:
    """What the colors of the picture mean."""
    return piece("legend", TARGET, SIBLING, SEGMENTED)


def question(item: QueuedPair) -> str:
    """What the instruction is to be: level, kind, granularity, category; and why a person is asked."""
    reason = item.pair["reason"]
    for name, title in TITLES.items():  # as the list of checks calls them
        reason = reason.replace(f"{name} says", f"{title} says")
    return piece("question", item.pair["level"], item.target, KINDS.get(item.target["kind"], ""), reason)


def notice(text: str, kind: str = "info") -> str:
    """A message."""
    return piece("notice", text, kind, [], "")


def edit_report(results: list[CheckResult], may_insist: bool) -> str:
    """What the checks say against an edited instruction."""
    failed = [(TITLES.get(item.check, item.check), item.reason) for item in results if item.verdict == FAIL]
    advice = "Save it again to keep it all the same, or change it." if may_insist else "Change it, then save it again."
    return piece("notice", "The new words were not saved:", "error", failed, advice)


def evidence(item: QueuedPair, numbers: Mapping[int, int]) -> str:
    """The verdict of each check with what it rests on; `numbers` as in [`number_instances`]."""
    checks = [
        {
            "verdict": check["verdict"] if check["verdict"] in (PASS, FAIL) else "unsure",
            "title": TITLES.get(check["check"], check["check"]),
            "reason": check["reason"],
            "details": list(_details(check, numbers)),
        }
        for check in item.pair["checks"]
    ]
    return piece("evidence", checks)


def _details(check: Mapping[str, Any], numbers: Mapping[int, int]) -> list[Any]:
    """The evidence of a check as phrases; instances as {"verb", "numbers", "after"}."""
    seen: dict[str, Any] = dict(check["evidence"])
    parts: list[Any] = []
    target = seen.pop("target", [])
    if "tokens" in seen:
        parts.append(f"{seen.pop('tokens')} of {seen.pop('max_tokens', '?')} tokens")
    if "named_by" in seen:
        named, noun = seen.pop("named_by"), seen.pop("noun", None)
        parts += [f"names it: “{named}”"] if named else [f"does not name “{noun}”"] if noun else []
    if "reads_as" in seen:
        parts.append(f"reads as {seen.pop('reads_as')}")
    if "other" in seen:
        parts.append(f"beside “{seen.pop('other')}”")
    if "family" in seen:
        parts.append(str(seen.pop("family")).replace("_", " ").replace("+", ", "))
    for name, verb in (("denotes", "fits"), ("found", "picked")):
        if name in seen:
            ids = seen.pop(name)
            exactly = ", exactly the target" if target and sorted(ids) == sorted(target) else ""
            pairs = sorted((numbers.get(i, i), i in target) for i in ids)
            parts.append({"verb": verb, "numbers": pairs, "after": exactly})
    if "iou" in seen:
        parts.append(f"IoU {seen.pop('iou')}, at least {seen.pop('min_iou', '?')} wanted")
        if "instances" in seen:
            parts.append(f"{seen['instances']} found")
    if "answer" in seen:
        parts.append(f"answered “{seen.pop('answer')}”")
    for name in ("understood", "same_target", "overlap", "instances", "mask", "unknown_numbers"):
        seen.pop(name, None)
    return parts + [f"{name}: {value}" for name, value in seen.items()]


def number_instances(item: QueuedPair) -> dict[int, int]:
    """Numbers, left to right, of what is marked (annotation id -> number): target, siblings, what a check picked."""
    named, noun = set(item.target["targets"]) | _picked(item), item.target["noun"]
    for check in item.pair["checks"]:
        named |= set(_ids(check["evidence"].get("denotes")))
    entries = item.picture["instances"]
    shown = [entry for entry in entries if entry["annotation_id"] in named or noun in (None, entry["noun"])]
    shown.sort(key=lambda entry: (entry["box"][0] + entry["box"][2] / 2, entry["annotation_id"]))
    return {entry["annotation_id"]: number for number, entry in enumerate(shown, start=1)}


def _picked(item: QueuedPair) -> set[int]:
    """What the second model took the instruction to mean, where it answered."""
    checks = [check for check in item.pair["checks"] if check["check"] == "checker"]
    return {i for check in checks for i in _ids(check["evidence"].get("found"))}


def _ids(value: Any) -> list[int]:
    return [item for item in value if isinstance(item, int)] if isinstance(value, list) else []


def picture(item: QueuedPair, folder: Path, numbers: Mapping[int, int], name: str) -> str:
    """The image, and the marked image to lay over it, both as data; `name` tells the pair in the page."""
    try:
        image = open_image(image_of_record(item.picture, folder), f"picture {item.picture['image_id']}")
        marked = marked_image(item, image, numbers)
    except (OSError, ValueError) as error:
        return piece("picture", name, "", "", 1, str(error))
    plain = image.resize(marked.size, Image.Resampling.LANCZOS)
    ratio = round(image.width / image.height, 4)
    return piece("picture", name, Markup(_data_url(plain)), Markup(_data_url(marked)), ratio, "")


def marked_image(item: QueuedPair, image: Image.Image, numbers: Mapping[int, int]) -> Image.Image:
    """The target and its siblings outlined and numbered; a star marks what the second model picked.

    Where the segmenter contradicts, what it found is outlined as well.
    """
    target, picked = set(item.target["targets"]), _picked(item)
    entries = [entry for entry in item.picture["instances"] if entry["annotation_id"] in numbers]
    entries.sort(key=lambda entry: entry["annotation_id"] not in target)
    ids = [entry["annotation_id"] for entry in entries]
    masks = [decode_mask(entry["mask"]) for entry in entries]
    colors: list[Color] = [TARGET if i in target else SIBLING for i in ids]
    tags: list[str | None] = [f"{numbers[i]}{'*' if i in picked else ''}" for i in ids]
    for segmented in [check["evidence"]["mask"] for check in item.pair["checks"] if "mask" in check["evidence"]]:
        masks, colors, tags = [decode_mask(segmented), *masks], [SEGMENTED, *colors], [None, *tags]
    return draw_masks(
        image,
        masks,
        colors=colors,
        tags=tags,
        tags_inside=True,
        dim=False,
        side=min(SIDE, max(image.size) * 4) if max(image.size) < SIDE else SIDE,
    )


def _data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, subsampling=0)
    return data_url(stream.getvalue(), "jpeg")
