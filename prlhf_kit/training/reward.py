"""Customised reward models (DSP: Cheng et al. 2023, arXiv 2309.03126) on top of TRL's RewardTrainer:
L = ranking loss + lm_loss_coeff * language-modelling loss of the preferred responses, over pairs or scored lists.
"""

from collections import defaultdict
from typing import Any

import torch
from datasets import concatenate_datasets
from peft import PeftConfig
from trl import RewardTrainer

from prlhf_kit.files import short_hash
from prlhf_kit.models.conditioning import ATTRIBUTE, causal_lm, user_models
from prlhf_kit.models.reward_model import is_decoder, save_beside, two_types
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.training import reward_losses
from prlhf_kit.training.config import PersonalizedRewardConfig
from prlhf_kit.training.personal import PersonalizedTraining, index_for
from prlhf_kit.training.reward_data import RewardCollator, tokenized_lists

EVALUATIONS = "evaluations.parquet"


class PersonalizedRewardTrainer(PersonalizedTraining, RewardTrainer):
    """TRL's `RewardTrainer` for pairs and lists, with DSP's losses, several evaluation sets, and users.

    Each evaluation set's `eval_<set>_accuracy` (over all pairs; exact, ties one half), `_first_two` (the same of each
    list's two best responses), `_margin` and `_ranking_loss` are logged from step 0 on; `metric_for_best_model` may
    follow any of them. Which pairs were ranked right at each step is in `rows` and, beside each saved model, in
    `evaluations.parquet`: `step`, `set`, `row` (of the set), `user_id`, `prompt` (fingerprint of what the model reads),
    `right`, `pairs`. `dropped[set]` counts the rows left out, by reason.

    Args:
        model: from `new_reward_model` or `load_reward_model(trainable=True)`; conditioned on users or not.
        train_dataset, eval_dataset: preference pairs or lists (`reward_data.tokenized_lists`), or several sets by name.
        user_index: rows of the users, where the model is conditioned. Others are scored as the generic user.
        peft_config: None: the whole model is trained, or the adapter that the model has.
    """

    args: PersonalizedRewardConfig
    table, key = EVALUATIONS, ("step", "set", "row")
    columns = (*key, "user_id", "prompt", "right", "pairs")

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
            raise TypeError(f"a {type(bare).__name__} was given, expected one of kit.new_reward_model.")
        training = train_dataset if isinstance(train_dataset, dict) else {"train": train_dataset}
        held_out = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
        if twice := sorted(set(training) & set(held_out)):
            raise ValueError(f"a training and an evaluation set are both called {twice[0]!r}. Rename one of them.")
        self.user_index: UserIndex | None = None
        if user_index is not None or user_models(model):
            users = [user for pairs in training.values() for user in pairs["user_id"]]
            self.user_index = index_for(model, users, user_index)
        if args.lm_loss_coeff and not hasattr(bare, "has_lm_head"):
            raise ValueError(f"lm_loss_coeff={args.lm_loss_coeff} needs the base's LM head: load it with lm_head=True.")
        self._decoder = is_decoder(bare)
        self.dropped: dict[str, dict[str, int]] = {}
        self._rows_of: dict[str, list[tuple[str | None, str]]] = {}  # user and prompt of each row
        self._ranked: dict[str, list[torch.Tensor]] = defaultdict(list)
        threshold = args.lm_score_threshold if args.lm_loss_coeff else None
        mixed = [self._prepare_dataset(pairs, processing_class, args, name) for name, pairs in training.items()]
        super().__init__(
            model=model,
            args=args,
            train_dataset=concatenate_datasets(mixed),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            trained_whole=[*bare.fresh, *([ATTRIBUTE] if self.user_index else [])],
            data_collator=RewardCollator(processing_class.pad_token_id, threshold, two_types(bare)),
            **kwargs,
        )

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        # Private in TRL, whose own knows pairs of whole texts only: lists, users and cut texts are the kit's.
        if "text_ids" in dataset.column_names:
            return dataset
        lists, dropped = tokenized_lists(dataset, processing_class, dataset_name, args.max_length, self._decoder)
        users = dataset["user_id"] if "user_id" in dataset.column_names else [None] * len(dataset)
        self.dropped[dataset_name] = dict(dropped)
        self._rows_of[dataset_name] = list(zip(users, map(short_hash, dataset["prompt"]), strict=True))
        if self.user_index is not None:
            rows = self.user_index.rows(users, unknown="generic")
            lists = lists.add_column("user_row", [rows[i] for i in lists["row"]])
        return lists

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """DSP's loss of a batch of lists, by `reward_losses`; `inputs` are those of `RewardCollator`."""
        inputs = dict(inputs)
        scores, mask, rows = (inputs.pop(name) for name in ("scores", "mask", "rows"))
        outputs = model(**inputs, **({"use_cache": False} if self._decoder else {}))
        flat = outputs.logits.squeeze(-1).float()  # [N], the responses of all lists one after the other
        # back into lists [B, r], zeros where a list is shorter
        rewards = flat.new_zeros(scores.shape).masked_scatter(mask, flat)
        parts = [reward_losses.ranking_loss(rewards, scores, mask)]
        loss = parts[0]
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * reward_losses.center_penalty(rewards, scores, mask)
        if self.args.lm_loss_coeff:
            parts.append(reward_losses.imitation_loss(outputs.nll, scores[mask], self.args.lm_score_threshold))
            loss = loss + self.args.lm_loss_coeff * parts[1]
        with torch.no_grad():  # what `log` turns into metrics
            right, pairs = reward_losses.ranked_right(rewards, scores, mask)
            margin = ((rewards[:, :, None] - rewards[:, None, :]) * reward_losses.compared(scores, mask)).sum((1, 2))
            first_two = reward_losses.first_two_right(rewards, scores, mask)
            # a batch's losses count as often as it has pairs
            of_lists = torch.stack([rows, right, pairs, margin, *first_two, *(part * pairs for part in parts)], 1)
            mode = "train" if self.model.training else "eval"
            self._ranked[mode].append(self.accelerator.gather_for_metrics(of_lists).cpu())  # [B, 7 or 8]
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if self._ranked[mode]:
            ranked = torch.cat(self._ranked.pop(mode))
            prefix = ""
            if mode == "eval":  # which set this is, only the name of its loss says
                name = next(key for key in logs if key.endswith("_loss")).removesuffix("_loss")
                prefix, known = f"{name}_", name.removeprefix("eval").lstrip("_") or "eval"
                if known in self._rows_of:
                    user_and_prompt, step = self._rows_of[known], self.state.global_step
                    for row, right, pairs, *_ in ranked.tolist():
                        self.rows.append((step, known, int(row), *user_and_prompt[int(row)], right, int(pairs)))
            _, right, total, margin, first_right, first_total, *parts = ranked.sum(0).tolist()
            sums = dict(zip(("accuracy", "margin", "ranking_loss", "lm_loss"), (right, margin, *parts), strict=False))
            logs |= {f"{prefix}{name}": value / total for name, value in sums.items()}
            if first_total:  # else all lists have ties in front
                logs[f"{prefix}first_two"] = first_right / first_total
        super().log(logs, start_time)

    def write_beside(self, model, folder: str) -> None:
        best = self.args.load_best_model_at_end and self.state.best_global_step
        save_beside(model, folder, self.user_index, step=best or self.state.global_step)
