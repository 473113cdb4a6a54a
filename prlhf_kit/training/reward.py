"""Customised reward models (DSP: Cheng et al. 2023, arXiv 2309.03126) on top of TRL's RewardTrainer:
L = ranking loss + lm_loss_coeff * language-modelling loss of the preferred responses, over pairs or scored lists.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftConfig
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from trl import RewardTrainer

from prlhf_kit.data.schema import SchemaError
from prlhf_kit.files import short_hash
from prlhf_kit.models.conditioning import ATTRIBUTE, causal_lm, user_models
from prlhf_kit.models.reward_model import is_decoder, save_beside, two_types
from prlhf_kit.models.tokenize import encode, padded, token_types
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.training import reward_losses
from prlhf_kit.training.config import PersonalizedRewardConfig
from prlhf_kit.training.personal import PersonalizedTraining, index_for

EVALUATIONS = "evaluations.parquet"


def tokenized_lists(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, name: str, max_length: int | None, decoder: bool
) -> tuple[Dataset, Counter[str]]:
    """Token ids of every list, longest first, and how many lists were dropped, by reason.

    Args:
        rows: preference pairs (`prompt`, `chosen`, `rejected`), or lists (`prompt`, `responses`, `scores`, as
            `data.dsp.listwise` makes them).

    Returns:
        Columns `text_ids` and `prompt_tokens` (for each response), `scores` (in [0, 1]), `row` (in `rows`), `length`.
    """
    columns = set(rows.column_names)
    lists = {"prompt", "responses", "scores"} <= columns
    if not lists and not {"prompt", "chosen", "rejected"} <= columns:
        expected = "prompt, chosen and rejected, or prompt, responses and scores (data.dsp.listwise)"
        raise SchemaError(f"the {name} set has columns {sorted(columns)}, expected {expected}.")
    if "margin" in columns:
        raise SchemaError(f"the {name} set has a column 'margin', which this loss does not use. Remove it.")
    dropped: Counter[str] = Counter()
    found: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        responses = row["responses"] if lists else [row["chosen"], row["rejected"]]
        scores = row["scores"] if lists else [1.0, 0.0]
        numbers = all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
        if not numbers or len(responses) != len(scores) or len(responses) < 2:
            said = f"row {number} of the {name} set has {len(responses)} responses and the scores {scores}"
            raise SchemaError(f"{said}, expected a finite number for each of two or more. Leave it out.")
        if len(set(scores)) == 1:
            dropped["all scores equal"] += 1
            continue
        if not all("".join(m["content"] or "" for m in response).strip() for response in responses):
            dropped["empty text"] += 1
            continue
        encoded = [encode(tokenizer, row["prompt"], r, max_length, decoder) for r in responses]
        texts, prompt_tokens = map(list, zip(*encoded, strict=True))
        if all(ids == texts[0] for ids in texts):
            dropped["the same text after truncation" if max_length else "the same text"] += 1
            continue
        low, high = min(scores), max(scores)  # DSP's release scales otherwise, which turns negative scores around
        scores = [(score - low) / (high - low) for score in scores]
        own = {"text_ids": texts, "prompt_tokens": prompt_tokens, "scores": scores}
        found.append({**own, "row": number, "length": max(map(len, texts))})
    if not found:
        raise SchemaError(f"nothing is left of the {name} set's {len(rows)} rows: {dict(dropped)}. Choose others.")
    return Dataset.from_list(sorted(found, key=lambda row: -row["length"])), dropped


@dataclass
class RewardCollator:
    """Batches of lists: all responses as rows of one padded batch, lists of different lengths without rows of padding.

    Returns `scores` `[B, r]` (NaN: no response), `rows` `[B]`, and for the N responses `input_ids` and
    `attention_mask` `[N, L]`; `lm_asked` `[N, L]` where the language-modelling term is wanted (of texts whose score
    exceeds `lm_threshold`); `user_rows` `[N]` where rows have a user; `token_type_ids` `[N, L]` where the model tells
    two texts apart.
    """

    pad_token_id: int
    lm_threshold: float | None
    two_types: bool = False
    padding_side: str = "right"

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        scores = pad_sequence([torch.tensor(e["scores"]) for e in examples], batch_first=True, padding_value=torch.nan)
        # N responses of all lists in one batch, [N, L], in the order of scores[~scores.isnan()]
        ids, attended = padded([t for e in examples for t in e["text_ids"]], self.pad_token_id, self.padding_side)
        batch = {  # scores first: Trainer takes the batch size from there
            "scores": scores,
            "rows": torch.tensor([e["row"] for e in examples]),
            "input_ids": ids,
            "attention_mask": attended,
        }
        if self.two_types:
            batch["token_type_ids"] = token_types(attended, [n for e in examples for n in e["prompt_tokens"]])
        if self.lm_threshold is not None:
            batch["lm_asked"] = attended * (scores[~scores.isnan()] > self.lm_threshold)[:, None]  # [N, L]
        if "user_row" in examples[0]:
            batch["user_rows"] = torch.tensor([e["user_row"] for e in examples for _ in e["scores"]])
        return batch


class PersonalizedRewardTrainer(PersonalizedTraining, RewardTrainer):
    """TRL's `RewardTrainer` for pairs and lists, with DSP's losses, several evaluation sets, and users.

    Each evaluation set's `eval_<set>_accuracy` (over all pairs; exact, ties one half), `_first_two` (the same of each
    list's two best responses), `_margin` and `_ranking_loss` are logged from step 0 on; `metric_for_best_model` may
    follow any of them. Which pairs were ranked right at each step is in `rows` and, beside each saved model, in
    `evaluations.parquet`: `step`, `set`, `row` (of the set), `user_id`, `prompt` (fingerprint of what the model reads),
    `right`, `pairs`. `dropped[set]` counts the rows left out, by reason.

    Args:
        model: from `new_reward_model` or `load_reward_model(trainable=True)`; conditioned on users or not.
        train_dataset, eval_dataset: preference pairs or lists (`tokenized_lists`), or several sets by name.
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
        scores, rows = inputs.pop("scores"), inputs.pop("rows")
        outputs = model(**inputs, **({"use_cache": False} if self._decoder else {}))
        flat = outputs.logits.squeeze(-1).float()  # [N], the responses of all lists one after the other
        # back into lists [B, r], zeros where a list is shorter
        real = ~scores.isnan()
        rewards = flat.new_zeros(scores.shape).masked_scatter(real, flat)
        parts = [reward_losses.ranking_loss(rewards, scores)]
        loss = parts[0]
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * reward_losses.center_penalty(rewards, scores)
        if self.args.lm_loss_coeff:
            parts.append(reward_losses.imitation_loss(outputs.nll, scores[real], self.args.lm_score_threshold))
            loss = loss + self.args.lm_loss_coeff * parts[1]
        with torch.no_grad():  # what `log` turns into metrics
            right, pairs = reward_losses.ranked_right(rewards, scores)
            margin = ((rewards[:, :, None] - rewards[:, None, :]) * reward_losses.compared(scores)).sum((1, 2))
            first_two = reward_losses.first_two_right(rewards, scores)
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
