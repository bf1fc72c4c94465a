# SPDX-License-Identifier: Apache-2.0
"""Make `pipeline("instruction-segmentation", model=...)` known to Transformers."""

TASK = "instruction-segmentation"


def register_pipeline() -> None:
    """Register the task; again, it changes nothing.

    `PIPELINE_REGISTRY.register_pipeline` would make `pipe.save_pretrained` write custom code into the repository,
    which would then refuse to load without `trust_remote_code`.
    """
    from transformers.pipelines import PIPELINE_REGISTRY

    from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from .pipeline_sam3i import InstructionSegmentationPipeline

    PIPELINE_REGISTRY.supported_tasks[TASK] = {
        "impl": InstructionSegmentationPipeline,
        "pt": (Sam3IForInstructionSegmentation,),
        "type": "multimodal",
    }
