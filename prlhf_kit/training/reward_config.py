"""Settings of reward models: TRL's, what DSP adds, and the paper's values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import EarlyStoppingCallback
from trl import RewardConfig

# DSP's settings for models of 7B, on one device: general, then customised reward fine-tuning. Where a stage imitates,
# lm_loss_coeff is 0.1.
_DSP = {"max_length": 512, "num_train_epochs": 1, "per_device_train_batch_size": 1}
GRFT = _DSP | {"learning_rate": 1e-6, "gradient_accumulation_steps": 64, "warmup_steps": 100}
CRFT = _DSP | {"learning_rate": 1e-7, "gradient_accumulation_steps": 256, "warmup_steps": 0}


@dataclass
class PersonalizedRewardConfig(RewardConfig):
    """TRL's `RewardConfig`, and what DSP and personalised rewards need.

    Args:
        lm_loss_coeff: weight of the language-modelling term; at 0 the LM head is not computed. DSP: 0.1.
        lm_score_threshold: texts whose normalised score exceeds it are imitated.
        max_length: tokens of prompt and response; the beginning of longer texts is cut. (TRL drops such pairs.)
        lm_on_prompt: the term takes in the prompt's tokens, as in DSP; False: the response's only.
        user_learning_rate, user_weight_decay: of the users' own rows, see `PersonalizedDPOConfig`.
    """

    lm_loss_coeff: float = 0.0
    lm_score_threshold: float = 0.9
    lm_on_prompt: bool = True
    user_learning_rate: float = 1e-2
    user_weight_decay: float = 0.0
    learning_rate: float = 1e-6
    max_length: int | None = 512
    eval_on_start: bool = True
    # the collator takes what it needs
    remove_unused_columns: bool = False
    # TRL turns it on by default, which costs a third more time
    gradient_checkpointing: bool = False
    # early stopping goes on counting where a killed training did
    restore_callback_states_from_checkpoint: bool = True
    ddp_find_unused_parameters: bool | None = False

    def __post_init__(self):
        if self.lm_loss_coeff < 0 or not 0 <= self.lm_score_threshold < 1:
            raise ValueError(
                f"lm_loss_coeff={self.lm_loss_coeff}, lm_score_threshold={self.lm_score_threshold}: expected a weight "
                "of at least 0 and a threshold in [0, 1)."
            )
        if self.bf16 is None:  # TRL's default is True everywhere, which is far slower than float32 on most CPUs
            self.bf16 = not self.fp16 and not self.use_cpu and torch.cuda.is_available()
        if not torch.cuda.is_available():  # it would only warn
            self.dataloader_pin_memory = False
        super().__post_init__()
        if self.eval_strategy == "no":
            self.eval_on_start = False


class StopEarly(EarlyStoppingCallback):
    """transformers' early stopping where several sets are evaluated, of which one is followed."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        name = args.metric_for_best_model
        if (name if name.startswith("eval_") else f"eval_{name}") in metrics:  # it is told of every set on its own
            super().on_evaluate(args, state, control, metrics, **kwargs)
