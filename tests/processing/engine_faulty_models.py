# SPDX-License-Identifier: Apache-2.0
"""A chat endpoint that plays writer and checker of the data engine over the shapes world, with faults at given rates.

It knows a scene by its picture, the target by its magenta outline, and an instance's number by the drawn digits; so
the pictures that the engine sends are tested as well.
"""

import hashlib
import json
import threading
from collections import Counter
from random import Random

import numpy as np
from engine_truth import denoted_by_objects
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, uniform_filter
from scipy.optimize import linear_sum_assignment
from scipy.signal import fftconvolve
from scripted_chat import Answer, ScriptedChatServer, images_of, texts_of

from sam3i.modeling_sam3i.configuration_sam3i import InstructionLevel
from sam3i.processing.chat.endpoint import encode_image
from sam3i.processing.data_engine.scene.facts import Facts
from sam3i.processing.data_engine.scene.sources import ShapesSource
from sam3i.processing.data_engine.writers.chat_writer import enlarge
from sam3i.processing.data_engine.writers.template_writer import TemplateWriter, lexicon_of
from sam3i.processing.drawing.style import PictureScale, draw_tag
from sam3i.processing.language.meaning import denote
from sam3i.processing.language.phrasing import can_say, say

SIMPLE, COMPLEX = InstructionLevel.SIMPLE, InstructionLevel.COMPLEX
TEXT_FAULTS = ("wrong noun", "leak", "ambiguous", "false")


class FaultyModels:
    """The script of a server; `rates` gives the share of texts or requests per fault.

    Attributes:
        truth: by (scene, text): the ids that the text denotes, and the fault it was written with (or None).
        paid: how often each request was answered.
    """

    def __init__(self, num_scenes, rates=None, checker_error=0.0, delay=0.0, timeout=1.0):
        self.source = ShapesSource(num_scenes)
        self.rates = rates or {}
        self.checker_error = checker_error
        self.delay = delay
        self.timeout = timeout
        self.truth = {}
        self.paid = Counter()
        self.failed = Counter()
        self.lock = threading.Lock()
        self.drawer = TemplateWriter(self.source.nouns, (SIMPLE, COMPLEX))
        self.scenes = {}
        for scene in self.source.scenes():
            url = encode_image(enlarge(scene.open_image()))
            self.scenes[hashlib.md5(url.encode()).hexdigest()] = (scene, Facts(scene))
        self.server = ScriptedChatServer(self, keep_requests=False)

    def __call__(self, request, index):
        body = json.dumps(request, sort_keys=True)
        name = hashlib.md5(body.encode()).hexdigest()
        message = request["messages"][0]
        url = next(part for part in message["content"] if part["type"] == "image_url")["image_url"]["url"]
        scene, facts = self.scenes[hashlib.md5(url.encode()).hexdigest()]
        with self.lock:
            tries = self.failed[name]
            self.failed[name] += 1
        rng = Random(f"{name}/{tries}")
        for status in (429, 500):
            if rng.random() < self.rates.get(f"HTTP {status}", 0):
                return Answer(status=status, body=b"{}", headers={"Retry-After": "0"})
        if rng.random() < self.rates.get("time-out", 0):
            return Answer("too late", delay=self.timeout * 1.5)
        with self.lock:
            self.paid[name] += 1
        rng = Random(name)  # an answer depends on the request alone
        prompt, marked = texts_of(message), images_of(message)[1]
        if "numbered outlines" in prompt:
            text = self.check(prompt, marked, scene, facts, rng)
        else:
            text = self.write(prompt, marked, request, scene, facts, rng)
        return Answer(text, delay=self.delay * rng.random())

    def write(self, prompt, marked, request, scene, facts, rng):
        if rng.random() < self.rates.get("malformed", 0):
            return rng.choice(('{"simple": ["the', "Sure! Here you go.", '{"simple": "text"}', "[]"))
        noun = prompt.split('other instances of\n"', 1)[1].split('"', 1)[0]
        target = outlined(marked, scene)
        wanted = request["response_format"]["json_schema"]["schema"]["properties"]
        answer = {}
        for level in (SIMPLE, COMPLEX):
            count = wanted.get(level.value, {}).get("minItems", 0)
            if count:
                answer[level.value] = [self.text(level, noun, target, scene, facts, rng) for _ in range(count)]
        return json.dumps(answer)

    def text(self, level, noun, target, scene, facts, rng):
        faults = [fault for fault in TEXT_FAULTS if not (fault == "leak" and level is SIMPLE)]
        fault = next((fault for fault in faults if rng.random() < self.rates.get(fault, 0)), None)
        if fault == "wrong noun" and level is COMPLEX:
            fault = "false"
        ids = {i for i, item in enumerate(scene.instances) if item.annotation_id in target}
        fits = {
            "ambiguous": lambda found: found > ids,
            "false": lambda found: not found >= ids or (not ids and found),
        }.get(fault, lambda found: found == ids)
        others = [name for name in self.source.nouns if name != noun]
        meaning = None
        for _ in range(400):
            kind = rng.choice(("1-to-1", "1-to-N", "1-to-all", "none"))
            family = rng.choice(("color", "not_color", "region", "extreme", "size", "side", "distance", "all_but"))
            drawn = self.drawer.draw_meaning(family, facts, kind, rng)
            if drawn is None or drawn.noun != noun or not can_say(drawn, level, lexicon_of(facts)):
                continue
            found = denote(drawn, facts)
            if found is not None and fits(found):
                meaning = drawn
                break
        if meaning is None:  # nothing of the sort can be said of this scene
            return self.remember(
                scene, f"the {noun} of old" if level is SIMPLE else "whatever it may be", None, "hopeless"
            )
        plural = "plural" if len(target) != 1 else "singular"
        text = say(meaning, plural, level, rng.choice, lexicon_of(facts)).text
        if fault == "wrong noun":
            text = text.replace(noun, rng.choice(others))
            return self.remember(scene, text, None, fault)
        if fault == "leak":
            text = f"the {noun} " + text
        denoted = denoted_by_objects(meaning, self.source.world.layout(int(scene.image_id.rsplit("-", 1)[1])))
        return self.remember(scene, text, {scene.instances[i].annotation_id for i in denoted}, fault)

    def remember(self, scene, text, denoted, fault):
        with self.lock:
            self.truth[scene.image_id, text] = (denoted, fault)
        return text

    def check(self, prompt, marked, scene, facts, rng):
        by_id = numbers_on(marked, scene)
        answers = []
        for line in prompt.splitlines():
            index, point, text = line.partition(". ")
            if not point or not index.isdigit():
                continue
            denoted = self.truth.get((scene.image_id, text), (None, None))[0]
            if denoted is None:  # the concept, or what denotes nothing
                denoted = {item.annotation_id for item in scene.instances if item.noun == text}
            if rng.random() < self.checker_error:
                denoted = {rng.choice(scene.instances).annotation_id}
            answers.append({"instruction": int(index), "matches": sorted(by_id[i] for i in denoted)})
        return json.dumps({"answers": answers})


def outlined(marked, scene):
    """Ids of the instances with a magenta outline."""
    pixels = np.asarray(marked.convert("RGB")).astype(int)
    magenta = (pixels[..., 0] > 150) & (pixels[..., 1] < 130) & (pixels[..., 2] > 150)
    found = set()
    for item in scene.instances:
        mask = np.asarray(Image.fromarray(item.pixels()).resize(marked.size, Image.Resampling.NEAREST))
        edge = binary_dilation(mask, iterations=2) & ~binary_erosion(mask, iterations=2)
        if magenta[edge].mean() > 0.2:
            found.add(item.annotation_id)
    return found


def numbers_on(marked, scene):
    """The numbers drawn on the instances, by annotation id: each tag is found, and lies on its instance."""
    gray = np.asarray(marked.convert("L")).astype(float)
    scale, ratio, count = PictureScale(marked.size), marked.width / scene.width, len(scene.instances)
    away = [distance_transform_edt(~item.pixels()) for item in scene.instances]
    distances = np.zeros((count, count))
    for number in range(1, count + 1):
        tag = draw_tag(str(number), scale.tag_font, (255, 255, 255), scale.gap * 0.7)
        label = np.asarray(tag.convert("L")).astype(float)[3:-3, 3:-3]
        # The mean of squared differences at every place, up to a constant.
        energy = uniform_filter(gray**2, label.shape)
        here = energy - 2 * fftconvolve(gray, label[::-1, ::-1], "same") / label.size + (label**2).mean()
        y, x = (int(place / ratio) for place in np.unravel_index(here.argmin(), here.shape))
        distances[:, number - 1] = [distance[y, x] for distance in away]
    rows, columns = linear_sum_assignment(distances)
    return {scene.instances[i].annotation_id: int(j) + 1 for i, j in zip(rows, columns, strict=True)}


__all__ = ["FaultyModels"]
