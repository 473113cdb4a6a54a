"""Whom a method serves: rewards' accuracies pooled, by user, for the worst served, by group.

All functions take the tidy table of scores, one row a number: `measure`, `method`, `split`, `user_id`, `group`, `item`
(pair or answer), `prompt`, `value`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from datasets import Dataset

from prlhf_kit.data.chat import prompt_text
from prlhf_kit.evaluation.statistics import (
    FEW,
    cluster_bootstrap,
    crossed_interval,
    crossed_test,
    detectable,
    expanded,
    holm,
)

ACCURACY = "reward accuracy"
SCORES = ("measure", "method", "split", "user_id", "group", "item", "prompt", "value")


def tidy(ranked: pd.DataFrame, pairs: Dataset, split: str, measure: str = ACCURACY) -> pd.DataFrame:
    """A table with one column a method (`accuracy.ranked_by_method`) as rows of the table of scores.

    Args:
        ranked: one row a pair of `pairs`, in order: `pair_id`, `user_id`, and a column a method.
    """
    known = ranked.rename(columns={"pair_id": "item"})
    known = known.assign(group=pairs["group"], prompt=[prompt_text(prompt) for prompt in pairs["prompt"]])
    long = known.melt(["user_id", "item", "group", "prompt"], var_name="method")
    return long.assign(measure=measure, split=split)[list(SCORES)]


def means(scores: pd.DataFrame, by: Sequence[str], cluster: str = "user_id", seed: int = 0) -> pd.DataFrame:
    """Mean value for each value of `by`, with a 95% interval clustered by `cluster` ("user_id", "prompt", or "both":
    `crossed_interval`): `by`, `value`, `low`, `high`, `n`, `clusters`. Values that are NaN are left out."""
    rows = []
    for names, part in scores.dropna(subset="value").groupby(list(by), sort=False, dropna=False):
        if cluster == "both":
            i = crossed_interval(part.value, part.user_id, part.prompt, seed=seed)
        else:
            i = cluster_bootstrap(part.value, part[cluster].astype(str), seed=seed)
        rows.append((*names, i.estimate, i.low, i.high, i.n, i.clusters))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "n", "clusters"])


def spread(scores: pd.DataFrame, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """How evenly a method serves its users: for each split and method the worst user's accuracy, the 10th percentile,
    the median and the best.

    The least of several noisy numbers is too low on average, even where all users are served alike: look at the
    controls' rows beside it.

    Returns:
        Columns `measure`, `split`, `method`, `of` ("worst user", "10th percentile", "median user", "best user"),
        `value` with `low`, `high` (95%: of the worst and the best user their own interval, clustered by prompt; of
        percentiles over users drawn anew, NaN of fewer than 6), `user_id` (who it is; None for percentiles), `n` (that
        user's values; for percentiles all) and `users`.
    """
    rows = []
    for names, part in scores.dropna(subset="value").groupby(["measure", "split", "method"], sort=False):
        own = part.groupby("user_id", sort=False).value.mean()
        for name, who in (("worst user", own.idxmin()), ("best user", own.idxmax())):
            mine = part[part.user_id == who]
            i = cluster_bootstrap(mine.value, mine.prompt.astype(str), seed=seed)
            rows.append((*names, name, i.estimate, i.low, i.high, who, i.n, len(own)))
        drawn = np.random.default_rng(seed).choice(own.to_numpy(), (resamples, len(own)))
        for name, q in (("10th percentile", 10), ("median user", 50)):
            value = np.percentile(own, q)
            low, high = np.nan, np.nan
            if len(own) >= FEW:
                low, high = np.quantile(np.percentile(drawn, q, axis=1), expanded(len(own)))
            rows.append((*names, name, value, low, high, None, len(part), len(own)))
    columns = ["measure", "split", "method", "of", "value", "low", "high", "user_id", "n", "users"]
    return pd.DataFrame(rows, columns=columns)


def differences(scores: pd.DataFrame, method: str, by: Sequence[str] = ("split",), seed: int = 0) -> pd.DataFrame:
    """A method minus each other one on the same items, paired, one row for each other method and value of `by`.

    Returns:
        Columns `by`, `method`, `control`, `difference` with `low`, `high` (95%, `crossed_interval`), `p`
        (`crossed_test`), `p_holm` (corrected over the rows of one value of `by`), `detectable` (see `statistics`), `n`
        and `users`.
    """
    _one_measure(scores)
    rows = []
    for names, part in scores.groupby(list(by), sort=False, dropna=False):
        table = part.pivot(index=["user_id", "prompt", "item"], columns="method", values="value")
        if method not in table:
            continue
        for control in dict.fromkeys(part.method):
            both = table[[method, control]].dropna() if control != method else table[:0]
            if len(both):
                gap = both[method] - both[control]
                users, prompts = (both.index.get_level_values(name) for name in ("user_id", "prompt"))
                i = crossed_interval(gap, users, prompts, seed=seed)
                p = crossed_test(gap, users, prompts, seed=seed)
                row = (i.estimate, i.low, i.high, p, detectable(gap, users, prompts), i.n, users.nunique())
                rows.append((*names, method, control, *row))
    columns = [*by, "method", "control", "difference", "low", "high", "p", "detectable", "n", "users"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(len(by) + 6, "p_holm", np.nan)
    for _, part in table.groupby(list(by), sort=False, dropna=False):
        table.loc[part.index, "p_holm"] = holm(part.p.tolist())
    return table


def gains_by_user(scores: pd.DataFrame, method: str, control: str, seed: int = 0) -> pd.DataFrame:
    """What each user gains by `method` over `control` on the same items, the least first.

    Returns:
        Columns `user_id`, `group`, `gain` with `low`, `high` (95%, clustered by prompt), `n`.
    """
    _one_measure(scores)
    keys = ["user_id", "item"]
    one, other = (scores[scores.method == name].set_index(keys) for name in (method, control))
    gap = (one.value - other.value).dropna()
    rows = []
    for user, part in gap.groupby("user_id", sort=False):
        rows_of_user = one.loc[part.index]
        i = cluster_bootstrap(part, rows_of_user.prompt, seed=seed)
        rows.append((user, rows_of_user.group.iloc[0], i.estimate, i.low, i.high, i.n))
    table = pd.DataFrame(rows, columns=["user_id", "group", "gain", "low", "high", "n"])
    return table.sort_values("gain", kind="stable", ignore_index=True)


def _one_measure(scores: pd.DataFrame) -> None:
    measures = sorted(set(scores.measure))
    if len(measures) > 1:
        raise ValueError(f"the scores are of {len(measures)} measures ({', '.join(measures[:5])}, ...): choose one.")
