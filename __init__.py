# SPDX-License-Identifier: Apache-2.0
"""SAM3-I for Transformers: instruction-following segmentation on frozen SAM3.

`import sam3i` teaches Transformers and PEFT to find the model, its processor, the pipeline and the adapters by their
usual names (see [`sam3i.registration`]). Everything else is imported when it is first used.
"""

import importlib
import sys
from pathlib import Path

__version__ = "0.2.0"

_PUBLIC = {
    "modeling_sam3i.configuration_sam3i": ["InstructionLevel", "Sam3IConfig"],
    "modeling_sam3i.modeling_sam3i": ["Sam3IForInstructionSegmentation"],
    "modeling_sam3i.losses.config": ["Sam3ILossConfig"],
    "modeling_sam3i.adapter_io": ["save_adapter"],
    "modeling_sam3i.peft.loading": ["load_instruction_adapter"],
    "modeling_sam3i.peft.tuner": ["InstructionAdapterConfig"],
    "modeling_sam3i.video": ["follow_instructions", "track_instructions"],
    "processing.processing_sam3i": ["Sam3IProcessor"],
    "processing.pipeline.pipeline_sam3i": ["InstructionSegmentationPipeline"],
    "processing.levels": ["classify_level"],
    "processing.drawing.instances": ["draw_instances"],
    "processing.drawing.sheet": ["contact_sheet", "draw_comparison"],
    "processing.datasets.loading": ["load_instruction_dataset"],
    "processing.shapes.dataset": ["ShapesInstructionDataset"],
    "trainer.arguments": ["Sam3ITrainingArguments"],
    "trainer.collator": ["InstructionCollator"],
    "trainer.curriculum": ["TrainingStage"],
    "trainer.feature_cache": ["VisionFeatureCache"],
    "trainer.trainer_sam3i": ["Sam3ITrainer"],
    "trainer.evaluation.evaluate": ["evaluate_model"],
    "trainer.evaluation.metrics": ["InstructionSegmentationMetric"],
    "hub.conversion.official": ["convert_official_checkpoint"],
    "hub.publish.exported": ["export_onnx"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _is_command() -> bool:
    """Whether the `sam3i` command is starting: it must not wait seconds for Transformers to print its help."""
    started = Path(sys.argv[0]).stem if sys.argv else ""
    return started in ("sam3i", "-m")  # "-m" while `python -m sam3i` looks for the package


if __name__ == "sam3i" and not _is_command():  # the name differs when a test runner imports the folder by its path
    from .registration import register

    register()
    del register
