"""How well users who were not in training are served, by the number of their pairs that is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.select import few_shot
from prlhf_kit.evaluation.accuracy import ranked_right
from prlhf_kit.evaluation.intervals import long_table
from prlhf_kit.models.user_index import GENERIC
from prlhf_kit.training.new_users import adapt, known_users, log_ratios, tokenized, weigh

GENERIC_ROW, NEAREST, FITTED = "generic row", "nearest known user", "fitted row"


def ranked_by_pairs(
    model,
    tokenizer: PreTrainedTokenizerBase,
    data: DatasetDict,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    steps: int = 5,
    learning_rate: float = 3e-3,
    beta: float = 0.1,
    batch_size: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """Which pairs of `test_unseen` are ranked right after adapting to k pairs of each user's `adapt_unseen`.

    The pairs of k=2 are among those of k=4 (`few_shot`). What the pairs, and the test pairs, are worth to the generic
    row and to every known user is computed once for all k.

    Args:
        model: trained personalised model; the users of `test_unseen` have no row in it.
        ks: numbers of pairs a user.
        steps, learning_rate, beta, batch_size: of `adapt`; with `steps=0` the nearest known user is the end.
        seed: orders each user's pairs.

    Returns:
        The long table, with `k`; methods are `GENERIC_ROW`, which needs no pairs and stands at k=0, `NEAREST` and
        `FITTED`.
    """
    test = data["test_unseen"]
    known = known_users(model)
    largest = few_shot(data, max(ks), seed)
    place = {pair: i for i, pair in enumerate(largest["pair_id"])}
    evidence = weigh(model, tokenizer, largest, known, batch_size)
    worth, reference = weigh(model, tokenizer, test, known, batch_size)
    users = list(test["user_id"])
    asked = tokenized(model, tokenizer, test) if steps else []
    tables = [_table(0, GENERIC_ROW, test, worth[:, GENERIC])]
    for k in tqdm(ks, desc="known pairs a user", disable=None, leave=False):
        pairs = few_shot(data, k, seed)
        rows = [place[pair] for pair in pairs["pair_id"]]
        found = adapt(
            model,
            tokenizer,
            pairs,
            steps=steps,
            learning_rate=learning_rate,
            beta=beta,
            batch_size=batch_size,
            candidates=known,
            evidence=evidence.of(rows),
        )
        column = {user: (GENERIC, *known).index(row) for user, row in zip(found.user_ids, found.start, strict=True)}
        tables.append(_table(k, NEAREST, test, worth[np.arange(len(test)), [column[user] for user in users]]))
        if steps:
            own = found.own[[found.user_ids.index(user) for user in users]]
            tables.append(_table(k, FITTED, test, _log_ratio(model, tokenizer, asked, own, batch_size) - reference))
    return pd.concat(tables, ignore_index=True)


def _table(k: int, method: str, test: Dataset, margin: np.ndarray) -> pd.DataFrame:
    return long_table(test, {method: ranked_right(margin, np.zeros(len(margin)))}, k=k)


@torch.no_grad()
def _log_ratio(model, tokenizer, asked: list, own: torch.Tensor, batch_size: int) -> np.ndarray:
    parts = [slice(i, i + batch_size) for i in range(0, len(asked), batch_size)]
    shown = tqdm(parts, desc="scoring", disable=None, leave=False)
    found = [log_ratios(model, asked[part], own[part], tokenizer.pad_token_id) for part in shown]
    return torch.cat(found).cpu().double().numpy()
