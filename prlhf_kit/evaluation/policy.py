"""Policy accuracy: does the *steered* model (guided decoding's normalised scores over the whole vocabulary) find the
chosen response likelier? A reward's accuracy says little about the policy that it steers (Rezk et al. 2025, arXiv
2512.23067)."""

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
from prlhf_kit.evaluation.statistics import Interval, bootstrap
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
    """Log-probability (nats) of each response under the model that `guide` (`PAD` in either form) steers at each
    weight, `[n, len(weights)]`, and its reward `[n]` (nats), which is what the guide adds up over its tokens. All
    weights share one reading of the models; at weight 0 it is the base's own (which in the released form sees the
    preference)."""
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
            seen = ids_of(tokenizer, guide.base_prompt(asked[i][0], who[i]))
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
    """Which pairs each guide (name -> guide, and for whom it steers on each pair) ranks right, as a policy and as a
    reward: the long table, `method` being the guide, with `weight` and `of` (`POLICY` or `REWARD`)."""
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
    """KL (nats a token) of the policy of `guide` (`PAD`, paper's form) from what it was trained from, along each
    answer: `[n]`, NaN for an empty one. Exact at every token over the whole vocabulary, so that over sampled answers it
    estimates the KL of whole answers without the noise of their log-ratios."""
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
                raise ValueError(f"form={guide.form!r}, who={who[i]!r}: expected PAD's paper form, one user or wish.")
            rows += own  # the policy, and what it was trained from
            said += [ids[start:]] * 2
        logits = _read(rows, said, tokenizer.pad_token_id)
        for place, i in enumerate(chunk):
            policy, base = (logits[2 * place + of].float().log_softmax(-1) for of in (0, 1))  # [T, V] both
            found[i] = F.kl_div(base, policy, reduction="none", log_target=True).sum(-1).mean().item()
    return found


def _read(rows: Sequence[Row], completions: Sequence[list[int]], pad: int) -> list[torch.Tensor]:
    """Logits `[T, V]` of each row at the positions that predict its completion; equal rows are read once."""
    asked = [(row, tuple(completion)) for row, completion in zip(rows, completions, strict=True)]
    alike = defaultdict(list)
    for row, completion in dict.fromkeys(asked):  # base and reference are often the same
        alike[row.model, row.adapter, row.head, row.user is None].append((row, completion))
    found: dict[tuple, torch.Tensor] = {}
    for group in alike.values():
        of = [row for row, _ in group]
        users = None if of[0].user is None else torch.tensor([row.user for row in of])
        texts = [(list(row.ids), list(completion)) for row, completion in group]
        with reading(of):
            logits = completion_logits(of[0].model, texts, pad, users)
        found |= {key: part[-len(key[1]) :] for key, part in zip(group, logits, strict=True)}
    return [found[key] for key in asked]


def rank_correlation(ranks: pd.DataFrame, resamples: int = 1_000, seed: int = 0) -> Interval:
    """Do good rewards make good policies? Kendall's tau-b between a reward's accuracy and its policy's, over guides and
    users, with a 95% interval over users. NaN where one of them does not vary, and of fewer than `FEW_USERS`.

    `ranks`: of `policy_ranks` at one weight. Leave out PAD's released form, whose reward is a policy's own
    log-likelihood.
    """
    assert ranks.weight.nunique() == 1, "ranks of one weight, expected: choose one"
    means = ranks.groupby(["user_id", "method", "of"], sort=False).value.mean().unstack("of", sort=False)
    values, users = means[[REWARD, POLICY]].to_numpy(), means.index.get_level_values("user_id")

    def tau(weights: np.ndarray) -> float:
        return float(kendalltau(*values.repeat(weights.astype(int), axis=0).T).statistic)

    found, low, high = bootstrap(tau, users, resamples=resamples, seed=seed)
    low, high = np.clip((low, high), -1, 1)
    return Interval(np.nan if np.isnan(low) else float(found), float(low), float(high), len(means), users.nunique())
