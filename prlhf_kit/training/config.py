"""Settings of P-DPO: TRL's, what is personal about it, and presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from trl import DPOConfig


@dataclass
class PersonalizedDPOConfig(DPOConfig):
    """TRL's `DPOConfig` and what is personal about P-DPO.

    Args:
        alpha: weight of the user's loss against the generic user's, in [0, 1]. At 1 and 0 the term without weight
            is not computed.
        user_learning_rate, user_weight_decay: of the users' own rows, and of what a user model shares but does not list
            in `shared_slow`. `learning_rate` is for everything else.
        share_prompt: compute each prompt once for both responses (`training/prompt_once.py`): same loss, less work.
        personalized: False trains vanilla DPO on the same pairs in the same order: the control.
    """

    alpha: float = 0.5
    user_learning_rate: float = 1e-2
    user_weight_decay: float = 0.0
    share_prompt: bool = True
    personalized: bool = True
    # the collator takes what it needs, `user_row` too
    remove_unused_columns: bool = False
    # TRL turns it on by default, which costs a third more time; turn it on where memory asks for it
    gradient_checkpointing: bool = False
    # everything that is trained is in every batch, so several processes need not look for what is not
    ddp_find_unused_parameters: bool | None = False
    # the reference never changes: once a pair, not once an epoch, and no second model in memory
    precompute_ref_log_probs: bool = True

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, expected a number in [0, 1]: the weight of the user's loss.")
        if self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                "train_sampling_strategy='group_by_length' needs the length of one text, but a pair has two. Leave it "
                "out: pairs are then drawn in random order."
            )
        if self.use_liger_kernel:
            raise ValueError(
                "use_liger_kernel=True replaces the model's forward and bypasses the hooks that put the user tokens "
                "in front of the prompt. Set use_liger_kernel=False."
            )
        if self.bf16 is None:  # TRL's default is True everywhere, which is far slower than float32 on most CPUs
            self.bf16 = not self.fp16 and not self.use_cpu and torch.cuda.is_available()
        if not torch.cuda.is_available():  # it would only warn
            self.dataloader_pin_memory = False
        super().__post_init__()


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
