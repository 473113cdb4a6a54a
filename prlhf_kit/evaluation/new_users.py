"""How well users who were not in training are served, by the number of their pairs that is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from datasets import DatasetDict
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prlhf_kit.data.select import few_shot
from prlhf_kit.evaluation.accuracy import ranked_right
from prlhf_kit.evaluation.intervals import long_table
from prlhf_kit.training.new_users import adapt, log_ratios, tokenized, weigh

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
    """The long table, with `k`, of which pairs of `test_unseen` are ranked right after adapting to k of each new user's
    pairs of `adapt_unseen`: `GENERIC_ROW` (at k=0), `NEAREST` and, unless `steps=0`, `FITTED`. The pairs of k=2 are
    among those of k=4.

    What pairs are worth to the generic row and to every known user is computed once for all k. `steps`,
    `learning_rate`, `beta` and `batch_size` are those of `adapt`.
    """
    test = data["test_unseen"]
    largest = few_shot(data, max(ks), seed)
    place = {pair: i for i, pair in enumerate(largest["pair_id"])}
    known = weigh(model, tokenizer, largest, batch_size)
    tested = weigh(model, tokenizer, test, batch_size)
    asked = tokenized(model, tokenizer, test) if steps else []
    tables = [long_table(test, {GENERIC_ROW: ranked_right(tested.margins[:, 0], 0)}, k=0)]
    for k in tqdm(ks, desc="known pairs a user", disable=None, leave=False):
        pairs = few_shot(data, k, seed)
        found = adapt(
            model,
            tokenizer,
            pairs,
            steps=steps,
            learning_rate=learning_rate,
            beta=beta,
            batch_size=batch_size,
            evidence=known.of([place[pair] for pair in pairs["pair_id"]]),
        )
        who = [found.user_ids.index(user) for user in test["user_id"]]
        nearest = [tested.rows.index(found.start[i]) for i in who]
        margins = {NEAREST: tested.margins[np.arange(len(test)), nearest]}
        if steps:
            ratios = []
            with torch.no_grad():
                for i in range(0, len(test), batch_size):
                    own = found.own[who[i : i + batch_size]]
                    ratios.append(log_ratios(model, asked[i : i + batch_size], own, tokenizer.pad_token_id))
            margins[FITTED] = torch.cat(ratios).cpu().double().numpy() - tested.reference
        tables.append(long_table(test, {method: ranked_right(margin, 0) for method, margin in margins.items()}, k=k))
    return pd.concat(tables, ignore_index=True)
