# SPDX-License-Identifier: Apache-2.0
"""What an Inference Endpoint of the Hub runs; it travels with an exported repository and needs no other package."""

import base64
import binascii
import io
from typing import Any

from PIL import Image
from transformers import pipeline

SETTINGS = ("level", "threshold", "mask_threshold", "max_overlap", "boxes", "box_labels")


class EndpointHandler:
    """Answers requests with the pipeline of the repository it lies in.

    A request is `{"inputs": IMAGE, "parameters": {"text": "the dog on the left", "level": "auto", "threshold": 0.5}}`,
    IMAGE being a file in base64 (or the bytes of a request of type image/*, then without parameters: everything that
    the concept "object" finds). Addresses are not fetched. `text` may be a list.

    The answer is that of image segmentation on the Hub: a list of {"score", "label", "level", "box", "mask"}, the mask
    a PNG in base64 (255 inside); for a list of texts a list of such lists.
    """

    def __init__(self, path: str = ""):
        task: Any = "instruction-segmentation"  # the repository's own
        self.pipe = pipeline(task, model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """Answer one request.

        Raises:
            ValueError: for an image that is none, or parameters that nobody knows.
        """
        image = _read(data.get("inputs"))
        parameters = dict(data.get("parameters") or {})
        text = parameters.pop("text", "object")
        unknown = sorted(set(parameters) - set(SETTINGS))
        if unknown:
            raise ValueError(f"Expected parameters text, {', '.join(SETTINGS)}, found {', '.join(unknown)}.")
        found = self.pipe(image, text=text, **parameters)
        return [_encode(row) for row in found] if isinstance(text, list) else _encode(found)


def _read(content: Any) -> Any:
    if isinstance(content, str):
        try:
            content = base64.b64decode(content.partition("base64,")[2] or content, validate=True)
        except binascii.Error as error:
            raise ValueError(
                "Expected `inputs` as an image file in base64, found other text: addresses are not fetched."
            ) from error
    if not isinstance(content, bytes | Image.Image):
        raise ValueError(f"Expected `inputs` as an image file in base64, found {type(content).__name__}.")
    return content


def _encode(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    encoded = []
    for instance in instances:
        buffer = io.BytesIO()
        instance["mask"].save(buffer, "PNG")
        encoded.append(instance | {"mask": base64.b64encode(buffer.getvalue()).decode("ascii")})
    return encoded
