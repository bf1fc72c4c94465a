# SPDX-License-Identifier: Apache-2.0
"""Teach Transformers and PEFT to find SAM3-I by its usual names; `import sam3i` does it once."""

TASK = "instruction-segmentation"


def register() -> None:
    """Register the auto classes, the pipeline, the PEFT method and the writer of model cards.

    Registering twice changes nothing.
    """
    from transformers import AutoConfig, AutoModel, AutoProcessor, Sam3Model

    from .modeling_sam3i.configuration_sam3i import Sam3IConfig
    from .modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from .modeling_sam3i.peft import tuner  # noqa: F401  registers itself with PEFT
    from .modeling_sam3i.pretrained import Sam3IPreTrainedModel
    from .processing.processing_sam3i import Sam3IProcessor

    AutoConfig.register(Sam3IConfig.model_type, Sam3IConfig, exist_ok=True)
    AutoModel.register(Sam3IConfig, Sam3IForInstructionSegmentation, exist_ok=True)
    AutoProcessor.register(Sam3IConfig, Sam3IProcessor, exist_ok=True)
    register_pipeline()
    # `AutoPeftModel` asks for them where a tokenizer lies beside the adapters, and stock does not know where they are.
    Sam3Model.get_input_embeddings = Sam3IForInstructionSegmentation.get_input_embeddings  # type: ignore[assignment]
    Sam3IPreTrainedModel.card_writer = staticmethod(_write_card)


def register_pipeline() -> None:
    """Make `pipeline("instruction-segmentation", model=...)` known to Transformers.

    `PIPELINE_REGISTRY.register_pipeline` would make `pipe.save_pretrained` write custom code into the repository,
    which would then refuse to load without `trust_remote_code`.
    """
    from transformers.pipelines import PIPELINE_REGISTRY

    from .modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from .processing.pipeline.pipeline_sam3i import InstructionSegmentationPipeline

    PIPELINE_REGISTRY.supported_tasks[TASK] = {
        "impl": InstructionSegmentationPipeline,
        "pt": (Sam3IForInstructionSegmentation,),
        "type": "multimodal",
    }


def _write_card(folder, **known):
    """Models write their cards when they are pushed, without knowing who does it for them."""
    from .hub.cards.model_card import write_model_card

    return write_model_card(folder, **known)


__all__ = ["register"]
