# SPDX-License-Identifier: Apache-2.0
"""The defaults of a training, in one place that the command line reads without loading torch."""

STAGE_DEFAULTS: dict[str, tuple[float, ...]] = {
    "learning_rate": (5e-4, 5e-4, 1.5e-4),
    "num_train_epochs": (8, 8, 4),
    "max_steps": (-1,),
    "warmup_steps": (0.03,),
    "per_device_train_batch_size": (8,),
    "weight_decay": (0.1,),
    "selector_steps": (2000,),
}
"""One value, or one for each of the three stages. Rates and epochs are the paper's where it states them; its rates are
peaks of a schedule that falls as the inverse square root of the step, these are made for a cosine."""

LOGGING_STEPS = 10
EVAL_STEPS = 500
EVAL_THRESHOLD = 0.5
SEED = 42
FEATURE_CACHE_GB = 100.0
