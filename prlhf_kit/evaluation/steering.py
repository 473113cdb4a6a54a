"""What steering does to answers: the reward of a judge that took no part in it, and the distance from the base."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.chat import prompt_text, prompt_texts_of
from prlhf_kit.data.select import sampled
from prlhf_kit.data.simulated import Population
from prlhf_kit.decoding.answers import GuidedAnswer
from prlhf_kit.decoding.generate import ids_of
from prlhf_kit.decoding.guided import GuidedDecoder
from prlhf_kit.decoding.guides import PAD, Guide, ImplicitReward
from prlhf_kit.evaluation import heads as head_comparison, judges as judging
from prlhf_kit.evaluation.accuracy import ranked_right
from prlhf_kit.evaluation.intervals import intervals, paired_differences
from prlhf_kit.evaluation.statistics import Interval, crossed_interval
from prlhf_kit.models.embedded import SENTENCES
from prlhf_kit.models.features import embed, feature_cache, load_embedder
from prlhf_kit.models.logprobs import sequence_logps
from prlhf_kit.models.rewards import best_of_n
from prlhf_kit.training.heads import FeatureReward

# (users, prompts, answers) -> rewards [n]
Scorer = Callable[[Sequence[str], Sequence[list[dict]], Sequence[str]], np.ndarray]
FEW = 5  # users or prompts, below which an interval would say nothing
EMPTY = "(no answer)"
MANY_PAIRS = 20_000


def feature_reward(data: DatasetDict) -> tuple[FeatureReward, Interval]:
    """A reward for each user, linear in sentence embeddings and fitted to `data["train"]`, and its held-out accuracy.
    It shares nothing with what steers but the training pairs; of a larger split `MANY_PAIRS` are drawn."""
    embedder, cache = load_embedder(SENTENCES), feature_cache()
    known = {split: data[split] for split in ("train", "test_seen")}
    known = {name: sampled(p, MANY_PAIRS, 0) if len(p) > MANY_PAIRS else p for name, p in known.items()}
    embedded = embed(known, [embedder], cache)
    heads = head_comparison.fit("per_user", known["train"], embedded["train"])
    gap = heads.reward(embedded["test_seen"].difference, known["test_seen"]["user_id"])
    held_out = crossed_interval(ranked_right(gap, 0), prompt_texts_of(known["test_seen"]))
    return FeatureReward(embedder, heads, cache), held_out


def judge_of(data: DatasetDict, stage: Path) -> tuple[Scorer, str]:
    """A judge that takes no part in steering, and what it is called: the true utility where the data's stage left a
    simulated population, else `feature_reward`, which reads an empty answer as `EMPTY`."""
    if (stage / "population.json").exists():
        people = Population.load(stage / "population.json")
        name = "true utility, in standard deviations of the attributes"
        return lambda users, prompts, answers: people.utility(users, answers), name
    reward, held = feature_reward(data)

    def score(users: Sequence[str], prompts: Sequence[list[dict]], answers: Sequence[str]) -> np.ndarray:
        return reward.score(list(prompts), [a.strip() or EMPTY for a in answers], list(users)).numpy()

    return score, f"reward on sentence embeddings, right on {held} of {held.n} held-out pairs"


def judges_of(data: DatasetDict, stage: Path) -> tuple[dict[str, judging.Judge], Interval | None]:
    """The judges of a run's answers by name, the best one first, and how often "embeddings" is right on held-out pairs.

    "true utility" where the data's stage left a simulated population; "embeddings", a `feature_reward`, where known
    users have held-out pairs, else the interval is None; "longer", the control of all judges.
    """
    judges: dict[str, judging.Judge] = {}
    if (stage / "population.json").exists():
        judges["true utility"] = judging.Oracle(Population.load(stage / "population.json"))
    held_out = None
    if "test_seen" in data:
        reward, held_out = feature_reward(data)
        judges["embeddings"] = judging.RewardJudge(reward)
    return judges | {"longer": judging.longer}, held_out


@dataclass(frozen=True)
class Steered:
    """Answers to the same prompts for the same users by any guide, each with a judge's reward (`answered`).

    Args:
        users, prompts: every user asks every prompt (messages).
        judge: of `judge_of`.
        out: file that keeps the answers.
        options: of `GuidedDecoder`.
    """

    tokenizer: PreTrainedTokenizerBase
    users: Sequence[str]
    prompts: Sequence[list[dict]]
    judge: Scorer
    out: Path
    options: Mapping[str, Any]

    @property
    def jobs(self) -> pd.DataFrame:
        """One row an answer: `user_id` and `prompt`."""
        rows = [(user, prompt) for user in self.users for prompt in self.prompts]
        return pd.DataFrame(rows, columns=["user_id", "prompt"])

    def answers(self, guide: Guide, who: Mapping[str, Any] | None = None, base: Any = None, **changed: Any):
        """The answers that `guide` steers. `who`: user -> whose wish steers (a user, or words); None: nobody's.
        `base` and `changed`: of `GuidedDecoder`. A guide in the released form steers a base that sees the wish, so
        `logp` is then under `base` without it."""
        released = getattr(guide, "form", "") == "released"
        decoder = GuidedDecoder(None if released else base, self.tokenizer, guide, **{**self.options, **changed})
        jobs = self.jobs
        asked_by = None if who is None else [who[user] for user in jobs.user_id]
        found = decoder.generate(list(jobs.prompt), asked_by, out=self.out)
        rows = answered(jobs, found, self.judge)
        if released:  # answers bring along their log-probs under the base that steered
            texts = [([*ids_of(self.tokenizer, p)], a.tokens) for p, a in zip(jobs.prompt, found, strict=True)]
            rows["logp"] = sequence_logps(base, self.tokenizer, texts, batch_size=decoder.batch_size) / rows.tokens
        return rows

    def best_of(self, n: int, sampler: Guide, guide: PAD) -> pd.DataFrame:
        """Of `n` samples of the base of `sampler` the one that the reward of `guide` finds best for its user."""
        decoder = GuidedDecoder(None, self.tokenizer, sampler, weight=0.0, do_sample=True, **self.options)
        jobs = self.jobs
        samples = decoder.generate(list(jobs.prompt) * n, out=self.out)
        drawn = [samples[i :: len(jobs)] for i in range(len(jobs))]
        reward = ImplicitReward(guide, self.tokenizer, decoder.batch_size, unfinished=True)  # answers may be cut off
        texts = [[sample.text or EMPTY for sample in some] for some in drawn]
        picked = best_of_n(reward, list(jobs.prompt), texts, list(jobs.user_id))
        best = [some[number] for some, (number, _) in zip(drawn, picked, strict=True)]
        return answered(jobs, best, self.judge)

    def gains_of_two(
        self, guide: Guide, towards: Mapping[str, Any], users: Sequence[str], weight: float, seed: int = 0
    ) -> pd.DataFrame:
        """What each of two `users` gains over the base's answers from the same ones, steered towards each of `towards`
        (name -> what steers, as in `answers`): `intervals` of `gain` by `user_id` and `towards`."""
        prompts, names = list(self.prompts), np.array([*towards, None], object)  # None: the base's own
        steered = GuidedDecoder(None, self.tokenizer, guide, weight=weight, **self.options)
        alone = GuidedDecoder(None, self.tokenizer, guide, weight=0.0, **self.options)
        who = [one for one in towards.values() for _ in prompts]
        found = steered.generate(prompts * len(towards), who, out=self.out) + alone.generate(prompts, out=self.out)
        asked, answers = prompts * len(names), [one.text for one in found]
        table = pd.DataFrame({"towards": np.repeat(names, len(prompts)), "prompt": [prompt_text(p) for p in asked]})
        rewards = {user: self.judge([user] * len(table), asked, answers) for user in users}  # of two alike, one
        judged = pd.concat([table.assign(user_id=user, gain=gain) for user, gain in rewards.items()])
        nobody = judged.towards.isna()
        return _few_users(paired_differences(judged[~nobody], judged[nobody], "gain"), ["user_id", "towards"], seed)


def answered(jobs: pd.DataFrame, answers: Sequence[GuidedAnswer], judge: Scorer) -> pd.DataFrame:
    """One row an answer to `jobs` (`user_id`, whose taste counts, and `prompt`, messages): `user_id`, `prompt` (its
    text), `answer`, `reward` (the judge's), `logp` (nats a token, under the base; of a greedy answer minus its
    divergence), `changed` (share of tokens), `tokens` and `words`."""
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
    )


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
