"""Vocabulary-wide token rewards (FaRMA: Rashid et al. 2025, arXiv 2502.04517): a language model whose logits at a
position are the rewards r(x, y<t, v) of all next tokens v, so that guided decoding asks it once a token.

    L = - mean over t of log sigmoid(r(x, y_w[<t], y_w[t]) - r(x, y_l[<t], y_l[t]))

over the beginnings of equal length of both responses (Rashid et al. 2024, arXiv 2406.07780), so that beginnings are
trained on, which is what decoding asks for. It starts from the language model's own logits, and a pair is ranked by the
rewards of the last tokens. Departure: FaRMA also ties a beginning's reward to the greatest of its continuations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import AutoModel

from prlhf_kit.models.conditioning import causal_lm
from prlhf_kit.models.embedded import ModelError
from prlhf_kit.models.hub import from_hub, load_model
from prlhf_kit.models.reward_model import REWARD_FILE, load_lm_head
from prlhf_kit.models.saving import condition_as_saved, load_user_model
from prlhf_kit.models.user_index import UserIndex
from prlhf_kit.training.reward import PersonalizedRewardTrainer

NEXT_TOKEN = "next token"  # what stands for the pooling in reward.json


def new_vocabulary_reward(name: str, dtype: torch.dtype = torch.float32, device: str | None = None) -> Any:
    """A causal language model to be trained by `VocabularyRewardTrainer`."""
    model: Any = load_model(name, dtype, device)
    model.pooling, model.fresh = NEXT_TOKEN, []
    model.config.num_labels = 1  # TRL asks for it
    return model


def token_rewards(
    logits: torch.Tensor, input_ids: torch.Tensor, asked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of the tokens asked for, from the left: `[N, T]`, and how many each text has, `[N]`.

    Args:
        logits: `[N, L, V]`; those at t - 1 hold the rewards of the token at t.
        input_ids, asked: `[N, L]`; asked is 1 for the response's tokens.
    """
    found = logits[:, :-1].float().gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    asked = asked[:, 1:].bool()
    # the tokens asked for move to the left
    order = (~asked).long().argsort(dim=1, stable=True)
    counts = asked.sum(1)
    return found.gather(1, order)[:, : int(counts.max())], counts


class VocabularyRewardTrainer(PersonalizedRewardTrainer):
    """`PersonalizedRewardTrainer` for `new_vocabulary_reward`, on pairs; accuracies are those of whole responses."""

    def __init__(self, model, args, *positional, **kwargs):
        if getattr(causal_lm(model), "pooling", None) != NEXT_TOKEN:
            raise ValueError(f"a {type(causal_lm(model)).__name__} was given, expected one of new_vocabulary_reward.")
        if args.lm_loss_coeff:
            raise ValueError("lm_loss_coeff: the LM head gives the rewards here, so there is no LM term. Set it to 0.")
        super().__init__(model, args, *positional, **kwargs)
        self.data_collator.lm_threshold, self.data_collator.lm_on_prompt = -1.0, False  # asks for all responses

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """See the module."""
        inputs = dict(inputs)
        scores, mask, rows, asked = (inputs.pop(name) for name in ("scores", "mask", "rows", "lm_asked"))
        if scores.shape[1] != 2 or not mask.all():
            raise ValueError("vocabulary-wide rewards are trained on pairs; lists of responses were given.")
        outputs = model(**inputs, use_cache=False)
        found, counts = token_rewards(outputs.logits, inputs["input_ids"], asked)
        last = found.gather(1, (counts[:, None] - 1).clamp(min=0)).view(-1, 2)
        pairs, common = found.view(-1, 2, found.shape[1]), counts.view(-1, 2).amin(1).clamp(min=1)
        losses = -logsigmoid((pairs[:, 0] - pairs[:, 1]) * (scores[:, :1] - scores[:, 1:]).sign())
        within = torch.arange(found.shape[1], device=found.device) < common[:, None]
        loss = ((losses * within).sum(1) / common).mean()
        with torch.no_grad():
            self._count(last, scores, mask, rows, {"ranking_loss": loss.detach()}, int(inputs["attention_mask"].sum()))
        return (loss, outputs) if return_outputs else loss


def load_vocabulary_reward(folder: str | Path, base: Any = None) -> tuple[Any, UserIndex | None]:
    """What `VocabularyRewardTrainer` saved, for `Vocabulary(model, users)`.

    Args:
        base: the base model of an adapter (a name or a loaded model); None: the one it was trained on. The whole model
            where that was trained.
    """
    file = Path(folder, REWARD_FILE)
    saved = json.loads(file.read_text()) if file.is_file() else {}
    if saved.get("pooling") != NEXT_TOKEN:
        raise ModelError(f"{folder} holds no vocabulary-wide reward model, {REWARD_FILE} says {saved or 'nothing'}.")
    adapter = Path(folder, "adapter_config.json").is_file()
    model: Any = base
    if not adapter or base is None or isinstance(base, str):
        model = load_model(base if adapter and base else saved["base_model"])
    if not adapter:  # the whole model; its LM head, which gives the rewards, lies in a file of its own
        state = from_hub(AutoModel, str(folder), dtype=model.dtype).state_dict()
        model.base_model.load_state_dict(state)
        load_lm_head(model, folder)
    index = None
    if Path(folder, "users.json").is_file():
        index, users = UserIndex.load(folder)
        condition_as_saved(model, folder, index, users)
        if not adapter:
            load_user_model(model, folder)
    return (PeftModel.from_pretrained(model, folder) if adapter else model).eval(), index
