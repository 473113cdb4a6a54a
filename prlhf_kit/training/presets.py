"""Settings of whole trainings by name: `Recipe(..., **PRESETS["compo"])`."""

from __future__ import annotations

from typing import Any

QUERIES_AND_VALUES = r".*\.(q|v)_proj"
_QUIET = {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "report_to": "none"}
_CPU_ADAPTER = {"r": 8, "lora_alpha": 16, "target_modules": QUERIES_AND_VALUES}
_OFTEN = {"logging_steps": 4, "save_steps": 20, "save_total_limit": 2}
_CPU = {"num_train_epochs": 1.0, "per_device_train_batch_size": 4, "max_length": 192, **_OFTEN, **_QUIET}

PRESETS: dict[str, dict[str, Any]] = {
    # ComPO (Kumar et al. 2024, arXiv 2410.16027): what is not named here is TRL's default
    "compo": {
        "sft": {"settings": {"learning_rate": 1e-5}, "adapter": {"r": 64, "lora_alpha": 16}},
        "settings": {"learning_rate": 2e-7, "beta": 0.1},
        "adapter": {"r": 64, "lora_alpha": 16},
    },
    # SmolLM2-135M on one CPU core, about a hundred pairs
    "cpu": {
        "sft": {"settings": {"learning_rate": 1e-4, **_CPU}, "adapter": _CPU_ADAPTER},
        "settings": {"learning_rate": 2e-4, "user_learning_rate": 1e-2, "beta": 0.1, "alpha": 1.0, **_CPU},
        "adapter": _CPU_ADAPTER,
    },
}
