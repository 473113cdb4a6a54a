"""P-DPO: DPO with a user model in front of the policy (P-RLHF, arXiv 2402.05133), on top of TRL's DPOTrainer.

Any `loss_type` of TRL may take L_DPO's place (P-*PO). Unlike in the paper, users' rows have their own learning rate.
"""

import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils.constants import DUMMY_TARGET_MODULES
from trl import DPOTrainer

from prlhf_kit.data.chat import require_prefix, with_user_text
from prlhf_kit.models.conditioning import ATTRIBUTE, causal_lm, check_length, condition, user_model_of, user_models
from prlhf_kit.models.hub import load_tokenizer, name_of
from prlhf_kit.models.logprobs import REFERENCE, require_lengths, tokenize_pairs
from prlhf_kit.models.saving import name_base, save_index
from prlhf_kit.models.user_index import GENERIC, UserIndex
from prlhf_kit.models.user_models import IndividualUserModel
from prlhf_kit.training.config import PersonalizedDPOConfig
from prlhf_kit.training.controls import require_user_text, with_words
from prlhf_kit.training.launch import load_base, writable
from prlhf_kit.training.personal import USER_METRICS, PersonalizedTraining, index_for
from prlhf_kit.training.prompt_once import GENERIC_PROMPT, GENERIC_REFERENCE, collator_for, compute_prompts_once

# no module gets an adapter: the user model alone is trained
FROZEN_BASE = LoraConfig(target_modules=DUMMY_TARGET_MODULES)


def pdpo_loss(dpo: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, alpha: float) -> torch.Tensor:
    """P-DPO's loss (P-RLHF, arXiv 2402.05133, the personalised DPO objective):

        L = alpha * L_DPO(policy of the user) + (1 - alpha) * L_DPO(policy of the generic user)

    L_DPO = -log sigmoid(beta [log pi(y+|x,u) / pi_ref(y+|x) - log pi(y-|x,u) / pi_ref(y-|x)]), nats a pair. Both
    terms have the same reference, which knows no users. A term without weight is not computed.

    Args:
        dpo: from the rows of the users that stand in front of each text to the mean loss of a batch of pairs, a scalar.
        rows: `[2B]`, each pair's user: of the B chosen texts, then of the B rejected ones.

    >>> pdpo_loss(lambda rows: rows.float().mean(), torch.tensor([4, 4]), alpha=0.25)
    tensor(1.)
    """
    generic = torch.full_like(rows, GENERIC)
    if alpha in (0, 1):
        return dpo(rows if alpha else generic)
    return alpha * dpo(rows) + (1 - alpha) * dpo(generic)


class PersonalizedDPOTrainer(PersonalizedTraining, DPOTrainer):
    """TRL's `DPOTrainer` for datasets with a `user_id` column and a model prepared by `prlhf_kit.condition`.

        PersonalizedDPOTrainer(model="meta-llama/Llama-3.2-1B", train_dataset=pairs, peft_config=LoraConfig()).train()

    Beside TRL's metrics of the user pass it logs those of the generic pass (`generic/`) and the mean and the least
    reward accuracy among users (`users/mean`, `users/worst`). Every user's own is in `rows` and, beside each saved
    adapter, in `user_metrics.parquet` (`columns`; `pairs`: since the last time). `dropped[split]` counts, per user, the
    pairs of which `max_length` leaves nothing to learn from.

    Args:
        model: conditioned causal LM (for the vanilla control, `personalized=False`: any causal LM). Or its name, as
            `load_model` takes it: it is loaded and conditioned on an `IndividualUserModel` with 10 tokens a user.
        args: None: all defaults.
        processing_class: the tokenizer. None: the model's own.
        user_index: rows of the users, with all of `train_dataset`. Others are scored as the generic user.
        peft_config: of the adapter, which the user model is saved with. `FROZEN_BASE` trains the user model alone, None
            the whole model.
        kwargs: of `DPOTrainer`. `ref_model` only where the whole model is trained and `precompute_ref_log_probs` off.

    Raises `ConditioningError` for a model that would swallow the user silently, `ValueError` for users without a row.
    """

    args: PersonalizedDPOConfig
    table, key = USER_METRICS, ("step", "mode", "user_id")
    columns = (*key, "accuracy", "pairs")

    def __init__(
        self,
        model: Any,
        args: PersonalizedDPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        user_index: UserIndex | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        if isinstance(model, PeftModel):
            raise ValueError("the model is wrapped by PEFT already. Pass its base (or a merged model) and peft_config.")
        if train_dataset is None:
            raise ValueError("train_dataset is missing: pairs with a user_id, as kit.data.load gives them.")
        held_out = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
        for name, pairs in {"train": train_dataset, **held_out}.items():
            if pairs is not None and "user_id" not in pairs.column_names:
                raise ValueError(f"the {name} dataset has no column 'user_id', but {pairs.column_names}. Add it.")
        name = model if isinstance(model, str) else name_of(causal_lm(model))
        args = args or PersonalizedDPOConfig(f"{Path(name).name}-P-DPO")
        if isinstance(model, str):
            model = load_base(name, "full" if peft_config is None else "lora", "cpu")  # the trainer moves it
            if args.personalized:
                user_index = user_index or UserIndex(sorted(set(train_dataset["user_id"])))
                condition(model, IndividualUserModel(len(user_index), model.get_input_embeddings()))
        processing_class = processing_class or load_tokenizer(name)
        require_prefix(processing_class)
        self._unwrapped, self._user_tokens, self.user_index = model, 0, UserIndex([])
        self._user_text: bool | str = False
        if args.personalized:
            self.user_index = index_for(model, train_dataset["user_id"], user_index)
            self._user_tokens, self._user_text = user_models(model)[-1].num_tokens, user_model_of(model).user_text
        self.dropped: dict[str, dict[str, int]] = {}
        self._hits: dict[str, list[tuple[int, float]]] = defaultdict(list)  # mode -> row of a pair's user, ranked right
        super().__init__(
            model=model,
            args=args,
            data_collator=collator_for(model, args, processing_class.pad_token_id, self._user_tokens),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            trained_whole=[ATTRIBUTE] if args.personalized else [],
            generic_term=args.alpha < 1,
            **kwargs,
        )
        if self.aux_loss_enabled and (args.personalized or args.share_prompt):  # TRL takes the texts' mask for it
            raise ValueError("a router loss knows no user tokens and shared prompts. Set router_aux_loss_coef=0.0.")

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        # Private in TRL, which tokenises here and nowhere else: only here is known what max_length leaves of a pair.
        dataset = writable(dataset)
        if self._user_text == "authors" and GENERIC_PROMPT not in dataset.column_names:
            require_user_text(dataset)
            generic = [prompt for prompt, _, _ in tokenize_pairs(processing_class, dataset)]
            given = {name: of for name, of in GENERIC_REFERENCE.items() if name in dataset.column_names}
            dataset = with_user_text(dataset.rename_columns(given)).add_column(GENERIC_PROMPT, generic)
        elif self._user_text is True:
            dataset = with_words(dataset)
        if "user_row" not in dataset.column_names:
            dataset = dataset.add_column("user_row", self.user_index.rows(dataset["user_id"], unknown="generic"))
        whole, asked = dataset, Counter(dataset["user_id"])
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        ids = [dataset[column] for column in ("prompt_ids", "chosen_ids", "rejected_ids")]
        lengths = [len(p) + max(len(c), len(r)) for p, c, r in zip(*ids, strict=True)]
        longest, limit = max(lengths, default=0), args.max_length or math.inf
        if set(REFERENCE) & set(dataset.column_names):  # sums over whole texts
            if longest > limit or len(dataset) < len(whole):
                require_lengths(processing_class, whole, args.max_length, dataset_name)
            if args.ld_alpha is not None:
                why = f"are of whole texts, but ld_alpha={args.ld_alpha} weights them by token"
                raise ValueError(f"the columns {' and '.join(REFERENCE)} {why}. Remove them.")
        check_length(self._unwrapped, int(min(longest, limit)) + self._user_tokens)  # before the reference is computed
        cut = Counter(user for user, n in zip(dataset["user_id"], lengths, strict=True) if n > limit)
        if cut and args.truncation_mode == "keep_start":  # what is left of the two may be the same
            rooms = [max(limit - len(p), 0) for p in ids[0]]
            left = [i for i, (n, c, r) in enumerate(zip(rooms, *ids[1:], strict=True)) if c[:n] != r[:n]]
            dataset = dataset.select(left)
        self.dropped[dataset_name] = dropped = dict(asked - Counter(dataset["user_id"]))
        if cut:
            said = f"{cut.total()} pairs of the {dataset_name} set are longer than max_length={limit} tokens and cut"
            warnings.warn(f"{said}, by user: {dict(cut)}; dropped: {dropped}. Raise max_length.", stacklevel=3)
        untrained = sorted(set(self.user_index.user_ids) - set(dataset["user_id"]))
        if dataset_name == "train" and untrained:  # their rows stay as initialised, which is not the generic user
            said = f"{len(untrained)} users of the user index have no pair to train on, first {untrained[0]!r}"
            warnings.warn(f"{said}. Leave them out of the index.", stacklevel=3)
        return dataset

    def _precompute_ref_logps(self, dataset, name, batch_size):
        # Private in TRL, which would add the columns a second time where pairs bring their reference.
        if set(REFERENCE) <= set(dataset.column_names):
            return dataset
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_ref_log_probs(self, model, inputs):
        """Reference log-probs of a batch, `[B]` and `[B]` (nats); the reference is not personalised."""
        inputs = {k: v for k, v in inputs.items() if k not in ("user_rows", "generic")}
        if "prompt_ids" in inputs:  # a reference that TRL loaded by itself would swallow them silently
            compute_prompts_once(causal_lm(self.accelerator.unwrap_model(model)))
        return super().compute_ref_log_probs(model, inputs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """P-DPO's loss of a batch (`pdpo_loss`), by TRL's own loss of each term."""
        assert not return_outputs, "TRL removes return_outputs"
        inputs = dict(inputs)
        rows = inputs.pop("user_rows")  # [2B]: chosen, then rejected
        generic = inputs.pop("generic", inputs)  # as a rule the same batch
        for part in (inputs, generic):
            if REFERENCE[0] not in part:  # once for both terms
                part |= zip(REFERENCE, self.compute_ref_log_probs(self.ref_model or self.model, part), strict=True)
        self.precompute_ref_logps = True  # so that TRL takes it from the batch
        loss_of, mode = super().compute_loss, "train" if self.model.training else "eval"
        if not self.args.personalized:
            return loss_of(model, inputs)
        read = inputs if self.args.alpha else generic  # of the pass that TRL's metrics are of

        def counting(**kwargs):
            """`model`, counting on the way which pairs it ranks right."""
            outputs = model(**kwargs)
            if self.ld_alpha is None:
                chosen, rejected = outputs.log_probs.detach().sum(1).chunk(2)
                right = chosen - read["ref_chosen_logps"] > rejected - read["ref_rejected_logps"]
                found = self.accelerator.gather_for_metrics((rows.chunk(2)[0], right.float()))
                self._hits[mode] += zip(*(x.tolist() for x in found), strict=True)
            return outputs

        def dpo(who):
            if who is rows or self.args.alpha == 0:
                return loss_of(counting, read | {"user_rows": who})
            kept, self._metrics[mode] = self._metrics[mode], defaultdict(list)
            loss = loss_of(model, generic | {"user_rows": who})
            for key, values in self._metrics[mode].items():
                kept[f"generic/{key}"] += values
            self._metrics[mode] = kept
            return loss

        return pdpo_loss(dpo, rows, self.args.alpha)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, with the mean and the least accuracy among the users who had a pair since the last time."""
        mode = "train" if self.model.training else "eval"
        if hits := self._hits.pop(mode, None):
            by_user = pd.DataFrame(hits, columns=["row", "right"]).groupby("row").right.agg(["mean", "size"])
            names = ["generic", *self.user_index.user_ids]
            step = self.state.global_step
            # of several evaluation sets each has its own name: "eval_<set>_loss" is among the logs
            part = next((name.removesuffix("_loss") for name in logs if re.fullmatch("eval.*_loss", name)), mode)
            self.rows += [(step, part, names[row], mean, n) for row, mean, n in by_user.itertuples()]
            prefix = "users" if mode == "train" else f"{part}_users"
            logs |= {f"{prefix}/mean": by_user["mean"].mean(), f"{prefix}/worst": by_user["mean"].min()}
        super().log(logs, start_time)

    def write_beside(self, model, folder: str) -> None:
        name_base(folder, model)
        save_index(model, self.user_index, folder)
