"""What steers a base model token by token: PAD (Chen et al. 2025, arXiv 2410.04070) and ARGS (Khanov et al. 2024, arXiv
2402.01694). Among the base's top-k tokens v: score(v) = base_factor * base(v) + w * reward(v), where base(v) is the
base's log-probability over its whole vocabulary, after processors such as the repetition penalty. And the reward of
whole responses that a steering policy implies.
"""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import tell
from prlhf_kit.decoding.generate import DecodingError, Prompt, ids_of
from prlhf_kit.decoding.readers import CandidateReader, Reader, Row, reading, reads_candidates
from prlhf_kit.models.conditioning import causal_lm, longest_shared, user_model_of, user_models
from prlhf_kit.models.logprobs import sequence_logps
from prlhf_kit.models.preference_head import HEAD
from prlhf_kit.models.reward_model import head_name, is_decoder
from prlhf_kit.models.rewards import SequenceReward, Text, messages
from prlhf_kit.models.saving import reference_model
from prlhf_kit.models.tokenize import encode, require_tokenizer
from prlhf_kit.models.user_index import UserIndex

# Whom an answer is for: a user or a preference in words; several words that are joined in the prompt; several users or
# preferences that are read one by one, with their weights; None: nobody in particular.
Who = str | Sequence[str] | Mapping[str, float] | None


class Guide(ABC):
    """What `GuidedDecoder` needs of a guide: `model` (what is read), and `rows`. Answers on disk depend on its plain
    attributes too. `tokenizer` None: the base's."""

    model: Any
    users: UserIndex | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    window: float = math.inf  # the longest text that `reader` can read, in tokens

    @abstractmethod
    def rows(self, owner: int, prompt: Prompt, who: Who, tokenizer: PreTrainedTokenizerBase) -> list[tuple[Row, float]]:
        """What is read for answer number `owner`, and the factor with which each reward counts."""

    def base_factor(self, weight: float) -> float:
        """Factor of the base's log-probability."""
        return 1.0

    def base_prompt(self, prompt: Prompt, who: Who) -> Prompt:
        """`prompt` as the base reads it."""
        return prompt

    def reader(self, rows: Sequence[Row]) -> Reader:
        """What reads the rows; its `rewards` are those of the candidates, by default their log-probabilities."""
        return Reader(rows)


def start_of(model, owner: int, ids: tuple[int, ...]) -> Row:
    """A row of the model that `model` was trained from; of one that is not known to have been trained, itself."""
    if isinstance(model, PeftModel):
        return Row(owner, ids, model, adapter=False)
    trained = user_models(model) or hasattr(model, "reference_name")
    return Row(owner, ids, reference_model(model) if trained else model, head=False)


def weighed(who: Who) -> dict[str | None, float]:
    """Preferences that are read one by one, with their weights. Those given as a sequence are joined to one text."""
    if who is None or isinstance(who, str):
        return {who: 1.0}
    if not isinstance(who, Mapping):
        try:
            return {" ".join(who): 1.0}
        except TypeError:
            expected = "a user's id or a preference in words, a list of words, {name: weight}, or None for nobody"
            raise DecodingError(f"who has {who!r:.80}, expected {expected}.") from None
    if not who or not all(map(math.isfinite, who.values())):
        raise DecodingError(f"weights of preferences are {dict(who)}, expected finite numbers, at least one.")
    return {name: float(value) for name, value in who.items()}


def users_with_weights(users: UserIndex | None, who: Who) -> list[tuple[str | None, int | None, float]]:
    """(name, row, weight) of each of `weighed(who)`; None is the generic user."""
    shares = weighed(who)
    if users is None:
        return [(name, None, share) for name, share in shares.items()]
    unknown = [name for name in shares if name is not None and name not in users]
    if unknown:
        some = ", ".join(map(repr, users.user_ids[:5]))
        said = f"{unknown[0]!r} has no row in the user index of {len(users.user_ids)} users ({some}, ...)"
        raise DecodingError(f"{said}. Use one of them, {{user_id: weight}} for several, None (generic), or kit.adapt.")
    return [(name, 0 if name is None else users.rows([name])[0], share) for name, share in shares.items()]


@dataclass
class PAD(Guide):
    """Steering by a policy that knows the person, against the model that it started from.

    - "paper" (Eq. 13 and Alg. 2): base_factor = 1, reward(v) = log pi_pers(v | p, s) - log pi_ref(v | s). The base does
      not see the preference p.
    - "released": base_factor = 1 - w, reward(v) = log pi_pers(v | p, s), and the base sees p. (The authors' code takes
      log-softmax over the candidates only and the base as reference, which differs by a constant a step.) With several
      people's policies it is multi-objective decoding (MOD: Shi et al. 2024, arXiv 2406.18853).

    Args:
        model: of `load_persrm` (a preference in words; the reference is its own backbone without head and preference),
            of `load_personalized` (a user's soft tokens; the reference is the model it was trained from), a PEFT
            adapter that was trained with the preference in its prompt (likewise), or any language model (the reference
            is itself without the preference).
        users: rows of the users, for a model with soft tokens. `who` is then a user's id.
        words: users' own words by their id, for a model that was trained with both (`user_text=True`).
        tokenizer: of `model`; may be left out where the base is the model that it was trained from.
    """

    model: Any
    users: UserIndex | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    form: str = "paper"
    tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self):
        if self.form not in ("paper", "released"):
            raise DecodingError(f"form={self.form!r}: expected 'paper' or 'released'.")
        conditioned = bool(user_models(self.model))
        if conditioned and self.users is None:
            raise DecodingError("the model has soft tokens: pass users=index, as load_personalized returns it.")
        if self.users is not None and not conditioned:
            raise DecodingError("the model has no soft tokens: pass no users; `who` is then a preference in words.")
        self._takes_words = conditioned and user_model_of(self.model).user_text

    def base_factor(self, weight: float) -> float:
        """1 in the paper's form, 1 - w in the released one."""
        return 1.0 if self.form == "paper" else 1.0 - weight

    def base_prompt(self, prompt: Prompt, who: Who) -> Prompt:
        """With the preference in the released form, without in the paper's."""
        told = [] if self.form == "paper" else map(self._text, weighed(who))
        return self._told(prompt, " ".join(filter(None, told)))

    def _told(self, prompt: Prompt, text: str | None) -> Prompt:
        """`prompt` as the policy reads it."""
        return tell(prompt, text, getattr(causal_lm(self.model), "wording", "{}"))

    def _text(self, name: str | None) -> str | None:
        """What the policy is told in words."""
        if self.users is None:
            return name
        if not self._takes_words or name is None:
            return None
        if name not in self.words:
            raise DecodingError(f"the model reads users' own words, but there are none of {name!r}: pass words=.")
        return self.words[name]

    def rows(self, owner: int, prompt: Prompt, who: Who, tokenizer: PreTrainedTokenizerBase) -> list[tuple[Row, float]]:
        """Policies with their weights, and in the paper's form the reference."""
        tokenizer, head = self.tokenizer or tokenizer, hasattr(causal_lm(self.model), HEAD)
        found = []
        for name, user, share in users_with_weights(self.users, who):
            ids = ids_of(tokenizer, self._told(prompt, self._text(name)))
            found.append((Row(owner, ids, self.model, head=head, user=user), share))
        if self.form == "paper":
            ids = ids_of(tokenizer, prompt)
            reference = Row(owner, ids, self.model, head=False) if head else start_of(self.model, owner, ids)
            found.append((reference, -sum(share for _, share in found)))
        return found


@dataclass
class ARGS(Guide):
    """Steering by a sequence reward model, which is read at every candidate (Eq. 3): reward(v) = r(x, y<t, v).

    Args:
        reward: from `load_reward`; a decoder with the base's tokenizer whose reward is read at the last token. With
            `reward.users`, `who` is a user's id; else it stays None.
    """

    reward: SequenceReward

    def __post_init__(self):
        bare: Any = causal_lm(self.reward.model)
        self.model, self.users, self.tokenizer = self.reward.model, self.reward.users, self.reward.tokenizer
        self.output, self.window = self.reward.dimension or 0, longest_shared(bare)
        linear = is_decoder(bare) and hasattr(bare, head_name(bare)) and bare.base_model is not bare
        pooling = getattr(bare, "pooling", "own")
        if not (linear and pooling in ("own", "last") and reads_candidates(self.model)):
            raise DecodingError(
                f"{type(bare).__name__} can't be read token by token: ARGS needs a linear head at the last token of a "
                f"decoder (pooling 'last', not {pooling!r}) and a 4-D mask (no ALiBi). Use best_of_n instead."
            )

    def rows(self, owner: int, prompt: Prompt, who: Who, tokenizer: PreTrainedTokenizerBase) -> list[tuple[Row, float]]:
        """One row a user with a weight, or one where the reward model knows none."""
        if self.users is None and who is not None:
            raise DecodingError(f"the reward model knows no users, so it can't steer for {who!r}. Leave `who` out.")
        ids = ids_of(self.tokenizer, prompt)
        return [
            (Row(owner, ids, self.model, user=user), share) for _, user, share in users_with_weights(self.users, who)
        ]

    def reader(self, rows: Sequence[Row]) -> Reader:
        """Of rewards, not of log-probabilities."""
        bare: Any = causal_lm(self.model)
        return CandidateReader(rows, getattr(bare, head_name(bare)), self.output)


@dataclass
class ImplicitReward:
    """`RewardModel` of a `PAD` guide: log pi_pers(y | p, x) - log pi_ref(y | x), in nats: what PAD adds up by token.

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
        """See `RewardModel.score`; `user_ids` are users or preferences, see `Who`."""
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
