"""Means with intervals for every group of one long table. It has a row a measured value: `user_id`, `prompt` (its
text), `item` (the pair, question or answer), `method`, `value`, and columns to group by: `split`, `judge`, `k`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import ArrayLike

from prlhf_kit.data.chat import prompt_texts_of
from prlhf_kit.evaluation.statistics import crossed_interval, crossed_test, detectable, holm

ALL = "all"  # users or communities together
BY_USER_AND_PROMPT = ("user_id", "prompt")  # the interval covers new users and prompts
ITEM = ("user_id", "prompt", "item")


def long_table(pairs: Dataset, values: Mapping[str, ArrayLike], **columns: Any) -> pd.DataFrame:
    """The long table of `pairs` from `values`, method -> `[n]`; `columns` are the same for all rows, or
    `[n]`. `prompt` is what `prompt_texts_of` says."""
    rows = pd.DataFrame({"user_id": list(pairs["user_id"]), "group": list(pairs["group"])})
    rows = rows.assign(prompt=prompt_texts_of(pairs), item=list(pairs["pair_id"]), **columns)
    tables = [rows.assign(method=method, value=np.asarray(value, float)) for method, value in values.items()]
    return pd.concat(tables, ignore_index=True)


def intervals(
    table: pd.DataFrame,
    value: str = "value",
    by: str | Sequence[str] = ("method",),
    cluster: str | Sequence[str] | None = BY_USER_AND_PROMPT,
    *,
    null: float | None = None,
    seed: int = 0,
    **more: Any,
) -> pd.DataFrame:
    """Mean of the column `value` for each group of a table, with a 95% interval; NaN are left out.

    Args:
        by: the columns that make the groups, which stay in the order of the table.
        cluster: what would be drawn anew: "user_id", "prompt", both (`crossed_interval`), or None: every row by itself.
        null: also test that the mean is this: `p` (`crossed_test`), `detectable`.
        more: further columns, each a column and how pandas sums it up: `users=("user_id", "nunique")`.

    Returns:
        One row a group: `by`, the mean under the column's own name, `low`, `high` (NaN of one cluster), `p`,
        `detectable`, `n`, `clusters`, and `more`.

    >>> table = pd.DataFrame({"method": ["a", "a", "b"], "user_id": ["u", "v", "u"], "value": [1.0, 0.0, 1.0]})
    >>> intervals(table, by=["method"], cluster="user_id")[["method", "value", "n"]].to_numpy().tolist()
    [['a', 0.5, 2], ['b', 1.0, 1]]
    """
    by = [by] if isinstance(by, str) else list(by)
    clusters = [] if cluster is None else [cluster] if isinstance(cluster, str) else list(cluster)
    tested = [] if null is None else ["p", "detectable"]
    rows = []
    for names, group in table.groupby(by, sort=False, dropna=False):
        known = group[group[value].notna()]
        if known.empty:
            rows.append((*names, *[np.nan] * (3 + len(tested)), 0, 0))
            continue
        drawn: list[Any] = [known[column] for column in clusters] or [range(len(known))]
        found = crossed_interval(known[value], *drawn, seed=seed)
        gap = known[value] - (null or 0)
        tests = [crossed_test(gap, *drawn, seed=seed), detectable(gap, *drawn)] if tested else []
        rows.append((*names, *found[:3], *tests, found.n, found.clusters))
    summed = pd.DataFrame(rows, columns=[*by, value, "low", "high", *tested, "n", "clusters"])
    if not more:
        return summed
    known = table[table[value].notna()].groupby(by, sort=False, dropna=False).agg(**more).reset_index()
    return summed.merge(known, "left", on=by)


def with_holm(table: pd.DataFrame, family: Sequence[str] = ()) -> pd.DataFrame:
    """`table` with `p_holm` behind `p`: corrected over all rows with the same values of the columns `family`."""
    found, known = table.copy(), table[table.p.notna()]
    found.insert(list(found).index("p") + 1, "p_holm", np.nan)
    for _, part in known.groupby(list(family), sort=False, dropna=False) if family else [("", known)]:
        found.loc[part.index, "p_holm"] = holm(part.p.tolist())
    return found


def paired_differences(
    table: pd.DataFrame, baseline: pd.DataFrame, value: str = "value", on: Sequence[str] = ("user_id", "prompt")
) -> pd.DataFrame:
    """Each row's value minus the baseline's for the same columns `on`; rows without a partner are left out."""
    theirs = baseline[[*on, value]].rename(columns={value: "_baseline"})
    both = table.merge(theirs, on=list(on), validate="many_to_one")
    return both.assign(**{value: both[value] - both._baseline}).drop(columns="_baseline").dropna(subset=value)


def differences(
    table: pd.DataFrame,
    wanted: Sequence[tuple[str, str]],
    by: Sequence[str] = (),
    cluster: str | Sequence[str] = BY_USER_AND_PROMPT,
    *,
    column: str = "method",
    seed: int = 0,
) -> pd.DataFrame:
    """One method minus another on the same items, paired, for each value of `by`: `by`, `one`, `other`, `difference`
    and the rest of `intervals`, with `users` and `p_holm`, corrected over the rows with the same values of `by`.

    Args:
        wanted: (one, other), such as `against("P-DPO, user", table.method)`; what is not in the table is left out.
        column: what is compared: methods, or for instance the contexts of one.
    """
    ones = pd.DataFrame(wanted, columns=["one", "other"]).merge(table.rename(columns={column: "one"}), on="one")
    gaps = paired_differences(ones, table.rename(columns={column: "other"}), on=[*by, *ITEM, "other"])
    gaps = gaps.rename(columns={"value": "difference"})
    groups = [*by, "one", "other"]
    found = intervals(gaps, "difference", groups, cluster, null=0, seed=seed, users=("user_id", "nunique"))
    return with_holm(found, by)


def against(one: str, others: Sequence[str]) -> list[tuple[str, str]]:
    """`one` with each of the others, once: `("a", ["a", "b", "c", "b"])` gives `[("a", "b"), ("a", "c")]`."""
    return [(one, other) for other in dict.fromkeys(others) if other != one]


def as_metrics(table: pd.DataFrame, name: str, value: str = "value", bounds: bool = True) -> dict[str, float | None]:
    """Rows of an intervals table as numbers of a run's record; what is not a number is None. `name` has the table's
    columns in braces: "accuracy/{split}/{method}"; with `bounds` also "accuracy_low/...", "accuracy_high/..." and
    "accuracy_n/...".

    >>> as_metrics(pd.DataFrame({"method": ["m"], "value": [0.5]}), "accuracy/{method}", bounds=False)
    {'accuracy/m': 0.5}
    """
    kind, _, rest = name.partition("/")
    ends = {"": value, "_low": "low", "_high": "high", "_n": "n"} if bounds else {"": value}
    return {
        f"{kind}{end}/{rest}".format_map(row): None if pd.isna(row[column]) else row[column]
        for row in table.to_dict("records")
        for end, column in ends.items()
    }


def readable(table: pd.DataFrame, index: str, columns: str, value: str = "value") -> pd.DataFrame:
    """An intervals table to read: "mean [low, high]" of each `index` (down) and `columns` (across)."""
    cells = [f"{v:.2f} [{lo:.2f}, {hi:.2f}]" for v, lo, hi in zip(table[value], table.low, table.high, strict=True)]
    return table.assign(cells=cells)[table[value].notna()].pivot(index=index, columns=columns, values="cells")
