# SPDX-License-Identifier: Apache-2.0
"""The review queue as Label Studio tasks, and its annotations as decisions.

Source of the layout: Label Studio's documentation, "Import data" (tasks with `data` and `predictions`) and "Export"
(`annotations` with `result`, `completed_by`, `updated_at`); rectangles are in percent of the picture.
"""

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from ...images import data_url
from .desk import ACCEPT, EDIT, REJECT, SKIP, Decision, QueuedPair, ReviewDesk

LABELING_CONFIG = """<View>
  <Text name="instruction" value="$instruction"/>
  <Text name="about" value="$about"/>
  <Image name="image" value="$image"/>
  <RectangleLabels name="instances" toName="image">
    <Label value="target" background="magenta"/>
    <Label value="sibling" background="cyan"/>
  </RectangleLabels>
  <Choices name="decision" toName="image" choice="single" required="true">
    <Choice value="accept" hotkey="a"/>
    <Choice value="reject" hotkey="r"/>
    <Choice value="skip" hotkey="s"/>
  </Choices>
  <TextArea name="edit" toName="image" placeholder="A better instruction (leave empty to keep it)" maxSubmissions="1"/>
</View>
"""


class LabelStudioError(ValueError):
    """An export of Label Studio that cannot be read; the message names the task and the way out."""


def export_tasks(desk: ReviewDesk, path: str | Path, image_url: str | None = None) -> int:
    """Write the queue as tasks and the labeling configuration beside it (`.xml`); returns the number of tasks.

    Args:
        image_url: where Label Studio finds the pictures, with "{file}" for a picture's path; the pictures themselves
            are put into the tasks if not given.
    """
    tasks = [_task(item, desk, image_url) for item in desk.queue()]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")
    path.with_suffix(".xml").write_text(LABELING_CONFIG, encoding="utf-8")
    return len(tasks)


def import_decisions(desk: ReviewDesk, path: str | Path) -> int:
    """Take the decisions of a Label Studio export (JSON); returns how many were new.

    Raises:
        LabelStudioError: a task that was not exported from here, or an annotation without a decision.
    """
    try:
        tasks = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise LabelStudioError(f"{path}: expected Label Studio's JSON export: {error}") from error
    if not isinstance(tasks, list):
        raise LabelStudioError(f"{path}: expected a list of tasks, found {type(tasks).__name__}; export as JSON.")
    return desk.take([decision for task in tasks for decision in _decisions(task, path)])


def _task(item: QueuedPair, desk: ReviewDesk, image_url: str | None) -> dict[str, Any]:
    picture, target = item.picture, set(item.target["targets"])
    width, height = picture["width"], picture["height"]
    regions = []
    for instance in picture["instances"]:
        is_target = instance["annotation_id"] in target
        if not is_target and instance["noun"] != item.target["noun"]:
            continue
        x, y, w, h = instance["box"]
        value = {
            "x": 100 * x / width,
            "y": 100 * y / height,
            "width": 100 * w / width,
            "height": 100 * h / height,
            "rotation": 0,
            "rectanglelabels": ["target" if is_target else "sibling"],
        }
        region = {"id": str(instance["annotation_id"]), "type": "rectanglelabels", "value": value}
        region |= {"from_name": "instances", "to_name": "image", "original_width": width, "original_height": height}
        regions.append(region)
    evidence = [f"{check['check']}: {check['verdict']} {check['reason']}".strip() for check in item.pair["checks"]]
    data = {
        "pair_id": item.pair["pair_id"],
        "instruction": item.pair["text"],
        "about": f"{item.pair['level']}, {item.target['kind']}; " + "; ".join(evidence),
        "image": _image(picture["image"], desk, image_url),
    }
    return {"data": data, "predictions": [{"model_version": "sam3i", "score": item.value, "result": regions}]}


def _image(image: str | None, desk: ReviewDesk, image_url: str | None) -> str | None:
    if image is None:
        return None
    if image_url is not None:
        return image_url.replace("{file}", image)
    path = desk.run.path / image  # an absolute path stays what it is
    kind = "jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else path.suffix.lower().lstrip(".")
    return data_url(path.read_bytes(), kind)


def _decisions(task: dict[str, Any], path: str | Path) -> Iterable[Decision]:
    pair_id = task.get("data", {}).get("pair_id") if isinstance(task, dict) else None
    if not isinstance(pair_id, str):
        raise LabelStudioError(f"{path}: a task has no data.pair_id: only tasks exported by the engine can come back.")
    for annotation in task.get("annotations", []):
        if annotation.get("was_cancelled"):
            choice, text = SKIP, ""
        else:
            results = {item.get("from_name"): item.get("value", {}) for item in annotation.get("result", [])}
            choice = (results.get("decision", {}).get("choices") or [None])[0]
            text = " ".join(results.get("edit", {}).get("text") or []).strip()
        if choice not in (ACCEPT, REJECT, SKIP):
            raise LabelStudioError(
                f"{path}: task {task.get('id')} ({pair_id}): expected accept, reject or skip, found {choice!r}."
            )
        if choice == ACCEPT and text and text != task["data"].get("instruction"):
            choice = EDIT
        when = annotation.get("updated_at") or annotation.get("created_at")
        author = annotation.get("completed_by")
        if isinstance(author, dict):
            author = author.get("email") or author.get("id")
        if when is None or author is None:
            raise LabelStudioError(f"{path}: task {task.get('id')}: an annotation lacks updated_at or completed_by.")
        seconds = datetime.fromisoformat(str(when).replace("Z", "+00:00")).timestamp()
        yield Decision(pair_id, choice, str(author), seconds, text if choice == EDIT else None)
