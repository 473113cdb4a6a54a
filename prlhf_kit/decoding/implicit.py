"""The reward of whole responses that a steering policy implies: what PAD adds up token by token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prlhf_kit.decoding.guides import PAD, Who
from prlhf_kit.decoding.readers import Row, reading
from prlhf_kit.models.logprobs import response_logps
from prlhf_kit.models.rewards import Text, messages
from prlhf_kit.models.tokenize import encode


@dataclass
class ImplicitReward:
    """`RewardModel` of a `PAD` guide: log pi_pers(y | p, x) - log pi_ref(y | x), in nats.

    So `best_of_n` and `preference` work with whatever steers decoding.

    Args:
        guide: in the paper's form.
        tokenizer: of the guide's model.
        unfinished: responses may be cut off, so that the end of the turn does not count.
    """

    guide: PAD
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 16
    unfinished: bool = False

    def __post_init__(self):
        if self.guide.form != "paper":
            raise ValueError(f"form={self.guide.form!r} has no reference, so no reward. Pass PAD(..., form='paper').")

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Text], responses: Sequence[Text], user_ids: Sequence[Who] | None = None
    ) -> torch.Tensor:
        """See `RewardModel.score`; `user_ids` are users or preferences, see `decoding.guides.Who`."""
        asked: dict[tuple, list[tuple[Row, list[int], float]]] = defaultdict(list)
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            who = None if user_ids is None else user_ids[i]
            question = messages(prompt, "user")
            said = messages(response, "assistant")
            ids, start = encode(self.tokenizer, question, said, unfinished=self.unfinished)
            completion = ids[start:]
            for row, factor in self.guide.rows(i, question, who, self.tokenizer):
                asked[row.model, row.adapter, row.head, row.user is None].append((row, completion, factor))
        found = torch.zeros(len(prompts))
        with tqdm(total=sum(map(len, asked.values())), desc="scoring", disable=None, leave=False) as bar:
            for items in asked.values():
                items.sort(key=lambda item: item[0].length + len(item[1]))
                for start in range(0, len(items), self.batch_size):
                    batch = items[start : start + self.batch_size]
                    texts = [(list(row.ids), completion) for row, completion, _ in batch]
                    for (row, _, factor), logp in zip(batch, self._logps([b[0] for b in batch], texts), strict=True):
                        found[row.owner] += factor * logp
                    bar.update(len(batch))
        return found

    def _logps(self, rows: list[Row], texts: list[tuple[list[int], list[int]]]) -> list[float]:
        row = rows[0]  # all are read by the same model in the same way
        users = None if row.user is None else torch.tensor([r.user for r in rows])
        with reading(row, len(rows)):
            return response_logps(row.model, texts, self.tokenizer.pad_token_id, users).tolist()
