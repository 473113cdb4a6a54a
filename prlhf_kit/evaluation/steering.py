"""What steering does to answers: the reward of a judge that took no part in it, and the distance from the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import prompt_text
from prlhf_kit.data.select import sampled
from prlhf_kit.data.simulated import Population
from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.decoding.generate import ids_of
from prlhf_kit.evaluation import heads as head_comparison
from prlhf_kit.evaluation.accuracy import ranked_right
from prlhf_kit.evaluation.intervals import intervals, paired_differences
from prlhf_kit.evaluation.statistics import Interval, crossed_interval
from prlhf_kit.models.embedded import SENTENCES
from prlhf_kit.models.features import load_embedder
from prlhf_kit.models.logprobs import sequence_logps
from prlhf_kit.training.heads import FeatureReward

# (users, prompts, answers) -> rewards [n]
Scorer = Callable[[Sequence[str], Sequence[list[dict]], Sequence[str]], np.ndarray]
FEW = 5  # users or prompts, below which an interval would say nothing
EMPTY = "(no answer)"
MANY_PAIRS = 20_000


def feature_reward(data: DatasetDict, cache: Path | None = None) -> tuple[FeatureReward, Interval]:
    """A reward for each user, linear in sentence embeddings and fitted to `data["train"]`, and its held-out accuracy.
    It shares nothing with what steers but the training pairs; of a larger split `MANY_PAIRS` are drawn."""
    embedder = load_embedder(SENTENCES)
    known = DatasetDict(train=data["train"], test_seen=data["test_seen"])
    for split, pairs in known.items():
        if len(pairs) > MANY_PAIRS:
            known[split] = sampled(pairs, MANY_PAIRS, seed=0)
    embedded = head_comparison.embed(known, [embedder], cache)
    heads = head_comparison.fit("per_user", known["train"], embedded["train"])
    gap = heads.reward(embedded["test_seen"].difference, known["test_seen"]["user_id"])
    held_out = crossed_interval(ranked_right(gap, 0), [str(prompt) for prompt in known["test_seen"]["prompt"]])
    return FeatureReward(embedder, heads, cache), held_out


def judge_of(data: DatasetDict, stage: Path, cache: Path | None = None) -> tuple[Scorer, str]:
    """A judge that takes no part in steering, and what it is called: the true utility where the data's stage left a
    simulated population, else `feature_reward`, which reads an empty answer as `EMPTY`."""
    if (stage / "population.json").exists():
        people = Population.load(stage / "population.json")
        name = "true utility, in standard deviations of the attributes"
        return lambda users, prompts, answers: people.utility(users, answers), name
    reward, held = feature_reward(data, cache)

    def score(users: Sequence[str], prompts: Sequence[list[dict]], answers: Sequence[str]) -> np.ndarray:
        return reward.score(list(prompts), [a.strip() or EMPTY for a in answers], list(users)).numpy()

    return score, f"reward on sentence embeddings, right on {held} of {held.n} held-out pairs"


def base_logps(
    base, tokenizer: PreTrainedTokenizerBase, jobs: pd.DataFrame, answers: Sequence[GuidedAnswer], batch_size: int = 16
) -> list[float]:
    """Mean log-prob (nats a token) of each answer under `base`, which does not see the preference: for answers that
    were steered from another base; else they bring it along (`GuidedAnswer.logps`)."""
    texts = [(list(ids_of(tokenizer, p)), list(a.tokens)) for p, a in zip(jobs.prompt, answers, strict=True)]
    summed = sequence_logps(base, tokenizer, texts, batch_size=batch_size)
    return [logp / len(tokens) for logp, (_, tokens) in zip(summed, texts, strict=True)]


def answered(jobs: pd.DataFrame, answers: Sequence[GuidedAnswer], judge: Scorer, **columns: Any) -> pd.DataFrame:
    """One row an answer to `jobs` (`user_id`, whose taste counts, and `prompt`, messages): `user_id`, `prompt` (its
    text), `answer`, `reward` (the judge's), `logp` (nats a token, under the base; of a greedy answer minus its
    divergence), `changed` (share of tokens), `tokens`, `words`, and `columns` (the same for all, or one value each)."""
    texts = [answer.text for answer in answers]
    return pd.DataFrame(
        {
            "user_id": list(jobs.user_id),
            "prompt": [prompt_text(prompt) for prompt in jobs.prompt],
            "answer": texts,
            "reward": judge(list(jobs.user_id), list(jobs.prompt), texts),
            "logp": [float(np.mean(answer.logps)) for answer in answers],
            "changed": [float(np.mean(answer.changed)) for answer in answers],
            "tokens": [len(answer.tokens) for answer in answers],
            "words": [len(text.split()) for text in texts],
        }
    ).assign(**columns)


MEANS: dict[str, Any] = {name: (name, "mean") for name in ("reward", "logp", "changed", "words")}


def gains(table: pd.DataFrame, base: pd.DataFrame, by: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Rewards of answers (`table`) minus those of the base's (`base`, one row a user and prompt), by the columns `by`:
    `intervals` of `gain` over users, or over prompts where a row has fewer than `FEW` users, with the means of
    `MEANS`."""
    gained = paired_differences(table.assign(gain=table.reward), base.assign(gain=base.reward), "gain")
    assert len(gained) == len(table), "every answer has one of the base to the same prompt for the same user"
    return _few_users(gained, by, seed, **MEANS)


def _few_users(table: pd.DataFrame, by: Sequence[str], seed: int, **more: Any) -> pd.DataFrame:
    users, prompts = (intervals(table, "gain", by, cluster, seed=seed, **more) for cluster in ("user_id", "prompt"))
    found = users.where(users.clusters >= FEW, prompts)
    return found.assign(**{end: found[end].where(found.clusters >= FEW) for end in ("low", "high")})


def gains_of_two(table: pd.DataFrame, users: Sequence[str], judge: Scorer, prompts: dict[str, list], seed: int = 0):
    """What each of two `users` gains from the same answers over the base's: `intervals` of `gain` by `user_id` and
    `towards`. `table`: `towards` (None: the base's own), `prompt`, `answer`; `prompts`: messages by their text.
    """
    users = list(dict.fromkeys(users))  # two who want the same are one
    asked = [prompts[text] for text in table.prompt]
    both = [table.assign(user_id=user, gain=judge([user] * len(table), asked, list(table.answer))) for user in users]
    judged = pd.concat(both, ignore_index=True)
    nobody = judged.towards.isna()
    return _few_users(paired_differences(judged[~nobody], judged[nobody], "gain"), ["user_id", "towards"], seed)
