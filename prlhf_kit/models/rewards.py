"""Reward models in use: `score(prompts, responses, user_ids) -> Tensor[B]`, whatever kind of reward model it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from prlhf_kit.data.schema import message
from prlhf_kit.models import hub
from prlhf_kit.models.conditioning import causal_lm, user_models
from prlhf_kit.models.reward_model import is_decoder, load_reward_model, two_types
from prlhf_kit.models.tokenize import encode, in_batches, padded, token_types
from prlhf_kit.models.user_index import GENERIC, UserIndex

Text = str | list[dict[str, str]]
Texts = Sequence[Text]
UserIds = Sequence[str | None] | None


class RewardModel(Protocol):
    """What judges and best-of-n need of a reward model."""

    def score(self, prompts: Texts, responses: Texts, user_ids: UserIds = None) -> torch.Tensor:
        """Rewards `[B]` (log-odds: a difference of two is that of the preference) of responses to prompts, for users;
        None (of all, or of one) and unknown users count as the generic one."""
        ...


def messages(text: Text, role: str) -> list[dict[str, str]]:
    """A text as the one message of `role`; messages as they are. Raises `ValueError` for an empty text."""
    found = message(role, text) if isinstance(text, str) else text
    if not any((m["content"] or "").strip() for m in found):
        raise ValueError(f"an empty {'prompt' if role == 'user' else 'response'} has no reward. Leave it out.")
    return found


@dataclass
class SequenceReward:
    """A sequence classifier as reward model: one of the kit's, or any published one (`load_reward`).

    Args:
        users: rows of the users, where the model is conditioned on them.
        dimension: which output is the reward, of a model with several (ArmoRM's `rewards`, or logits).
        max_length: of prompt and response; the beginning of longer ones is not read.
    """

    model: Any
    tokenizer: Any
    users: UserIndex | None = None
    dimension: int | None = None
    max_length: int | None = 512
    batch_size: int = 16

    def __post_init__(self):
        outputs = self.model.config.num_labels
        if self.dimension is None and outputs != 1:
            raise ValueError(f"the model has {outputs} outputs: which is the reward, dimension=0 to {outputs - 1}?")
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def score(self, prompts: Texts, responses: Texts, user_ids: UserIds = None) -> torch.Tensor:
        """See `RewardModel.score`. Batched by length; equal texts are scored once."""
        if not prompts:
            return torch.zeros(0)
        rows = [GENERIC] * len(prompts)
        if self.users is not None and user_ids is not None:
            rows = self.users.rows(user_ids, unknown="generic")
        bare: Any = causal_lm(self.model)
        asked = []
        for prompt, response, row in zip(prompts, responses, rows, strict=True):
            read, written = messages(prompt, "user"), messages(response, "assistant")
            ids, start = encode(self.tokenizer, read, written, self.max_length, is_decoder(bare))
            asked.append((tuple(ids), start, row))
        return torch.from_numpy(in_batches(self._score, asked, self.batch_size, what="scoring"))

    @torch.inference_mode()
    def _score(self, batch: Sequence[tuple[tuple[int, ...], int, int]]) -> np.ndarray:
        # the token by which a published model finds the end of a text
        ids, mask = padded([list(text) for text, _, _ in batch], self.model.config.pad_token_id)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if two_types(causal_lm(self.model)):
            inputs["token_type_ids"] = token_types(mask, [start for _, start, _ in batch])
        if user_models(self.model):
            inputs["user_rows"] = torch.tensor([row for _, _, row in batch])
        output = self.model(**{name: value.to(self.model.device) for name, value in inputs.items()})
        table = output.logits.reshape(len(ids), -1)
        if self.dimension is not None and output.get("rewards") is not None:  # ArmoRM's
            table = output.rewards
        return table[:, self.dimension or 0].float().cpu().numpy()


def load_reward(name: str, trust_remote_code: bool = False, **options) -> SequenceReward:
    """A reward model to score with, in bfloat16 on a GPU, else in float32.

    Args:
        name: folder of a model trained here, or any published sequence classifier, by hub id or folder
            (`Ray2333/gpt2-large-helpful-reward_model`, for instance; set its `tokenizer.chat_template` where it was
            trained with another than its own or the plain one).
        options: of `SequenceReward`.
    """
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model, users = load_reward_model(name, dtype=dtype, trust_remote_code=trust_remote_code)
    return SequenceReward(model, hub.load_tokenizer(name, trust_remote_code), users, **options)


def preference(reward: RewardModel, prompts: Texts, a: Texts, b: Texts, user_ids: UserIds = None) -> torch.Tensor:
    """Probability `[B]` that each user prefers answer `a` to answer `b` (Bradley-Terry)."""
    return torch.sigmoid(reward.score(prompts, a, user_ids) - reward.score(prompts, b, user_ids))


def best_of_n(
    reward: RewardModel, prompts: Texts, candidates: Sequence[Texts], user_ids: UserIds = None
) -> list[tuple[int, float]]:
    """Which of its candidates has the highest reward, for each prompt and user: (number, reward).

    Args:
        candidates: of each prompt at least one; `kit.generate(..., do_sample=True)` makes some.
    """
    if len(candidates) != len(prompts) or not all(candidates):
        raise ValueError(f"{len(candidates)} lists of candidates for {len(prompts)} prompts, expected one each.")
    users = [None] * len(prompts) if user_ids is None else list(user_ids)
    flat = [(i, text) for i, texts in enumerate(candidates) for text in texts]
    scores = reward.score([prompts[i] for i, _ in flat], [text for _, text in flat], [users[i] for i, _ in flat])
    best = [(int(part.argmax()), part) for part in scores.split([len(texts) for texts in candidates])]
    return [(number, part[number].item()) for number, part in best]
