# SPDX-License-Identifier: Apache-2.0
"""SAM3-I for Transformers: instruction-following segmentation on frozen SAM3.

Names are imported when they are first used. `import sam3i` also teaches Transformers, once, to find the model, its
processor and the pipeline by their usual names; see [`sam3i.registration`].
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "modeling_sam3i.configuration_sam3i": ["InstructionLevel", "Sam3IConfig"],
    "modeling_sam3i.modeling_sam3i": ["Sam3IForInstructionSegmentation"],
    "modeling_sam3i.tuner_sam3i": ["InstructionAdapterConfig"],
    "processing.processing_sam3i": ["Sam3IProcessor"],
    "processing.pipeline_sam3i": ["InstructionSegmentationPipeline"],
    "trainer.arguments": ["Sam3ITrainingArguments"],
    "trainer.trainer_sam3i": ["Sam3ITrainer"],
    "trainer.metrics": ["InstructionSegmentationMetric"],
    "hub.conversion": ["convert_official_checkpoint"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if __name__ == "sam3i":  # not when a test runner imports the folder by its path
    from .registration import register

    register()
    del register
