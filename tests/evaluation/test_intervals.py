"""One long table and what is made of it: the numbers of the functions underneath, group by group, and by hand."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from prlhf_kit.data.schema import record
from prlhf_kit.evaluation.intervals import (
    BY_USER_AND_PROMPT,
    ITEM,
    against,
    as_metrics,
    differences,
    intervals,
    long_table,
    paired_differences,
    readable,
    with_holm,
)
from prlhf_kit.evaluation.statistics import crossed_interval, crossed_test, detectable, holm


@pytest.fixture
def table():
    """Eight users, ten prompts that all of them answer, three methods; every tenth number is missing."""
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"p{p}", f"u{u}p{p}", m) for m in "abc" for u in range(8) for p in range(10)]
    found = pd.DataFrame(rows, columns=["user_id", "prompt", "item", "method"])
    found["value"] = rng.integers(0, 3, len(found)) / 2
    found.loc[::10, "value"] = np.nan
    return found.assign(split=np.where(found.user_id < "u5", "seen", "unseen"))


@pytest.mark.parametrize("cluster", ["user_id", "prompt", BY_USER_AND_PROMPT, None])
def test_every_group_has_the_interval_and_the_test_of_its_values(table, cluster):
    found = intervals(table, "value", ["split", "method"], cluster, null=0.5, seed=3, users=("user_id", "nunique"))
    groups = table.dropna(subset="value").groupby(["split", "method"], sort=False)
    assert [*zip(found.split, found.method, strict=True)] == [*groups.groups]
    for row, (_, part) in zip(found.itertuples(), groups, strict=True):
        columns = [cluster] if isinstance(cluster, str) else cluster or []
        names = [part[column] for column in columns] or [range(len(part))]
        assert (row.value, row.low, row.high, row.n, row.clusters) == crossed_interval(part.value, *names, seed=3)
        assert row.p == crossed_test(part.value - 0.5, *names, seed=3)
        assert row.detectable == pytest.approx(detectable(part.value - 0.5, *names), nan_ok=True)
        assert row.users == part.user_id.nunique()


def test_groups_without_a_number_a_name_or_a_second_cluster(table):
    empty = table.assign(value=table.value.where(table.method != "b"))
    found = intervals(empty, cluster="user_id", null=0.0).set_index("method")
    assert found.n.to_dict() == {"a": 72, "b": 0, "c": 72}
    assert found.loc["b", ["value", "low", "high", "p"]].isna().all()
    one = intervals(table[table.user_id == "u0"], by="method", cluster="user_id")
    assert one.low.isna().all()
    assert one.value.notna().all()
    assert intervals(table[:0], null=0.0).empty
    found = intervals(table.assign(group=None), by=["group", "method"], cluster="user_id", users=("user_id", "nunique"))
    assert found.group.isna().all()
    assert found.users.tolist() == [8] * 3


def test_paired_differences_are_those_of_the_pairs_both_have(table):
    found = differences(table, against("a", table.method), ["split"])
    assert found[["split", "one", "other"]].to_numpy().tolist() == [
        [split, "a", other] for other in "bc" for split in ("seen", "unseen")
    ]
    for row in found.itertuples():
        wide = table[table.split == row.split].pivot(index=["user_id", "prompt"], columns="method", values="value")
        both = wide[["a", row.other]].dropna()
        gap, (users, prompts) = both["a"] - both[row.other], zip(*both.index, strict=True)
        assert tuple(row[4:7]) == pytest.approx(crossed_interval(gap, users, prompts)[:3])
        assert row.p == pytest.approx(crossed_test(gap, users, prompts))
    for _, part in found.groupby("split"):
        assert part.p_holm.tolist() == holm(part.p.tolist())
    assert differences(table, [("a", "nobody")], ["split"]).empty


def test_differences_by_hand():
    """Users a (3 of 4 right), b (1 of 2), c (0 of 2) under `m`; always right under `o`; two prompts for all."""
    pairs = Dataset.from_list([record(f"{i}", u, f"{i % 2}", "x", "y") for i, u in enumerate("aaaabbcc")])
    scores = long_table(pairs, {"m": [1, 1, 1, 0, 1, 0, 0, 0], "o": [1.0] * 8}, split="test_seen")
    found = differences(scores, [("o", "m")], ["split"]).iloc[0]
    # the users' sums 1, 1, 2: only the two permutations with equal signs are as far from 0; but of the prompts, which
    # all users share, two of four are
    assert (found.one, found.other, found.difference, found.p, found.n, found.users) == ("o", "m", 0.5, 2 / 4, 8, 3)
    assert differences(scores.assign(prompt=scores.item), [("o", "m")], ["split"]).p[0] == 2 / 8
    gaps = paired_differences(scores[scores.method == "o"], scores[scores.method == "m"], on=ITEM)
    assert intervals(gaps, by="user_id", cluster="prompt").value.tolist() == [0.25, 0.5, 1]


def test_holm_in_families():
    table = pd.DataFrame({"judge": list("xxxy"), "p": [0.01, 0.04, 0.03, 0.2]})
    assert with_holm(table, ["judge"]).p_holm.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.2])
    assert with_holm(table).p_holm.tolist() == pytest.approx(holm(table.p.tolist()))
    assert np.isnan(with_holm(table.assign(p=[0.01, np.nan, 0.03, 0.2])).p_holm[1])


def test_the_long_table_of_pairs():
    pairs = Dataset.from_list([record("1", "a", "P?", "x", "y", group="g"), record("2", "b", "Q?", "x", "y")])
    found = long_table(pairs, {"m": [1, 0], "o": [0.5, 1]}, split="test_seen")
    assert found.columns.tolist() == ["user_id", "group", "prompt", "item", "split", "method", "value"]
    assert found.value.tolist() == [1, 0, 0.5, 1]
    assert found.prompt.tolist() == ["P?", "Q?"] * 2
    assert found.group.isna().tolist() == [False, True] * 2


def test_as_metrics_and_to_read():
    table = pd.DataFrame({"judge": ["j", "k"], "w": [1.0, 0.5], "value": [0.5, np.nan], "low": [0.25, np.nan]})
    table = table.assign(high=0.75, n=[4, 0])
    found = as_metrics(table, "gain, {judge}/w={w:g}")
    assert list(found)[:4] == ["gain, j/w=1", "gain, j_low/w=1", "gain, j_high/w=1", "gain, j_n/w=1"]
    assert list(found.values()) == [0.5, 0.25, 0.75, 4, None, None, 0.75, 0]
    assert as_metrics(table, "n/{judge}", "n", bounds=False) == {"n/j": 4, "n/k": 0}
    assert readable(table, "judge", "w").to_dict() == {1.0: {"j": "0.50 [0.25, 0.75]"}}
