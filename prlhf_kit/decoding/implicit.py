"""The reward of whole responses that a steering policy implies: what PAD adds up token by token."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from prlhf_kit.decoding.guides import PAD, Who
from prlhf_kit.decoding.readers import Row, reading
from prlhf_kit.models.logprobs import sequence_logps
from prlhf_kit.models.rewards import Text, messages
from prlhf_kit.models.tokenize import encode, require_tokenizer


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
        require_tokenizer(self.guide.model, self.tokenizer)
        if self.guide.form != "paper":
            raise ValueError(f"form={self.guide.form!r} has no reference, so no reward. Pass PAD(..., form='paper').")

    def score(
        self, prompts: Sequence[Text], responses: Sequence[Text], user_ids: Sequence[Who] | None = None
    ) -> torch.Tensor:
        """See `RewardModel.score`; `user_ids` are users or preferences, see `decoding.guides.Who`."""
        groups: dict[tuple, list[tuple[Row, list[int], float]]] = defaultdict(list)  # read in the same way
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            question = messages(prompt, "user")
            ids, start = encode(self.tokenizer, question, messages(response, "assistant"), unfinished=self.unfinished)
            for row, factor in self.guide.rows(i, question, None if user_ids is None else user_ids[i], self.tokenizer):
                groups[row.model, row.adapter, row.head, row.user is None].append((row, ids[start:], factor))
        found = torch.zeros(len(prompts))
        for items in groups.values():
            rows, completions, factors = zip(*items, strict=True)
            users = None if rows[0].user is None else [row.user for row in rows]
            texts = [(list(row.ids), completion) for row, completion in zip(rows, completions, strict=True)]
            with reading(rows[:1]):
                logps = sequence_logps(rows[0].model, self.tokenizer, texts, users, self.batch_size)
            found.index_add_(0, torch.tensor([row.owner for row in rows]), torch.tensor(factors) * torch.tensor(logps))
        return found
