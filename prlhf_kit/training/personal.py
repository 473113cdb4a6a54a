"""What the P-DPO trainer and the reward trainer share: the users' learning rate, what lies beside a saved model."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftConfig
from transformers import Trainer

from prlhf_kit.models.conditioning import ATTRIBUTE, causal_lm, user_model_of, user_models
from prlhf_kit.models.tokenize import TOKENIZER, begins_with_bos, tokenizer_hash
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.training.resume import Checkpoints, is_whole, last_checkpoint

USER_METRICS = "user_metrics.parquet"


class PersonalizedTraining(Trainer):
    """Comes before TRL's trainer among a class's bases. The `rows` that a subclass collects (`columns`, of which `key`
    tells rows apart) are kept in the parquet file `table` beside each saved model.

    Args:
        peft_config: of the adapter; the caller's object is not changed.
        trained_whole: modules that are trained and saved whole with the adapter.
        generic_term: whether the loss has a term of the generic user (else see `UserModel.generic_is_mean`).
        kwargs: of TRL's trainer.
    """

    table: str
    columns: tuple[str, ...]
    key: tuple[str, ...]

    def __init__(
        self,
        model,
        peft_config: PeftConfig | None = None,
        trained_whole: Iterable[str] = (),
        generic_term: bool = False,
        **kwargs,
    ):
        self.rows: list[tuple] = []
        if kwargs["args"].push_to_hub:
            what = "would upload user ids, which are personal data"
            raise ValueError(f"push_to_hub=True {what}. After training, kit.push_to_hub leaves them out.")
        for table in user_models(model):
            if table.after_bos is None:
                table.after_bos = begins_with_bos(kwargs["processing_class"])
            if not table.row_0_is_zero:
                table.generic_is_mean = not generic_term
        if peft_config is not None:
            peft_config = copy.deepcopy(peft_config)
            peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or ()), *trained_whole}) or None
        super().__init__(model=model, peft_config=peft_config, **kwargs)
        # TRL puts all that is trained on a quantized base into bfloat16, in which a row could not take small steps
        for table in user_models(self.model):
            table.float()
        setattr(causal_lm(self.model), TOKENIZER, tokenizer_hash(kwargs["processing_class"]))  # kept in `users.json`
        self.add_callback(Checkpoints())

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """TRL's optimizer with the users' own rows in parameter groups of their own.

        What all users share (`shared_slow`, e_0 for instance) stays with the adapter: it is in every batch, and where
        users disagree its gradient is mostly noise, which Adam would turn into steps of the full, large size.
        """
        known = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if known or not user_models(self.model):
            return optimizer
        slow = user_model_of(self.model).shared_slow
        named = (self.model if model is None else model).named_parameters()
        own = {id(p) for name, p in named if f"{ATTRIBUTE}." in name and name.rsplit(".", 1)[-1] not in slow}
        args: Any = self.args
        for group in list(optimizer.param_groups):
            users = [p for p in group["params"] if id(p) in own]
            if users:
                group["params"] = [p for p in group["params"] if id(p) not in own]
                rates = {"lr": args.user_learning_rate, "weight_decay": args.user_weight_decay}
                optimizer.add_param_group(group | {"params": users} | rates)
        return optimizer

    def train(self, resume_from_checkpoint=None, **kwargs):
        """TRL's, with the rows of the checkpoint; what a killed training has evaluated is not evaluated again."""
        folder = last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        if folder:
            if not is_whole(folder):  # without its optimizer, say, another model would come out
                raise ValueError(f"{folder} is no whole checkpoint. Resume from another one, or train anew.")
            self.rows = list(pd.read_parquet(Path(folder, self.table)).itertuples(index=False, name=None))
            self.args.eval_on_start = False
        return super().train(resume_from_checkpoint=folder, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """TRL's, with the rows beside the model, and what `write_beside` writes."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            rows = pd.DataFrame(self.rows, columns=list(self.columns))
            rows.drop_duplicates(list(self.key), keep="last").to_parquet(Path(folder, self.table))
            self.write_beside(self.accelerator.unwrap_model(self.model), folder)

    def push_to_hub(self, *_, **__):
        """Refused: TRL's would upload user ids."""
        raise NotImplementedError("kit.push_to_hub(folder, repo_id) leaves user ids out; call save_model() before it.")

    def write_beside(self, model, folder: str) -> None:
        """Write what loading the model in `folder` needs beside its weights."""
        raise NotImplementedError


def index_for(model, user_ids: Iterable[str], index: UserIndex | None) -> UserIndex:
    """`index`, or one of the training pairs' `user_ids`. Raises `ValueError` where `model` has no user model, or one of
    another number of rows, or a user has no row."""
    users = sorted(set(user_ids))
    index = index or UserIndex(users)
    if missing := [user for user in users if user not in index]:
        said = f"{len(missing)} users of the training set have no row in the user index, first {missing[0]!r}"
        raise ValueError(f"{said}. Build it as UserIndex(sorted(set(train['user_id']))).")
    user_model_of(model)
    rows = user_models(model)[-1].num_rows
    if rows != len(index):
        raise ValueError(f"the user model has {rows} rows, the user index {len(index)}. Pass num_rows=len(user_index).")
    return index
