# SPDX-License-Identifier: Apache-2.0
"""SAM3-I as a base model of autodistill: it labels a folder of images, from which a smaller detector is trained.

```python
from autodistill.detection import CaptionOntology
from sam3i.hub.autodistill_model import Sam3IBaseModel

labeler = Sam3IBaseModel(CaptionOntology({"the helmet on a head": "worn", "a helmet on the ground": "lost"}), MODEL)
labeler.label("images", extension=".jpg", output_folder="labeled")
```
"""

import numpy as np
from PIL import Image

from ..processing.pipeline.loading import load_pipeline
from ..processing.post_processing import MAX_OVERLAP

try:
    from autodistill.detection import DetectionBaseModel, DetectionOntology
    from supervision import Detections
except ImportError as error:
    raise ImportError(
        f"The autodistill model needs autodistill, and what it imports without asking for it ({error.name} is "
        "missing): pip install autodistill roboflow scikit-learn"
    ) from error


class Sam3IBaseModel(DetectionBaseModel):
    """Finds what the prompts of an ontology denote; prompts may be instructions.

    Args:
        ontology: Instructions, and the class that each of them finds.
        level, threshold, max_overlap: Of the pipeline; by default the level is chosen by the instruction.
    """

    def __init__(
        self,
        ontology: DetectionOntology,
        model: str,
        *,
        level: str = "auto",
        threshold: float = 0.5,
        max_overlap: float | None = MAX_OVERLAP,
    ):
        self.ontology = ontology
        self.pipe = load_pipeline(model)
        self.settings = {"level": level, "threshold": threshold, "max_overlap": max_overlap}

    def predict(self, input: str | np.ndarray | Image.Image) -> Detections:
        """Detections with masks, `class_id` being the place among the ontology's classes.

        Args:
            input: Path, picture, or an array in OpenCV's order of channels (blue first), as autodistill hands it over.
        """
        image = Image.fromarray(input[..., ::-1].copy()) if isinstance(input, np.ndarray) else input
        found = []
        for place, row in enumerate(self.pipe(image, text=self.ontology.prompts(), **self.settings)):
            detections = row.to_supervision()
            if len(detections):
                detections.class_id = np.full(len(detections), place)
                detections.data["class_name"] = np.full(len(detections), self.ontology.classes()[place])
                found.append(detections)
        return Detections.merge(found)
