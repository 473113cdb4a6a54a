"""Settings of trainings: TRL's, and what is personal about them."""

from dataclasses import dataclass
from typing import Any

import torch
from trl import DPOConfig, RewardConfig


@dataclass
class UserSettings:
    """What P-DPO and reward models share; comes before TRL's config among a class's bases.

    Args:
        user_learning_rate, user_weight_decay: of the users' own rows, and of what a user model shares but does not list
            in `shared_slow`. `learning_rate` is for everything else.
    """

    user_learning_rate: float = 1e-2
    user_weight_decay: float = 0.0
    # the collator takes what it needs, `user_row` too
    remove_unused_columns: bool = False
    # TRL turns it on by default, which costs a third more time; turn it on if memory is short
    gradient_checkpointing: bool = False
    # everything that is trained is in every batch, so several processes need not look for what is not
    ddp_find_unused_parameters: bool | None = False


def for_this_machine(args: Any) -> None:
    """Settle what TRL's config leaves open, or asks of CPUs too."""
    if args.bf16 is None:  # TRL's default is True everywhere, which is far slower than float32 on most CPUs
        args.bf16 = not args.fp16 and not args.use_cpu and torch.cuda.is_available()
    if not torch.cuda.is_available():  # it would only warn
        args.dataloader_pin_memory = False


@dataclass
class PersonalizedDPOConfig(UserSettings, DPOConfig):
    """TRL's `DPOConfig`, `UserSettings`, and what P-DPO needs.

    Args:
        alpha: weight of the user's loss against the generic user's, in [0, 1]. A term without weight is not computed.
        share_prompt: compute each prompt once for both responses (`training/prompt_once.py`): same loss, less work.
        pairs_per_row: so many pairs of one user and prompt, which follow each other in the training pairs (by
            `data.select.in_blocks`; recipes call it), share a row of the batch, with `share_prompt`: same loss, faster
            where prompts are few. Their order is then the same in every epoch.
        personalized: False trains vanilla DPO on the same pairs in the same order: the control.
    """

    alpha: float = 0.5
    share_prompt: bool = True
    pairs_per_row: int = 1
    personalized: bool = True
    # the reference never changes: once a pair, not once an epoch, and no second model in memory
    precompute_ref_log_probs: bool = True

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, expected a number in [0, 1]: the weight of the user's loss.")
        if self.use_liger_kernel:
            raise ValueError("use_liger_kernel=True bypasses the hooks that put user tokens in front. Set it to False.")
        if self.pairs_per_row > 1:
            self.train_sampling_strategy = "sequential"
            if self.per_device_train_batch_size % self.pairs_per_row:
                size = f"per_device_train_batch_size={self.per_device_train_batch_size}"
                raise ValueError(f"pairs_per_row={self.pairs_per_row} does not divide {size}. Choose a multiple of it.")
        for_this_machine(self)
        super().__post_init__()


@dataclass
class PersonalizedRewardConfig(UserSettings, RewardConfig):
    """TRL's `RewardConfig`, `UserSettings`, and what DSP needs.

    Args:
        lm_loss_coeff: weight of the language-modelling term; at 0 the LM head is not computed. DSP: 0.1.
        lm_score_threshold: texts whose normalised score exceeds it are imitated; DSP's.
        max_length: tokens of prompt and response; the beginning of longer texts is cut. (TRL drops such pairs.)
    """

    lm_loss_coeff: float = 0.0
    lm_score_threshold: float = 0.85
    learning_rate: float = 1e-6
    max_length: int | None = 512
    eval_on_start: bool = True

    def __post_init__(self):
        if self.lm_loss_coeff < 0 or not 0 <= self.lm_score_threshold < 1:
            found = f"lm_loss_coeff={self.lm_loss_coeff}, lm_score_threshold={self.lm_score_threshold}"
            raise ValueError(f"{found}: expected a weight of at least 0 and a threshold in [0, 1).")
        for_this_machine(self)
        super().__post_init__()
        if self.eval_strategy == "no":
            self.eval_on_start = False
