# SPDX-License-Identifier: Apache-2.0
"""Make `pipeline("instruction-segmentation", model=...)` known to Transformers."""

TASK = "instruction-segmentation"


def register_pipeline() -> None:
    """Register the task; again, it changes nothing.

    The class is named, not imported: the module that defines it imports `transformers.pipelines`, whose import may be
    what called this function. Naming it also keeps `pipe.save_pretrained` from writing custom code into the
    repository, which would then refuse to load without `trust_remote_code`.
    """
    from transformers.pipelines import PIPELINE_REGISTRY

    from ...modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation

    PIPELINE_REGISTRY.supported_tasks[TASK] = {
        "impl": f"{__package__}.pipeline_sam3i.InstructionSegmentationPipeline",
        "pt": (Sam3IForInstructionSegmentation,),
        "type": "multimodal",
    }


__all__ = ["TASK", "register_pipeline"]
