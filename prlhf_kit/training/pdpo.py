"""P-DPO: DPO with a user model in front of the policy (P-RLHF, arXiv 2402.05133), on top of TRL's DPOTrainer.

    L = alpha * L_DPO(policy of the user) + (1 - alpha) * L_DPO(policy of the generic user)

Both terms use the same reference model, which is not personalised. Any `loss_type` of TRL takes the place of L_DPO,
which gives P-IPO, P-hinge and so on (P-*PO). Deviations from the paper: the users' rows have a learning rate of their
own, since a row is touched by few batches; the reference is computed once a pair, not once a term.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter, defaultdict
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOTrainer

from prlhf_kit.data.chat import require_prefix, with_user_text
from prlhf_kit.models.conditioning import (
    ATTRIBUTE,
    causal_lm,
    check_length,
    takes_user_text,
    user_model_of,
)
from prlhf_kit.models.logprobs import REFERENCE
from prlhf_kit.models.saving import is_users, load_user_model, name_base, save_index, save_user_model
from prlhf_kit.models.user_index import GENERIC, UserIndex
from prlhf_kit.training.config import PersonalizedDPOConfig
from prlhf_kit.training.controls import require_user_text
from prlhf_kit.training.pdpo_data import (
    index_for,
    require_users,
    require_whole_reference,
    warn_of_losses,
    without_cut_away,
)
from prlhf_kit.training.prompt_once import collator_for, compute_prompts_once
from prlhf_kit.training.resume import MarkComplete, set_users_apart
from prlhf_kit.training.user_metrics import UserMetrics

# no module gets an adapter: the user model alone is trained
FROZEN_BASE = LoraConfig(target_modules=DUMMY_TARGET_MODULES)


class PersonalizedDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` for datasets with a `user_id` column and a model prepared by `prlhf_kit.condition`.

    The user table is trained and saved with the adapter, and `users.json` (the `UserIndex`) beside it. Logged are
    TRL's metrics of the user pass under their own names, those of the generic pass under `generic/`, and the spread of
    reward accuracies among users: `users/mean`, `users/worst`, `users/p10`, `users/std`, `users/seen` (how many had a
    pair). Every user's own is in `user_metrics` and, beside each saved adapter, in `user_metrics.parquet`: `step`,
    `mode`, `user_id`, `accuracy`, `pairs` (since the last time). `dropped[split]` counts, per user, the pairs that TRL
    left out because the prompt alone fills `max_length`, or because nothing that is left tells chosen from rejected;
    `truncated[split]` counts those whose end is cut.

    Args:
        model: conditioned causal LM (for the vanilla control, `personalized=False`: any causal LM).
        args: `PersonalizedDPOConfig`.
        user_index: rows of the users; every user of `train_dataset` must be in it. Users of an evaluation set who
            are not in it are scored as the generic user.
        peft_config: of the adapter (LoRA; with a quantized model, QLoRA), `modules_to_save` is completed with the user
            model. `FROZEN_BASE` trains the user model alone, None the whole model.
        kwargs: of `DPOTrainer`. `ref_model` only where the whole model is trained and `precompute_ref_log_probs` off.

    Raises:
        ConditioningError: the model has no user model and would swallow the user silently.
        ValueError: no `user_id` column, a training user without a row, or a model that PEFT has wrapped.
    """

    args: PersonalizedDPOConfig

    def __init__(
        self,
        model,
        args: PersonalizedDPOConfig,
        train_dataset,
        eval_dataset=None,
        processing_class=None,
        user_index: UserIndex | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        if isinstance(model, PeftModel):
            raise ValueError(
                "the model is wrapped by PEFT already. Pass the conditioned base model and peft_config=LoraConfig(...) "
                "so that the base is the reference; to go on from a trained adapter, merge it first."
            )
        require_prefix(processing_class)
        sets = {"train": train_dataset}
        if eval_dataset is not None:
            sets |= eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
        require_users(sets)
        if args.personalized:
            self._user_text = takes_user_text(model)
            self.user_index = index_for(model, train_dataset["user_id"], user_index)
            if peft_config is not None:
                peft_config = copy.deepcopy(peft_config)
                peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or ()), ATTRIBUTE})
        else:
            self.user_index, self._user_text = UserIndex([]), False
        self.dropped: dict[str, dict[str, int]] = {}
        self.truncated: dict[str, dict[str, int]] = {}
        self._longest = 0  # tokens of the longest text that the model will see
        self._users = UserMetrics()
        user_tokens: Any = user_model_of(model).num_tokens if args.personalized else 0
        super().__init__(
            model=model,
            args=args,
            data_collator=collator_for(model, args, processing_class.pad_token_id, user_tokens),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            **kwargs,
        )
        if self.aux_loss_enabled and (args.personalized or args.completion_logits_only):
            raise ValueError(
                f"{type(causal_lm(model)).__name__} is a mixture of experts, whose router loss TRL computes from the "
                "texts' mask; user tokens and shared prompts don't go with it. Set router_aux_loss_coef=0.0."
            )
        if args.personalized:  # TRL puts all that is trained on a quantized base into bfloat16
            for name, p in self.model.named_parameters():
                if f"{ATTRIBUTE}." in name:
                    p.data = p.data.float()
        check_length(model, self._longest + user_tokens)
        self.add_callback(MarkComplete())

    # Data -------------------------------------------------------------------------------------------------------

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if self._user_text:
            require_user_text(dataset)
            dataset = with_user_text(dataset)
        require_whole_reference(dataset, args, dataset_name)
        if "user_row" not in dataset.column_names:
            rows = self.user_index.rows(dataset["user_id"], unknown="generic")
            dataset = dataset.add_column("user_row", rows)
        before = Counter(dataset["user_id"])
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        dataset, longest, self.truncated[dataset_name] = without_cut_away(dataset, args, dataset_name)
        self._longest = max(self._longest, longest)
        self.dropped[dataset_name] = dict(before - Counter(dataset["user_id"]))
        warn_of_losses(dataset_name, dataset, args, self.user_index, self.truncated, self.dropped)
        return dataset

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "user_row" not in self._signature_columns:
            self._signature_columns += ["user_row"]

    # Loss -------------------------------------------------------------------------------------------------------

    def compute_ref_log_probs(self, model, inputs):
        """Reference log-probs of a batch; the reference is not personalised."""
        if "prompt_ids" in inputs:  # a reference that TRL loaded by itself would swallow them silently
            compute_prompts_once(causal_lm(self.accelerator.unwrap_model(model)))
        return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k != "user_rows"})

    def _compute_loss(self, model, inputs, return_outputs):
        # L = alpha * L_DPO(rows) + (1 - alpha) * L_DPO(generic rows), P-RLHF's equation of P-DPO
        inputs = dict(inputs)
        rows = inputs.pop("user_rows")  # [2B]: chosen, then rejected
        if self.model.training and "prompt_mask" in inputs:  # TRL counts the tokens of attention_mask
            prompts = inputs["prompt_mask"].sum() * (len(rows) // len(inputs["prompt_mask"])) - len(rows)
            self._total_train_tokens += self.accelerator.gather_for_metrics(prompts).sum().item()
        with self._reference_known(inputs):
            if not self.args.personalized:
                return super()._compute_loss(model, inputs, return_outputs)
            # at alpha = 0 the generic pass is the only one, so its metrics have TRL's names
            who = rows if self.args.alpha > 0 else torch.full_like(rows, GENERIC)
            result = super()._compute_loss(
                self._count_hits(model, inputs, rows), inputs | {"user_rows": who}, return_outputs
            )
            if self.args.alpha in (0, 1):
                return result
            loss = result[0] if return_outputs else result
            loss = self.args.alpha * loss + (1 - self.args.alpha) * self._generic_loss(model, inputs, rows)
            return (loss, result[1]) if return_outputs else loss

    def _generic_loss(self, model, inputs, rows):
        """The generic user's pass, its metrics kept under `generic/` and its tokens not counted twice."""
        mode = "train" if self.model.training else "eval"
        user_metrics, tokens = self._metrics[mode], self._total_train_tokens
        self._metrics[mode] = defaultdict(list)
        try:
            generic = inputs | {"user_rows": torch.full_like(rows, GENERIC)}
            loss = super()._compute_loss(model, generic, False)
        finally:
            generic_metrics, self._metrics[mode] = self._metrics[mode], user_metrics
            self._total_train_tokens = tokens
        for key, values in generic_metrics.items():
            if key != "num_tokens":
                user_metrics[f"generic/{key}"] += values
        return loss

    @contextlib.contextmanager
    def _reference_known(self, inputs):
        """Puts the reference log-probs into the batch where the dataset doesn't bring them: once for both passes."""
        if REFERENCE[0] not in inputs:
            inputs |= dict(
                zip(REFERENCE, self.compute_ref_log_probs(self.ref_model or self.model, inputs), strict=True)
            )
        before, self.precompute_ref_logps = self.precompute_ref_logps, True
        try:
            yield
        finally:
            self.precompute_ref_logps = before

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if set(REFERENCE) <= set(dataset.column_names):
            return dataset
        return super()._precompute_ref_logps(dataset, name, batch_size)

    # Metrics ----------------------------------------------------------------------------------------------------

    @property
    def user_metrics(self) -> list[tuple[int, str, str, float, float]]:
        """Every user's accuracy so far: step, mode, user, accuracy, pairs."""
        return self._users.rows

    def _count_hits(self, model, inputs, rows):
        """`model`, counting on the way how many pairs of each user it ranks right."""

        def call(**kwargs):
            outputs = model(**kwargs)
            if self.ld_alpha is None and outputs.get("log_probs") is not None:
                chosen, rejected = outputs.log_probs.detach().sum(1).chunk(2)
                right = chosen - inputs["ref_chosen_logps"] > rejected - inputs["ref_rejected_logps"]
                gathered = self.accelerator.gather_for_metrics((rows.chunk(2)[0], right.float()))
                self._users.count("train" if self.model.training else "eval", *(x.tolist() for x in gathered))
            return outputs

        return call

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        spread = self._users.spread(mode, self.state.global_step, ["generic", *self.user_index.user_ids])
        logs |= {f"{'eval_' if mode == 'eval' else ''}users/{name}": value for name, value in spread.items()}
        super().log(logs, start_time)

    # Optimizer and files ----------------------------------------------------------------------------------------

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """TRL's optimizer with the users' own rows in a parameter group of their own."""
        known = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if known or not self.args.personalized:
            return optimizer
        named = (self.model if model is None else model).named_parameters()
        slow = getattr(user_model_of(self.model), "shared_slow", ("generic",))
        return set_users_apart(optimizer, named, slow, self.args.user_learning_rate, self.args.user_weight_decay)

    def _load_from_checkpoint(self, resume_from_checkpoint, *args, **kwargs):
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        self._load_users(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_users(self.state.best_model_checkpoint)

    def _is_whole(self) -> bool:
        """Whether all weights are trained, with users in front."""
        return self.args.personalized and not isinstance(self.accelerator.unwrap_model(self.model), PeftModel)

    def _load_users(self, folder):
        """Of a fully trained model, whose users lie in a file of their own. FSDP's checkpoints hold them as well."""
        if self._is_whole() and not self.is_fsdp_enabled:
            load_user_model(self.model, folder)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """TRL's, with the user metrics of the checkpoint."""
        folder = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        if folder:
            self._users.load(folder)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict=None):
        folder, model = output_dir or self.args.output_dir, self.accelerator.unwrap_model(self.model)
        whole = self._is_whole()
        if whole:  # the user model in a file of its own, so that the folder is an ordinary model's to others
            state = model.state_dict() if state_dict is None else state_dict
            state_dict = {name: value for name, value in state.items() if not is_users(name)}
        super()._save(folder, state_dict)
        if not self.args.should_save:
            return
        name_base(folder, model)
        if whole:
            save_user_model(state, folder)
        if self.args.personalized:
            self._users.save(folder)
        save_index(model, self.user_index, folder)
