"""Customised reward models (DSP: Cheng et al. 2023, arXiv 2309.03126) on top of TRL's RewardTrainer.

    L = ranking loss + lm_loss_coeff * language-modelling loss of the preferred responses

over pairs or lists of scored responses, with any number of evaluation sets, and with a user model in front of the
backbone where there is one.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import concatenate_datasets
from peft import PeftConfig, PeftModel
from transformers.trainer_utils import get_last_checkpoint
from trl import RewardTrainer

from prlhf_kit.files import short_hash
from prlhf_kit.models.conditioning import ATTRIBUTE, causal_lm, user_model_of, user_models
from prlhf_kit.models.reward_model import is_decoder, load_lm_head, save_beside, two_types, without_extras
from prlhf_kit.models.saving import load_user_model
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.training import reward_losses
from prlhf_kit.training.resume import MarkComplete, set_users_apart
from prlhf_kit.training.reward_config import PersonalizedRewardConfig
from prlhf_kit.training.reward_data import RewardCollator, tokenized_lists

EVALUATIONS = "evaluations.parquet"
MEASURES = ("accuracy", "margin", "ranking_loss", "loss")


class PersonalizedRewardTrainer(RewardTrainer):
    """TRL's `RewardTrainer` for pairs and lists, with DSP's losses, several evaluation sets, and users.

    Each evaluation set's `eval_<set>_accuracy` (exact, ties one half), `_margin` and `_ranking_loss` are logged from
    step 0 on, so that `metric_for_best_model` and `StopEarly` may follow any of them. Which pairs were ranked right at
    each step is in `evaluations` and, beside each saved model, in `evaluations.parquet`: `step`, `set`, `row` (of the
    set), `user_id`, `prompt` (its fingerprint), `right`, `pairs`. `dropped[set]` counts the rows left out, by reason.

    Args:
        model: from `new_reward_model` or `load_reward_model(trainable=True)`; conditioned on users or not.
        args: `PersonalizedRewardConfig`.
        train_dataset, eval_dataset: preference pairs or lists (`reward_data.tokenized_lists`), or a dict of several
            sets: those to train on are mixed, those to evaluate are evaluated one by one.
        user_index: rows of the users, where the model is conditioned. Others are scored as the generic user.
        peft_config: `modules_to_save` is completed with the reward head and the user model. None: the whole model
            is trained, or the adapter that the model has.
    """

    args: PersonalizedRewardConfig

    def __init__(
        self,
        model,
        args: PersonalizedRewardConfig,
        train_dataset,
        eval_dataset=None,
        processing_class=None,
        user_index: UserIndex | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        bare: Any = causal_lm(model)
        if not hasattr(bare, "pooling"):
            raise TypeError(
                f"a {type(bare).__name__} was given, expected one of new_reward_model or load_reward_model. Build it "
                "with kit.new_reward_model(name): names are those of language models or of reward models."
            )
        self._conditioned = bool(user_models(model))
        training = train_dataset if isinstance(train_dataset, dict) else {"train": train_dataset}
        if self._conditioned:
            users = sorted({user for pairs in training.values() for user in pairs["user_id"]})
            self.user_index: UserIndex | None = user_index or UserIndex(users)
            if unknown := [user for user in users if user not in self.user_index]:
                raise ValueError(
                    f"{len(unknown)} users of the training set have no row in the user index, first {unknown[0]!r}. "
                    "Build the index from the training set: UserIndex(sorted(set(train['user_id'])))."
                )
            rows = getattr(user_models(model)[-1], "num_rows", len(self.user_index))
            if rows != len(self.user_index):
                raise ValueError(
                    f"the user model has {rows} rows, but the user index {len(self.user_index)} (users and the generic "
                    "one). Build it with num_rows=len(user_index)."
                )
        elif user_index is not None:
            raise ValueError("a user_index was given, but the model has no user model. Call kit.condition(model, ...).")
        else:
            self.user_index = None
        held_out = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
        if twice := sorted(set(training) & set(held_out)):
            raise ValueError(f"a training and an evaluation set are both called {twice[0]!r}. Rename one of them.")
        names = [f"{name}_" for name in held_out] if isinstance(eval_dataset, dict) else [""]
        known = [f"eval_{name}{measure}" for name in names for measure in MEASURES]
        followed = args.metric_for_best_model
        if followed is not None and followed not in known and f"eval_{followed}" not in known:
            raise ValueError(
                f"metric_for_best_model={followed!r} belongs to no evaluation set. Expected one of {', '.join(known)}."
            )
        if args.padding_side == "left" and (not is_decoder(bare) or bare.pooling == "own"):
            raise ValueError(
                "padding_side='left' goes with decoders whose pooling is last, mean or max only: others count "
                "positions from the left. Set padding_side='right'."
            )
        if args.lm_loss_coeff and not hasattr(bare, "has_lm_head"):
            raise ValueError(
                f"lm_loss_coeff={args.lm_loss_coeff} needs the base's LM head: build the model with "
                "new_reward_model(..., lm_head=True) or load_reward_model(..., lm_head=True)."
            )
        if peft_config is not None:
            peft_config = copy.deepcopy(peft_config)
            wanted = {*(peft_config.modules_to_save or ()), *bare.fresh, *([ATTRIBUTE] if self._conditioned else ())}
            peft_config.modules_to_save = sorted(wanted)
        self._decoder = is_decoder(bare)
        self.dropped: dict[str, dict[str, int]] = {}
        self._rows_of: dict[str, list[tuple[str | None, str]]] = {}  # user and prompt of each row
        self._ranked: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.evaluations: list[tuple[int, str, int, str | None, str, float, int]] = []
        threshold = args.lm_score_threshold if args.lm_loss_coeff else None
        mixed = [self._prepare_dataset(pairs, processing_class, args, name) for name, pairs in training.items()]
        super().__init__(
            model=model,
            args=args,
            train_dataset=concatenate_datasets(mixed),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            data_collator=RewardCollator(
                processing_class.pad_token_id, args.padding_side, threshold, args.lm_on_prompt, two_types(bare)
            ),
            **kwargs,
        )
        if isinstance(self.model, PeftModel):
            # TRL puts all that is trained on a quantized base into bfloat16
            for name, p in self.model.named_parameters():
                if f"{ATTRIBUTE}." in name:
                    p.data = p.data.float()
        self.add_callback(MarkComplete())

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if "text_ids" in dataset.column_names:
            return dataset
        lists, dropped = tokenized_lists(
            dataset, processing_class, dataset_name, args.max_length, args.truncation_side, self._decoder
        )
        users = dataset["user_id"] if "user_id" in dataset.column_names else [None] * len(dataset)
        self.dropped[dataset_name] = dict(dropped)
        self._rows_of[dataset_name] = list(zip(users, map(short_hash, dataset["prompt"]), strict=True))
        if self.user_index is not None:
            rows = self.user_index.rows(users, unknown="generic")
            lists = lists.add_column("user_row", [rows[i] for i in lists["row"]])
        return lists

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["text_ids", "prompt_tokens", "scores", "row", "user_row", "length"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        scores, mask, rows = (inputs.pop(name) for name in ("scores", "mask", "rows"))
        outputs = model(**inputs, **({"use_cache": False} if self._decoder else {}))
        flat = outputs.logits.squeeze(-1).float()  # [N], the responses of all lists one after the other
        # back into lists [B, r], zeros where a list is shorter
        rewards = flat.new_zeros(scores.shape).masked_scatter(mask, flat)
        loss = ranking_part = reward_losses.ranking_loss(rewards, scores, mask)
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * reward_losses.center_penalty(rewards, scores, mask)
        parts = {"ranking_loss": ranking_part.detach()}
        if self.args.lm_loss_coeff:
            lm = reward_losses.imitation_loss(outputs.nll, scores[mask], self.args.lm_score_threshold)
            loss = loss + self.args.lm_loss_coeff * lm
            parts["lm_loss"] = lm.detach()
        with torch.no_grad():
            self._count(rewards, scores, mask, rows, parts, int(inputs["attention_mask"].sum()))
        return (loss, outputs) if return_outputs else loss

    def _count(self, rewards, scores, mask, rows, parts, tokens: int) -> None:
        """Keeps what `log` turns into metrics."""
        right, pairs = reward_losses.ranked_right(rewards, scores, mask)
        better = reward_losses.compared(scores, mask)
        margin = ((rewards[:, :, None] - rewards[:, None, :]) * better).sum((1, 2))
        gather = self.accelerator.gather_for_metrics
        mode = "train" if self.model.training else "eval"
        for name, value in parts.items():  # with how many pairs it is the mean over
            weighed = torch.stack([value * pairs.sum(), pairs.sum().float()])
            self._ranked[f"{mode}/{name}"].append(self.accelerator.gather(weighed[None]).cpu())
        self._ranked[mode].append(gather(torch.stack([rows.float(), right, pairs.float(), margin], 1)).cpu())
        if mode == "train":
            counted = self.accelerator.gather(torch.tensor([tokens], device=rewards.device))
            self._total_train_tokens += int(counted.sum()) // self._tp_size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if self._ranked[mode]:
            ranked = torch.cat(self._ranked.pop(mode))
            prefix = ""
            if mode == "eval":  # which set this is, only the name of its loss says
                name = next(key for key in logs if key.endswith("_loss")).removesuffix("_loss")
                prefix, known = f"{name}_", name.removeprefix("eval").lstrip("_") or "eval"
                self._remember(known, ranked)
            total = ranked[:, 2].sum()
            logs[f"{prefix}accuracy"] = (ranked[:, 1].sum() / total).item()
            logs[f"{prefix}margin"] = (ranked[:, 3].sum() / total).item()
            if mode == "train":
                logs["num_tokens"] = self._total_train_tokens
            for part in ("ranking_loss", "lm_loss"):
                if values := self._ranked.pop(f"{mode}/{part}", None):
                    summed = torch.cat(values).sum(0)
                    logs[f"{prefix}{part}"] = (summed[0] / summed[1]).item()
        self._metrics[mode].clear()
        super().log(logs, start_time)

    def _remember(self, name: str, ranked: torch.Tensor) -> None:
        known, step = self._rows_of.get(name, []), self.state.global_step
        for row, right, pairs, _ in ranked.tolist() if known else ():
            self.evaluations.append((step, name, int(row), *known[int(row)], right, int(pairs)))

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """TRL's optimizer with the users' own rows in a parameter group of their own."""
        known = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if known or not self._conditioned:
            return optimizer
        named = (self.model if model is None else model).named_parameters()
        slow = getattr(user_model_of(self.model), "shared_slow", ("generic",))
        return set_users_apart(optimizer, named, slow, self.args.user_learning_rate, self.args.user_weight_decay)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """TRL's, with the evaluations of the checkpoint."""
        folder = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        if folder and Path(folder, EVALUATIONS).is_file():
            self.evaluations = list(pd.read_parquet(Path(folder, EVALUATIONS)).itertuples(index=False, name=None))
        # what a killed training has evaluated is not evaluated again (early stopping would count it twice)
        before, self.args.eval_on_start = self.args.eval_on_start, self.args.eval_on_start and not folder
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.args.eval_on_start = before

    def evaluation_loop(self, *args, **kwargs):
        for key in [key for key in self._ranked if key.startswith("eval")]:  # of a prediction, which logs nothing
            del self._ranked[key]
        return super().evaluation_loop(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint, *args, **kwargs):
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        self._load_extras(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_extras(self.state.best_model_checkpoint)

    def _load_extras(self, folder):
        """Of a fully trained model, whose users and LM head lie in files of their own."""
        if not isinstance(self.model, PeftModel):
            load_lm_head(self.model, folder)
            if self._conditioned:
                load_user_model(self.model, folder)

    def _save(self, output_dir: str | None = None, state_dict=None):
        folder, model = output_dir or self.args.output_dir, self.accelerator.unwrap_model(self.model)
        state = model.state_dict() if state_dict is None else state_dict
        super()._save(folder, state_dict if isinstance(model, PeftModel) else without_extras(state))
        if not self.args.should_save:
            return
        best = self.args.load_best_model_at_end and self.state.best_global_step
        save_beside(model, folder, self.user_index, state, step=best or self.state.global_step)
        table = pd.DataFrame(self.evaluations, columns=["step", "set", "row", "user_id", "prompt", "right", "pairs"])
        table.drop_duplicates(["step", "set", "row"], keep="last").to_parquet(Path(folder, EVALUATIONS))
