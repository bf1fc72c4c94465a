# SPDX-License-Identifier: Apache-2.0

from ..lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "curriculum": ["TrainingStage", "freeze_for_stage", "is_trained"],
        "stage.module": ["encode_vision", "imitation_loss"],
    },
)
