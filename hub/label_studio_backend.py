# SPDX-License-Identifier: Apache-2.0
"""SAM3-I as an ML backend of Label Studio: polygons for every label of a project, drawn before a person looks.

    SAM3I_MODEL=org/sam3-i FLASK_APP="sam3i.hub.label_studio_backend:make_app()" flask run --port 9090

A label's `hint` is its instruction, or else its name:

    <Image name="image" value="$image"/>
    <PolygonLabels name="found" toName="image"><Label value="left dog" hint="the dog on the left"/></PolygonLabels>
"""

import os
from functools import cache
from typing import Any

from ..processing.pipeline.loading import load_pipeline

try:
    from label_studio_ml.model import LabelStudioMLBase
except ImportError as error:
    raise ImportError(
        f"The Label Studio backend needs its SDK ({error}): pip install "
        "git+https://github.com/HumanSignal/label-studio-ml-backend"
    ) from error

MODEL_VARIABLE, THRESHOLD_VARIABLE, LEVEL_VARIABLE = "SAM3I_MODEL", "SAM3I_THRESHOLD", "SAM3I_LEVEL"


class InstructionBackend(LabelStudioMLBase):
    """Follows the instruction of every label of the project's `PolygonLabels` on the image of a task."""

    def predict(self, tasks: list[dict[str, Any]], context: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Predictions in Label Studio's form, one for each task.

        Raises:
            ValueError: for a project without polygon labels, or a task without its image.
        """
        pipe = _pipeline(_model_name())
        settings: dict[str, Any] = {
            "level": os.environ.get(LEVEL_VARIABLE, "auto"),
            "threshold": float(os.environ.get(THRESHOLD_VARIABLE, "0.5")),
        }
        name, target, field, instructions = self._questions()
        predictions = []
        for task in tasks:
            if field not in task["data"]:
                raise ValueError(
                    f"Expected the image of task {task.get('id')} under {field!r}, found {list(task['data'])}."
                )
            path = self.get_local_path(task["data"][field])
            regions, scores = [], []
            for label, found in zip(
                instructions, pipe(path, text=list(instructions.values()), **settings), strict=True
            ):
                (drawn,) = found.to_label_studio(path)["predictions"]
                scores += [drawn["score"]] if found else []
                for region in drawn["result"]:
                    region |= {"id": f"{label}-{region['id']}", "from_name": name, "to_name": target}
                    region["value"]["polygonlabels"] = [label]
                    regions.append(region)
            score = max(scores, default=0.0)
            predictions.append({"model_version": _model_name(), "score": score, "result": regions})
        return predictions

    def _questions(self) -> tuple[str, str, str, dict[str, str]]:
        """Names of the control and of the image, the task's field with the image, and instructions by label."""
        for name, control in self.parsed_label_config.items():
            if control["type"] == "PolygonLabels":
                attributes = control.get("labels_attrs", {})
                texts = {label: attributes.get(label, {}).get("hint") or label for label in control["labels"]}
                return name, control["to_name"][0], control["inputs"][0]["value"].lstrip("$"), texts
        found = ", ".join(control["type"] for control in self.parsed_label_config.values()) or "no control"
        raise ValueError(f"Expected PolygonLabels in the project's labeling configuration, found {found}.")


@cache
def _pipeline(model: str) -> Any:
    return load_pipeline(model)


def _model_name() -> str:
    model = os.environ.get(MODEL_VARIABLE)
    if not model:
        raise ValueError(f"Expected the model to serve in the environment variable {MODEL_VARIABLE}, found none.")
    return model


def make_app() -> Any:
    """The Flask application that Label Studio talks to; the model is loaded at once, so that a wrong name is told."""
    from label_studio_ml.api import init_app

    _pipeline(_model_name())
    return init_app(model_class=InstructionBackend)
