"""Drawing pairs: few-shot sets, at most so many, subsamples."""

from collections import Counter
from itertools import combinations

import pytest
from datasets import Dataset, DatasetDict

import prlhf_kit as kit
from prlhf_kit.data.schema import SchemaError, record
from prlhf_kit.data.select import drawn, in_blocks, subsample


def test_few_shot_is_nested(personalllm_folder):
    data = kit.data.load("personalllm", personalllm_folder, users=10, pairs_per_user=20, test_pairs_per_user=10)
    sets = {k: kit.data.few_shot(data, k) for k in (1, 2, 5, 20)}
    for k, rows in sets.items():
        assert len(rows) == 2 * k
        assert set(rows["user_id"]) == {"user-8", "user-9"}
    for a, b in combinations(sets, 2):
        assert set(sets[a]["pair_id"]) < set(sets[b]["pair_id"])
    assert set(sets[5]["pair_id"]) != set(kit.data.few_shot(data, 5, seed=1)["pair_id"])
    with pytest.raises(kit.data.SchemaError, match="2 of 2 unseen users have fewer"):
        kit.data.few_shot(data, 21)
    assert len(kit.data.few_shot(data, 21, allow_fewer=True)) == 40
    with pytest.raises(kit.data.SchemaError, match="no split 'adapt_unseen'"):
        kit.data.few_shot(DatasetDict(train=data["train"]), 1)


def test_at_most_so_many_pairs_of_a_user():
    data = kit.data.load("simulated", pairs_per_user=10, test_pairs_per_user=4)
    few, fewer = (kit.data.at_most(data, seed=3, train=k, test_seen=2) for k in (6, 3))
    assert set(Counter(few["train"]["user_id"]).values()) == {6}
    assert set(fewer["train"]["pair_id"]) < set(few["train"]["pair_id"])
    assert set(Counter(few["test_seen"]["user_id"]).values()) == {2}
    assert few["test_unseen"].num_rows == data["test_unseen"].num_rows
    assert kit.data.at_most(data, train=None)["train"]["pair_id"] == data["train"]["pair_id"]
    with pytest.raises(kit.data.SchemaError, match="no split 'dev'"):
        kit.data.at_most(data, dev=3)
    with pytest.raises(kit.data.SchemaError, match="train=0: expected a number"):
        kit.data.at_most(data, train=0)


def subset(pairs, *args, **options):
    return set(subsample(pairs, *args, **options)["pair_id"])


def test_blocks_are_of_one_user_and_prompt():
    rows = [record(f"p{i}", "ab"[i % 2], f"Q{i // 10}", "Yes.", f"No {i}.") for i in range(20)]  # 5 of each of four
    pairs = in_blocks(Dataset.from_list(rows), 2, seed=3)
    keys = [(row["user_id"], row["prompt"][0]["content"]) for row in pairs]
    blocks = [keys[i : i + 2] for i in range(0, 16, 2)]
    assert all(first == second for first, second in blocks)
    assert len(set(keys[16:])) == 4  # the fifth of each
    assert sorted(pairs["pair_id"]) == sorted(row["pair_id"] for row in rows)
    assert pairs["pair_id"] != in_blocks(Dataset.from_list(rows), 2, seed=4)["pair_id"]


def test_subsample_takes_users_alike_and_whole_prompts():
    users = ["a"] * 40 + ["b"] * 8
    pairs = Dataset.from_list([record(f"p{i}", u, f"Q{i // 2}", "Yes.", f"No {i}.") for i, u in enumerate(users)])
    few = subsample(pairs, 8)
    assert sorted(few["user_id"]) == ["a"] * 4 + ["b"] * 4
    assert {sum(p == q for q in few["prompt"]) for p in few["prompt"]} == {2}
    assert set(few["pair_id"]) <= subset(pairs, 16)  # nested
    assert subset(pairs, 8, seed=5) == subset(pairs.select(range(47, -1, -1)), 8, seed=5) != subset(pairs, 8, seed=6)
    assert len(subsample(pairs, None, 1)) == 24
    with pytest.raises(SchemaError, match="pairs_per_prompt=0"):
        subsample(pairs, pairs_per_prompt=0)


def test_drawn_names_keep_their_order():
    assert drawn(list("dcba"), None) == list("dcba")
    assert drawn(list("dcba"), 2, seed=1) in (["d", "c"], ["d", "b"], ["d", "a"], ["c", "b"], ["c", "a"], ["b", "a"])
    assert len({tuple(drawn(list("dcba"), 2, seed)) for seed in range(9)}) > 1
