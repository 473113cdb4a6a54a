"""Policy accuracy: does the *steered* model find the chosen response more likely than the rejected one?

Rezk et al. 2025 (arXiv 2512.23067) find that a reward's accuracy says little about the policy that it steers. Here the
policy is the whole steered distribution: at every token the scores of guided decoding (`decoding/guides.py`) over all
of the vocabulary, normalised.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.stats import kendalltau
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prlhf_kit.decoding.guides import PAD, Who, ids_of, start_of
from prlhf_kit.decoding.readers import Row, reading
from prlhf_kit.evaluation.accuracy import ranked_right
from prlhf_kit.evaluation.intervals import long_table
from prlhf_kit.evaluation.statistics import FEW_USERS, Interval, around
from prlhf_kit.models.logprobs import completion_logits
from prlhf_kit.models.rewards import Text, messages
from prlhf_kit.models.tokenize import encode

POLICY, REWARD = "steered model", "reward alone"


@torch.inference_mode()
def steered_logps(
    guide: PAD,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    responses: Sequence[Text],
    who: Sequence[Who],
    weights: Sequence[float],
    batch_size: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability (nats, summed over tokens) of each response under the model that the guide was trained from and
    now steers, `[n, len(weights)]`, and its reward `[n]` (nats): what the guide adds up over the response's tokens,
    which steers but is no policy.

    The models are read once for all weights. At weight 0 it is the base's own (which in the released form sees the
    preference).

    Args:
        guide: `PAD` in either form.
        who: see `decoding.guides.Who`.
        batch_size: responses at once; each row of a batch holds logits over the whole vocabulary.
    """
    n = len(prompts)
    asked = []
    for prompt, response in zip(prompts, responses, strict=True):
        question = messages(prompt, "user")
        ids, start = encode(tokenizer, question, messages(response, "assistant"))
        asked.append((question, ids[start:]))
    found, rewards = torch.zeros(n, len(weights)), torch.zeros(n)
    order = sorted(range(n), key=lambda i: len(asked[i][1]))
    for first in tqdm(range(0, n, batch_size), desc="policy", disable=None, leave=False):
        chunk = order[first : first + batch_size]
        rows: list[tuple[Row, float | None]] = []  # None: the base, whose factor depends on the weight
        for i in chunk:
            seen = ids_of(tokenizer, asked[i][0], guide.base_text(who[i]))
            rows += [(start_of(guide.model, i, seen), None), *guide.rows(i, asked[i][0], who[i], tokenizer)]
        logits = _read([row for row, _ in rows], [asked[row.owner][1] for row, _ in rows], tokenizer.pad_token_id)
        for i in chunk:
            mine = [(part, factor) for part, (row, factor) in zip(logits, rows, strict=True) if row.owner == i]
            tokens = torch.tensor(asked[i][1], device=mine[0][0].device)
            parts = [part.float().log_softmax(-1) for part, _ in mine]
            for column, w in enumerate(weights):
                factors = [guide.base_factor(w) if factor is None else w * factor for _, factor in mine]
                score = sum(factor * part for part, factor in zip(parts, factors, strict=True))  # [T, V]
                logps = torch.as_tensor(score).log_softmax(-1)
                found[i, column] = logps.gather(-1, tokens[:, None]).sum().cpu()
            for part, (_, factor) in zip(parts, mine, strict=True):
                rewards[i] += (factor or 0.0) * part.gather(-1, tokens[:, None]).sum().cpu()
    return found, rewards


def policy_ranks(
    guides: Mapping[str, tuple[PAD, Sequence[Who]]],
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    weights: Sequence[float],
    batch_size: int = 4,
) -> pd.DataFrame:
    """Which pairs each guide ranks right, as a policy and as a reward.

    Args:
        guides: name -> guide, and for whom it steers on each pair.

    Returns:
        The long table, `method` being the guide, with `weight` and `of`: `POLICY`, whether the steered model finds the
        chosen response likelier, and `REWARD`, whether the reward alone is higher.
    """
    tables = []
    for name, (guide, who) in guides.items():
        prompts, responses = [*pairs["prompt"]] * 2, [*pairs["chosen"], *pairs["rejected"]]
        logps, rewards = steered_logps(guide, tokenizer, prompts, responses, [*who] * 2, weights, batch_size)
        chosen, rejected = logps.chunk(2)  # [n, weights]
        reward_right = ranked_right(*rewards.chunk(2))
        for column, w in enumerate(weights):
            right = ranked_right(chosen[:, column], rejected[:, column])
            for of, value in ((POLICY, right), (REWARD, reward_right)):
                tables.append(long_table(pairs, {name: value}, weight=float(w), of=of))
    return pd.concat(tables, ignore_index=True)


@torch.inference_mode()
def divergence(
    guide: PAD,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    answers: Sequence[str],
    who: Sequence[Who],
    batch_size: int = 4,
) -> list[float]:
    """KL (nats a token) of the guide's policy from the model that it was trained from, along each answer: `[n]`.

    Exact at every token, over the whole vocabulary, and averaged over the answer's tokens; over answers that the policy
    sampled it estimates the KL of whole answers without the noise of their log-ratios. NaN for an empty answer.

    Args:
        guide: `PAD` in the paper's form; `who[i]` is one user or preference.
    """
    if guide.form != "paper":
        raise ValueError(f"form={guide.form!r} has no reference to diverge from. Pass PAD(..., form='paper').")
    found = [float("nan")] * len(prompts)
    full = [i for i, answer in enumerate(answers) if answer.strip()]
    for first in tqdm(range(0, len(full), batch_size), desc="divergence", disable=None, leave=False):
        rows: list[Row] = []
        said: list[list[int]] = []
        chunk = full[first : first + batch_size]
        for i in chunk:
            question = messages(prompts[i], "user")
            ids, start = encode(tokenizer, question, messages(answers[i], "assistant"), unfinished=True)
            own = [row for row, _ in guide.rows(i, question, who[i], tokenizer)]
            if len(own) != 2:
                raise ValueError(f"who={who[i]!r} is several policies, expected one user or preference.")
            rows += own  # the policy, and what it was trained from
            said += [ids[start:]] * 2
        logits = _read(rows, said, tokenizer.pad_token_id)
        for place, i in enumerate(chunk):
            policy, base = (logits[2 * place + of].float().log_softmax(-1) for of in (0, 1))  # [T, V] both
            found[i] = F.kl_div(base, policy, reduction="none", log_target=True).sum(-1).mean().item()
    return found


def _read(rows: Sequence[Row], completions: Sequence[list[int]], pad: int) -> list[torch.Tensor]:
    """Logits `[T, V]` of each row at the positions that predict its completion; equal rows are read once."""
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[id(row.model), row.adapter, row.head, row.user is None].append(i)
    found: dict[int, torch.Tensor] = {}
    for members in groups.values():
        one = rows[members[0]]
        first: dict[tuple, int] = {}  # base and reference are often the same row
        same = {i: first.setdefault((rows[i].ids, rows[i].user, tuple(completions[i])), i) for i in members}
        unique = sorted(first.values())
        users = None if one.user is None else torch.tensor([rows[i].user for i in unique])
        texts = [(list(rows[i].ids), completions[i]) for i in unique]
        with reading([rows[i] for i in unique]):
            logits = completion_logits(one.model, texts, pad, users)
        read = {i: part[-len(completions[i]) :] for i, part in zip(unique, logits, strict=True)}
        found |= {i: read[same[i]] for i in members}
    return [found[i] for i in range(len(rows))]


def rank_correlation(ranks: pd.DataFrame, resamples: int = 1_000, seed: int = 0) -> Interval:
    """Do good rewards make good policies? Kendall's tau-b between a reward's accuracy and its policy's, over guides and
    users, with a 95% interval that draws users anew. NaN where one of the two does not vary, and for fewer than
    `FEW_USERS` users.

    Args:
        ranks: rows of `policy_ranks` at one weight: a reward has one accuracy, so several would count it several times.
            Leave out PAD's released form, whose reward is a policy's own log-likelihood.
    """
    assert ranks.weight.nunique() == 1, "ranks of one weight, expected: choose one"
    means = ranks.groupby(["user_id", "method", "of"], sort=False).value.mean().unstack("of", sort=False)
    means = means[[REWARD, POLICY]]
    users = means.index.unique("user_id")
    if len(users) < FEW_USERS:
        return Interval(np.nan, np.nan, np.nan, len(means), len(users))
    parts = [part.to_numpy() for _, part in means.groupby("user_id", sort=False)]

    def tau(users: list[np.ndarray]) -> float:
        return float(kendalltau(*np.concatenate(users).T).statistic)

    rng = np.random.default_rng(seed)
    drawn = [tau([parts[i] for i in rng.integers(len(parts), size=len(parts))]) for _ in range(resamples)]
    found = tau(parts)
    low, high = np.clip(around(found, drawn, len(parts)), -1, 1)
    return Interval(found, float(low), float(high), len(means), len(parts))
